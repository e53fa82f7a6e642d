"""Generation token by token on the event loop, with a batch of limited size: what both stand-ins answer with.

A prompt that holds `<<fail after N>>` makes the model break down after N tokens, as one out of memory does.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np

from standins.llama import Cache, Llama
from standins.text import Words

TOKEN_SECONDS = float(os.environ.get("STANDIN_TOKEN_SECONDS", "0.01"))
_FAIL = re.compile(r"<<fail after (\d+)>>")


class Breakdown(Exception):
    """The model failed in the middle of a generation."""


@dataclass(frozen=True)
class Sampling:
    """Greedy where `temperature` is None."""

    temperature: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Token:
    """One generated token; `text` is what it adds to the answer, `top` the most likely ones at its place. `reason` ends it."""

    id: int
    text: str
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
    reason: str | None = None  # length, stop_token, stop_text


class Batch:
    """How many requests run and wait."""

    def __init__(self, size: int) -> None:
        self._places = asyncio.Semaphore(size)
        self.running = 0
        self.waiting = 0

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    async def __aexit__(self, *_: object) -> None:
        self.running -= 1
        self._places.release()


def score_prompt(model: Llama, ids: list[int]) -> list[float | None]:
    """Log-probability of each token of a prompt; None for the first."""
    scores = model.forward(ids, Cache())
    return [None, *(float(scores[place, token]) for place, token in enumerate(ids[1:]))]


async def generate(
    model: Llama,
    words: Words,
    prompt: str,
    ids: list[int],
    limit: int,
    batch: Batch,
    sampling: Sampling,
    stops: Sequence[str] = (),
    top: int = 0,
) -> AsyncIterator[Token]:
    """The answer's tokens, the last of which has a reason. Raises Breakdown where the model fails."""
    failing = _FAIL.search(prompt)
    chance = np.random.default_rng(sampling.seed)
    async with batch:
        cache = Cache()
        scores = model.forward(ids, cache)[-1]
        written: list[int] = []
        shown = ""
        while True:
            if failing and len(written) >= int(failing[1]):
                raise Breakdown("CUDA out of memory.")
            chosen = _choose(scores, sampling, chance)
            written.append(chosen)
            text = words.decode(written)
            piece, shown = text[len(shown) :], text
            reason = _reason(chosen, words, text, stops, len(written) >= limit)
            best = np.argsort(scores)[::-1][:top]
            yield Token(chosen, piece, float(scores[chosen]), tuple((int(i), float(scores[i])) for i in best), reason)
            if reason is not None:
                return
            await asyncio.sleep(TOKEN_SECONDS)
            scores = model.forward([chosen], cache)[-1]


def _choose(scores: "np.ndarray", sampling: Sampling, chance: np.random.Generator) -> int:
    if sampling.temperature is None:
        return int(scores.argmax())
    warm = np.exp((scores - scores.max()) / sampling.temperature)
    return int(chance.choice(len(warm), p=warm / warm.sum()))


def _reason(token: int, words: Words, text: str, stops: Sequence[str], is_full: bool) -> str | None:
    if token in words.stops:
        return "stop_token"
    if any(text.endswith(stop) for stop in stops if stop):
        return "stop_text"
    return "length" if is_full else None
