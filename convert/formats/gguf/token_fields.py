"""A tokenizer as the fields of a GGUF file: the inverse of `vocabulary`."""

import json
from typing import Any

from jax_llama3.text.tokenizer import JSON, Tokenizer

from ..huggingface.tokenizer import exported_template, ranks_tokenizer
from ..tokenizer import pre_tokenizer_name

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # GGUF's token types
_FLAGS = ("lstrip", "rstrip", "single_word")
_ELSEWHERE = "use to-hf, and llama.cpp's own convert_hf_to_gguf.py"
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
_MESSAGE_END = "<|eom_id|>"


def token_fields(tokenizer: Tokenizer | None, size: int) -> tuple[dict[str, Any], list[str]]:
    """The fields that say a vocabulary of `size` tokens, and decisions taken on the way.

    A tokenizer that such fields cannot say raises ValueError.
    """
    if tokenizer is None:
        note = "note: the model has no tokenizer; llama.cpp will take token ids alone"
        return {"tokenizer.ggml.model": "no_vocab"}, [note]
    values = _values(tokenizer)
    pre = _check_kind(values)
    tokens, kinds, notes = _token_list(values, size)
    ids, more = _special_ids(tokenizer, size)
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": _merges(values["model"]["merges"]),
        **ids,
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos and tokenizer.bos_id is not None,
    }
    if template := exported_template(tokenizer):
        fields["tokenizer.chat_template"] = template
    return fields, [*notes, *more]


def _values(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json, in the library's newest form, with every default written out."""
    from tokenizers import Tokenizer as Fast

    if JSON in tokenizer.files:
        return json.loads(Fast.from_buffer(tokenizer.files[JSON]).to_str())
    return json.loads(ranks_tokenizer(tokenizer.vocabulary).to_str())


def _check_kind(values: dict[str, Any]) -> str:
    """The pre-tokenizer's name; what is not one of GGUF's byte-level vocabularies is refused."""
    model, decoder = values["model"], values["decoder"] or {}
    steps = {step["type"] for step in decoder.get("decoders", [decoder])}
    if model["type"] != "BPE" or "ByteLevel" not in steps:
        raise ValueError(
            "the tokenizer is not byte-level BPE (but SentencePiece's kind), and to-gguf writes "
            f"no other; {_ELSEWHERE}"
        )
    if values["normalizer"] is not None:
        kind = values["normalizer"]["type"]
        raise ValueError(f"GGUF cannot say the tokenizer's normalizer {kind}; {_ELSEWHERE}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[key]:
            raise ValueError(f"GGUF cannot say the tokenizer's {key} {model[key]!r}; {_ELSEWHERE}")
    pre = pre_tokenizer_name(values)
    if pre is None:
        raise ValueError(
            "GGUF has no name that is known here for the tokenizer's pre-tokenizer "
            f"(with ignore_merges {model['ignore_merges']}); {_ELSEWHERE}"
        )
    return pre


def _token_list(values: dict[str, Any], size: int) -> tuple[list[str], list[int], list[str]]:
    """Texts and types of all tokens, one for each row of the embedding; and decisions."""
    texts = {token: text for text, token in values["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, _NORMAL)
    for entry in values["added_tokens"]:
        if flags := [flag for flag in _FLAGS if entry[flag]]:
            raise ValueError(
                f"GGUF cannot say {flags[0]} of the added token {entry['content']!r}; {_ELSEWHERE}"
            )
        texts[entry["id"]] = entry["content"]
        kinds[entry["id"]] = _CONTROL if entry["special"] else _USER_DEFINED
    notes = []
    if beyond := sorted(token for token in texts if token >= size):
        names = ", ".join(repr(texts[token]) for token in beyond[:3])
        notes.append(f"note: {len(beyond)} tokens without a row are left out: {names}")
    taken = set(texts.values())
    if len(taken) != len(texts):
        raise ValueError(
            f"the tokenizer has two tokens of one text, which GGUF forbids; {_ELSEWHERE}"
        )
    for token in range(size):
        if token not in texts:
            texts[token] = next(t for t in _fillers(token) if t not in taken)
            kinds[token] = _UNUSED
    return [texts[token] for token in range(size)], [kinds[t] for t in range(size)], notes


def _fillers(token: int) -> Any:
    """Names for a row of the embedding that no token uses; llama.cpp's own first."""
    yield f"[PAD{token}]"
    yield from (f"[PAD{token}.{count}]" for count in range(1 << 20))


def _merges(merges: list[list[str]]) -> list[str]:
    if any(" " in part for pair in merges for part in pair):
        raise ValueError(f"GGUF cannot say a merge with a space in it; {_ELSEWHERE}")
    return [" ".join(pair) for pair in merges]


def _special_ids(tokenizer: Tokenizer, size: int) -> tuple[dict[str, int], list[str]]:
    """The ids that begin and end texts, and decisions. GGUF names three that end one."""
    names = tokenizer.special_names
    stops = list(tokenizer.stop_ids)
    eos_id = tokenizer.eos_id if tokenizer.eos_id is not None else next(iter(stops), None)
    if eos_id is None:
        raise ValueError(
            "the tokenizer has no id that ends a text, and llama.cpp would take id 11 for it; set "
            "eos_token in the source's tokenizer_config.json and convert it again"
        )
    notes = []
    if eos_id not in stops:
        notes.append(
            f"note: llama.cpp will stop at {eos_id}, the eos id, where this model does not"
        )
    left = [stop for stop in stops if stop != eos_id]
    ids = {"bos": tokenizer.bos_id, "eos": eos_id}
    ids["eom"] = next((stop for stop in left if names.get(stop) == _MESSAGE_END), None)
    left = [stop for stop in left if stop != ids["eom"]]
    ends = [stop for stop in left if names.get(stop) in _TURN_ENDS]
    ids["eot"] = next(iter([*ends, *left]), None)
    if ids["eom"] is None:
        ids["eom"] = next((stop for stop in left if stop != ids["eot"]), None)
    if lost := [str(stop) for stop in left if stop not in ids.values()]:
        notes.append(f"note: GGUF names three stop ids; {', '.join(lost)} are left out")
    if beyond := [token for token in ids.values() if token is not None and token >= size]:
        raise ValueError(f"id {beyond[0]}, which begins or ends a text, is outside the vocabulary")
    found = {name: token for name, token in ids.items() if token is not None}
    return {f"tokenizer.ggml.{name}_token_id": token for name, token in found.items()}, notes
