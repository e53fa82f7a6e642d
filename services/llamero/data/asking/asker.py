"""Asks a model many questions at once: from the cache what was answered before, the rest within the limits, the budget and the retries.

How a request goes stands in `client.py`, what is kept in `cache.py`, what it cost in `ledger.py`.
"""

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from llamero.data.asking.addresses import check_url, read_key, show_url
from llamero.data.asking.cache import AnswerCache, Kept, open_cache
from llamero.data.asking.client import Backoff, Client, Completion, Exhausted, QuestionRefused
from llamero.data.asking.ledger import Account, check_budget, check_prices, compute_cost
from llamero.data.asking.ledger import BudgetSpent as BudgetSpent
from llamero.data.asking.limits import find_pace, share_limits
from llamero.data.asking.questions import Answer, Question, Unanswered, hash_question, hash_text, name_endpoint
from llamero.data.errors import DataError, NoSpaceError
from llamero.spec.steps import LanguageModel
from llamero.storage import StorageError, join_uri

REFUSED_AT_FIRST: Final = 20
"""So many refusals before the first answer, and the manifest is taken for wrong, not the questions."""

EMBEDDING_BATCH: Final = 64
EMBEDDING_CHARACTERS: Final = 100_000
_SHORTEST_TEXT = 64
_WARMER = 0.3  # what is asked again is asked a little warmer: at temperature 0 the same would come back
_WARMEST = 1.0

T = TypeVar("T")
Job = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """Somebody called `Asker.stop`."""


class Asker:
    """Asks one model for one purpose. A context manager; synchronous, with an event loop of its own inside.

    `purpose` names the step for people and for the budget (`judge`, `step 3, rewrite`); `answers` is the URI of the folder with all
    answers; `workers` how many processes share the limits; `preparation` names what the budget is for (by default all that was ever spent
    on this purpose and model in `answers` counts). `account` tells what was done.

    Raises DataError with a sentence: a URL or key that won't do, an endpoint that refuses the key or knows no such model, that is down
    after all retries, or a budget that is spent (BudgetSpent). Whatever was answered is kept then.
    """

    def __init__(
        self,
        model: LanguageModel,
        purpose: str,
        answers: str,
        workers: int,
        *,
        allow_http: bool = False,
        preparation: str = "",
        backoff: Backoff | None = None,
    ) -> None:
        check_url(model.url, allow_http)
        check_prices(model, purpose)
        self.model, self.purpose = model, purpose
        self.account = Account(purpose, model.model, show_url(model.url))
        self._limits = share_limits(model, workers)
        self._endpoint = name_endpoint(model.url, model.model)
        self._ledger = _digest(purpose, preparation)
        self._folder = join_uri(answers, _digest(self._endpoint))
        self._backoff = backoff or Backoff()
        self._has_cap = model.max_cost is not None or model.max_total_tokens is not None
        self._refused = 0
        self._answered_at = -1.0
        self._is_stopped = False
        self._runner: asyncio.Runner | None = None

    def __enter__(self) -> "Asker":
        self._cache: AnswerCache = open_cache(self._folder)
        self._client = Client(
            self.model,
            read_key(self.model),
            find_pace(self._endpoint, self._limits),
            self.account,
            self._permit,
            self._note_waste,
            self._backoff,
        )
        self._runner = asyncio.Runner()
        return self

    def __exit__(self, *_: object) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            try:
                runner.run(self._client.close())
            finally:
                runner.close()
                self._cache.save()

    def stop(self) -> None:
        """From another thread: send nothing more. What is under way ends and is kept; who waits for answers gets Stopped."""
        self._is_stopped = True

    # -- questions ---------------------------------------------------------------------------------------------------------------

    def ask(
        self,
        questions: Sequence[Question],
        parse: Callable[[str], T] | None = None,
        tries: int = 3,
        allow_cut: bool = False,
    ) -> list[T | Answer | Unanswered]:
        """The questions' answers in their order; equal questions are asked once.

        Without `parse` an Answer each, with it what it makes of the text: where it raises ValueError, the question is asked again as
        another sample, `tries` times in all. Unanswered: refused (400, 413, 422), filtered, cut off at `maxTokens` (but with `allow_cut`,
        where the Answer says so), not parsed, or a request that the endpoint bears at no try while it answers others.
        """
        places: dict[Question, list[int]] = {}
        for place, question in enumerate(questions):
            places.setdefault(question, []).append(place)
        results: list[T | Answer | Unanswered] = [Unanswered("not asked")] * len(questions)

        async def settle(question: Question) -> None:
            outcome = await self._settle(question, parse, tries, allow_cut)
            for place in places[question]:
                results[place] = outcome
                self.account.asked += 1
                self.account.unanswered += isinstance(outcome, Unanswered)

        self._run([partial(settle, question) for question in places])
        return results

    async def _settle(
        self, question: Question, parse: Callable[[str], T] | None, tries: int, allow_cut: bool
    ) -> T | Answer | Unanswered:
        reason = ""
        for attempt in range(tries if parse else 1):
            outcome = await self._answer(question, attempt, allow_cut)
            if parse is None or isinstance(outcome, Unanswered):
                return outcome
            try:
                return parse(outcome.text)
            except ValueError as error:
                reason = str(error)
        return Unanswered(f"no usable answer in {tries} tries: {reason}")

    async def _answer(self, question: Question, attempt: int, allow_cut: bool) -> Answer | Unanswered:
        model = self.model
        temperature = model.temperature
        if attempt:
            temperature = max(temperature, min(_WARMEST, temperature + _WARMER * attempt))
        key = hash_question(self._endpoint, question, temperature, model.max_tokens, attempt)
        kept = self._cache.find(key)
        if kept is not None:
            self.account.cached += 1
            self._count_cached(kept)
            return self._read_outcome(kept.text, kept.finish, kept.input_tokens, kept.output_tokens, True, allow_cut)
        since = time.monotonic()
        try:
            made = await self._client.complete(question.messages, temperature, model.max_tokens)
        except QuestionRefused as refusal:
            return self._note_refusal(refusal)
        except Exhausted as trouble:
            return await self._explain(trouble, since)
        self._keep(key, made)
        return self._read_outcome(made.text, made.finish, made.input_tokens, made.output_tokens, False, allow_cut)

    def _keep(self, key: bytes, made: Completion) -> None:
        tokens = made.input_tokens, made.output_tokens
        self._cache.keep_text(self._ledger, key, made.text, made.finish, tokens)
        self._answered_at = time.monotonic()
        self.account.answered += 1
        self._count(*tokens)

    def _read_outcome(
        self, text: str, finish: str, asked: int, answered: int, is_cached: bool, allow_cut: bool
    ) -> Answer | Unanswered:
        is_cut = finish == "length"
        if finish == "content_filter":
            return Unanswered("the endpoint's content filter withheld the answer")
        if is_cut and not allow_cut:
            return Unanswered(f"the answer was cut off at maxTokens ({self.model.max_tokens}): raise it")
        return Answer(text, asked, answered, is_cached, is_cut)

    def _note_refusal(self, refusal: QuestionRefused) -> Unanswered:
        self._refused += 1
        if self._refused >= REFUSED_AT_FIRST and not self.account.answered + self.account.cached:
            raise DataError(
                f"{self._client.where} refused the first {self._refused} questions and answered none: {refusal}. "
                "Check the model's name, maxTokens and temperature against what it takes."
            )
        return Unanswered(str(refusal))

    async def _explain(self, trouble: Exhausted, since: float) -> Unanswered:
        """Is it the question or the endpoint? One that answers others meanwhile, or a small question now, is well."""
        if self._answered_at >= since or await self._client.is_well():
            return Unanswered(f"the endpoint {trouble}, {self.model.retries + 1} times of {self.model.retries + 1}")
        raise self._give_up(trouble)

    def _give_up(self, trouble: Exhausted) -> DataError:
        return DataError(
            f"{self._client.where} {trouble}, at the last of {self.model.retries + 1} tries: see that it is up and can be reached from "
            "here, then run again. What was answered is kept and is not asked again."
        )

    # -- embeddings --------------------------------------------------------------------------------------------------------------

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The texts' vectors as the endpoint gives them, [n, d]; an empty text is sent as one blank.

        A text that the endpoint refuses is sent again at half its length until it is taken. Raises DataError where none is.
        """
        if not texts:
            return np.empty((0, 0), np.float32)
        wanted = [text or " " for text in texts]
        keys = [hash_text(self._endpoint, text) for text in wanted]
        found: dict[bytes, NDArray[np.float32]] = {}
        missing: dict[bytes, str] = {}

        def plan() -> list[Job]:
            for key, text in zip(keys, wanted, strict=True):
                if key in found or key in missing:
                    continue
                kept = self._cache.find(key)
                if kept is None or kept.vector is None:
                    missing[key] = text
                    continue
                found[key] = kept.vector
                self.account.cached += 1
                self._count_cached(kept)
            return [partial(self._embed_batch, batch, found) for batch in _batch_texts(missing)]

        self._run(plan)
        self.account.asked += len(texts)
        if len({len(vector) for vector in found.values()}) != 1:
            raise DataError(
                f"{self._client.where} gives vectors of different lengths for the same model: name one model."
            )
        return np.stack([found[key] for key in keys])

    async def _embed_batch(self, batch: dict[bytes, str], found: dict[bytes, NDArray[np.float32]]) -> None:
        try:
            made = await self._client.embed(list(batch.values()))
        except Exhausted as trouble:
            raise self._give_up(trouble) from None
        except QuestionRefused as refusal:
            for part in self._divide(batch, refusal):
                await self._embed_batch(part, found)
            return
        vectors = np.array(made.vectors, np.float32)
        self._cache.keep_vectors(self._ledger, list(batch), vectors, made.input_tokens)
        self.account.answered += len(batch)
        self._count(made.input_tokens, 0)
        found.update(zip(batch, vectors, strict=True))

    def _divide(self, batch: dict[bytes, str], refusal: QuestionRefused) -> list[dict[bytes, str]]:
        items = list(batch.items())
        if len(items) > 1:
            half = len(items) // 2
            return [dict(items[:half]), dict(items[half:])]
        key, text = items[0]
        if len(text) <= _SHORTEST_TEXT:
            raise DataError(f"{self._client.where} embeds not even {len(text)} characters: {refusal}. Check the model.")
        return [{key: text[: len(text) // 2]}]

    # -- running -----------------------------------------------------------------------------------------------------------------

    def _run(self, jobs: list[Job] | Callable[[], list[Job]]) -> None:
        if self._runner is None:
            raise RuntimeError("an Asker is used within `with`")
        self._cache.sync()  # what other workers were answered since
        self._runner.run(self._work(deque(jobs() if callable(jobs) else jobs)))

    async def _work(self, jobs: deque[Job]) -> None:
        """Do the jobs, `concurrency` at once. A spent budget lets what is under way end; any other error cancels it."""
        spent: list[BudgetSpent] = []

        async def work() -> None:
            while jobs and not spent and not self._is_stopped:
                try:
                    await jobs.popleft()()
                except BudgetSpent as error:
                    spent.append(error)

        keeper = asyncio.create_task(self._keep_in_step())
        try:
            await _run_together([work() for _ in range(min(self._limits.concurrency, len(jobs)))])
        finally:
            keeper.cancel()
        if spent:
            raise spent[0]
        if self._is_stopped:
            raise Stopped(f"{self.purpose}: asking `{self.model.model}` was stopped")

    async def _keep_in_step(self) -> None:
        """Save answers, and with a budget see what others spend, every few seconds."""
        while True:
            await asyncio.sleep(self._cache.sync_seconds)
            try:
                await asyncio.to_thread(self._cache.save, False)
                if self._has_cap:
                    await asyncio.to_thread(self._cache.refresh)
            except (StorageError, NoSpaceError) as error:  # at the end it is tried again, and raised
                _log.warning("%s: answers can't be saved or read now: %s", self.purpose, error)

    def _permit(self) -> None:
        if self._is_stopped:
            raise Stopped(f"{self.purpose}: asking `{self.model.model}` was stopped")
        if self._has_cap:
            check_budget(self.model, self.purpose, *self._cache.get_spent(self._ledger))

    def _note_waste(self, tokens: int) -> None:
        self._cache.note_waste(self._ledger, (tokens, 0))
        self._count(tokens, 0)

    def _count(self, asked: int, answered: int) -> None:
        self.account.input_tokens += asked
        self.account.output_tokens += answered
        self.account.cost += compute_cost(self.model, asked, answered)

    def _count_cached(self, kept: Kept) -> None:
        self.account.cached_input_tokens += kept.input_tokens
        self.account.cached_output_tokens += kept.output_tokens


async def _run_together(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of them; the first error cancels the others and is raised by itself, not in a group."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _batch_texts(texts: dict[bytes, str]) -> list[dict[bytes, str]]:
    batches: list[dict[bytes, str]] = []
    characters = 0
    for key, text in texts.items():
        if not batches or len(batches[-1]) >= EMBEDDING_BATCH or characters + len(text) > EMBEDDING_CHARACTERS:
            batches.append({})
            characters = 0
        batches[-1][key] = text
        characters += len(text)
    return batches


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
