"""A prompt's continuation as it grows: ids to text, stop texts, and the finished record."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .tokenizer import TextStream


class Completion(NamedTuple):
    """One continued prompt. Seconds and rates are of running, compilation left out.

    All prompts of a batch are read together, so `prompt_tps` counts the tokens of all of them.
    """

    text: str  # without the stop token or the stop text
    tokens: list[int]  # may end with a stop token
    logprobs: list[float]  # the model's own, one per token
    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float  # gigabytes (1e9 bytes): the device's, on a CPU the process's
    prompt_seconds: float
    generation_seconds: float


@dataclass
class GrowingText:
    """One prompt's growing completion: its ids, and its text up to a stop."""

    index: int
    prompt_tokens: int
    stop_ids: Sequence[int]
    stop_texts: Sequence[str]
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

    def complete(
        self,
        batch_prompt_tokens: int,
        prompt_seconds: float,
        generation_seconds: float,
        peak_memory: float,
    ) -> Completion:
        """The record of what has been said, after `close`."""
        return Completion(
            text=self.text,
            tokens=self.tokens,
            logprobs=self.logprobs,
            finish_reason=str(self.finish_reason),
            prompt_tokens=self.prompt_tokens,
            prompt_tps=rate(batch_prompt_tokens, prompt_seconds),
            generation_tokens=len(self.tokens),
            generation_tps=rate(len(self.tokens), generation_seconds),
            peak_memory=peak_memory,
            prompt_seconds=prompt_seconds,
            generation_seconds=generation_seconds,
        )


def rate(tokens: int, seconds: float) -> float:
    """Tokens per second; 0 if nothing has run."""
    return tokens / seconds if seconds > 0 else 0.0
