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

from .pieces import Spaces, pieces_json
from .sentencepiece_file import is_sentencepiece, read_sentencepiece

_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")  # GGUF's names of Llama 3's pre-tokenizer

NO_TOKENIZER = "note: the source has no tokenizer; the model takes and gives token ids only"


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


def model_file_texts(data: bytes) -> dict[str, bytes]:
    """Our tokenizer files from a tokenizer.model alone: Meta's of Llama 3, or SentencePiece's."""
    if not is_sentencepiece(data):
        return {MODEL: data}
    try:
        file = read_sentencepiece(data)
        spaces = Spaces(file.prefix, False, file.collapse)
        made = pieces_json(file.pieces, {}, spaces)
    except ValueError as error:
        raise ValueError(f"{MODEL}: {error}") from None
    bos_id, eos_id = (
        token if 0 <= token < len(file.pieces) else None for token in (file.bos_id, file.eos_id)
    )
    ends = [] if eos_id is None else [eos_id]
    rest = generation_bytes(bos_id=bos_id, eos_id=eos_id, add_bos=bos_id is not None, stop_ids=ends)
    return {JSON: made, GENERATION: rest}


def beyond_rows(texts: dict[str, bytes], rows: int) -> list[str]:
    """A note if the tokenizer has tokens for which the embedding has no row."""
    tokenizer = tokenizer_from_files(texts, rows)
    if tokenizer is None or tokenizer.vocabulary.size <= rows:
        return []
    names = sorted(name for token, name in tokenizer.special_names.items() if token >= rows)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [
        f"note: the embedding has {rows} rows and the tokenizer {tokenizer.vocabulary.size} tokens; "
        f"those from {rows} on ({shown}) cannot be used, and no text makes them"
    ]


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
    if pre == "gpt-2":
        return byte_level
    if pre in _LLAMA3:
        split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, plain])
    raise ValueError(
        f"its pre-tokenizer {pre!r} is not supported; convert the model's Hugging Face folder, "
        "whose tokenizer.json says itself how text is cut"
    )


def pre_tokenizer_name(values: dict[str, Any]) -> str | None:
    """GGUF's name of the pre-tokenizer that a tokenizer.json has; None if it is none of these."""
    wanted = _steps(values["pre_tokenizer"]), values["model"]["ignore_merges"]
    for pre in ("llama-bpe", "smollm", "gpt-2"):
        known = json.loads(byte_level_bpe({}, [], pre).to_str())
        if (_steps(known["pre_tokenizer"]), known["model"]["ignore_merges"]) == wanted:
            return pre
    return None


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What a pre-tokenizer does, step by step, without what changes no id."""
    pre_tokenizer = pre_tokenizer or {}
    steps = []
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if step.get("type") == "Sequence":
            steps += _steps(step)
        # What is removed are bytes without a token, which every reader of a GGUF file finds itself.
        elif (step.get("type"), step.get("behavior")) != ("Split", "Removed"):
            steps.append({key: value for key, value in step.items() if key != "trim_offsets"})
    return steps
