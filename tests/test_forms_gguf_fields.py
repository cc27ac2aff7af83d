"""Fields of a GGUF file: what means none goes in, and what means something else is named."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from checkpoints import (
    PLAIN,
    notes,
    write_gguf,
)
from random_models import sharp_params
from refusals import refused

from jax_llama3 import load

GGUF_PARAMS = sharp_params(11, PLAIN)


def write_gguf_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, add: Callable[[gguf.GGUFWriter], None]
) -> Path:
    """A file with more fields than the model's own."""
    write = gguf.GGUFWriter.write_header_to_file

    def added(writer: gguf.GGUFWriter) -> None:
        add(writer)
        write(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", added)
    return write_gguf(path, PLAIN, GGUF_PARAMS)


def add_nones(writer: gguf.GGUFWriter) -> None:
    writer.add_expert_count(0)
    writer.add_expert_used_count(0)
    writer.add_sliding_window(0)
    writer.add_clamp_kqv(0.0)
    writer.add_causal_attention(True)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    writer.add_rope_scaling_factor(1.0)
    writer.add_rope_scaling_finetuned(False)
    writer.add_tensor_data_layout("Meta AI original pth")


def test_gguf_keys_that_mean_none_go_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_gguf_with(tmp_path / "in.gguf", monkeypatch, add_nones)
    assert notes(source, GGUF_PARAMS) == []
    assert load(tmp_path / "in.gguf-out").config == PLAIN


GGUF_REFUSED = {
    "experts": (lambda w: w.add_expert_count(8), "llama.expert_count 8 is not supported, only 0"),
    "a window": (lambda w: w.add_sliding_window(64), "llama.attention.sliding_window 64 is not"),
    "scaling": (
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
        "llama.rope.scaling.type 'linear' is not supported, only 'none'",
    ),
    "unknown": (
        lambda w: w.add_uint32("llama.magic", 0),
        "unknown key llama.magic; delete it if it changes nothing",
    ),
}


@pytest.mark.parametrize(("add", "message"), GGUF_REFUSED.values(), ids=GGUF_REFUSED.keys())
def test_gguf_keys_that_mean_something_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add: Callable, message: str
) -> None:
    source = write_gguf_with(tmp_path / "in.gguf", monkeypatch, add)
    assert message in refused(source)


def add_adapter(writer: gguf.GGUFWriter) -> None:
    writer.add_type("adapter")
    writer.add_string("general.base_model.0.name", "Llama 3.2 1B")


GGUF_IS = {
    "an adapter": (add_adapter, "it is a LoRA adapter of Llama 3.2 1B: convert that model"),
    "a projector": (lambda w: w.add_type("mmproj"), "it is of the type 'mmproj', not a model"),
}


@pytest.mark.parametrize(("add", "message"), GGUF_IS.values(), ids=GGUF_IS.keys())
def test_a_gguf_file_is_refused_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add: Callable, message: str
) -> None:
    source = write_gguf_with(tmp_path / "in.gguf", monkeypatch, add)
    assert refused(source).startswith(f"{source}: {message}")


def test_a_gguf_file_of_a_vocabulary_alone_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    line = "it holds no tensors, only a vocabulary; name the model's own file"
    assert refused(tmp_path / "in.gguf") == f"{tmp_path / 'in.gguf'}: {line}"


def add_bad_end(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_types([1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(7)


def test_an_end_that_a_gguf_vocabulary_lacks_is_named_by_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_gguf_with(tmp_path / "in.gguf", monkeypatch, add_bad_end)
    line = f"{source}: tokenizer.ggml.eos_token_id 7 is beyond its 3 tokens"
    assert refused(source) == line
