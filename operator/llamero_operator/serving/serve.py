"""The serving side as one thing that the operator starts and ends: its queue, its workers, and what runs beside them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from llamero.kube import Kube, KubeError
from llamero.kube.events import EventRecorder
from llamero.lifecycle.serving.servers import decide
from llamero.lifecycle.serving.world import ServingCapabilities
from llamero.spec import names
from llamero_operator.health import Vitals
from llamero_operator.metrics import Metrics
from llamero_operator.serving.agents import Agents
from llamero_operator.serving.apply import ServingTools
from llamero_operator.serving.chats import Chats
from llamero_operator.serving.exchange import open_session
from llamero_operator.serving.reconciler import BACKOFF_LIMIT_SECONDS, ServerReconciler
from llamero_operator.serving.routes import RoutesWriter
from llamero_operator.serving.store import Key
from llamero_operator.settings import OperatorSettings
from llamero_operator.store import Store
from llamero_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

START_RETRY_SECONDS = 2.0
CHECK_SECONDS = 60.0
STOP_SECONDS = 10.0


class Serving:
    """Made within the event loop; `open_gate` once everything was listed, `close` at the end. The client is closed with it."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        settings: OperatorSettings,
        metrics: Metrics,
        vitals: Vitals,
        capabilities: ServingCapabilities,
    ) -> None:
        self._kube = kube
        self._store = store
        self._metrics = metrics
        self._session = open_session(settings.serving.timeout_seconds)
        self._queue = WorkQueue[Key](limit_seconds=BACKOFF_LIMIT_SECONDS)
        self._routes = RoutesWriter(kube, kube.namespace)
        self._agents = Agents(self._session, metrics, self._queue.add)
        self._chats = Chats(settings.serving.chats, self._session, metrics, lambda: self._reconciler.chats_changed())
        events = EventRecorder(kube, names.FIELD_MANAGER)
        tools = ServingTools(kube, store, events, settings, metrics, self._agents, self._chats, self._routes)
        self._reconciler = ServerReconciler(
            tools, self._queue, vitals, decide, capabilities, settings.to_serving_limits()
        )
        store.serving.wake = self._queue.add
        # Before the routes were read nothing can be done: an API server that is away ends no process.
        vitals.oldest_server_waiting = lambda: self._queue.oldest_seconds if self._reconciler.is_open else 0.0
        self._workers = [
            asyncio.create_task(self._reconciler.work(), name=f"server-worker-{n}") for n in range(settings.concurrency)
        ]
        self._background: list[asyncio.Task[None]] = []

    def open_gate(self) -> None:
        """Everything that exists has been seen: once the routes that are there were read, passes begin."""
        self._background.append(asyncio.create_task(self._begin(), name="serving"))

    async def close(self) -> None:
        """Ends in good order: passes under way get their time."""
        self._queue.close()
        self._reconciler.open_gate()
        for task in self._background:
            task.cancel()
        _, late = await asyncio.wait(self._workers, timeout=STOP_SECONDS)
        for task in late:
            task.cancel()
        await self._agents.close()
        await self._chats.close()
        await self._session.close()
        await self._kube.close()

    def show(self) -> None:
        """Sets the gauges."""
        statuses = [record.status for record in self._store.serving.servers.values()]
        self._metrics.show_servers((s.phase for s in statuses), (a.state for s in statuses for a in s.adapters))
        self._metrics.server_queue.set(len(self._queue))
        age = self._routes.age_seconds
        if age is not None:
            self._metrics.routes_age.set(age)

    async def _begin(self) -> None:
        await _until_done(self._routes.load, "the routes can't be read")
        self._routes.keep(names.server_key(*key) for key in self._store.serving.servers)
        await _until_done(self._routes.write, "the routes can't be written")
        # So that no drain counts as settled for want of a chat service's word.
        await _until_done(self._chats.round, "the chat services can't be asked")
        self._reconciler.open_gate()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._routes.check()
            except KubeError as error:
                logger.warning("the routes can't be looked at now: %s", error)
            except Exception:
                logger.exception("the routes can't be looked at")


async def _until_done(work: Callable[[], Awaitable[None]], what: str) -> None:
    while True:
        try:
            await work()
            return
        except KubeError as error:
            logger.warning("%s: %s: trying again", what, error)
        except Exception:
            logger.exception("%s: trying again", what)
        await asyncio.sleep(START_RETRY_SECONDS)
