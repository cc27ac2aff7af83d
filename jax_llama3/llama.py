"""Text in, text out."""

import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import jax

from .chat import Message, chat_tokens
from .checkpoint import Model
from .generate import Timings, generate_tokens
from .sample import Sampler
from .score import score_tokens
from .tokenizer import TextStream, Tokenizer

Prompt = str | Sequence[int]  # text, or the token ids of one prompt
DEFAULT_NEW_TOKENS = 256


class Completion(NamedTuple):
    """One continued prompt. Rates are tokens per second of running, compilation left out."""

    text: str  # without the stop token or the stop text
    tokens: list[int]  # may end with a stop token
    logprobs: list[float]  # the model's own, one per token
    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float  # gigabytes (1e9 bytes): the device's, on a CPU the process's


class Piece(NamedTuple):
    """What one step of a stream added to one prompt; `completion` comes with the last piece."""

    row: int
    text: str
    completion: Completion | None


class Score(NamedTuple):
    """A text's token ids and log p(token | those before it); the first has none."""

    tokens: list[int]
    logprobs: list[float | None]


@overload
def generate(  # pyright: ignore[reportOverlappingOverload]  a str is a Sequence[str] too
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: Sequence[int | str] | None = None,
) -> Completion: ...


@overload
def generate(
    model: Model,
    prompt: Sequence[Prompt],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: Sequence[int | str] | None = None,
) -> list[Completion]: ...


def generate(
    model: Model,
    prompt: Any,
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: Sequence[int | str] | None = None,
) -> Completion | list[Completion]:
    """Continue a prompt, or each of a list of prompts as one batch.

    Text is taken as it is, without a chat template: for a conversation give the ids that
    `apply_chat_template` returns. `max_new_tokens` is 256 by default, less where the context ends
    sooner. `sampler` is greedy by default. `stop` holds the ids and texts that end a row: by default
    the model's own stop ids, with () none. Bad values raise ValueError.
    """
    batch = _is_batch(prompt)
    prompts = list(prompt) if batch else [prompt]
    pieces = stream_batch(
        model, prompts, max_new_tokens=max_new_tokens, sampler=sampler, seed=seed, stop=stop
    )
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
    stop: Sequence[int | str] | None = None,
) -> Iterator[Piece]:
    """`generate` for one prompt, piece by piece; the pieces' texts join to the completion's."""
    return stream_batch(
        model, [prompt], max_new_tokens=max_new_tokens, sampler=sampler, seed=seed, stop=stop
    )


def stream_batch(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    stop: Sequence[int | str] | None = None,
) -> Iterator[Piece]:
    """`stream_generate` for several prompts at once; every row ends with its own last piece."""
    tokenizer = model.tokenizer
    encoded = [encode_prompt(tokenizer, prompt, row) for row, prompt in enumerate(prompts)]
    if stop is None:
        stop = () if tokenizer is None else tokenizer.stop_ids
    stop_ids = [item for item in stop if not isinstance(item, str)]
    stop_texts = [item for item in stop if isinstance(item, str)]
    if "" in stop_texts:
        raise ValueError("a stop text is empty; it would stop every row at once")
    if max_new_tokens is None:
        room = model.config.max_seq_len - max(map(len, encoded), default=0)
        max_new_tokens = min(DEFAULT_NEW_TOKENS, max(room, 0))
    chunks = generate_tokens(
        model.params,
        encoded,
        model.config,
        max_new_tokens=max_new_tokens,
        sampler=sampler or Sampler(),
        seed=seed,
        stop_ids=stop_ids,
    )
    rows = [
        _Row(index, len(ids), stop_ids, stop_texts, _stream(tokenizer))
        for index, ids in enumerate(encoded)
    ]
    return _pieces(chunks, rows)


@overload
def score(model: Model, text: str) -> Score: ...  # pyright: ignore[reportOverlappingOverload]


@overload
def score(model: Model, text: Sequence[str]) -> list[Score]: ...


def score(model: Model, text: Any) -> Score | list[Score]:
    """The log-probability of every token of a text, or of each of a list of texts."""
    if not isinstance(text, str):
        return [_score(model, one) for one in text]
    return _score(model, text)


def apply_chat_template(model: Model, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation of {"role", "content"} messages, ready for the answer."""
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer; convert one with it, or give token ids")
    return chat_tokens(model.tokenizer, messages)


def encode_prompt(tokenizer: Tokenizer | None, prompt: Prompt, row: int) -> list[int]:
    """The ids of a prompt: text is encoded, ids are taken as they are."""
    if not isinstance(prompt, str):
        return [int(token) for token in prompt]
    if not prompt:
        raise ValueError(f"prompt {row} is empty; give it some text")
    if tokenizer is None:
        raise ValueError("the model has no tokenizer; convert one with it, or give token ids")
    return tokenizer.encode(prompt, bos=True)


def _is_batch(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return False
    return len(prompt) == 0 or isinstance(prompt[0], str) or hasattr(prompt[0], "__len__")


def _score(model: Model, text: str) -> Score:
    tokens = encode_prompt(model.tokenizer, text, 0)
    return Score(tokens, [None, *score_tokens(model.params, tokens, model.config)])


def _stream(tokenizer: Tokenizer | None) -> TextStream | None:
    return None if tokenizer is None else TextStream(tokenizer)


@dataclass
class _Row:
    """One prompt's growing completion: its ids, and its text up to a stop."""

    index: int
    prompt_tokens: int
    stop_ids: list[int]
    stop_texts: list[str]
    stream: TextStream | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    shown: int = 0
    finish_reason: str | None = None

    def push(self, tokens: list[int], logprobs: list[float]) -> str:
        """Take new ids; returns the text that can be shown now."""
        for token, logprob in zip(tokens, logprobs, strict=True):
            if self.finish_reason is not None:
                break
            self.tokens.append(token)
            self.logprobs.append(logprob)
            if token in self.stop_ids:
                self.finish_reason = "stop"
            elif self.stream is not None:
                self._extend(self.stream.push([token]))
        if self.finish_reason == "stop":
            return self._show(0)
        return self._show(self._held())

    def close(self) -> str:
        """The end: what was held back is shown."""
        if self.stream is not None and not self._stopped_by_text():
            self._extend(self.stream.close())
        self.finish_reason = self.finish_reason or "length"
        return self._show(0)

    def _extend(self, text: str) -> None:
        self.text += text
        found = [place for stop in self.stop_texts if (place := self.text.find(stop)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.finish_reason = "stop"

    def _stopped_by_text(self) -> bool:
        return self.finish_reason == "stop" and self.tokens[-1] not in self.stop_ids

    def _held(self) -> int:
        """The longest end of the text that may grow into a stop text."""
        longest = max(map(len, self.stop_texts), default=0)
        for size in range(min(longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.stop_texts):
                return size
        return 0

    def _show(self, held: int) -> str:
        end = max(len(self.text) - held, self.shown)
        new = self.text[self.shown : end]
        self.shown = end
        return new


def _pieces(chunks: Iterator[tuple], rows: list[_Row]) -> Iterator[Piece]:
    timings = Timings(0.0, 0.0)
    prompt_tokens = sum(row.prompt_tokens for row in rows)
    open_rows = list(rows)
    for chunk, timings in chunks:
        for row in list(open_rows):
            text = row.push(chunk.tokens[row.index], chunk.logprobs[row.index])
            if row.finish_reason is not None:
                text += row.close()
                open_rows.remove(row)
                yield Piece(row.index, text, _complete(row, timings, prompt_tokens))
            elif text:
                yield Piece(row.index, text, None)
        if not open_rows:
            break
    for row in open_rows:
        yield Piece(row.index, row.close(), _complete(row, timings, prompt_tokens))


def _complete(row: _Row, timings: Timings, prompt_tokens: int) -> Completion:
    return Completion(
        text=row.text,
        tokens=row.tokens,
        logprobs=row.logprobs,
        finish_reason=str(row.finish_reason),
        prompt_tokens=row.prompt_tokens,
        prompt_tps=_rate(prompt_tokens, timings.prefill),
        generation_tokens=len(row.tokens),
        generation_tps=_rate(len(row.tokens), timings.decode),
        peak_memory=_peak_memory(),
    )


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


def _peak_memory() -> float:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
