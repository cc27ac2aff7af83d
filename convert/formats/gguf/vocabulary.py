"""The vocabulary of a GGUF file as the tokenizer files that jax_llama3 keeps."""

import hashlib
import re

from jax_llama3.text.tokenizer import GENERATION, JSON, TEMPLATE
from jax_llama3.text.vocabulary import byte_level

from ..pieces import CONTROL, USER_DEFINED, Piece, Spaces, pieces_json
from ..tokenizer import byte_level_bpe, generation_bytes

_LLAMA3 = ("llama-bpe", "llama3")
# What files call a pre-tokenizer that they do not know, or that is Llama 3's under another name.
_UNSAID = (None, "", "default", "smaug-bpe")
_LLAMA3_TOKENS = 128_000
# Of Llama 3's ordinary tokens in their order, in the letters of byte-level BPE, a line each.
_LLAMA3_SHA256 = "8dd8b994f25dc533e90df9906b38f5729193ae5b07a383cb23058e0e0960dc10"
# What llama.cpp makes of no text, although a file says that it is looked for in texts: ends of turns,
# of files and the like.
_ENDS = frozenset(
    "<|im_end|> <end_of_turn> <|endoftext|> <|eot_id|> <|eom_id|> <EOT> _<EOT> <|return|> <|call|> "
    "<｜end▁of▁sentence｜> <end_of_utterance> <eos> <turn|> <|flush|> <|end_of_text|> <|calls|> "
    "<|tool_response> [EOT] [EOS] <|fim_pad|> <fim_prefix> <fim_suffix> <|repo_name|> <|file_sep|>".split()
)
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
    model = fields.get("tokenizer.ggml.model")
    if model in (None, "none", "no_vocab"):
        return {}
    if model == "llama":
        data, adds_bos = _pieces_json(fields), True
    elif model == "gpt2":
        pre, _ = _pre_tokenizer(fields)
        data, adds_bos = _merges_json(fields, pre), pre in _LLAMA3
    else:
        raise ValueError(
            f"its vocabulary is of kind {model!r}; only 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece's BPE) are supported; convert the model's Hugging Face folder instead"
        )
    texts = {JSON: data, GENERATION: _generation(fields, adds_bos)}
    if template := fields.get("tokenizer.chat_template"):
        texts[TEMPLATE] = template.encode()
    return texts


def gguf_notes(fields: dict) -> list[str]:
    """What `gguf_texts` decides for the user."""
    if fields.get("tokenizer.ggml.model") != "gpt2":
        return []
    return _pre_tokenizer(fields)[1]


def _pre_tokenizer(fields: dict) -> tuple[str, list[str]]:
    """The name of the way in which text is cut, and a note if the file does not say it."""
    key = "tokenizer.ggml.pre"
    name, tokens = fields.get(key), fields["tokenizer.ggml.tokens"]
    if name not in _UNSAID:
        return name, []
    said = f"has no {key}" if name in (None, "") else f"has the {key} {name!r}"
    found = hashlib.sha256("\n".join(tokens[:_LLAMA3_TOKENS]).encode()).hexdigest()
    if found == _LLAMA3_SHA256:
        return _LLAMA3[0], [f"note: the file {said}; its tokens are Llama 3's and are read as such"]
    raise ValueError(
        f"it {said}, which does not say how text is cut into words; make the file again with a "
        "newer convert_hf_to_gguf.py of llama.cpp, or convert the model's Hugging Face folder"
    )


def _generation(fields: dict, adds_bos: bool) -> bytes:
    size = len(fields["tokenizer.ggml.tokens"])

    def token_id(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        token = fields.get(key)
        if token is not None and not 0 <= token < size:
            raise ValueError(f"{key} {token} is beyond its {size} tokens")
        return token

    add_bos = fields.get("tokenizer.ggml.add_bos_token", adds_bos)
    if not isinstance(add_bos, bool):
        raise ValueError(f"tokenizer.ggml.add_bos_token {add_bos!r} is not true or false")
    ends = [token_id(name) for name in ("eos", "eot", "eom")]
    return generation_bytes(
        bos_id=token_id("bos"),
        eos_id=ends[0],
        add_bos=add_bos,
        stop_ids=list(dict.fromkeys(end for end in ends if end is not None)),
        special_tokens=_special_tokens(fields),
        chat_templates=_named_templates(fields),
    )


def _pieces_json(fields: dict) -> bytes:
    """SentencePiece's tokens, whose scores say the order of merges."""
    tokens, scores, kinds = (
        list(fields[f"tokenizer.ggml.{name}"]) for name in ("tokens", "scores", "token_type")
    )
    if not len(tokens) == len(scores) == len(kinds):
        raise ValueError("its tokens, their scores and their types are not of one number")
    symbols = {
        index: {"content": token, "special": False}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == USER_DEFINED and token not in _ENDS
    }
    pieces = [
        Piece(token, float(score), CONTROL if kind == USER_DEFINED else int(kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    ]
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    # llama.cpp looks for symbols in the text as it is, and puts a space before the text after any token
    # that it finds so.
    return pieces_json(pieces, symbols, Spaces(prefix, prefix_after_special=prefix))


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


def _merges_json(fields: dict, pre: str) -> bytes:
    from tokenizers import AddedToken, Regex, pre_tokenizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    if len({*tokens}) != len(tokens) or len(kinds) != len(tokens):
        raise ValueError("its vocabulary holds a token twice, or too few token types")
    merges = [merge.partition(" ") for merge in fields["tokenizer.ggml.merges"]]
    pairs = [(left, right) for left, _, right in merges]
    if any(not left or not right or " " in right for left, right in pairs):
        raise ValueError("its vocabulary holds a merge that is not of two tokens")
    added = {index for index, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)}
    # Those at the end get their ids as they are added; in the vocabulary a word could be taken for one.
    ordinary = max((index + 1 for index in range(len(tokens)) if index not in added), default=0)
    vocabulary = {token: index for index, token in enumerate(tokens[:ordinary])}
    tokenizer = byte_level_bpe(vocabulary, pairs, pre)
    if lost := _lost_bytes(vocabulary):
        # A byte without a token is lost either way; but the library alone would merge what stands
        # on its two sides.
        split = pre_tokenizers.Split(Regex("|".join(map(re.escape, lost))), "removed")
        both = [tokenizer.pre_tokenizer, split]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(both)
    for index in sorted(added):
        special = kinds[index] == CONTROL
        tokenizer.add_tokens([AddedToken(tokens[index], special=special, normalized=False)])
    return tokenizer.to_str().encode()


def _lost_bytes(vocabulary: dict[str, int]) -> list[str]:
    """The printable stand-ins of those bytes of UTF-8 that have no token."""
    in_utf8 = {*range(0xC0), *range(0xC2, 0xF5)}
    return [s for s, byte in byte_level().items() if byte in in_utf8 and s not in vocabulary]
