"""What a `tokenizer.json` says, and forms of it that encode a part of a text."""

import json
from typing import Any

JSON = "tokenizer.json"
_SPACE = "\u2581"  # SentencePiece's sign for a space


def read_tokenizer_json(data: bytes) -> dict:
    """The values of a file whose model and decoder are supported; others raise ValueError."""
    try:
        values = json.loads(data)
        model, steps = values["model"], decoder_steps(values)
        kind = model.get("type", "BPE" if "merges" in model else None)
        decoders = {step["type"] for step in steps}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{JSON}: {error!r}") from None
    if kind != "BPE":
        raise ValueError(f"{JSON}: its model {kind!r} is not supported, only 'BPE'")
    spaced = any(step.get("pattern") == {"String": _SPACE} for step in steps)
    if not spaced and not decoders & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise ValueError(f"{JSON}: its decoder {sorted(decoders)} is not supported")
    return values


def build(values: dict, data: bytes | None = None) -> Any:
    """The library's tokenizer of these values, read from `data` if that is given.

    It takes a special token's name in a text for text.
    """
    import tokenizers

    try:
        read = json.dumps(values).encode() if data is None else data
        tokenizer = tokenizers.Tokenizer.from_buffer(read)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{JSON}: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def decoder_steps(values: dict) -> list[dict]:
    return _steps(values.get("decoder"), "decoders")


def _steps(part: dict | None, key: str) -> list[dict]:
    """The steps of a normalizer, pre-tokenizer or decoder that may be a sequence of them."""
    if not part:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [step for inner in part[key] for step in _steps(inner, key)]


def begins_every_part(values: dict) -> bool:
    """Whether text after a special token gets the space that the text's beginning gets."""
    before = _steps(values.get("normalizer"), "normalizers")
    cutting = _steps(values.get("pre_tokenizer"), "pretokenizers")
    always = any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") == "always"
        for step in cutting
        if step.get("add_prefix_space", True)
    )
    spaced = any(s["type"] == "ByteLevel" and s.get("add_prefix_space") for s in cutting)
    return always or spaced or any(step["type"] == "Prepend" for step in before)


def without_prefix(values: dict) -> dict:
    """The tokenizer of text that continues other text; the same values if it puts no space before one."""
    before = _steps(values.get("normalizer"), "normalizers")
    cutting = _steps(values.get("pre_tokenizer"), "pretokenizers")
    kept = [step for step in before if not _is_prefix(step)]
    plain = [_without_space(step) for step in cutting]
    if kept == before and plain == cutting:
        return values
    return {
        **values,
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": plain} if plain else None,
    }


def _is_prefix(step: dict) -> bool:
    """Whether a normalizer puts a space before a text, or doubles the one that it begins with."""
    doubles = {"type": "Replace", "pattern": {"Regex": rf"\A{_SPACE}"}, "content": 2 * _SPACE}
    return step["type"] == "Prepend" or step == doubles


def _without_space(step: dict) -> dict:
    if step["type"] == "Metaspace":
        kept = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return {**kept, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
        return {**step, "add_prefix_space": False}
    return step


def as_text(values: dict, special: dict[str, int]) -> dict:
    """The tokenizer in which no text makes a special token; the same values if it is that already.

    The library leaves special tokens alone when told so. But where they stand in the vocabulary of the
    merges too, those may make them, or a word may be taken whole.
    """
    model = values["model"]
    marked = {entry["content"] for entry in values.get("added_tokens", []) if entry["special"]}
    names = special.keys() & model["vocab"].keys()
    if names and not model.get("ignore_merges"):
        names &= {"".join(_pair(merge)) for merge in model["merges"]}
    if not names and special.keys() <= marked:
        return values
    # A space is no part of a token's text in either kind of vocabulary.
    renamed = {name: f"{name} " for name in names}
    vocab = {renamed.get(name, name): token for name, token in model["vocab"].items()}
    pairs = map(_pair, model["merges"])
    merges = [pair for pair in pairs if not names & {*pair, "".join(pair)}]
    unknown = renamed.get(model.get("unk_token"), model.get("unk_token"))
    added = [entry for entry in values["added_tokens"] if entry["content"] not in special]
    return {
        **values,
        "model": {**model, "vocab": vocab, "merges": merges, "unk_token": unknown},
        "added_tokens": added,
        "post_processor": None,
    }


def _pair(merge: Any) -> list[str]:
    """The two sides of a merge, which older files write as one text."""
    return merge.split(" ", 1) if isinstance(merge, str) else list(merge)
