"""The vocabulary of a GGUF file as the tokenizer files that jax_llama3 keeps."""

import re

from jax_llama3.text.tokenizer import GENERATION, JSON, TEMPLATE
from jax_llama3.text.vocabulary import byte_level

from ..tokenizer import byte_level_bpe, generation_bytes

_CONTROL, _USER_DEFINED = 3, 4  # GGUF's token types
# What templates call a special token, and the key of its id.
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}


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
    data = _tokenizer_json(tokens, kinds, fields["tokenizer.ggml.merges"], pre)
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
        GENERATION: generation_bytes(
            bos_id=bos_id,
            eos_id=eos_id,
            add_bos=add_bos,
            stop_ids=list(dict.fromkeys(end for end in ends if end is not None)),
            special_tokens=_special_tokens(fields),
            chat_templates=_named_templates(fields),
        ),
    }
    if template := fields.get("tokenizer.chat_template"):
        texts[TEMPLATE] = template.encode()
    return texts


def _special_tokens(fields: dict) -> dict[str, str]:
    """The variables of templates; those of a bos or an eos that the file has not are empty."""
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {name: fields.get(f"tokenizer.ggml.{key}") for name, key in _NAMED.items()}
    found = {name: tokens[i] for name, i in ids.items() if i is not None and 0 <= i < len(tokens)}
    return {"bos_token": "", "eos_token": "", **found}


def _named_templates(fields: dict) -> dict[str, str]:
    names = fields.get("tokenizer.chat_templates", [])
    found = {name: fields.get(f"tokenizer.chat_template.{name}") for name in names}
    return {name: template for name, template in found.items() if isinstance(template, str)}


def _tokenizer_json(tokens: list[str], kinds: list[int], merges: list[str], pre: str) -> bytes:
    from tokenizers import AddedToken, Regex, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
        raise ValueError("its vocabulary holds a token twice, or too few token types")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if any(not left or not right or " " in right for left, right in pairs):
        raise ValueError("its vocabulary holds a merge that is not of two tokens")
    tokenizer = byte_level_bpe(vocabulary, pairs, pre)
    if lost := _lost_bytes(vocabulary):
        # A byte without a token is lost either way; but the library alone would merge what stands
        # on its two sides.
        split = pre_tokenizers.Split(Regex("|".join(map(re.escape, lost))), "removed")
        both = [tokenizer.pre_tokenizer, split]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(both)
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            special = kind == _CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer.to_str().encode()


def _lost_bytes(vocabulary: dict[str, int]) -> list[str]:
    """The printable stand-ins of those bytes of UTF-8 that have no token."""
    in_utf8 = {*range(0xC0), *range(0xC2, 0xF5)}
    return [s for s, byte in byte_level().items() if byte in in_utf8 and s not in vocabulary]
