"""What the tokenizers of several formats are made of: byte-level BPE, and our generation.json."""

import json
from typing import Any

from jax_llama3.text.chat import knows_llama3_format
from jax_llama3.text.tokenizer import (
    GENERATION,
    JSON,
    LLAMA3,
    MODEL,
    TEMPLATE,
    tokenizer_from_files,
)
from jax_llama3.text.vocabulary import LLAMA3_PATTERN

_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")  # GGUF's names of Llama 3's pre-tokenizer


def generation_bytes(
    *,
    bos_id: int | None,
    eos_id: int | None,
    add_bos: bool,
    stop_ids: list[int],
    special_tokens: dict[str, str] | None = None,
    chat_templates: dict[str, str] | None = None,
    chat_format: str | None = None,
) -> bytes:
    """The generation.json that `tokenizer_from_files` reads.

    `special_tokens` are the texts that templates know by a name, `chat_templates` those beside the
    default one, `chat_format` is that of a model without a template.
    """
    values = {"bos_id": bos_id, "eos_id": eos_id, "add_bos": add_bos, "stop_ids": stop_ids}
    extras = {
        "special_tokens": special_tokens,
        "chat_templates": chat_templates or None,
        "chat_format": chat_format,
    }
    values |= {name: value for name, value in extras.items() if value is not None}
    return (json.dumps(values) + "\n").encode()


def choose_chat_format(
    texts: dict[str, bytes], chat_format: str | None
) -> tuple[dict[str, bytes], list[str]]:
    """The tokenizer files with the chat format that was asked for, and the decisions.

    Nothing in Llama 3's vocabulary says whether a model without a chat template is an Instruct model,
    so without `chat_format` its prompts are raw text.
    """
    values = json.loads(texts.get(GENERATION, b"{}"))
    own = TEMPLATE in texts or "chat_templates" in values
    if chat_format is None:
        if own or not texts:
            return texts, []
        told = MODEL in texts or b'"<|start_header_id|>"' in texts[JSON]
        remedy = "; for an Instruct model convert with --chat-format llama3" if told else ""
        return texts, [f"note: no chat template, so prompts are raw text{remedy}"]
    if chat_format != LLAMA3:
        raise ValueError(f"chat format {chat_format!r} is not supported, only {LLAMA3!r}")
    if own:
        raise ValueError("the model has a chat template of its own; leave out --chat-format")
    tokenizer = tokenizer_from_files(texts)
    if tokenizer is None or not knows_llama3_format(tokenizer):
        raise ValueError("the model has no vocabulary of Llama 3's; leave out --chat-format llama3")
    made = generation_bytes(
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        add_bos=tokenizer.add_bos,
        stop_ids=list(tokenizer.stop_ids),
        special_tokens=tokenizer.special_tokens,
        chat_format=chat_format,
    )
    return {**texts, GENERATION: made}, [f"note: prompts are in the chat format {chat_format}"]


def byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]], pre: str) -> Any:
    """A `tokenizers.Tokenizer` without special tokens.

    `pre` is the pre-tokenizer's name in GGUF files; one that is not known raises ValueError.
    """
    from tokenizers import Tokenizer, decoders, models

    # Llama 3 takes a word that is a token whole, even where the merges alone would not reach it.
    whole_words = pre in _LLAMA3
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    if pre in ("gpt-2", "default"):
        return byte_level
    if pre in _LLAMA3:
        split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, plain])
    raise ValueError(f"its pre-tokenizer {pre!r} is not supported")
