"""The rows that are being generated in one lane: prompts are read in pieces, then every step gives each row one token.

Rows join after their prompt was read and leave when they end, between two steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from llamero.engine.cache import RowCache
from llamero.engine.requests import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    TokenEvent,
    TokenScore,
)
from llamero.engine.runner import Lane, ModelRunner
from llamero.engine.sampling import TokenChooser
from llamero.engine.text import TextStream

Emit = Callable[[Event], None]


@dataclass
class Row:
    """A request on its way: its prompt as far as it was read, its answer as far as it was written."""

    request: GenerationRequest
    chooser: TokenChooser
    text: TextStream
    emit: Emit
    cancelled: Callable[[], bool]
    read: int = 0  # prompt tokens in the cache
    written: list[int] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    finished: bool = False

    @property
    def cached(self) -> int:
        """Tokens in the cache: all but the newest of the answer, which goes in with the next step."""
        return self.read + max(0, len(self.written) - 1)

    def accept(self, token_id: int, log_probs: torch.Tensor) -> None:
        """Take the next token (log_probs [vocabulary]), send what can be shown, and end if this was the last."""
        is_stop = token_id in self.request.stop_token_ids
        self.written.append(token_id)
        self.chooser.accept(token_id)
        piece = "" if is_stop else self.text.push(token_id)
        reason = self._end_reason(is_stop)
        top = _top_scores(log_probs, self.request.top_tokens)
        score = TokenScore(token_id, float(log_probs[token_id]))
        rest = "" if reason is None else self.text.flush()
        prompt = tuple(self.prompt_scores) if len(self.written) == 1 else ()
        self.emit(TokenEvent(score, piece + rest, is_stop, reason is not None, top, prompt))
        if reason is not None:
            self._finish(reason)

    def _end_reason(self, is_stop: bool) -> FinishReason | None:
        if is_stop:
            return FinishReason.STOP_TOKEN
        if self.text.stopped_by is not None:
            return FinishReason.STOP_SEQUENCE
        return FinishReason.LENGTH if len(self.written) >= self.request.max_new_tokens else None

    def _finish(self, reason: FinishReason) -> None:
        self.finished = True
        self.emit(
            Finished(
                reason=reason,
                text=self.text.text,
                tokens=len(self.written),
                prompt_tokens=len(self.request.prompt_ids),
                seed=self.chooser.seed,
                stop_string=self.text.stopped_by,
            )
        )


def _top_scores(log_probs: torch.Tensor, count: int) -> tuple[TokenScore, ...]:
    if not count:
        return ()
    values, ids = log_probs.topk(min(count, log_probs.numel()))
    return tuple(TokenScore(int(i), float(v)) for v, i in zip(values, ids, strict=True))


class LaneBatch:
    """One lane's rows: at most one prompt being read, and all rows being written."""

    def __init__(self, runner: ModelRunner, lane: Lane) -> None:
        self._runner = runner
        self.lane = lane
        self.rows: list[Row] = []
        self._cache = RowCache()
        self.reading: Row | None = None
        self._reading_cache = RowCache()

    @property
    def size(self) -> int:
        return len(self.rows) + (self.reading is not None)

    @property
    def tokens(self) -> int:
        """Cells of the cache that are in use, empty columns included."""
        return len(self.rows) * self._cache.columns + self._reading_cache.columns

    def all_rows(self) -> list[Row]:
        return [*self.rows, *([self.reading] if self.reading is not None else [])]

    def begin(self, row: Row) -> None:
        """Take a row whose prompt is to be read."""
        self.reading, self._reading_cache = row, RowCache()

    def read_prompt(self, budget_tokens: int) -> int:
        """Read up to that many tokens of the prompt at hand; the row joins the others when it is done. Returns tokens read."""
        row = self.reading
        if row is None:
            return 0
        ids = row.request.prompt_ids[row.read : row.read + budget_tokens]
        logits = self._runner.forward(
            self.lane,
            [row.request.adapter],
            torch.tensor([ids]),
            [row.read],
            self._reading_cache,
            all_logits=row.request.prompt_log_probs,
        )
        if row.request.prompt_log_probs:
            _score_prompt(row, logits[0], len(ids))
            logits = logits[:, -1]
        row.read += len(ids)
        if row.read == len(row.request.prompt_ids):
            self.reading = None
            self._take_tokens([row], logits)
            self._join(row)
        return len(ids)

    def _join(self, row: Row) -> None:
        cache, self._reading_cache = self._reading_cache, RowCache()
        if row.finished:
            return
        if self.rows:
            self._cache.join(cache)
        else:
            self._cache = cache
        self.rows.append(row)

    def step(self) -> None:
        """One token for every row."""
        if not self.rows:
            return
        ids = torch.tensor([[row.written[-1]] for row in self.rows])
        adapters = [row.request.adapter for row in self.rows]
        lengths = [row.cached for row in self.rows]
        logits = self._runner.forward(self.lane, adapters, ids, lengths, self._cache)
        self._take_tokens(self.rows, logits)
        self._drop(lambda row: row.finished)

    def drop_cancelled(self) -> int:
        """Let go of rows whose callers are gone; returns how many."""
        before = self.size
        if self.reading is not None and self.reading.cancelled():
            self.reading, self._reading_cache = None, RowCache()
        self._drop(lambda row: row.cancelled())
        return before - self.size

    def forget(self, row: Row) -> None:
        """Let go of a row whose prompt could not be read."""
        self.reading, self._reading_cache = None, RowCache()
        self._drop(lambda other: other is row)

    def clear(self) -> None:
        """Let go of everything."""
        self.rows, self.reading = [], None
        self._cache, self._reading_cache = RowCache(), RowCache()

    def _drop(self, leaves: Callable[[Row], bool]) -> None:
        staying = [i for i, row in enumerate(self.rows) if not leaves(row)]
        if len(staying) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in staying]
        if self.rows:
            self._cache.keep(staying, max(row.cached for row in self.rows))
        else:
            self._cache = RowCache()

    def _take_tokens(self, rows: list[Row], logits: torch.Tensor) -> None:
        log_probs = logits.log_softmax(-1)
        greedy = logits.argmax(-1).tolist()
        for i, row in enumerate(rows):
            token = greedy[i] if row.chooser.is_plain else row.chooser.choose(logits[i])
            row.accept(int(token), log_probs[i])


def _score_prompt(row: Row, logits: torch.Tensor, count: int) -> None:
    """Log-probabilities of the prompt's tokens, each from the logits of the token before it; logits [count, vocabulary]."""
    prompt = row.request.prompt_ids
    if not row.prompt_scores:
        row.prompt_scores.append(TokenScore(prompt[0], None))
    log_probs = logits.log_softmax(-1)
    for i in range(count):
        following = row.read + i + 1
        if following < len(prompt):
            row.prompt_scores.append(TokenScore(prompt[following], float(log_probs[i, prompt[following]])))
