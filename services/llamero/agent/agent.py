"""The agent beside an engine: from a list of wanted adapters to adapters that are proven to answer, whatever happens in between.

Level-triggered: one loop looks at the engine, one compares what is wanted with where each adapter stands and starts what is missing. An
engine that restarted has forgotten everything, so everything is given to it again. How files come, what is checked, what counts as
proof and how an engine is talked to stand in the modules beside; HTTP stands in `server`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from llamero.agent.bringing import bring_adapter, bring_base, bring_golden, digest_base, drop_adapter, is_brought
from llamero.agent.checking import check
from llamero.agent.engines.base import EngineClient, EngineTrouble
from llamero.agent.errors import Refusal, Trouble
from llamero.agent.proving import NotProven, Proof, prove
from llamero.spec.golden import GoldenSet
from llamero.spec.names import engine_adapter_path
from llamero.spec.serving import AdapterReport, AdapterStage, AdapterWanted, AgentReport, AgentWanted

LOOK_SECONDS = 1.0
SECOND_LOOK_SECONDS = 0.2
"""A connection that broke off is looked at again so soon: one hiccup must not take a pod out of the routes."""
MISSES = 3
"""So many looks in a row that an engine which listens does not answer well make it not ready."""
DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
CATCH_UP_SECONDS = 20.0
"""An agent that starts anew beside an engine at work proves its adapters again before it tells anything, for at most so long."""
MAX_DEATHS = 2
"""An engine that ended so often while it loaded an adapter gets it no more."""
MAX_MESSAGE = 512
SETTLED: frozenset[AdapterStage] = frozenset({"ready", "refused"})

log = logging.getLogger(__name__)


@dataclass
class _Served:
    """Where one adapter stands."""

    wanted: AdapterWanted
    stage: AdapterStage = "fetching"
    message: str = ""
    proof: Proof = field(default_factory=Proof)
    folder: Path | None = None  # brought and checked
    golden: GoldenSet | None = None
    began: float | None = None
    seconds: float = 0.0
    ready_at: float = 0.0
    is_unwanted: bool = False
    deaths: int = 0  # of the engine while it loaded this adapter
    tries: int = 0
    retry_at: float = 0.0
    task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self.task is not None and not self.task.done()

    def report(self) -> AdapterReport:
        return AdapterReport(
            id=self.wanted.id,
            stage=self.stage,
            message=self.message[:MAX_MESSAGE],
            nearer=self.proof.nearer,
            golden=self.proof.golden,
            seconds=round(self.seconds, 3),
        )


class Agent:
    """Brings an engine to serve what is wanted. Lives on one event loop; `want` and `report` return at once.

    `storage` is the root that relative URIs lie below; `scratch` the folder that the engine sees too; `now` gives the time that reports tell,
    `clock` seconds for delays.
    """

    def __init__(
        self,
        engine: EngineClient,
        scratch: Path,
        storage: str,
        pod: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._engine = engine
        self._scratch = scratch
        self._storage = storage
        self._pod = pod
        self._clock = clock
        self._look_seconds = look_seconds
        self._started_at, self._began = now(), clock()
        self._wanted: AgentWanted | None = None
        self._served: dict[str, _Served] = {}
        self._strays: dict[str, asyncio.Task[None]] = {}
        self._start_ids: frozenset[str] = frozenset()  # what readiness waits for
        self._base: tuple[Path, str] | None = None
        self._base_lock = asyncio.Lock()
        self._engine_lock = asyncio.Lock()  # one adapter is loaded and proven at a time
        self._wake = asyncio.Event()
        self._is_up = False
        self._has_looked = False
        self._catching_up: frozenset[str] = frozenset()
        self._misses = 0
        self._epoch = 0  # grows when the engine's process is found gone
        self._held: frozenset[str] | None = None
        self._engine_message = "The engine was not looked at yet."
        self.ticked_at = clock()

    # -- what is told and asked ------------------------------------------------------------------------------------------------

    def want(self, wanted: AgentWanted) -> bool:
        """Take in a list; False where one with this serial or a higher one is known. Raises ValueError for one of another engine."""
        if wanted.engine != self._engine.kind:
            raise ValueError(f"This pod runs {self._engine.kind}, and the list is for {wanted.engine}.")
        if self._wanted is not None and wanted.serial <= self._wanted.serial:
            return False
        if self._wanted is None:
            self._start_ids = frozenset(a.id for a in wanted.adapters)
        self._wanted = wanted
        self._note_wanted(wanted)
        self._wake.set()
        return True

    @property
    def wanted(self) -> AgentWanted | None:
        """The list that it works by."""
        return self._wanted

    def report(self) -> AgentReport:
        """Where everything stands now."""
        return AgentReport(
            pod=self._pod,
            started_at=self._started_at,
            serial=self._wanted.serial if self._wanted is not None else 0,
            engine_ready=self._is_up,
            engine_message=self._engine_message[:MAX_MESSAGE],
            adapters=[served.report() for served in self._served.values()],
        )

    @property
    def is_ready(self) -> bool:
        """Whether the pod may take requests: the engine answers, and what was wanted at its start is settled (for TGI: ready)."""
        if not self._is_up or self._wanted is None:
            return False
        enough = SETTLED if self._engine.loads_at_runtime else {"ready"}
        stages = [s.stage for name, s in self._served.items() if name in self._start_ids and not s.is_unwanted]
        return all(stage in enough for stage in stages)

    @property
    def is_catching_up(self) -> bool:
        """Whether a report would say less than is true: it started anew beside an engine whose adapters it has not proven yet.

        While it says nothing, what it said before its start stands.
        """
        if self._clock() - self._began > CATCH_UP_SECONDS:
            return False
        if not self._has_looked:
            return True
        stages = [self._served[name].stage for name in self._catching_up if name in self._served]
        return self._is_up and not all(stage in SETTLED for stage in stages)

    # -- life ------------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_engine(), name="watch the engine")
                group.create_task(self._tend(), name="tend adapters")
        finally:
            tasks = [s.task for s in self._served.values() if s.task is not None] + list(self._strays.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._engine.close()

    async def _tend(self) -> None:
        while True:
            self._wake.clear()
            self.ticked_at = self._clock()
            self._start_missing()
            # Not wait_for: it swallows a cancellation that comes with the event (python/cpython#86296), and the agent would never end.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds):
                    await self._wake.wait()

    # -- the engine ------------------------------------------------------------------------------------------------------------

    async def _watch_engine(self) -> None:
        while True:
            trouble = await self._look()
            if trouble is not None and isinstance(trouble, EngineTrouble) and trouble.gone and self._is_up:
                await asyncio.sleep(SECOND_LOOK_SECONDS)
                trouble = await self._look()
            if trouble is not None:
                self._note_trouble(trouble)
            self._note_first_look()
            self._wake.set()
            await asyncio.sleep(self._look_seconds)

    async def _look(self) -> Trouble | Refusal | None:
        """One look at the engine; what kept it from being one."""
        try:
            await self._engine.ready()
            asked_at = self._clock()
            held = await self._engine.loaded()
        except (Trouble, Refusal) as trouble:
            return trouble
        self._note_answer(held, asked_at)
        return None

    def _note_answer(self, held: frozenset[str] | None, asked_at: float) -> None:
        if not self._is_up:
            log.info("the engine is ready")
        self._is_up, self._misses, self._engine_message, self._held = True, 0, "", held
        if held is None:
            return
        for name, served in self._served.items():
            if served.stage == "ready" and name not in held and served.ready_at < asked_at:
                log.warning("the engine does not hold %s any more: it is loaded again", name)
                self._start_again(served)

    def _note_trouble(self, trouble: Trouble | Refusal) -> None:
        self._misses += 1
        is_gone = isinstance(trouble, EngineTrouble) and trouble.gone
        if not is_gone and self._is_up and self._misses < MISSES:
            return
        if self._is_up:
            log.warning("the engine is not ready: %s", trouble)
        self._is_up, self._engine_message = False, str(trouble)
        if not is_gone:
            return  # it listens, so what it holds is still there
        if self._held is not None or any(s.stage in ("proving", "ready") for s in self._served.values()):
            self._epoch += 1
        self._held = None
        if self._wanted is not None and self._engine.loads_at_runtime:
            self._start_ids = frozenset(a.id for a in self._wanted.adapters)
        for served in self._served.values():
            if served.stage in ("proving", "ready"):
                self._start_again(served)

    def _note_first_look(self) -> None:
        if self._has_looked:
            return
        self._has_looked = True
        if self._is_up:
            self._catching_up = frozenset(self._served) if self._held is None else frozenset(self._served) & self._held

    def _start_again(self, served: _Served) -> None:
        served.stage, served.message, served.proof = "loading", "", Proof()
        served.began, served.tries, served.retry_at = self._clock(), 0, 0.0

    # -- adapters --------------------------------------------------------------------------------------------------------------

    def _note_wanted(self, wanted: AgentWanted) -> None:
        """A place for each adapter that is wanted, and a mark on those that are not."""
        by_id = {a.id: a for a in wanted.adapters}
        for name, adapter in by_id.items():
            served = self._served.setdefault(name, _Served(adapter))
            if served.wanted.sha256 != adapter.sha256:
                self._refuse_other(served, adapter)
        for name, served in self._served.items():
            served.is_unwanted = name not in by_id

    def _start_missing(self) -> None:
        """Start what lies between each adapter and where it should stand."""
        for served in self._served.values():
            if served.is_busy or self._clock() < served.retry_at:
                continue
            if served.is_unwanted:
                served.task = asyncio.create_task(self._let_go(served), name=served.wanted.id)
            elif served.stage not in SETTLED and (served.folder is None or self._is_up):
                served.task = asyncio.create_task(self._bring_up(served), name=served.wanted.id)
        self._unload_strays()

    def _refuse_other(self, served: _Served, adapter: AdapterWanted) -> None:
        """An id that comes with other files: engines may answer from what they kept of the old ones."""
        served.wanted, served.stage = adapter, "refused"
        served.message = (
            f"{adapter.id} was wanted with other files before: ids are never used again. Publish it under a new name."
        )
        log.error("%s", served.message)

    async def _bring_up(self, served: _Served) -> None:
        name = served.wanted.id
        served.began = self._clock() if served.began is None else served.began
        try:
            if served.folder is None:
                served.folder = await self._bring(served)
            if served.is_unwanted or not self._is_up:
                served.stage = "loading"
                return
            async with self._engine_lock:
                await self._load_and_prove(served, served.folder)
        except Refusal as refusal:
            if isinstance(refusal, NotProven):
                served.proof = refusal.proof
            await self._refuse(served, str(refusal))
        except Trouble as trouble:
            self._put_off(served, str(trouble))
        except Exception as error:
            log.exception("the adapter %s met an error", name)
            self._put_off(served, f"The agent failed: {type(error).__name__}: {error}")
        finally:
            self._wake.set()

    async def _bring(self, served: _Served) -> Path:
        """The adapter's files in their place, checked, and its golden prompts."""
        served.stage = "fetching"
        wanted = served.wanted
        served.golden = await asyncio.to_thread(bring_golden, wanted, self._storage)
        if not self._engine.loads_at_runtime:
            folder = Path(engine_adapter_path(str(self._scratch), wanted.id))
            if not await asyncio.to_thread(is_brought, folder, wanted.sha256):
                served.stage = "loading"
                raise Trouble(
                    f"The engine takes adapters at its start only: {wanted.id} comes with the pod's next start."
                )
            return folder
        base, base_sha256 = await self._find_base()
        folder = await asyncio.to_thread(bring_adapter, wanted, self._scratch, self._storage)
        await asyncio.to_thread(check, wanted.name, folder, base, base_sha256, self._engine.kind)
        return folder

    async def _find_base(self) -> tuple[Path, str]:
        assert self._wanted is not None
        async with self._base_lock:
            if self._base is None:
                try:
                    folder = await asyncio.to_thread(bring_base, self._wanted.base, self._scratch, self._storage)
                    self._base = folder, await asyncio.to_thread(digest_base, folder)
                except Refusal as refusal:  # no adapter's fault
                    raise Trouble(str(refusal)) from refusal
            return self._base

    async def _load_and_prove(self, served: _Served, folder: Path) -> None:
        name, epoch = served.wanted.id, self._epoch
        served.stage = "loading"
        if self._engine.loads_at_runtime:
            await self._load(served, folder)
        served.stage = "proving"
        proof = await prove(self._engine, name, served.golden)
        if epoch != self._epoch or served.stage != "proving":  # it was proven of a process that is gone
            return
        served.stage, served.message, served.proof, served.tries = "ready", "", proof, 0
        served.ready_at = self._clock()
        served.seconds = self._clock() - (served.began or self._clock())
        log.info("%s answers, after %.1f s", name, served.seconds)

    async def _load(self, served: _Served, folder: Path) -> None:
        """Load it. An engine that ends over the same adapter again and again takes all others with it: the adapter is refused."""
        try:
            await self._engine.load(served.wanted.id, folder)
        except EngineTrouble as trouble:
            served.deaths += trouble.gone
            if served.deaths >= MAX_DEATHS:
                raise Refusal(
                    f"The engine ended {served.deaths} times while it loaded {served.wanted.id}: see the engine's log. ({trouble})"
                ) from trouble
            raise

    async def _refuse(self, served: _Served, message: str) -> None:
        log.error("%s is refused: %s", served.wanted.id, message)
        served.stage, served.message = "refused", message
        if not self._engine.loads_at_runtime:
            return
        with contextlib.suppress(Trouble, Refusal):  # a stray is let go later
            await self._engine.unload(served.wanted.id)
        await asyncio.to_thread(drop_adapter, served.wanted.id, self._scratch)

    def _put_off(self, served: _Served, message: str) -> None:
        delay = DELAYS_SECONDS[min(served.tries, len(DELAYS_SECONDS) - 1)]
        log.log(
            logging.WARNING if served.message != message else logging.DEBUG, "%s waits: %s", served.wanted.id, message
        )
        served.message, served.tries, served.retry_at = message, served.tries + 1, self._clock() + delay
        if served.stage == "proving":
            served.stage = "loading"

    async def _let_go(self, served: _Served) -> None:
        """Unload an adapter that is not wanted any more and remove its files; then it is no longer told of."""
        name = served.wanted.id
        served.stage = "unloading"
        try:
            if self._engine.loads_at_runtime:
                if self._is_up:
                    await self._engine.unload(name)
                await asyncio.to_thread(drop_adapter, name, self._scratch)
        except (Trouble, Refusal) as trouble:
            self._put_off(served, str(trouble))
            return
        finally:
            self._wake.set()
        if self._served.get(name) is served:
            del self._served[name]
        log.info("%s is let go", name)

    def _unload_strays(self) -> None:
        """What the engine holds and nobody wants: left by an agent that ended, or refused after it was loaded."""
        self._strays = {name: task for name, task in self._strays.items() if not task.done()}
        if not self._engine.loads_at_runtime or not self._is_up or self._held is None:
            return
        for name in self._held:
            served = self._served.get(name)
            is_kept = served is not None and (served.stage != "refused" or served.is_busy)
            if not is_kept and name not in self._strays:
                self._strays[name] = asyncio.create_task(self._unload_stray(name), name=f"unload {name}")

    async def _unload_stray(self, name: str) -> None:
        log.info("the engine holds %s, which is not wanted", name)
        with contextlib.suppress(Trouble, Refusal):
            await self._engine.unload(name)
