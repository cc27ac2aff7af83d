"""Meta's folders: shards joined, RoPE reordered, and nothing believed that can be checked."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from checkpoints import (
    META,
    META_PARAMS,
    V4,
    bits,
    hf_tensors,
    write_folder,
    write_meta,
)
from random_models import replace, sharp_params
from tokenizer_files import rank_file

from convert.to_jax import to_jax
from jax_llama3 import RopeScaling, load
from jax_llama3.checkpoint.manifest import read_manifest
from jax_llama3.checkpoint.verification import verify

pytestmark = pytest.mark.reference
PARAMS = sharp_params(3, META)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_any_number_of_shards_gives_the_tree_bit_for_bit(tmp_path: Path, shards: int) -> None:
    assert shards <= META.n_kv_heads or shards == 4  # four shards hold two heads twice
    to_jax(write_meta(tmp_path / "in", PARAMS, shards=shards), tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config == META
    assert bits(model.params) == bits(PARAMS)
    verify(tmp_path / "out")


def test_a_hundred_shards_and_more_are_joined_by_number(tmp_path: Path) -> None:
    """As texts, 100 would come before 11."""
    config = replace(
        META,
        dim=256,
        n_heads=128,
        n_kv_heads=128,
        head_dim=2,
        ffn_dim=256,
        vocab_size=256,
        n_layers=1,
    )
    values = META_PARAMS | {"dim": 256, "n_heads": 128, "n_kv_heads": 128, "vocab_size": 256}
    values |= {"ffn_dim_multiplier": 0.376, "multiple_of": 256, "n_layers": 1}
    params = sharp_params(5, config)
    folder = write_meta(tmp_path / "in", params, config, shards=128, values=values)
    assert (folder / "consolidated.127.pth").exists()
    to_jax(folder, tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(params)


def test_rows_of_q_and_k_are_reordered_and_of_v_are_not(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "in", PARAMS)
    raw = torch.load(folder / "consolidated.00.pth", weights_only=True)
    to_jax(folder, tmp_path / "out")
    layer = load(tmp_path / "out").params.layers[1]
    wq = raw["layers.1.attention.wq.weight"].numpy()
    # Head 2's rows 0 1 2 3 ... in Meta's order: 0 2 4 ... are the first half of ours.
    np.testing.assert_array_equal(layer.wq[2, :8], wq[32:48:2])
    np.testing.assert_array_equal(layer.wq[2, 8:], wq[33:48:2])
    wv = raw["layers.1.attention.wv.weight"].numpy()
    np.testing.assert_array_equal(np.asarray(layer.wv).reshape(wv.shape), wv)


def test_bfloat16_parts_are_kept(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "in", PARAMS, shards=2, dtype="bfloat16")
    to_jax(folder, tmp_path / "out")
    up = load(tmp_path / "out").params.layers[0].w_up
    expected = torch.tensor(np.asarray(PARAMS.layers[0].w_up)).bfloat16().view(torch.int16)
    np.testing.assert_array_equal(np.asarray(up).view(np.int16), expected.numpy())


def test_an_output_that_equals_the_embedding_is_stored_once(tmp_path: Path) -> None:
    config = replace(META, tie_embeddings=True)
    params = sharp_params(4, config)
    to_jax(write_meta(tmp_path / "in", params, config, shards=2), tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config == config
    assert bits(model.params) == bits(params)
    assert any("stored once" in d for d in read_manifest(tmp_path / "out")["decisions"])


def test_the_original_folder_of_the_hub_is_metas(tmp_path: Path) -> None:
    write_meta(tmp_path / "hub" / "original", PARAMS)
    (tmp_path / "hub" / "README.md").write_text("a model card")
    to_jax(tmp_path / "hub", tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)
    # Beside a config.json it is a second copy, and Hugging Face's files are taken.
    both = write_folder(tmp_path / "both", V4, hf_tensors(sharp_params(11, META)))
    shutil.copytree(tmp_path / "hub" / "original", both / "original")
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight has shape"):
        to_jax(both, tmp_path / "other")
    to_jax(both / "original", tmp_path / "other")


# --- params.json ---


def test_the_chosen_scaling_is_in_the_manifest(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "in", PARAMS)
    to_jax(folder, tmp_path / "out", rope_factor=32.0)
    assert load(tmp_path / "out").config.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    assert "RoPE factor 32, as given" in read_manifest(tmp_path / "out")["decisions"]
    for factor in (0.0, -8.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="factor"):
            to_jax(folder, tmp_path / "bad", rope_factor=factor)
    source = write_folder(tmp_path / "hf", V4, hf_tensors(PARAMS))
    with pytest.raises(ValueError, match="--rope-factor is for Meta's folders"):
        to_jax(source, tmp_path / "bad", rope_factor=8.0)


PARAMS_LIES = {
    "vocabulary unknown": ({"vocab_size": -1}, "vocab_size"),
    "vocabulary other": ({"vocab_size": 105}, r"tok_embeddings\.weight has shape"),
    "unknown key": ({"moe_args": {}}, "moe_args"),
    "layers more": ({"n_layers": 3}, r"layers\.2\.attention_norm\.weight is missing"),
    "layers fewer": ({"n_layers": 1}, r"layers\.1\.attention\.wk\.weight has no place"),
    "layers absurd": ({"n_layers": 10**12}, "1000000000000 layers"),
    "heads odd": ({"n_heads": 3}, "dim 64 is not a multiple of 3 heads"),
    "heads none": ({"n_heads": 0}, "n_heads must be a positive integer, not 0"),
    "heads other": ({"n_heads": 8}, r"wk\.weight has shape"),
    "kv heads other": ({"n_kv_heads": 4}, r"wk\.weight has shape"),
    "theta text": ({"rope_theta": "1e4"}, "rope_theta"),
    "theta true": ({"rope_theta": True}, "rope_theta"),
    "eps none": ({"norm_eps": None}, "norm_eps"),
    "width": ({"multiple_of": 256}, r"w1\.weight has shape"),
    "multiple": ({"multiple_of": 0}, "multiple_of must be a positive integer, not 0"),
    "multiplier": ({"ffn_dim_multiplier": float("nan")}, "multiplier nan is not between"),
    "multiplier text": ({"ffn_dim_multiplier": "1"}, "ffn_dim_multiplier must be a number"),
    "multiplier absurd": ({"ffn_dim_multiplier": 1e18}, r"multiplier 1e\+18 is not between"),
    "scaled": ({"use_scaled_rope": "yes"}, "use_scaled_rope"),
    "dim text": ({"dim": "64"}, "dim"),
}


@pytest.mark.parametrize(("change", "message"), PARAMS_LIES.values(), ids=PARAMS_LIES.keys())
def test_params_that_lie_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    folder = write_meta(tmp_path / "in", PARAMS, values={**META_PARAMS, **change})
    with pytest.raises(ValueError, match=message):
        to_jax(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("key", ["dim", "vocab_size", "rope_theta", "norm_eps"])
def test_what_params_must_say_is_named(tmp_path: Path, key: str) -> None:
    values = {name: value for name, value in META_PARAMS.items() if name != key}
    with pytest.raises(ValueError, match=f"{key}.* is missing"):
        to_jax(write_meta(tmp_path / "in", PARAMS, values=values), tmp_path / "out")


# --- the set of files ---


def rewrite(change: Callable[[dict], None], rank: int = 1) -> Callable[[Path], None]:
    """A change to what one shard holds."""

    def apply(folder: Path) -> None:
        path = folder / f"consolidated.{rank:02}.pth"
        tensors = torch.load(path, weights_only=True)
        change(tensors)
        torch.save(tensors, path)

    return apply


def exchange(one: Path, other: Path) -> None:
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def double(folder: Path) -> None:
    """Both shards are the first, saved under a name that says nothing."""
    for rank in (0, 1):
        tensors = torch.load(folder / "consolidated.00.pth", weights_only=True)
        torch.save(tensors, folder / "archive.pth")
        (folder / "archive.pth").rename(folder / f"new{rank}")
    for rank in (0, 1):
        (folder / f"new{rank}").rename(folder / f"consolidated.{rank:02}.pth")


UP = "layers.1.feed_forward.w3.weight"
BROKEN_SETS = {
    "first missing": (lambda f: (f / "consolidated.00.pth").unlink(), "00.pth is missing"),
    "last missing": (lambda f: (f / "consolidated.01.pth").unlink(), "has shape"),
    "gap": (
        lambda f: (f / "consolidated.01.pth").rename(f / "consolidated.02.pth"),
        "01.pth is missing",
    ),
    "twice": (
        lambda f: shutil.copy(f / "consolidated.01.pth", f / "consolidated.02.pth"),
        "has shape",
    ),
    "exchanged": (
        lambda f: exchange(f / "consolidated.00.pth", f / "consolidated.01.pth"),
        "00.pth: it was saved as consolidated.01.pth",
    ),
    "one in the other's place": (double, "consolidated.01.pth is a copy of consolidated.00.pth"),
    "odd name": (
        lambda f: (f / "consolidated.01.pth").rename(f / "consolidated.1.pth"),
        "01.pth is missing",
    ),
    "tensor missing": (rewrite(lambda t: t.pop(UP)), f"{UP} is missing in consolidated.01"),
    "tensor extra": (rewrite(lambda t: t.update(x=torch.ones(1))), "x is missing in consolidated"),
    "shape": (rewrite(lambda t: t.update({UP: t[UP].T.contiguous()})), f"{UP} differs in shape"),
    "dtype": (rewrite(lambda t: t.update({UP: t[UP].half()})), f"{UP} differs in shape or dtype"),
    "nan": (rewrite(lambda t: t[UP].fill_(float("nan"))), "w_up holds NaN"),
    "norms differ": (
        rewrite(lambda t: t["norm.weight"].add_(1)),
        r"norm\.weight is not the copy",
    ),
    "safetensors beside": (lambda f: (f / "model.safetensors").touch(), "second format"),
    "gguf beside": (lambda f: (f / "model.gguf").touch(), "second format"),
    "no params": (lambda f: (f / "params.json").unlink(), r"params\.json is missing"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN_SETS.values(), ids=BROKEN_SETS.keys())
def test_a_set_that_is_not_whole_is_refused(tmp_path: Path, change: Callable, message: str) -> None:
    folder = write_meta(tmp_path / "in", PARAMS, shards=2)
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        to_jax(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_copies_of_a_kv_head_must_be_equal(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "in", PARAMS, shards=4)
    rewrite(lambda t: t["layers.0.attention.wv.weight"].mul_(2), rank=3)(folder)
    with pytest.raises(ValueError, match=r"consolidated\.03\.pth: layers\.0\.attention\.wv"):
        to_jax(folder, tmp_path / "out")


def checklist(folder: Path, *names: str) -> None:
    lines = []
    for name in names:
        md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
        lines.append(f"{md5}  {name}\n")
    (folder / "checklist.chk").write_text("".join(lines))


def test_a_checklist_is_verified(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "in", PARAMS, shards=2)
    names = ("consolidated.00.pth", "consolidated.01.pth", "params.json")
    checklist(folder, *names)
    to_jax(folder, tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)
    good = (folder / "checklist.chk").read_text()
    for index, name in enumerate(names):
        lines = good.splitlines()
        lines[index] = f"{0:032x}  {name}"
        (folder / "checklist.chk").write_text("\n".join(lines))
        with pytest.raises(ValueError, match=rf"{name} is damaged: its md5"):
            to_jax(folder, tmp_path / "bad")
    checklist(folder, "consolidated.00.pth")
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth is not in checklist\.chk"):
        to_jax(folder, tmp_path / "bad")
    (folder / "USE_POLICY.md").write_text("be good")
    for text, message in (
        ("", "is empty"),
        (good + good, "names a file twice"),
        (good + f"{0:032x}  USE_POLICY.md", r"USE_POLICY\.md is damaged: its md5"),
        (good + f"{0:032x}  consolidated.02.pth\n", "02.pth is missing"),
        (good + f"{0:032x}  ../secret\n", "not a plain file name"),
        ("<html>no such page</html>", "not a list of md5 sums"),
        ("zz  params.json", "not a list of md5 sums"),
    ):
        (folder / "checklist.chk").write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            to_jax(folder, tmp_path / "bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("name", ["tokenizer.model", "checklist.chk", "params.json"])
@pytest.mark.parametrize("kind", ["dangling", "link out", "directory"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    folder = write_meta(tmp_path / "in", PARAMS)
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "directory":
        path.mkdir()
    else:
        if kind == "link out":
            (tmp_path / "secret").write_text("{}")
        path.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=rf"{name} is (no plain file|a link that leaves)"):
        to_jax(folder, tmp_path / "out")


def test_an_original_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    write_meta(tmp_path / "secret", PARAMS)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "original").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="original is a link"):
        to_jax(tmp_path / "hub", tmp_path / "out")


def test_stored_rope_frequencies_must_be_the_configs(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "in", PARAMS)
    freqs = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    rewrite(lambda t: t.update({"rope.freqs": torch.tensor(freqs).bfloat16()}), rank=0)(folder)
    to_jax(folder, tmp_path / "out")
    assert bits(load(tmp_path / "out").params) == bits(PARAMS)
    values = {**META_PARAMS, "rope_theta": 500000.0}
    (folder / "params.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"rope\.freqs contradicts the rope_theta 500000"):
        to_jax(folder, tmp_path / "bad")


def test_a_tokenizer_goes_along_and_must_fit(tmp_path: Path) -> None:
    config = replace(META, vocab_size=600)
    params = sharp_params(5, config)
    folder = write_meta(tmp_path / "in", params, config, values={**META_PARAMS, "vocab_size": 600})
    (folder / "tokenizer.model").write_bytes(rank_file())
    to_jax(folder, tmp_path / "out")
    assert load(tmp_path / "out").tokenizer.encode("hello", bos=True) == [263, 259]
    small = write_meta(tmp_path / "small", PARAMS)
    (small / "tokenizer.model").write_bytes(rank_file())
    with pytest.raises(ValueError, match="263 tokens, the embedding only 104"):
        to_jax(small, tmp_path / "bad")
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")  # SentencePiece's
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        to_jax(folder, tmp_path / "bad")
