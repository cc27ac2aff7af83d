"""Folders without a `tokenizer.json`: one is made of the files that older tokenizers keep."""

from pathlib import Path
from typing import Any, NamedTuple

from jax_llama3.checkpoint.manifest import read_json
from jax_llama3.text.tokenizer import MODEL

from ..pieces import Spaces, pieces_json
from ..sentencepiece_file import read_sentencepiece
from ..tokenizer import byte_level_bpe

VOCAB, MERGES = "vocab.json", "merges.txt"
_ADDED, _MAP = "added_tokens.json", "special_tokens_map.json"
_LLAMA = (
    None,
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)
_GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_LISTED = ("additional_special_tokens", "extra_special_tokens")


class MadeTokenizer(NamedTuple):
    """A `tokenizer.json`, the settings that go with it, and the files that both come from."""

    data: bytes
    settings: dict[str, Any]
    names: list[str]
    notes: list[str]


def make_tokenizer(folder: Path, settings: dict) -> MadeTokenizer | None:
    """The tokenizer of SentencePiece's tokenizer.model or of GPT-2's two files; None without them.

    `settings` are those of tokenizer_config.json. What transformers would read in another way than
    these raises ValueError.
    """
    special_map = optional_json(folder / _MAP)
    settings = {**special_map, **settings}
    used = [name for name in (_ADDED, _MAP) if (folder / name).is_file()]
    if (folder / MODEL).is_file():
        make, names = _from_pieces, [MODEL]
    elif (folder / VOCAB).is_file() and (folder / MERGES).is_file():
        make, names = _from_merges, [VOCAB, MERGES]
    else:
        return None
    try:
        data, settings, notes = make(folder, settings)
    except ValueError as error:
        raise ValueError(f"{folder / names[0]}: {error}") from None
    return MadeTokenizer(data, settings, [*names, *used], notes)


def _from_pieces(folder: Path, settings: dict) -> tuple[bytes, dict, list[str]]:
    _check_class(folder, settings, _LLAMA)
    file = read_sentencepiece((folder / MODEL).read_bytes())
    notes = []
    legacy = settings.get("legacy")
    if legacy is None:
        legacy = False
        notes.append(
            "note: nothing says whether text after a special token gets a space before it "
            '("legacy" in tokenizer_config.json); it gets none'
        )
    if file.collapse:
        notes.append(f"note: {MODEL} makes one space of several, so not every text comes back")
    prefix = file.prefix and settings.get("add_prefix_space") is not False
    defaults: dict[str, bool | str] = {"add_bos_token": True}
    for key, token in (("bos_token", file.bos_id), ("eos_token", file.eos_id)):
        if 0 <= token < len(file.pieces):
            defaults[key] = file.pieces[token].text
    settings = _with_defaults(settings, defaults)
    vocab = {piece.text: index for index, piece in enumerate(file.pieces)}
    added = _added_tokens(folder, settings, vocab)
    spaces = Spaces(prefix, prefix and bool(legacy), file.collapse)
    return pieces_json(file.pieces, added, spaces), settings, notes


def _from_merges(folder: Path, settings: dict) -> tuple[bytes, dict, list[str]]:
    from tokenizers import AddedToken, models, pre_tokenizers

    _check_class(folder, settings, _GPT2)
    try:
        vocab, merges = models.BPE.read_file(str(folder / VOCAB), str(folder / MERGES))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"it does not go with {MERGES}: {error}") from None
    end = "<|endoftext|>"
    defaults = {"bos_token": end, "eos_token": end, "unk_token": end, "add_bos_token": False}
    settings = _with_defaults(settings, defaults)
    added = _added_tokens(folder, settings, vocab)
    vocab |= {entry["content"]: token for token, entry in added.items()}
    if len({*vocab.values()}) < len(vocab):
        raise ValueError("two of its tokens have the same id")
    try:
        tokenizer = byte_level_bpe(vocab, merges, "gpt-2")
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"it does not go with {MERGES}: {error}") from None
    spaced = bool(settings.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    for _, entry in sorted(added.items()):
        tokenizer.add_tokens([AddedToken(**entry)])
    return tokenizer.to_str().encode(), settings, []


def _check_class(folder: Path, settings: dict, known: tuple[str | None, ...]) -> None:
    found = settings.get("tokenizer_class")
    if found not in known:
        raise ValueError(
            f"tokenizer_config.json's tokenizer_class {found!r} is not among those whose ids it "
            f"gives ({', '.join(filter(None, known))}); save a tokenizer.json beside it: "
            f"transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(...)"
        )


def _with_defaults(settings: dict, defaults: dict[str, Any]) -> dict:
    given = {key: value for key, value in settings.items() if value is not None}
    return {**defaults, **given}


def _added_tokens(folder: Path, settings: dict, vocab: dict[str, int]) -> dict[int, dict]:
    """The added tokens by their id; those that tokenizer_config.json names are special."""
    listed = [token for key in _LISTED for token in _as_list(settings.get(key))]
    special = {_content(settings[key]) for key in _NAMED if settings.get(key)}
    special |= {_content(token) for token in listed}
    if (decoder := settings.get("added_tokens_decoder")) is not None:
        added = _listed_tokens(decoder)
    else:
        extra = optional_json(folder / _ADDED)
        added = {
            _token_id(token, _ADDED): {"content": name, "normalized": name not in special}
            for name, token in extra.items()
        }
        added |= {
            vocab[name]: {"content": name, "normalized": False} for name in special & vocab.keys()
        }
    for entry in added.values():
        entry["special"] = entry.get("special", False) or entry["content"] in special
    known = vocab.keys() | {entry["content"] for entry in added.values()}
    for key in ("bos_token", "eos_token"):
        if (name := _content(settings.get(key, ""))) and name not in known:
            raise ValueError(f"the tokenizer's {key} {name!r} has no id; add it to {_ADDED}")
    for token, entry in added.items():
        if vocab.get(entry["content"], token) != token or token < 0:
            raise ValueError(
                f"added token {entry['content']!r} has two ids, {token} is one of them"
            )
    return added


def _listed_tokens(decoder: Any) -> dict[int, dict]:
    """The added_tokens_decoder of tokenizer_config.json, by id."""
    where = "added_tokens_decoder in tokenizer_config.json"
    values = decoder.values() if isinstance(decoder, dict) else [decoder]
    if not all(isinstance(v, dict) and isinstance(v.get("content"), str) for v in values):
        raise ValueError(f"{where} is no object of tokens with their content")
    names = [value["content"] for value in values]
    if len({*names}) < len(names):
        raise ValueError(f"{where} has the same token under two ids")
    return {_token_id(token, where): _entry(value) for token, value in decoder.items()}


def _token_id(value: Any, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    if type(value) is int and value >= 0:
        return value
    raise ValueError(f"{where}: {value!r} is no token id")


def _as_list(tokens: Any) -> list:
    return list(tokens.values()) if isinstance(tokens, dict) else list(tokens or [])


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _entry(value: dict) -> dict:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"content": value["content"], **{key: value[key] for key in flags if key in value}}


def optional_json(path: Path) -> dict:
    """What a file says; nothing if it is not there."""
    return read_json(path) if path.is_file() else {}
