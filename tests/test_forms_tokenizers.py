"""Tokenizers as folders have them: slow files, tokens without a row, flags of added tokens, wrong ids."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import TINY, V4, hf_tensors, write_folder
from dialogs import TEXTS
from random_models import sharp_params
from tokenizer_files import generation, sentencepiece_like
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from convert.export import to_hf
from convert.formats.huggingface.tokenizer import huggingface_texts
from convert.to_jax import to_jax
from jax_llama3 import generate, load
from jax_llama3.checkpoint.manifest import read_manifest
from jax_llama3.text.chat import chat_tokens
from jax_llama3.text.tokenizer import GENERATION, JSON, Tokenizer, tokenizer_from_files
from jax_llama3.text.vocabulary import byte_level

README = Path(__file__).parent.parent / "README.md"
SIZE = 700


def byte_level_file() -> JsonTokenizer:
    """A tokenizer like GPT-2's, trained on the README."""
    tokenizer = JsonTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=[*byte_level()],
        show_progress=False,
    )
    tokenizer.train_from_iterator([README.read_text(encoding="utf-8")], trainer)
    return tokenizer


def slow_gpt2(folder: Path, **settings: object) -> Path:
    """A folder of vocab.json and merges.txt with two added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level_file().model.save(str(folder))
    added = {"<|im_start|>": SIZE - 2, "<think>": SIZE - 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {"eos_token": "<|im_start|>", "bos_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "GPT2Tokenizer", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tokenizer_of(folder: Path, config: dict | None = None) -> Tokenizer:
    return tokenizer_from_files(huggingface_texts(folder, config or {}).texts)


def test_vocab_json_and_merges_txt_are_read(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(slow_gpt2(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (0, SIZE - 2, False)
    assert tokenizer.stop_ids == (SIZE - 2,)
    assert tokenizer.vocabulary.special == {"<|endoftext|>": 0, "<|im_start|>": SIZE - 2}
    assert tokenizer.encode("a<think>b")[1] == SIZE - 1
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.reference
@pytest.mark.parametrize("spaced", [False, True])
def test_vocab_json_and_merges_txt_have_transformers_ids(tmp_path: Path, spaced: bool) -> None:
    from transformers import GPT2Tokenizer

    folder = slow_gpt2(tmp_path, add_prefix_space=spaced)
    ours = tokenizer_of(folder)
    theirs = GPT2Tokenizer.from_pretrained(folder, split_special_tokens=True)
    assert len(theirs) == SIZE
    for text in [*TEXTS, "a <think> b", "<|im_start|>x"]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], repr(text)


@pytest.mark.parametrize("name", [None, "Qwen2Tokenizer", "LlamaTokenizer"])
def test_merges_of_another_class_are_refused_with_the_remedy(
    tmp_path: Path, name: str | None
) -> None:
    folder = slow_gpt2(tmp_path, tokenizer_class=name)
    with pytest.raises(ValueError, match=rf"vocab\.json: .*{name}.*save a tokenizer\.json"):
        huggingface_texts(folder, {})


SLOW_FAULTS = {
    "merges of nothing": ("merges.txt", "#version: 0.2\nzz qq\n"),
    "no object": ("vocab.json", "[1]"),
    "two tokens of one id": ("added_tokens.json", '{"<|im_start|>": 5}'),
    "one token of two ids": ("added_tokens.json", '{"<|im_start|>": 699, "a": 699}'),
    "an id below 0": ("added_tokens.json", '{"<|im_start|>": -1}'),
    "an end without an id": ("added_tokens.json", "{}"),
    "no list of tokens": ("added_tokens.json", "[3]"),
    "an id that is no whole number": ("added_tokens.json", '{"<|im_start|>": 699.7}'),
    "an id that is a word": ("added_tokens.json", '{"<|im_start|>": "x"}'),
}


@pytest.mark.parametrize("case", SLOW_FAULTS)
def test_damaged_slow_files_are_refused_in_a_line(tmp_path: Path, case: str) -> None:
    name, text = SLOW_FAULTS[case]
    folder = slow_gpt2(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        tokenizer_of(folder)
    assert "\n" not in str(caught.value)


def model_folder(folder: Path, rows: int, data: bytes, **config: object) -> Path:
    values = {**V4, "vocab_size": rows, **config}
    write_folder(folder, values, hf_tensors(sharp_params(1, replace(TINY, vocab_size=rows))))
    (folder / JSON).write_bytes(data)
    return folder


def with_added(*tokens: dict) -> bytes:
    """The small SentencePiece-like tokenizer of 261 tokens, and more of the given flags."""
    values = json.loads(sentencepiece_like())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for index, token in enumerate(tokens):
        values["added_tokens"].append({"id": 261 + index, **plain, "special": False, **token})
    return json.dumps(values).encode()


def test_tokens_without_a_row_go_in_with_a_note_and_are_never_made(tmp_path: Path) -> None:
    data = with_added({"content": "<pad>", "special": True}, {"content": "<tool>"})
    source = model_folder(tmp_path / "in", 261, data, eos_token_id=260)
    to_jax(source, tmp_path / "out")
    notes = [t for t in read_manifest(tmp_path / "out")["decisions"] if t.startswith("note: ")]
    assert any("261 rows" in note and "<pad>, <tool>" in note for note in notes)
    model = load(tmp_path / "out")
    for text in ("a<pad>a", "<tool>", "a <tool>a"):
        ids = model.tokenizer.encode(text)
        assert max(ids) < 261
        assert model.tokenizer.decode(ids) == text
    template = replace(model.tokenizer, chat_template="{{ messages[0].content }}")
    assert max(chat_tokens(template, [{"role": "user", "content": "<tool><pad>"}])) < 261
    with pytest.raises(ValueError, match="token id 261 is outside the vocabulary of 261"):
        generate(model, [[1, 261]], max_new_tokens=1)
    to_hf(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / JSON).read_bytes() == data


def test_ordinary_tokens_without_a_row_are_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "in", 240, sentencepiece_like(), eos_token_id=2)
    with pytest.raises(ValueError, match="260 tokens, the embedding only 240 rows"):
        to_jax(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_embedding_with_more_rows_than_tokens_goes_in(tmp_path: Path) -> None:
    to_jax(model_folder(tmp_path / "in", 320, sentencepiece_like()), tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.tokenizer.decode([300]) == ""
    assert generate(model, "a", max_new_tokens=2, seed=0).tokens


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [261, -1, [260, 5000], "x"])
def test_an_end_that_is_no_token_is_named_in_the_users_file(
    tmp_path: Path, name: str, value: object
) -> None:
    (tmp_path / JSON).write_bytes(sentencepiece_like())
    config = {"eos_token_id": value if name == "config.json" else 260}
    if name != "config.json":
        (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ValueError, match=rf"{name}: eos_token_id "):
        huggingface_texts(tmp_path, config)


FLAGS = [
    {"content": "<l>", "lstrip": True},
    {"content": "<r>", "rstrip": True},
    {"content": "<w>", "single_word": True},
    {"content": "<n>", "normalized": True},
    {"content": "<s>", "lstrip": True, "rstrip": True, "special": True},
]
FLAGGED = [
    f"{a}{flag['content']}{b}" for flag in FLAGS for a in ("", " a ", "a") for b in ("", " a", "a")
]


@pytest.mark.reference
@pytest.mark.parametrize("scheme", ["never", "first", "always"])
def test_flags_of_added_tokens_are_applied_as_transformers_does(scheme: str) -> None:
    from transformers import PreTrainedTokenizerFast

    data = with_added(*FLAGS).replace(
        b'"prepend_scheme": "never"', f'"prepend_scheme": "{scheme}"'.encode()
    )
    ours = tokenizer_from_files({JSON: data, GENERATION: generation()})
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=JsonTokenizer.from_buffer(data), split_special_tokens=True
    )
    for text in [*FLAGGED, "".join(FLAGGED), *TEXTS[:100]]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], repr(text)
    assert ours.vocabulary.special["<s>"] not in ours.encode("".join(FLAGGED))


def test_a_space_before_a_text_is_put_there_by_every_kind_that_does_so() -> None:
    values = json.loads(sentencepiece_like())
    prepend = [{"type": "Prepend", "prepend": "\u2581"}]
    signs = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    old = {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}
    forms = [
        {
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, signs]},
            "pre_tokenizer": None,
        },
        {"pre_tokenizer": {**old, "prepend_scheme": "always"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [old]}},
    ]
    for form in forms:
        data = json.dumps({**values, **form}).encode()
        vocabulary = tokenizer_from_files({JSON: data, GENERATION: generation()}).vocabulary
        assert vocabulary.encode("a") == [259]
        assert vocabulary.encode("a", start=False) == [258]
        assert vocabulary.prefix_after_special


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_another_kind_of_model_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    values = json.loads(sentencepiece_like())
    values["model"] = {"type": kind, "vocab": [], "unk_token": "a"}
    (tmp_path / JSON).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"tokenizer.json: its model '{kind}' is not supported"):
        huggingface_texts(tmp_path, {})
