"""The rows that are being generated in one lane: prompts are read, several at once or in pieces, then every step gives each row one token.

Rows join after their prompt was read and leave when they end, between two steps.
"""

from collections.abc import Callable, Sequence
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

    def accept(self, token_id: int, log_prob: float, top: tuple[TokenScore, ...] = ()) -> None:
        """Take the next token, send what can be shown, and end if this was the last. `top`: the most likely tokens, where asked for."""
        is_stop = token_id in self.request.stop_token_ids
        self.written.append(token_id)
        self.chooser.accept(token_id)
        piece = "" if is_stop else self.text.push(token_id)
        reason = self._end_reason(is_stop)
        score = TokenScore(token_id, log_prob)
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
    values, ids = log_probs.topk(min(count, log_probs.numel()))
    return tuple(TokenScore(i, v) for v, i in zip(values.tolist(), ids.tolist(), strict=True))


class LaneBatch:
    """One lane's rows: those whose prompts are being read together, and all rows being written."""

    def __init__(self, runner: ModelRunner, lane: Lane) -> None:
        self._runner = runner
        self.lane = lane
        self.rows: list[Row] = []
        self._cache = RowCache()
        self.reading: list[Row] = []
        self._reading_cache = RowCache()

    @property
    def size(self) -> int:
        return len(self.rows) + len(self.reading)

    @property
    def tokens(self) -> int:
        """Cells of the cache that are in use, empty columns included."""
        return len(self.rows) * self._cache.columns + len(self.reading) * self._reading_cache.columns

    def all_rows(self) -> list[Row]:
        return [*self.rows, *self.reading]

    def begin(self, rows: Sequence[Row]) -> None:
        """Take rows whose prompts are to be read: several in one go, or one in pieces (see `can_share_a_read`)."""
        self.reading, self._reading_cache = list(rows), RowCache()

    def read_prompts(self, budget_tokens: int) -> int:
        """Read up to that many tokens of the prompts at hand; rows join the others when they are done.

        Several prompts are read whole, whatever the budget. Returns the tokens read, padding included.
        """
        rows = self.reading
        if not rows:
            return 0
        most = budget_tokens if len(rows) == 1 else max(len(row.request.prompt_ids) for row in rows)
        pieces = [row.request.prompt_ids[row.read : row.read + most] for row in rows]
        longest = max(map(len, pieces))
        scored = any(row.request.prompt_log_probs for row in rows)
        logits = self._runner.forward(
            self.lane,
            [row.request.adapter for row in rows],
            torch.tensor([(longest - len(piece)) * [0] + list(piece) for piece in pieces]),
            [row.read for row in rows],
            self._reading_cache,
            counts=[len(piece) for piece in pieces],
            all_logits=scored,
        )
        if scored:
            for row, piece, found in zip(rows, pieces, logits, strict=True):
                if row.request.prompt_log_probs:
                    _score_prompt(row, found[longest - len(piece) :], len(piece))
            logits = logits[:, -1]
        for row, piece in zip(rows, pieces, strict=True):
            row.read += len(piece)
        if rows[0].read == len(rows[0].request.prompt_ids):
            self.reading = []
            self._take_tokens(rows, logits)
            self._join(rows)
        return longest * len(rows)

    def _join(self, rows: list[Row]) -> None:
        cache, self._reading_cache = self._reading_cache, RowCache()
        staying = [i for i, row in enumerate(rows) if not row.finished]
        if not staying:
            return
        if len(staying) < len(rows):
            staying = cache.keep(staying, max(rows[i].cached for i in staying))
        if self.rows:
            self._cache.join(cache)
        else:
            self._cache = cache
        self.rows += [rows[i] for i in staying]

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
        if any(row.cancelled() for row in self.reading):
            self.begin([])  # a single row: several are read within the step that they are taken in
        self._drop(lambda row: row.cancelled())
        return before - self.size

    def forget_reading(self) -> None:
        """Let go of rows whose prompts could not be read."""
        gone = self.reading
        self.begin([])
        self._drop(lambda row: any(row is other for other in gone))

    def clear(self) -> None:
        """Let go of everything."""
        self.rows, self.reading = [], []
        self._cache, self._reading_cache = RowCache(), RowCache()

    def _drop(self, leaves: Callable[[Row], bool]) -> None:
        staying = [i for i, row in enumerate(self.rows) if not leaves(row)]
        if len(staying) == len(self.rows):
            return
        if not staying:
            self.rows, self._cache = [], RowCache()
            return
        order = self._cache.keep(staying, max(self.rows[i].cached for i in staying))
        self.rows = [self.rows[i] for i in order]

    def _take_tokens(self, rows: list[Row], logits: torch.Tensor) -> None:
        tokens = logits.argmax(-1)
        chosen = {i: row.chooser.choose(logits[i]) for i, row in enumerate(rows) if not row.chooser.is_plain}
        if chosen:
            tokens[list(chosen)] = torch.tensor(list(chosen.values()))
        scores = (logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
        for i, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if not row.request.top_tokens:
                row.accept(token, scores[i])
                continue
            log_probs = logits[i].log_softmax(-1)
            row.accept(token, float(log_probs[token]), _top_scores(log_probs, row.request.top_tokens))


def can_share_a_read(longest: int, total: int, count: int, budget_tokens: int) -> bool:
    """Whether `count` prompts of `total` tokens, the longest of `longest`, are read in one go: within the budget, at most half of it padding."""
    return longest * count <= budget_tokens and longest * count <= 2 * total


def _score_prompt(row: Row, logits: torch.Tensor, count: int) -> None:
    """Log-probabilities of the prompt's tokens, each from the logits of the token before it; logits [count, vocabulary]."""
    prompt = row.request.prompt_ids
    if not row.prompt_scores:
        row.prompt_scores.append(TokenScore(prompt[0], None))
    following = prompt[row.read + 1 : row.read + 1 + count]
    logits = logits[: len(following)]
    found = logits.gather(1, torch.tensor(following, dtype=torch.long)[:, None])[:, 0] - logits.logsumexp(-1)
    row.prompt_scores += [TokenScore(i, v) for i, v in zip(following, found.tolist(), strict=True)]
