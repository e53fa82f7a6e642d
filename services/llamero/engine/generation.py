"""The one thread that generates: it takes requests from a queue, batches them over adapters, and sends tokens back.

Everything that touches the model happens on it, between or in steps: concurrent calls into one model give wrong answers without
an error. It knows nothing of HTTP.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from secrets import randbits

from llamero.engine.batch import LaneBatch, Row, can_share_a_read
from llamero.engine.metrics import BASE_LABEL, EngineMetrics
from llamero.engine.requests import EngineError, ErrorKind, Event, Failed, Finished, GenerationRequest, TokenEvent
from llamero.engine.runner import Lane, ModelRunner
from llamero.engine.sampling import TokenChooser
from llamero.engine.text import TextStream

log = logging.getLogger(__name__)

PROMPT_TOKENS_PER_STEP = 512  # a long prompt is read in such pieces, so that running answers go on meanwhile
STALL_SECONDS = 120.0


@dataclass(frozen=True)
class GenerationLimits:
    """How much is taken on: rows in the batch, and requests waiting for a place in it."""

    max_batch: int = 16
    max_queue: int = 128


class Generation:
    """A request in the engine, seen from the event loop that asked for it."""

    def __init__(self, request: GenerationRequest, loop: asyncio.AbstractEventLoop, created: float) -> None:
        self.request = request
        self.loop = loop
        self.created = created
        self.started: float | None = None
        self.first_token: float | None = None
        self.cancelled = False
        self.ended = False
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def deliver(self, event: Event) -> None:
        """Called on the event loop."""
        self._events.put_nowait(event)

    async def next_event(self) -> TokenEvent | Finished:
        """The next event; raises EngineError where the generation failed."""
        event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        return event

    async def events(self) -> AsyncIterator[TokenEvent | Finished]:
        """All events, the last of which is Finished; raises EngineError."""
        while True:
            event = await self.next_event()
            yield event
            if isinstance(event, Finished):
                return


class GenerationThread:
    """Runs the model on a thread of its own. All public methods may be called from any other thread."""

    def __init__(
        self,
        runner: ModelRunner,
        limits: GenerationLimits,
        metrics: EngineMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._wake = threading.Condition()
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._unloads: dict[str, Future[None]] = {}
        self._waiting: deque[Generation] = deque()
        self._running: dict[int, Generation] = {}
        self._lanes: dict[Lane, LaneBatch] = {}
        self._outbox: list[tuple[Generation, Event]] = []
        self._closing = False
        self._stopped = False
        self._beat = clock()
        self._last_token = float("-inf")
        self._idle = True
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        metrics.add_gauge("tgi_queue_size", "Requests waiting for a place in the batch.", lambda: len(self._waiting))
        metrics.add_gauge("llamero_queue_size", "The same, for autoscaling.", lambda: len(self._waiting))
        metrics.add_gauge("tgi_batch_current_size", "Requests in the batch.", lambda: self.batch_size)
        metrics.add_gauge("tgi_batch_current_max_tokens", "Cells of the cache in use.", lambda: self.cached_tokens)
        metrics.add_gauge("llamero_adapters_loaded", "Adapters loaded.", lambda: len(self._runner.adapters))

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    @property
    def batch_size(self) -> int:
        return sum(lane.size for lane in list(self._lanes.values()))

    @property
    def cached_tokens(self) -> int:
        return sum(lane.tokens for lane in list(self._lanes.values()))

    @property
    def queue_size(self) -> int:
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._running)

    @property
    def seconds_since_token(self) -> float:
        """Seconds since the model last gave a token."""
        return self._clock() - self._last_token

    def trouble(self) -> str | None:
        """Why the thread can't serve, as a sentence; None where all is well."""
        if self._closing:
            return "The engine is shutting down."
        if not self._thread.is_alive():
            return "The generation thread has ended."
        age = self._clock() - self._beat
        if not self._idle and age > STALL_SECONDS:
            return f"The generation thread has made no step for {age:.0f} seconds."
        return None

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request on the calling event loop; raises EngineError where there is no room or no thread."""
        generation = Generation(request, asyncio.get_running_loop(), self._clock())
        with self._wake:
            self._refuse_if_unable()
            self._waiting.append(generation)
            self._idle = False
            self._beat = max(self._beat, self._clock())
            self._wake.notify()
        self._metrics.requests.add()
        self._metrics.adapter_requests.add(adapter=request.adapter or BASE_LABEL)
        self._metrics.input_length.observe(len(request.prompt_ids))
        self._metrics.max_new_tokens.observe(request.max_new_tokens)
        return generation

    def _refuse_if_unable(self) -> None:
        if self._closing or self._stopped:
            raise EngineError(ErrorKind.SHUTTING_DOWN, "The engine is shutting down and takes no more requests.")
        if not self._thread.is_alive():
            raise EngineError(ErrorKind.UNHEALTHY, "The generation thread has ended: restart the engine.")
        if len(self._waiting) >= self._limits.max_queue:
            self._metrics.failures.add(err="overloaded")
            raise EngineError(
                ErrorKind.OVERLOADED,
                f"Model is overloaded: {len(self._waiting)} requests are waiting already. Try again a little later.",
            )

    def cancel(self, generation: Generation) -> None:
        """Stop a generation within a step; harmless where it has ended."""
        generation.cancelled = True
        with self._wake:
            self._wake.notify()

    def load(self, name: str, folder: Path) -> "Future[None]":
        """Load an adapter between two steps."""
        return self._command(lambda: self._runner.load(name, folder))

    def unload(self, name: str) -> "Future[None]":
        """Unload an adapter as soon as the requests that came before have ended."""
        future: Future[None] = Future()
        with self._wake:
            self._unloads[name] = future
            self._wake.notify()
        return future

    def close(self) -> None:
        """Take no more requests; those at hand go on."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End the thread; what still runs fails with a sentence."""
        with self._wake:
            self._closing = self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _command(self, action: Callable[[], None]) -> "Future[None]":
        future: Future[None] = Future()
        with self._wake:
            self._commands.append((action, future))
            self._wake.notify()
        return future

    # Below here everything runs on the generation thread.

    def _run(self) -> None:
        try:
            while self._await_work():
                self._run_commands()
                self._drop_cancelled()
                self._read_prompts()
                self._send()  # first tokens don't wait for a step of the others
                self._step()
                self._send()
            self._fail_all(EngineError(ErrorKind.SHUTTING_DOWN, "The engine was shut down before the answer was done."))
        except BaseException:
            log.exception("the generation thread ended")
            self._fail_all(EngineError(ErrorKind.GENERATION, "The generation thread ended: restart the engine."))
            raise

    def _await_work(self) -> bool:
        with self._wake:
            while not self._stopped and not self._has_work():
                self._idle = True
                self._wake.wait()
            self._idle = False
            self._beat = self._clock()
            return not self._stopped

    def _has_work(self) -> bool:
        return bool(self._waiting or self._running or self._commands or self._unloads)

    def _run_commands(self) -> None:
        while self._commands:
            action, future = self._commands.popleft()
            _settle(future, action)
        for name in list(self._unloads):
            if not self._is_used(name):
                _settle(self._unloads.pop(name), lambda name=name: self._unload(name))  # type: ignore[misc]

    def _is_used(self, adapter: str) -> bool:
        with self._wake:
            waiting = list(self._waiting)
        return any(g.request.adapter == adapter and not g.cancelled for g in [*waiting, *self._running.values()])

    def _unload(self, name: str) -> None:
        lane = self._runner.lane_of(name)
        if lane.alone is not None:
            self._lanes.pop(lane, None)
        self._runner.unload(name)
        self._metrics.forget_adapter(name)

    def _drop_cancelled(self) -> None:
        for lane in self._lanes.values():
            lane.drop_cancelled()
        gone = [g for g in self._running.values() if g.cancelled]
        with self._wake:
            gone += [g for g in self._waiting if g.cancelled]
            self._waiting = deque(g for g in self._waiting if not g.cancelled)
        for generation in gone:
            self._running.pop(id(generation), None)
            generation.ended = True
            self._metrics.cancelled.add()

    def _read_prompts(self) -> None:
        budget = PROMPT_TOKENS_PER_STEP
        while budget > 0:
            lane = next((lane for lane in self._lanes.values() if lane.reading), None) or self._admit(budget)
            if lane is None or not lane.reading:
                return
            rows = lane.reading
            try:
                budget -= lane.read_prompts(budget)
                self._metrics.steps.add(method="prefill")
            except Exception as error:
                log.exception("prompts could not be read")
                lane.forget_reading()
                self._fail_rows(rows, error)

    def _admit(self, budget_tokens: int) -> LaneBatch | None:
        """Give the request that has waited longest a place in its lane, and those behind it whose prompts can be read with its own."""
        taken: list[Generation] = []
        lane: Lane | None = None
        longest = total = 0
        with self._wake:
            room = self._limits.max_batch - self.batch_size
            while self._waiting and len(taken) < room:
                found = self._lane_of(self._waiting[0])
                length = len(self._waiting[0].request.prompt_ids)
                if found is None:
                    self._refuse_unloaded(self._waiting.popleft())
                    continue
                longest, total = max(longest, length), total + length
                is_mate = found == lane and can_share_a_read(longest, total, len(taken) + 1, budget_tokens)
                if taken and not is_mate:
                    break
                lane = found
                taken.append(self._waiting.popleft())
                self._running[id(taken[-1])] = taken[-1]
        if lane is None:
            return None
        now = self._clock()
        for generation in taken:
            generation.started = now
        batch = self._lanes.setdefault(lane, LaneBatch(self._runner, lane))
        batch.begin([self._row_of(generation) for generation in taken])
        return batch

    def _lane_of(self, generation: Generation) -> Lane | None:
        try:
            return self._runner.lane_of(generation.request.adapter)
        except KeyError:
            return None

    def _refuse_unloaded(self, generation: Generation) -> None:
        message = f"The adapter {generation.request.adapter} was unloaded before the request's turn came."
        self._finish(generation, Failed(EngineError(ErrorKind.ADAPTER_NOT_FOUND, message)))

    def _row_of(self, generation: Generation) -> Row:
        request = generation.request
        return Row(
            request=request,
            chooser=TokenChooser(request.sampling, request.prompt_ids, drawn_seed=randbits(63)),
            text=TextStream(request.tokenizer, request.stop_strings),
            emit=lambda event: self._emit(generation, event),
            cancelled=lambda: generation.cancelled,
        )

    def _step(self) -> None:
        for lane in list(self._lanes.values()):
            if not lane.rows:
                continue
            try:
                lane.step()
                self._metrics.steps.add(method="decode")
            except Exception as error:
                log.exception("a step failed")
                rows = lane.all_rows()
                lane.clear()
                self._fail_rows(rows, error)

    def _emit(self, generation: Generation, event: Event) -> None:
        if isinstance(event, TokenEvent):
            self._last_token = self._clock()
            self._metrics.tokens.add()
            if generation.first_token is None:
                generation.first_token = self._last_token
                self._metrics.first_token.observe(self._last_token - generation.created)
            self._outbox.append((generation, event))
            return
        self._finish(generation, event)

    def _finish(self, generation: Generation, event: Event) -> None:
        self._running.pop(id(generation), None)
        generation.ended = True
        self._outbox.append((generation, event))
        if isinstance(event, Failed):
            self._metrics.failures.add(err=str(event.error.kind))
            self._metrics.adapter_failures.add(adapter=generation.request.adapter or BASE_LABEL)
            return
        if not isinstance(event, Finished) or generation.started is None:
            return
        now = self._clock()
        self._metrics.successes.add()
        self._metrics.adapter_successes.add(adapter=generation.request.adapter or BASE_LABEL)
        self._metrics.adapter_tokens.add(event.tokens, adapter=generation.request.adapter or BASE_LABEL)
        self._metrics.duration.observe(now - generation.created)
        self._metrics.queue_duration.observe(generation.started - generation.created)
        self._metrics.inference_duration.observe(now - generation.started)
        self._metrics.token_duration.observe((now - generation.started) / max(1, event.tokens))
        self._metrics.generated_tokens.observe(event.tokens)

    def _fail_rows(self, rows: list[Row], error: Exception) -> None:
        what = EngineError(ErrorKind.GENERATION, f"Request failed during generation: {type(error).__name__}.")
        requests = {id(row.request) for row in rows}
        for generation in [g for g in self._running.values() if id(g.request) in requests]:
            self._finish(generation, Failed(what))

    def _fail_all(self, error: EngineError) -> None:
        with self._wake:
            left = [*self._running.values(), *self._waiting]
            self._waiting.clear()
        for generation in left:
            self._finish(generation, Failed(error))
        for _, future in self._commands:
            future.cancel()
        self._send()

    def _send(self) -> None:
        """Hand this step's events to their event loops, one call per loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Event]]] = {}
        for generation, event in self._outbox:
            by_loop.setdefault(generation.loop, []).append((generation, event))
        self._outbox = []
        for loop, events in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, events)
            except RuntimeError:
                log.debug("an event loop closed before its answers were done")


def _deliver_all(events: list[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.deliver(event)


def _settle(future: "Future[None]", action: Callable[[], None]) -> None:
    try:
        action()
    except BaseException as error:
        future.set_exception(error)
        if not isinstance(error, Exception):
            raise
    else:
        future.set_result(None)
