"""One level-triggered pass over a job: observe, decide, apply. And how kopf's watches lead to it.

kopf only watches: indexes put each object into the store, and each change puts the job's key into the work queue. Deciding is
`lifecycle.jobs.decide`, pure; carrying it out is `apply`.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import kopf

from llamero.kube import KubeError, NotFound
from llamero.kube import jobs as kube_jobs
from llamero.kube.objects import Resource
from llamero.lifecycle.settling import SETTLE_SECONDS, may_settle
from llamero.lifecycle.world import Capabilities, Decision, Limits, World
from llamero.spec import names
from llamero.spec.status import JobStatus, WorkKind
from llamero.spec.tasks import AttemptId, ProgressReport
from llamero_operator import logs, observe
from llamero_operator.apply import Tools, apply
from llamero_operator.desired import find_cluster_problems
from llamero_operator.health import Vitals
from llamero_operator.passes import Passes
from llamero_operator.store import KINDS, JobRecord, Key
from llamero_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

Decide = Callable[[World, Limits, datetime], Decision]

START_SECONDS_PER_JOB = 0.005
START_SECONDS_LIMIT = 10.0
"""When the operator starts, the first passes over its jobs are spread out over so long."""
CONFLICT_SECONDS = 0.05
NEWS_SECONDS = {"pods": 0.05, "jobs": 0.05}
"""How long news of a kind wait for more: a pod and its Job change several times in a moment, and one pass sees to all of it."""
WITHOUT_RUN = frozenset({WorkKind.FETCH, WorkKind.PROBE, WorkKind.CLEAN, WorkKind.LOGS})


class Reconciler(Passes):
    """Looks at jobs, one pass a job at a time."""

    def __init__(
        self,
        tools: Tools,
        queue: WorkQueue[Key],
        vitals: Vitals,
        decide: Decide,
        capabilities: Capabilities,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(queue, tools.metrics.reconciles)
        self.tools = tools
        self._vitals = vitals
        self._decide = decide
        self._capabilities = capabilities
        self._limits = tools.settings.to_limits()
        self._now = now
        self._refused: dict[Key, dict[str, str]] = {}
        self._departed: dict[Key, str] = {}
        self._unsettled: dict[Key, float] = {}  # since when a status that may wait has not been written

    # Events

    def see(self, kind: str, thing: Any) -> None:
        """A watch shows an object."""
        job = self.tools.store.put(kind, thing)
        if job is None:
            return  # nothing new: our own write, or an older version
        if self.is_open:
            self.queue.add_after(job, NEWS_SECONDS.get(kind, 0.0))
        else:
            spread = min(START_SECONDS_LIMIT, START_SECONDS_PER_JOB * len(self.tools.store.jobs))
            self.queue.add_after(job, random.uniform(0, spread))

    def see_gone(self, kind: str, thing: Any) -> None:
        """A watch shows that an object is gone."""
        metadata = thing["metadata"]
        key = (metadata["namespace"], metadata["name"])
        job = self.tools.store.remove(kind, key, metadata["uid"])
        if job is None:
            return
        if kind == "finetunejobs":
            self._departed[job] = metadata["uid"]
        self.queue.add(job)

    # Passes

    def about(self, key: Key) -> AbstractContextManager[None]:
        return logs.about(namespace=key[0], job=key[1])

    def ended(self) -> None:
        self._vitals.last_pass = time.monotonic()

    async def reconcile(self, key: Key) -> float | None:
        """One pass. Returns the seconds to the next one where nothing happens before. Raises KubeError."""
        record = self.tools.store.jobs.get(key)
        if (departed := self._departed.pop(key, None)) is not None:
            await self.tools.broker.forget(departed)
        if record is None:
            self._refused.pop(key, None)
            self._unsettled.pop(key, None)
            self.queue.drop(key)
            return None
        metadata = record.raw["metadata"]
        if metadata.get("deletionTimestamp") and names.FINALIZER not in (metadata.get("finalizers") or []):
            return None  # others hold it; our part is done
        world = await self._observe(record)
        decision = self._let_settle(key, world, self._decide(world, self._limits, self._now()))
        work = decision.status.work
        with logs.about(
            run=decision.status.run, phase=str(decision.status.phase), attempt=work.attempt if work else None
        ):
            refused = dict(await apply(self.tools, record, world, decision))
        return self._next_pass(key, refused, decision)

    def _let_settle(self, key: Key, world: World, decision: Decision) -> Decision:
        """The decision without its status where that may wait, and a pass when it has waited."""
        if decision.notes or decision.status == world.status or not may_settle(world.status, decision.status):
            self._unsettled.pop(key, None)
            return decision
        now = time.monotonic()
        left = self._unsettled.setdefault(key, now) + SETTLE_SECONDS - now
        if left <= 0:
            del self._unsettled[key]
            return decision
        wake = left if decision.wake_after is None else min(left, decision.wake_after)
        return replace(decision, status=world.status, wake_after=wake)

    def _next_pass(self, key: Key, refused: dict[str, str], decision: Decision) -> float | None:
        news = refused != self._refused.get(key, {})
        if refused:
            self._refused[key] = refused
        else:
            self._refused.pop(key, None)
        if news and refused:
            return CONFLICT_SECONDS  # so that the status says so
        if refused:
            poll = self._limits.poll_seconds
            return poll if decision.wake_after is None else min(decision.wake_after, poll)
        return decision.wake_after

    async def _observe(self, record: JobRecord) -> World:
        tools, key = self.tools, record.key
        metadata = record.raw["metadata"]
        status = observe.read_status(record.raw)
        children = tools.store.children(key)
        problems = record.problems
        if record.parsed is not None:
            problems = (*problems, *find_cluster_problems(record.parsed, tools.settings))
        if any("secret" in (pod.waiting or "") for child in children for pod in child.pods):
            tools.namespaces.forget_secret(key[0])
        progress = await self._read_progress(record, status)
        return World(
            namespace=key[0],
            name=key[1],
            uid=record.uid,
            generation=int(metadata.get("generation") or 1),
            created_at=observe.parse_time(metadata.get("creationTimestamp")) or observe.EPOCH,
            deleting=bool(metadata.get("deletionTimestamp")),
            job=record.parsed if not problems else None,
            problems=problems,
            status=status,
            children=children,
            progress=progress,
            redis_problem=tools.broker.problem,
            adapters=tools.store.adapters(key),
            adapter_statuses=tools.store.adapter_statuses(key),
            servers=tools.store.serving.server_names(key[0]) if tools.settings.serving.enabled else None,
            has_storage=tools.settings.cleans_storage and key[0] not in tools.namespaces.ending,
            capabilities=self._capabilities,
            log_request=observe.read_log_request(record.raw),
            refused=self._refused.get(key, {}),
        )

    async def _read_progress(self, record: JobRecord, status: JobStatus) -> ProgressReport | None:
        work = status.work
        if work is None:
            if self.tools.broker.problem is not None:
                await self.tools.broker.check()
            return None
        attempt = AttemptId(
            namespace=record.key[0],
            job=record.key[1],
            uid=record.uid,
            run=0 if work.kind in WITHOUT_RUN else status.run,
            kind=work.kind,
            attempt=work.attempt,
        )
        return (await self.tools.broker.read_progress([attempt]))[0]

    async def refresh(self, key: Key) -> None:
        """Reads a job anew whose write was refused as outdated: the watch may lag behind."""
        try:
            self.tools.store.put("finetunejobs", await kube_jobs.observe_job(self.tools.kube, *key))
        except NotFound:
            self.tools.store.remove("finetunejobs", key)
        except KubeError as error:
            logger.warning("%s: next pass in %.1f s", error, self.queue.add_failed(key))
            return
        self.queue.add_after(key, CONFLICT_SECONDS * random.uniform(1, 2))


def build_registry(
    reconciler: Reconciler, kinds: Mapping[str, Resource] = KINDS, opened: Callable[[], None] = lambda: None
) -> kopf.OperatorRegistry:
    """kopf's handlers: an index a kind, which fills the store, and an event handler, which sees deletions.

    kopf runs event handlers only when every index is complete: the first of them opens the gate to the first pass, and calls `opened`.
    """
    registry = kopf.OperatorRegistry()
    for kind, resource in kinds.items():
        _register(registry, reconciler, kind, *split_prefix(resource), opened)
    return registry


def split_prefix(resource: Resource) -> tuple[str, str]:
    """(group, version) of a kind, as kopf wants them."""
    _, _, group_version = resource.prefix.rpartition("/apis/")
    group, _, version = group_version.partition("/") if "/apis/" in resource.prefix else ("", "", "v1")
    return group, version


def _register(
    registry: kopf.OperatorRegistry,
    reconciler: Reconciler,
    kind: str,
    group: str,
    version: str,
    opened: Callable[[], None],
) -> None:
    @kopf.index(group, version, kind, id=f"see-{kind}", registry=registry)
    async def see(body: kopf.Body, **_: Any) -> None:
        reconciler.see(kind, dict(body))

    @kopf.on.event(group, version, kind, id=f"gone-{kind}", registry=registry)
    async def gone(event: kopf.RawEvent, **_: Any) -> None:
        if not reconciler.is_open:
            reconciler.open_gate()
            opened()
        if event["type"] == "DELETED":
            reconciler.see_gone(kind, event["object"])
