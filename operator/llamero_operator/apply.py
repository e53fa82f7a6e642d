"""Carries a decision out, in an order that may be cut anywhere: the next pass decides the same again from the old status.

Finalizer, children, Adapter, task, queues; then the status, once; then Events, deletions, and the job's own end. What exists
already, or is gone already, is success.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llamero.kube import Conflict, Kube, NotFound, Refused
from llamero.kube import children as kube_children
from llamero.kube import jobs as kube_jobs
from llamero.kube.events import EventRecorder
from llamero.kube.servers import ensure_server
from llamero.lifecycle.world import Decision, Publication, Work, World
from llamero.spec import names
from llamero.spec.status import WorkKind
from llamero.spec.tasks import AttemptId
from llamero_operator.broker import Broker
from llamero_operator.desired import build_child, child_name
from llamero_operator.messages import PLAIN_KINDS, attempt_id, build_message
from llamero_operator.metrics import Metrics
from llamero_operator.resources.adapter import build_adapter
from llamero_operator.resources.default_server import build_default_server
from llamero_operator.resources.redis_secret import build_redis_secret
from llamero_operator.settings import OperatorSettings
from llamero_operator.store import JobRecord, Store

logger = logging.getLogger(__name__)

SECRET_SECONDS = 600.0
"""A namespace's Secret is written again after so long: someone may have removed it."""


@dataclass
class Namespaces:
    """What the operator remembers of namespaces: which have the Secret, and which are being deleted."""

    secrets: dict[str, float] = field(default_factory=dict)
    ending: set[str] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def needs_secret(self, namespace: str) -> bool:
        return time.monotonic() - self.secrets.get(namespace, float("-inf")) > SECRET_SECONDS

    def forget_secret(self, namespace: str) -> None:
        self.secrets.pop(namespace, None)


@dataclass(frozen=True)
class Tools:
    """What it takes to carry a decision out."""

    kube: Kube
    broker: Broker
    store: Store
    events: EventRecorder
    settings: OperatorSettings
    metrics: Metrics
    namespaces: Namespaces = field(default_factory=Namespaces)


async def apply(tools: Tools, record: JobRecord, world: World, decision: Decision) -> Mapping[str, str]:
    """Carries the decision out. Returns what the API server refused, by name, with its sentence.

    Raises Conflict where the job has changed since it was observed, Away where the API server is.
    """
    if not world.deleting:
        record = await _ensure_finalizer(tools, record)
    refused = await _create_children(tools, world, decision)
    refused |= await _publish(tools, world, decision)
    await _send(tools, world, decision, refused)
    if decision.forget_queues:
        # Before the status, so that a pass that is cut off here decides it again.
        await tools.broker.forget(world.uid, keep=_attempt_at_hand(world, decision))
    record = await _write_status(tools, record, world, decision)
    for note in decision.notes:
        await tools.events.record(record.raw, note.reason, note.message, note.warning)
    undeleted = await _delete_children(tools, record, world, decision)
    if decision.let_go:
        await kube_jobs.delete_finalizer(tools.kube, record.raw)
    if decision.delete_job and not world.deleting:
        await kube_jobs.delete_job(tools.kube, world.namespace, world.name, world.uid)
    if undeleted is not None:
        raise undeleted
    return refused


async def _ensure_finalizer(tools: Tools, record: JobRecord) -> JobRecord:
    if names.FINALIZER in (record.raw["metadata"].get("finalizers") or []):
        return record
    return _remember(tools, record, await kube_jobs.ensure_finalizer(tools.kube, record.raw))


async def _create_children(tools: Tools, world: World, decision: Decision) -> dict[str, str]:
    there = {child.name for child in world.children}
    # What was found in this very pass (data, base) is in the new status, and the pods of the next phase need it.
    found = replace(world, status=decision.status)
    refused: dict[str, str] = {}
    for work in decision.work:
        name = child_name(world, work)
        if name in there:
            continue
        try:
            manifest = build_child(found, work, tools.settings)
        except ValueError as error:
            refused[name] = str(error)
            continue
        try:
            await _ensure_secret(tools, world.namespace)
            created = await kube_children.ensure_child(tools.kube, manifest)
        except NotFound:
            tools.namespaces.ending.add(world.namespace)
            refused[name] = f"the namespace {world.namespace} is gone"
        except Refused as error:
            if error.is_namespace_ending:
                tools.namespaces.ending.add(world.namespace)
            refused[name] = str(error)
            logger.warning("the API server refused %s: %s", name, error)
        else:
            tools.namespaces.ending.discard(world.namespace)  # there is one of that name again
            logger.info("created Job %s", name)
            if created is not None:
                tools.store.put("jobs", created)
    return refused


async def _ensure_secret(tools: Tools, namespace: str) -> None:
    if not tools.namespaces.needs_secret(namespace):
        return
    async with tools.namespaces.lock:  # many jobs that start in one namespace write it once
        if not tools.namespaces.needs_secret(namespace):
            return
        await kube_children.ensure_secret(tools.kube, build_redis_secret(namespace, tools.settings.redis_url))
        tools.namespaces.secrets[namespace] = time.monotonic()


async def _publish(tools: Tools, world: World, decision: Decision) -> dict[str, str]:
    publication = decision.publish
    if publication is None:
        return {}
    known = world.adapters.get(publication.name)
    if known is None or known.sha256 != publication.spec.sha256:
        try:
            created = await kube_children.ensure_adapter(tools.kube, build_adapter(publication, world.namespace))
        except Refused as error:
            logger.warning("the Adapter %s could not be published: %s", publication.name, error)
            return {publication.name: str(error)}
        tools.store.put("adapters", created)
        logger.info("published Adapter %s", publication.name)
    return await _ensure_server(tools, world, publication)


async def _ensure_server(tools: Tools, world: World, publication: Publication) -> dict[str, str]:
    """The ModelServer that the Adapter is for, where there is none of the name: nobody owns it, and it outlives the job."""
    server = publication.server
    if server is None or world.servers is None or server.name in world.servers:
        return {}
    try:
        created = await ensure_server(tools.kube, build_default_server(server, world.namespace))
    except Refused as error:
        logger.warning("the ModelServer %s could not be made: %s", server.name, error)
        return {server.name: str(error)}
    if created is not None:
        tools.store.put("modelservers", created)
        logger.info("made ModelServer %s", server.name)
    return {}


async def _send(tools: Tools, world: World, decision: Decision, refused: Mapping[str, str]) -> None:
    work = decision.send
    if work is None or work.kind in PLAIN_KINDS or child_name(world, work) in refused:
        return
    message = build_message(replace(world, status=decision.status), work, tools.settings)
    sent = await tools.broker.send(message)
    tools.metrics.sends.labels(work.kind, "sent" if sent else "failed").inc()
    if sent:
        logger.info("sent the task of %s", child_name(world, work))


async def _write_status(tools: Tools, record: JobRecord, world: World, decision: Decision) -> JobRecord:
    if decision.status == world.status and record.raw.get("status"):
        return record
    raw = {k: v for k, v in record.raw.items() if k != "status"}
    status, work = decision.status, decision.status.work
    if work is not None and work.job in tools.store.child_uids(record.key):
        # Made in this very pass: so it need not be written again that it is there.
        status = status.model_copy(update={"work": work.model_copy(update={"seen": True})})
    return _remember(tools, record, await kube_jobs.ensure_status(tools.kube, raw, status.to_json_dict()))


async def _delete_children(tools: Tools, record: JobRecord, world: World, decision: Decision) -> Conflict | None:
    """Returns why a deletion is to be asked for again; nothing else waits for that."""
    undeleted = None
    wanted = {(work.kind, work.run, work.attempt) for work in decision.work}
    uids = tools.store.child_uids(record.key)
    for child in world.children:
        if child.deleting or (child.kind, child.run, child.attempt) in wanted or child.name not in uids:
            continue
        try:
            await kube_children.delete_child(tools.kube, world.namespace, child.name, uids[child.name])
        except Conflict as error:
            undeleted = error
            continue
        record.deleted_children.add(uids[child.name])
        logger.info("deleted Job %s", child.name)
    return undeleted


def _attempt_at_hand(world: World, decision: Decision) -> AttemptId | None:
    work: Work | None = next((w for w in decision.work if w.kind is not WorkKind.LOGS), None)
    return attempt_id(world, work) if work is not None else None


def _remember(tools: Tools, record: JobRecord, answer: Mapping[str, Any]) -> JobRecord:
    """The job as it is after our own write, which the watch may show later."""
    tools.store.put("finetunejobs", answer)
    newest = tools.store.jobs.get(record.key)
    return newest if newest is not None and newest.uid == record.uid else record
