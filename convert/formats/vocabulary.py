"""Tokenizers of other formats as the files that jax_llama3 keeps."""

import json
import re
from pathlib import Path
from typing import Any

from jax_llama3.checkpoint.manifest import read_json
from jax_llama3.text.tokenizer import (
    GENERATION,
    JSON,
    MODEL,
    TEMPLATE,
    byte_level,
    tokenizer_from_files,
)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types


def huggingface_texts(folder: Path, config_values: dict) -> tuple[dict[str, bytes], list[Path]]:
    """Our tokenizer files from a Hugging Face folder, and the paths they come from."""
    try:
        return _huggingface_texts(folder, config_values)
    except (AttributeError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder}: a tokenizer file is damaged: {error}") from None


def _huggingface_texts(folder: Path, config_values: dict) -> tuple[dict[str, bytes], list[Path]]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _meta_texts(folder / MODEL)
    settings = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")
    data = path.read_bytes()
    tokenizer = _read_tokenizer(path, data)
    bos_id = _special_id(tokenizer, settings.get("bos_token"), config_values.get("bos_token_id"))
    stops = generation.get("eos_token_id", config_values.get("eos_token_id"))
    stop_ids = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    if not all(type(token) is int for token in stop_ids):
        raise ValueError(f"{folder}: eos_token_id {stops!r} is not a list of ids")
    eos_id = _special_id(tokenizer, settings.get("eos_token"), stop_ids[0] if stop_ids else None)
    if eos_id is not None and eos_id not in stop_ids:
        stop_ids.append(eos_id)
    texts = {
        JSON: data,
        GENERATION: _generation_bytes(
            bos_id=bos_id,
            eos_id=eos_id,
            add_bos=_adds_bos(tokenizer, settings, bos_id),
            stop_ids=stop_ids,
        ),
    }
    if template := _chat_template(folder, settings):
        texts[TEMPLATE] = template.encode()
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", TEMPLATE)
    return texts, [folder / name for name in names if (folder / name).is_file()]


def _meta_texts(path: Path) -> tuple[dict[str, bytes], list[Path]]:
    """Meta's tokenizer.model, if the folder has that one; SentencePiece's has the same name."""
    try:
        texts = {MODEL: path.read_bytes()}
        tokenizer_from_files(texts)
    except (FileNotFoundError, ValueError):
        return {}, []
    return texts, [path]


def gguf_texts(fields: dict) -> dict[str, bytes]:
    """Our tokenizer files from the fields of a GGUF file; none if it has no vocabulary."""
    if "tokenizer.ggml.model" not in fields:
        return {}
    model, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if model != "gpt2":
        raise ValueError(
            f"its vocabulary is of kind {model!r}, only 'gpt2' (byte-level BPE) is supported; "
            "convert the model's Hugging Face folder instead"
        )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    data = _byte_level_json(tokens, kinds, fields["tokenizer.ggml.merges"], pre)
    eos_id = fields.get("tokenizer.ggml.eos_token_id")
    ends = (
        eos_id,
        fields.get("tokenizer.ggml.eot_token_id"),
        fields.get("tokenizer.ggml.eom_token_id"),
    )
    bos_id = fields.get("tokenizer.ggml.bos_token_id")
    add_bos = fields.get("tokenizer.ggml.add_bos_token", pre in ("llama-bpe", "llama3"))
    if not isinstance(add_bos, bool):
        raise ValueError(f"tokenizer.ggml.add_bos_token {add_bos!r} is not true or false")
    texts = {
        JSON: data,
        GENERATION: _generation_bytes(
            bos_id=bos_id,
            eos_id=eos_id,
            add_bos=add_bos,
            stop_ids=list(dict.fromkeys(end for end in ends if end is not None)),
        ),
    }
    if template := fields.get("tokenizer.chat_template"):
        texts[TEMPLATE] = template.encode()
    return texts


def _generation_bytes(
    *, bos_id: int | None, eos_id: int | None, add_bos: bool, stop_ids: list[int]
) -> bytes:
    values = {"bos_id": bos_id, "eos_id": eos_id, "add_bos": add_bos, "stop_ids": stop_ids}
    return (json.dumps(values) + "\n").encode()


def _read_tokenizer(path: Path, data: bytes) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: {error}") from None


def _byte_level_json(tokens: list[str], kinds: list[int], merges: list[str], pre: str) -> bytes:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
        raise ValueError("its vocabulary holds a token twice, or too few token types")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if any(not left or not right or " " in right for left, right in pairs):
        raise ValueError("its vocabulary holds a merge that is not of two tokens")
    # Llama 3 takes a word that is a token whole, even where the merges alone would not reach it.
    whole_words = pre in ("llama-bpe", "llama3", "llama-v3")
    model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _without_lost_bytes(pre_tokenizer(pre), vocabulary)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            special = kind == _CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer.to_str().encode()


def pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    if pre in ("gpt-2", "default"):
        return byte_level
    if pre in ("llama-bpe", "llama3", "llama-v3"):
        split = pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, plain])
    raise ValueError(f"its pre-tokenizer {pre!r} is not supported")


def _without_lost_bytes(pre_tokenizer: Any, vocabulary: dict[str, int]) -> Any:
    """Take the bytes that have no token out, as a place where nothing merges.

    They are lost either way; but the library alone would merge what stands on their two sides.
    """
    from tokenizers import Regex, pre_tokenizers

    in_utf8 = {*range(0xC0), *range(0xC2, 0xF5)}
    lost = [s for s, byte in byte_level().items() if byte in in_utf8 and s not in vocabulary]
    if not lost:
        return pre_tokenizer
    split = pre_tokenizers.Split(Regex("|".join(map(re.escape, lost))), "removed")
    return pre_tokenizers.Sequence([pre_tokenizer, split])


def _adds_bos(tokenizer: Any, settings: dict, bos_id: int | None) -> bool:
    """Whether the tokenizer puts the beginning-of-text token before plain text."""
    if isinstance(settings.get("add_bos_token"), bool):
        return settings["add_bos_token"]
    return bos_id is not None and tokenizer.encode("a").ids[:1] == [bos_id]


def _special_id(tokenizer: Any, token: Any, fallback: Any) -> int | None:
    if isinstance(token, dict):
        token = token.get("content")
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if found is not None:
        return found
    return fallback if isinstance(fallback, int) else None


def _chat_template(folder: Path, settings: dict) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _optional_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    return read_json(path)
