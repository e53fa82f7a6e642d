"""Carries a decision about a server out, in an order that may be cut anywhere: the next pass decides the same again from the old status.

Verdicts and finalizers on Adapters, what pods are told, routes, Deployment and the rest; then the status, once; then Events, what is
let go, and the server's own end. What exists already, or is gone already, is success.
"""

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamero.kube import Conflict, Kube, NotFound, Refused, objects
from llamero.kube.events import EventRecorder
from llamero.kube.objects import (
    ADAPTERS,
    AUTOSCALERS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    SERVERS,
    SERVICES,
    Resource,
)
from llamero.kube.servers import observe_config_map
from llamero.lifecycle.serving.world import ServerDecision, ServerWorld
from llamero.spec import names
from llamero.spec.adapter import AdapterResourceStatus
from llamero.spec.job import API_VERSION
from llamero.spec.server import SERVER_KIND
from llamero.spec.status import ConditionType
from llamero_operator.metrics import Metrics
from llamero_operator.resources.serving import manifests
from llamero_operator.serving.agents import Agents
from llamero_operator.serving.chats import Chats
from llamero_operator.serving.observe import DIGEST_ANNOTATION, read_serial
from llamero_operator.serving.routes import RoutesWriter
from llamero_operator.serving.store import AdapterRecord, DeploymentRecord, ServerRecord
from llamero_operator.settings import OperatorSettings
from llamero_operator.store import Store

logger = logging.getLogger(__name__)

Manifest = dict[str, Any]
Key = tuple[str, str]

REAPPLY_SECONDS = 600.0
"""What is not watched is written again after so long: someone may have changed or removed it."""


@dataclass(frozen=True)
class _Applied:
    digest: str
    at: float
    generation: int = 0


@dataclass
class Made:
    """What this process knows of the objects that it wrote."""

    objects: dict[tuple[str, str, str], _Applied] = field(default_factory=dict)
    """(kind, namespace, name) → what was written."""
    told: dict[Key, int] = field(default_factory=dict)
    """Number of the list of adapters that each server's pods were last told."""

    def forget(self, namespace: str, server: str) -> None:
        """The server is gone."""
        self.told.pop((namespace, server), None)
        gone = {names.engine_name(server), names.wanted_name(server)}
        for key in [key for key in self.objects if key[1] == namespace and key[2] in gone]:
            del self.objects[key]


@dataclass(frozen=True)
class ServingTools:
    """What it takes to carry a decision out."""

    kube: Kube
    store: Store
    events: EventRecorder
    settings: OperatorSettings
    metrics: Metrics
    agents: Agents
    chats: Chats
    routes: RoutesWriter
    made: Made = field(default_factory=Made)


async def apply(
    tools: ServingTools, record: ServerRecord, world: ServerWorld, decision: ServerDecision, every_seconds: float
) -> Mapping[str, str]:
    """Carries the decision out. Returns what the API server refused, by name, with its sentence.

    Raises Conflict where something has changed since it was observed, Away where the API server is.
    """
    if not world.deleting:
        record = await _ensure_finalizer(tools, record)
    await _hold_adapters(tools, world, decision)
    await _judge_adapters(tools, world, decision)
    refused = await _tell_pods(tools, record, world, decision, every_seconds)
    await _route(tools, world, decision)
    if decision.deploy and world.server is not None:
        refused |= await _ensure_engine(tools, record, world, decision)
    record = await _write_status(tools, record, world, decision)
    for note in decision.notes:
        await tools.events.record(_about(record.raw, SERVER_KIND), note.reason, note.message, note.warning)
    for name in sorted(decision.release):
        await release_adapter(tools, world.namespace, name)
    if decision.let_go:
        await _let_go(tools, record)
    return refused


async def _ensure_finalizer(tools: ServingTools, record: ServerRecord) -> ServerRecord:
    if names.FINALIZER in (record.raw["metadata"].get("finalizers") or []):
        return record
    return _remember(tools, record, await objects.add_finalizer(tools.kube, SERVERS, record.raw, names.FINALIZER))


async def _let_go(tools: ServingTools, record: ServerRecord) -> None:
    # The routes' part goes first, so that no chat service is told of pods that are about to end.
    await tools.routes.drop(names.server_key(*record.key))
    answer = await objects.take_finalizer(tools.kube, SERVERS, record.raw, names.FINALIZER)
    if answer is not None:
        tools.store.put("modelservers", answer)


# -- Adapters ------------------------------------------------------------------------------------------------------------------


async def _hold_adapters(tools: ServingTools, world: ServerWorld, decision: ServerDecision) -> None:
    for name in sorted(decision.hold):
        record = tools.store.serving.adapter(world.namespace, name)
        if record is None or record.view is None or record.view.held or record.view.deleting:
            continue  # a finalizer can't be added to what is being deleted
        await _write_adapter(tools, objects.add_finalizer(tools.kube, ADAPTERS, record.raw, names.SERVED_FINALIZER))


async def _judge_adapters(tools: ServingTools, world: ServerWorld, decision: ServerDecision) -> None:
    for name, status in sorted(decision.adapter_statuses.items()):
        record = tools.store.serving.adapter(world.namespace, name)
        if record is None or record.view is None or record.view.status == status:
            continue
        raw = {k: v for k, v in record.raw.items() if k != "status"}
        await _write_adapter(tools, objects.write_status(tools.kube, ADAPTERS, raw, status.to_json_dict()))
        await _tell_verdict(tools, record, status)


async def _tell_verdict(tools: ServingTools, record: AdapterRecord, status: AdapterResourceStatus) -> None:
    """A rollback and a refusal are Events of the Adapter too, and rollbacks are counted."""
    assert record.view is not None
    for kind, wrong in ((ConditionType.ROLLED_BACK, "True"), (ConditionType.VERIFIED, "False")):
        before, after = record.view.status.condition(kind), status.condition(kind)
        if after is None or after.status != wrong or (before is not None and before.status == wrong):
            continue
        if kind is ConditionType.ROLLED_BACK:
            tools.metrics.rollbacks.inc()
        await tools.events.record(_about(record.raw, "Adapter"), after.reason, after.message, warning=True)


async def release_adapter(tools: ServingTools, namespace: str, name: str) -> None:
    """No engine has the Adapter any more: its deletion need not wait. Raises KubeError."""
    record = tools.store.serving.adapter(namespace, name)
    if record is None or names.SERVED_FINALIZER not in (record.raw["metadata"].get("finalizers") or []):
        return
    await _write_adapter(tools, objects.take_finalizer(tools.kube, ADAPTERS, record.raw, names.SERVED_FINALIZER))


async def _write_adapter(tools: ServingTools, work: Any) -> None:
    try:
        answer = await work
    except NotFound:
        return  # deleted meanwhile: the watch will tell
    if answer is not None:
        tools.store.put_own_write("adapters", answer)


# -- what pods are told, and where requests go ---------------------------------------------------------------------------------


async def _tell_pods(
    tools: ServingTools, record: ServerRecord, world: ServerWorld, decision: ServerDecision, every_seconds: float
) -> dict[str, str]:
    """New pods read the list from the ConfigMap, those that run are told it; nobody waits for their answers."""
    wanted = decision.wanted
    is_told = wanted is not None and wanted.engine != "tgi"
    if wanted is not None and is_told:
        tools.made.told[record.key] = max(wanted.serial, tools.made.told.get(record.key, 0))
    refused: dict[str, str] = {}
    if is_told and decision.deploy:
        manifest = manifests.build_wanted_config_map(world, decision, tools.settings)
        refused = await _ensure(tools, record, CONFIG_MAPS, manifest)
    tools.agents.converse(record.key, world.pods, wanted if is_told else None, every_seconds)
    tools.chats.ask(every_seconds)
    return refused


async def learn_told(tools: ServingTools, record: ServerRecord) -> int:
    """The number of the list that pods which are told were told last: an operator before this one may have. Raises KubeError."""
    told = tools.made.told.get(record.key)
    if told is None:
        found = await observe_config_map(tools.kube, record.key[0], names.wanted_name(record.key[1]))
        text = ((found or {}).get("data") or {}).get(names.WANTED_KEY)
        told = tools.made.told[record.key] = read_serial(text)
    return told


async def _route(tools: ServingTools, world: ServerWorld, decision: ServerDecision) -> None:
    key = names.server_key(world.namespace, world.name)
    taken = await tools.routes.put(key, decision.routes)
    for model, owner in sorted(taken.items()):
        logger.warning("the public name %s is not routed to %s: %s has it", model, key, owner)
    if taken:
        raise Conflict(f"public names that {key} asks for were taken by others meanwhile: {', '.join(sorted(taken))}")


# -- Deployment, Service, PodDisruptionBudget, HorizontalPodAutoscaler ---------------------------------------------------------

Build = Callable[[ServerWorld, ServerDecision, OperatorSettings], Manifest | None]


async def _ensure_engine(
    tools: ServingTools, record: ServerRecord, world: ServerWorld, decision: ServerDecision
) -> dict[str, str]:
    """What the API server refused, by kind and name."""
    assert world.server is not None
    refused: dict[str, str] = {}
    plan: list[tuple[Resource, Build, bool]] = [
        (SERVICES, manifests.build_service, True),
        (DEPLOYMENTS, manifests.build_deployment, True),
        (DISRUPTION_BUDGETS, manifests.build_disruption_budget, world.capabilities.disruption_budgets),
        (AUTOSCALERS, manifests.build_autoscaler, world.capabilities.autoscaling),
    ]
    for resource, build, is_served in plan:
        if not is_served:
            continue
        try:
            manifest = build(world, decision, tools.settings)
        except ValueError as error:
            refused[resource.kind] = str(error)
            continue
        if manifest is None:
            await _ensure_gone(tools, record, resource)
        elif resource is DEPLOYMENTS:
            refused |= await _ensure_deployment(tools, record, manifest)
        else:
            refused |= await _ensure(tools, record, resource, manifest)
    return refused


async def _ensure_deployment(tools: ServingTools, record: ServerRecord, manifest: Manifest) -> dict[str, str]:
    known = tools.store.serving.deployment(record, manifest["metadata"]["name"])
    manifest, digest = _stamp(manifest)
    if "replicas" not in manifest["spec"] and known is not None:
        # An autoscaler says how many there are; left out, the number would fall back to 1 where it was ours before.
        manifest["spec"]["replicas"] = max(known.replicas, 1)
    key = _made_key(DEPLOYMENTS, record, manifest)
    made = tools.made.objects.get(key)
    is_ours = known is not None and known.digest == digest
    if is_ours and made is not None and known is not None and known.view.generation <= made.generation:
        return {}
    strategy = (manifest["spec"].get("strategy") or {}).get("type", "")
    if known is not None and strategy and strategy != known.strategy:
        await _change_strategy(tools, record, known, strategy)
    answer, refused = await _write(tools, record, DEPLOYMENTS, manifest)
    if answer is not None:
        tools.made.objects[key] = _Applied(digest, time.monotonic(), int(answer["metadata"].get("generation") or 0))
        tools.store.put("deployments", answer)
        if not is_ours:
            logger.info("wrote Deployment %s", manifest["metadata"]["name"])
    return refused


async def _change_strategy(tools: ServingTools, record: ServerRecord, known: DeploymentRecord, strategy: str) -> None:
    """By itself, first: applied as part of the whole, `rollingUpdate` would be left behind, which Recreate must not have."""
    body = {"spec": {"strategy": {"type": strategy, **({"rollingUpdate": None} if strategy == "Recreate" else {})}}}
    try:
        await objects.patch(tools.kube, DEPLOYMENTS, record.key[0], known.name, body)
    except NotFound:
        return


async def _ensure(tools: ServingTools, record: ServerRecord, resource: Resource, manifest: Manifest) -> dict[str, str]:
    """Writes an object that is not watched, where it differs from what was written, and now and then anyway."""
    manifest, digest = _stamp(manifest)
    key = _made_key(resource, record, manifest)
    made = tools.made.objects.get(key)
    if made is not None and made.digest == digest and time.monotonic() - made.at < REAPPLY_SECONDS:
        return {}
    if made is None and await _is_as_written(tools, resource, record.key[0], manifest["metadata"]["name"], digest):
        tools.made.objects[key] = _Applied(digest, time.monotonic())
        return {}
    answer, refused = await _write(tools, record, resource, manifest)
    if answer is not None:
        tools.made.objects[key] = _Applied(digest, time.monotonic())
    return refused


async def _is_as_written(tools: ServingTools, resource: Resource, namespace: str, name: str, digest: str) -> bool:
    """Whether an earlier process wrote the same."""
    try:
        found = await objects.read(tools.kube, resource, namespace, name)
    except NotFound:
        return False
    return bool((found["metadata"].get("annotations") or {}).get(DIGEST_ANNOTATION) == digest)


async def _ensure_gone(tools: ServingTools, record: ServerRecord, resource: Resource) -> None:
    name = names.engine_name(record.key[1])
    key = (resource.kind, record.key[0], name)
    made = tools.made.objects.get(key)
    if made is not None and not made.digest and time.monotonic() - made.at < REAPPLY_SECONDS:
        return
    try:
        found = await objects.read(tools.kube, resource, record.key[0], name)
        if (found["metadata"].get("labels") or {}).get(names.LABEL_SERVER_UID) == record.uid:
            await objects.delete(tools.kube, resource, record.key[0], name, found["metadata"]["uid"])
    except NotFound:
        pass
    tools.made.objects[key] = _Applied("", time.monotonic())


async def _write(
    tools: ServingTools, record: ServerRecord, resource: Resource, manifest: Manifest
) -> tuple[Mapping[str, Any] | None, dict[str, str]]:
    name = f"{resource.kind} {manifest['metadata']['name']}"
    try:
        return await objects.apply(tools.kube, resource, record.key[0], manifest), {}
    except NotFound:
        return None, {name: f"the namespace {record.key[0]} is gone"}
    except Refused as error:
        logger.warning("the API server refused %s: %s", name, error)
        return None, {name: str(error)}


def _stamp(manifest: Manifest) -> tuple[Manifest, str]:
    """The manifest with its digest, and that digest."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    stamped = copy.deepcopy(manifest)
    stamped["metadata"].setdefault("annotations", {})[DIGEST_ANNOTATION] = digest
    return stamped, digest


def _made_key(resource: Resource, record: ServerRecord, manifest: Manifest) -> tuple[str, str, str]:
    return (resource.kind, record.key[0], str(manifest["metadata"]["name"]))


# -- status --------------------------------------------------------------------------------------------------------------------


async def _write_status(
    tools: ServingTools, record: ServerRecord, world: ServerWorld, decision: ServerDecision
) -> ServerRecord:
    if decision.status == world.status and record.raw.get("status"):
        return record
    raw = {k: v for k, v in record.raw.items() if k != "status"}
    status = decision.status.to_json_dict()
    return _remember(tools, record, await objects.write_status(tools.kube, SERVERS, raw, status))


def _remember(tools: ServingTools, record: ServerRecord, answer: Mapping[str, Any]) -> ServerRecord:
    """The server as it is after our own write, which the watch may show later."""
    tools.store.put("modelservers", answer)
    newest = tools.store.serving.servers.get(record.key)
    return newest if newest is not None and newest.uid == record.uid else record


def _about(raw: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What an Event speaks of: objects of lists have neither apiVersion nor kind."""
    return {**raw, "apiVersion": API_VERSION, "kind": kind}
