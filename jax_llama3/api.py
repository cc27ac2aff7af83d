"""Text in, text out."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from .checkpoint.format import Model
from .decoding.generation import NewTokens, Request, Timings, check_request, generate_tokens
from .decoding.sampling import Sampler
from .decoding.scoring import score_tokens
from .model.config import Config
from .runtime.memory import peak_memory
from .text.chat import Message, chat_tokens
from .text.completion import Completion, GrowingText
from .text.tokenizer import TextStream, Tokenizer

Prompt = Any  # text, or the token ids of one prompt: a list, a tuple, an array of any library
_One = str | Sequence[int] | np.ndarray | jax.Array
Stop = str | int | Sequence[int | str] | None
DEFAULT_NEW_TOKENS = 256


class Piece(NamedTuple):
    """What one step of a stream added to one prompt; `completion` comes with the last piece."""

    row: int
    text: str
    completion: Completion | None


class TextRequest(NamedTuple):
    """What is to be generated, and the texts that end a row."""

    request: Request
    stop_texts: tuple[str, ...]


class Score(NamedTuple):
    """A text's token ids and log p(token | those before it); the first has none."""

    tokens: list[int]
    logprobs: list[float | None]


@overload
def generate(model: Model, prompt: _One, **options: Any) -> Completion: ...  # pyright: ignore[reportOverlappingOverload]


@overload
def generate(model: Model, prompt: Sequence[Prompt], **options: Any) -> list[Completion]: ...


def generate(  # pyright: ignore[reportInconsistentOverload]
    model: Model,
    prompt: Any,
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: Stop = None,
    ignore_eos: bool = False,
) -> Completion | list[Completion]:
    """Continue a prompt, or each of a list of prompts as one batch.

    Text is taken as it is, without a chat template: for a conversation give the ids that
    `apply_chat_template` returns. `max_new_tokens` is 256 by default, less where the context ends
    sooner. `sampler` is greedy by default. `stop` holds ids and texts that end a row beside the model's
    own stop ids, which `ignore_eos` takes away; a special token's name is a text that stops at the
    token. Bad values raise ValueError.
    """
    batch = _is_batch(prompt)
    prompts = list(prompt) if batch else [prompt]
    options = {"max_new_tokens": max_new_tokens, "sampler": sampler, "seed": seed}
    prepared = prepare(model, prompts, **options, stop=stop, ignore_eos=ignore_eos)
    pieces = stream(model, prepared)
    done = {piece.row: piece.completion for piece in pieces if piece.completion is not None}
    completions = [done[row] for row in range(len(prompts))]
    return completions if batch else completions[0]


def stream_generate(
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: Stop = None,
    ignore_eos: bool = False,
) -> Iterator[Piece]:
    """`generate` for one prompt, piece by piece; the pieces' texts join to the completion's."""
    options = {"max_new_tokens": max_new_tokens, "sampler": sampler, "seed": seed}
    prepared = prepare(model, [prompt], **options, stop=stop, ignore_eos=ignore_eos)
    return stream(model, prepared)


def prepare(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: Stop = None,
    ignore_eos: bool = False,
) -> TextRequest:
    """The prompts as ids, and the options of `generate`, all checked; bad ones raise ValueError.

    Of the model only its config and tokenizer are used, so its weights may still be on their way.
    """
    tokenizer = model.tokenizer
    encoded = [encode_prompt(tokenizer, prompt, row) for row, prompt in enumerate(prompts)]
    stop_ids, stop_texts = _stops(tokenizer, stop, ignore_eos)
    if max_new_tokens is None:
        max_new_tokens = default_new_tokens(encoded, model.config)
    request = Request(
        encoded,
        max_new_tokens,
        sampler or Sampler(),
        seed,
        stop_ids,
    )
    return TextRequest(check_request(request, model.config), stop_texts)


def stream(model: Model, prepared: TextRequest) -> Iterator[Piece]:
    """`stream_generate` for all prompts of a request at once; every row ends with its own last piece."""
    request, stop_texts = prepared
    rows = [
        GrowingText(index, len(ids), request.stop_ids, stop_texts, _text_stream(model.tokenizer))
        for index, ids in enumerate(request.prompts)
    ]
    return _pieces(generate_tokens(model.params, request, model.config), rows)


@overload
def score(model: Model, text: _One) -> Score: ...  # pyright: ignore[reportOverlappingOverload]


@overload
def score(model: Model, text: Sequence[Prompt]) -> list[Score]: ...


def score(model: Model, text: Any) -> Score | list[Score]:
    """The log-probability of every token of a text or of ids, or of each of a list of them."""
    if _is_batch(text):
        return [_score(model, one, row) for row, one in enumerate(text)]
    return _score(model, text, 0)


def apply_chat_template(
    model: Model,
    messages: Sequence[Message],
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    **options: Any,
) -> list[int]:
    """Token ids of a conversation of {"role", "content"} messages, by default ready for the answer.

    `tools` are JSON schemas, `documents` dicts, for the templates that know them. `options` are those
    of `text.chat.chat_tokens`: `add_generation_prompt`, `chat_template` (one of several by its name),
    `chat_format` ("llama3" for an Instruct model that brings no template), and any variable that the
    template asks for, such as `date_string`. What the texts say is never taken for a special token.
    """
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; convert one with it, or give token ids")
    return chat_tokens(model.tokenizer, messages, tools, documents, **options)


def encode_prompt(tokenizer: Tokenizer | None, prompt: Prompt, row: int) -> list[int]:
    """The ids of a prompt: text is encoded, ids are taken as they are."""
    if not isinstance(prompt, str):
        try:
            return [operator.index(token) for token in prompt]
        except TypeError as error:
            raise ValueError(f"prompt {row} is no list of token ids: {error}") from None
    check_text(prompt, row)
    if tokenizer is None:
        raise ValueError("the model has no tokenizer; convert one with it, or give token ids")
    return tokenizer.encode(prompt, bos=True)


def check_text(text: str, row: int) -> None:
    """Refuse an empty text; `row` is its number in the error."""
    if not text:
        raise ValueError(f"prompt {row} is empty; give it some text")


def default_new_tokens(prompts: Sequence[Sequence[int]], config: Config) -> int:
    """How many tokens are made if nobody says: 256, or what the context holds."""
    room = config.max_seq_len - max(map(len, prompts), default=0)
    return min(DEFAULT_NEW_TOKENS, max(room, 0))


def _stops(
    tokenizer: Tokenizer | None, stop: Stop, ignore_eos: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The ids and the texts that end a row; the name of a token is an id too."""
    own = () if tokenizer is None or ignore_eos else tokenizer.stop_ids
    items = () if stop is None else (stop,) if isinstance(stop, str | int) else tuple(stop)
    texts = tuple(item for item in items if isinstance(item, str))
    if "" in texts:
        raise ValueError("a stop text is empty; it would stop every row at once")
    if texts and tokenizer is None:
        raise ValueError("the model has no tokenizer; a stop text needs one")
    added = [] if tokenizer is None else tokenizer.vocabulary.added
    ids = [item for item in items if not isinstance(item, str)]
    ids += [token.id for token in added if token.name in texts]
    return tuple(dict.fromkeys((*own, *ids))), texts


def _is_batch(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return False
    return len(prompt) == 0 or isinstance(prompt[0], str) or np.ndim(prompt[0]) > 0


def _score(model: Model, text: Prompt, row: int) -> Score:
    tokens = encode_prompt(model.tokenizer, text, row)
    return Score(tokens, [None, *score_tokens(model.params, tokens, model.config)])


def _text_stream(tokenizer: Tokenizer | None) -> TextStream | None:
    return None if tokenizer is None else TextStream(tokenizer, start=False)


def _pieces(steps: Iterator[tuple[NewTokens, Timings]], rows: list[GrowingText]) -> Iterator[Piece]:
    prompt_tokens = sum(row.prompt_tokens for row in rows)
    timings = Timings(0.0, 0.0)

    def last(row: GrowingText, text: str) -> Piece:
        return Piece(
            row.index, text + row.close(), row.complete(prompt_tokens, *timings, peak_memory())
        )

    open_rows = list(rows)
    for new, timings in steps:  # noqa: B007  `last` reads it
        for row in list(open_rows):
            text = row.push(new.tokens[row.index], new.logprobs[row.index])
            if row.finish_reason is not None:
                open_rows.remove(row)
                yield last(row, text)
            elif text:
                yield Piece(row.index, text, None)
        if not open_rows:
            return
    for row in open_rows:
        yield last(row, "")
