"""One level-triggered pass over a ModelServer: observe, decide, apply. And the look at Adapters that no server holds any more.

Deciding is `lifecycle.serving.servers.decide`, pure; carrying it out is `apply`. Agents and chat services are asked beside the passes:
a pass goes by their last words.
"""

import logging
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime

from llamero.kube import KubeError, NotFound, objects
from llamero.kube.objects import ADAPTERS, SERVERS
from llamero.lifecycle.serving.world import (
    EnginePodView,
    ServerDecision,
    ServerWorld,
    ServingCapabilities,
    ServingLimits,
)
from llamero.spec import names
from llamero.spec.adapter import AdapterSpec
from llamero.spec.rollout import StrategySpec
from llamero_operator import logs
from llamero_operator.health import Vitals
from llamero_operator.passes import Passes
from llamero_operator.resources.serving.manifests import find_server_problems
from llamero_operator.serving.apply import ServingTools, apply, learn_told, release_adapter
from llamero_operator.serving.claims import find_taken, has_claim
from llamero_operator.serving.store import Key, ServerRecord
from llamero_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

Decide = Callable[[ServerWorld, ServingLimits, datetime], ServerDecision]

CONFLICT_SECONDS = 0.05
LEAST_SECONDS = 0.1
"""Between two passes that no news asked for."""
BACKOFF_LIMIT_SECONDS = 10.0
"""Longest time between two tries after errors: what serves should not wait for as long as what trains."""
EARLY = 0.9
"""A question that is due within a tenth of its interval is asked at once, so that it is not put off to the pass after the next."""


class ServerReconciler(Passes):
    """Looks at ModelServers, one pass a server at a time."""

    def __init__(
        self,
        tools: ServingTools,
        queue: WorkQueue[Key],
        vitals: Vitals,
        decide: Decide,
        capabilities: ServingCapabilities,
        limits: ServingLimits,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(queue, tools.metrics.server_passes)
        self.tools = tools
        self._vitals = vitals
        self._decide = decide
        self._capabilities = capabilities
        self._limits = limits
        self._now = now
        self._refused: dict[Key, dict[str, str]] = {}
        self._busy: set[Key] = set()  # servers with something under way: the chat services' news concern them

    # News

    def chats_changed(self) -> None:
        """The chat services say something new."""
        for key in self._busy:
            self.queue.add(key)

    # Passes

    def about(self, key: Key) -> AbstractContextManager[None]:
        return logs.about(namespace=key[0], server=key[1])

    def ended(self) -> None:
        self._vitals.last_server_pass = time.monotonic()

    async def reconcile(self, key: Key) -> float | None:
        if not key[1]:
            return await self._sweep(key[0])
        record = self.tools.store.serving.servers.get(key)
        if record is None:
            await self._forget(key)
            return None
        metadata = record.raw["metadata"]
        if record.deleting and names.FINALIZER not in (metadata.get("finalizers") or []):
            return None  # others hold it; our part is done
        world = self._observe(record, await learn_told(self.tools, record))
        decision = self._decide(world, self._limits, self._now())
        wake_after = self._seconds_to_next(decision)
        if wake_after < self._limits.poll_seconds:
            self._busy.add(key)
        else:
            self._busy.discard(key)
        every_seconds = EARLY * max(wake_after, self._limits.busy_poll_seconds)
        refused = dict(await apply(self.tools, record, world, decision, every_seconds))
        return self._next_pass(key, refused, wake_after)

    def _seconds_to_next(self, decision: ServerDecision) -> float:
        """Also a server that waits for nothing is looked at now and then: its agents are to be heard."""
        wanted = self._limits.poll_seconds if decision.wake_after is None else decision.wake_after
        return min(max(wanted, LEAST_SECONDS), self._limits.poll_seconds)

    def _next_pass(self, key: Key, refused: dict[str, str], wake_after: float) -> float:
        news = refused != self._refused.get(key, {})
        if refused:
            self._refused[key] = refused
        else:
            self._refused.pop(key, None)
        return CONFLICT_SECONDS if news else wake_after  # so that the status says so

    async def _forget(self, key: Key) -> None:
        """The server is gone: so are its routes, and all that is known of it."""
        await self.tools.routes.drop(names.server_key(*key))
        self.tools.agents.forget_server(key)
        self.tools.made.forget(*key)
        self._refused.pop(key, None)
        self._busy.discard(key)
        self.queue.drop(key)

    async def refresh(self, key: Key) -> None:
        """Reads the server and the Adapters of its namespace anew."""
        try:
            await self._read_anew(key)
        except KubeError as error:
            logger.warning("%s: next pass in %.1f s", error, self.queue.add_failed(key))
            return
        self.queue.add_after(key, CONFLICT_SECONDS * random.uniform(1, 2))

    async def _read_anew(self, key: Key) -> None:
        store = self.tools.store
        if key[1]:
            try:
                store.put("modelservers", await objects.read(self.tools.kube, SERVERS, *key))
            except NotFound:
                store.remove("modelservers", key)
        for view in store.serving.adapters(key[0]):
            try:
                store.put_own_write("adapters", await objects.read(self.tools.kube, ADAPTERS, key[0], view.name))
            except NotFound:
                store.remove("adapters", (key[0], view.name), view.uid)

    # Observing

    def _observe(self, record: ServerRecord, told_serial: int) -> ServerWorld:
        tools, key = self.tools, record.key
        served = names.server_key(*key)
        deployment = tools.store.serving.deployment(record, names.engine_name(key[1]))
        adapters = tools.store.serving.adapters(key[0])
        strategies = {a.name: found for a in adapters if (found := self._find_strategy(key[0], a.spec)) is not None}
        world = ServerWorld(
            namespace=key[0],
            name=key[1],
            uid=record.uid,
            generation=int(record.raw["metadata"].get("generation") or 1),
            created_at=record.created_at,
            deleting=record.deleting,
            server=record.parsed if not record.problems else None,
            problems=record.problems,
            status=record.status,
            adapters=adapters,
            pods=tuple(self._with_word(pod) for pod in tools.store.serving.pods(record)),
            deployment=deployment.view if deployment is not None else None,
            routed=tools.routes.part(served),
            revision=tools.routes.revision,
            chats=tools.chats.reports,
            silent_chats=tools.chats.silent,
            strategies=strategies,
            taken=find_taken(record, tools.store.serving.others(key), tools.routes.owners()),
            capabilities=self._capabilities,
            refused=self._refused.get(key, {}),
            routes_age=tools.routes.part_age(served),
            told_serial=told_serial,
        )
        if problems := find_server_problems(world, tools.settings):
            return replace(world, server=None, problems=problems)
        return world

    def _with_word(self, pod: EnginePodView) -> EnginePodView:
        report, age = self.tools.agents.last_word(pod.uid)
        return replace(pod, report=report, report_age=age)

    def _find_strategy(self, namespace: str, spec: AdapterSpec) -> StrategySpec | None:
        """That of the job which made the adapter, where the job is still there and has one."""
        if spec.source is None:
            return None
        job = self.tools.store.jobs.get((namespace, spec.source.job))
        if job is None or job.uid != spec.source.uid or job.parsed is None:
            return None
        return job.parsed.spec.rollout.strategy

    # Adapters that no server holds any more

    async def _sweep(self, namespace: str) -> float | None:
        """Lets go the Adapters whose deletion waits for a server that is not there, or that has nothing to do with them.

        Returns when to look again, where others wait for theirs.
        """
        store = self.tools.store.serving
        servers = [record for key, record in store.servers.items() if key[0] == namespace]
        are_all_free = True
        for adapter in store.stuck_adapters(namespace):
            name = adapter.raw["metadata"]["name"]
            if any(has_claim(server, adapter) for server in servers):
                are_all_free = False
                continue
            logger.info("the Adapter %s is let go: no ModelServer has it", name)
            await release_adapter(self.tools, namespace, name)
        return None if are_all_free else self._limits.poll_seconds
