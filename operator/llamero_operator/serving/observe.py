"""From the API's dictionaries to the views that decisions about servers see: engine pods, Deployments, Adapters, ModelServers. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from llamero.lifecycle.serving.world import AdapterView, DeploymentView, EnginePodView
from llamero.spec import names
from llamero.spec.adapter import AdapterSpec
from llamero.spec.job import API_VERSION
from llamero.spec.server import SERVER_KIND, ModelServer, ModelServerStatus
from llamero.spec.serving import REFUSED_EXIT, AgentRefusal, AgentWanted
from llamero.spec.validation import validate_server
from llamero_operator.observe import (
    EPOCH,
    STARTING,
    explain_problems,
    find_unschedulable,
    parse_time,
    read_adapter,
    read_adapter_status,
    read_by_parts,
    sentence,
)

Object = Mapping[str, Any]

TEMPLATE_LABEL = "pod-template-hash"
DIGEST_ANNOTATION = f"{names.GROUP}/digest"
"""On what the operator makes for a server: digest of the manifest that it was made from."""
CRASH_LOOP = "CrashLoopBackOff"
ENDED_PHASES = frozenset({"Failed", "Succeeded"})
MAX_LAST_WORDS = 200
MAX_TOLD = 1024


# -- ModelServers and Adapters -------------------------------------------------------------------------------------------------


def read_server(thing: Object) -> tuple[ModelServer | None, tuple[str, ...]]:
    """The ModelServer where its spec is right, and a sentence for each mistake where it is not."""
    metadata = thing["metadata"]
    known = {k: metadata[k] for k in ("name", "namespace", "labels", "annotations") if k in metadata}
    raw = {"apiVersion": API_VERSION, "kind": SERVER_KIND, "metadata": known, "spec": thing.get("spec") or {}}
    parsed, problems = validate_server(raw)
    return parsed, explain_problems(problems)


def read_server_status(thing: Object) -> ModelServerStatus:
    """The status as it stands; one that can't be read (an older version's, edited by hand) is read part by part."""
    return read_by_parts(ModelServerStatus, thing.get("status") or {})


def view_adapter(thing: Object) -> AdapterView | None:
    """The Adapter as decisions see it; None where its spec can't be read."""
    spec = read_adapter(thing)
    if spec is None:
        return None
    metadata = thing["metadata"]
    return AdapterView(
        name=metadata["name"],
        uid=metadata["uid"],
        created_at=parse_time(metadata.get("creationTimestamp")) or EPOCH,
        spec=spec,
        served_id=find_served_id(metadata["namespace"], metadata["name"], spec),
        status=read_adapter_status(thing),
        deleting=bool(metadata.get("deletionTimestamp")),
        held=is_held(thing),
    )


def find_served_id(namespace: str, name: str, spec: AdapterSpec) -> str:
    """The id that engines serve the Adapter under."""
    if spec.source is not None:
        return names.served_adapter_id(namespace, spec.source.job, spec.source.run, spec.sha256)
    return names.imported_adapter_id(namespace, name, spec.sha256)


def is_held(thing: Object) -> bool:
    """Whether engines have it, so that its deletion waits."""
    return names.SERVED_FINALIZER in (thing["metadata"].get("finalizers") or [])


# -- engine pods ---------------------------------------------------------------------------------------------------------------


def read_server_uid(thing: Object) -> str | None:
    """The uid of the ModelServer that a pod or a Deployment belongs to, by its label."""
    labels = thing["metadata"].get("labels") or {}
    return labels.get(names.LABEL_SERVER_UID)


def view_engine_pod(pod: Object) -> EnginePodView:
    """The pod as decisions see it, without what its agent says."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    engine = _status_of(status.get("containerStatuses"), names.ENGINE_CONTAINER)
    return EnginePodView(
        name=metadata["name"],
        uid=metadata["uid"],
        created_at=parse_time(metadata.get("creationTimestamp")) or EPOCH,
        ip=str(status.get("podIP") or ""),
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        deleting=bool(metadata.get("deletionTimestamp")),
        phase=str(status.get("phase") or "Pending"),
        restarts=int(engine.get("restartCount") or 0),
        template=str((metadata.get("labels") or {}).get(TEMPLATE_LABEL) or ""),
        gathered=_find_gathered(metadata),
        problem=_find_problem(status, conditions),
        refusals=tuple(_find_refusals(status)),
    )


def _status_of(statuses: Iterable[Object] | None, name: str) -> Object:
    return next((s for s in statuses or [] if s.get("name") == name), {})


def _find_gathered(metadata: Object) -> tuple[str, ...]:
    """Ids of the adapters that the pod was started with, from its template's annotation."""
    text = (metadata.get("annotations") or {}).get(names.GATHERED_ANNOTATION)
    try:
        ids = json.loads(text) if text else []
    except ValueError:
        return ()
    return tuple(i for i in ids if isinstance(i, str)) if isinstance(ids, list) else ()


def _find_problem(status: Object, conditions: Mapping[str, Object]) -> str:
    """Why the pod does not start or run, as a sentence; empty where nothing is wrong."""
    if status.get("phase") in ENDED_PHASES:
        said = sentence(status.get("message"))
        reason = str(status.get("reason") or status["phase"])
        return f"{reason}: {said}" if said else f"the pod has ended ({reason})"
    if unscheduled := find_unschedulable(conditions):
        return f"no node takes it: {unscheduled}"
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if problem := _container_problem(container):
            return problem
    return ""


def _container_problem(container: Object) -> str:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    name = str(container.get("name") or "container")
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if reason == CRASH_LOOP or (state.get("terminated") or {}).get("exitCode"):
        return f"the container {name} {_describe_end(ended)}"
    if reason in STARTING:
        return ""
    said = sentence(waiting.get("message"))
    return f"the container {name} waits: {reason}: {said}" if said else f"the container {name} waits: {reason}"


def _describe_end(ended: Object) -> str:
    reason, code = str(ended.get("reason") or ""), ended.get("exitCode")
    if reason == "OOMKilled":
        return "ran out of memory and was ended"
    if code is None:
        return "ends again and again"
    refusal = _parse_refusal(ended)
    said = sentence(refusal.message) if refusal is not None else _last_line(ended)
    return f"ended with exit code {code}" + (f": {said}" if said else "")


def _last_line(ended: Object) -> str:
    """The last words of a process that ended: of a traceback the error itself."""
    lines = [line for line in str(ended.get("message") or "").splitlines() if line.strip()]
    return sentence(lines[-1])[:MAX_LAST_WORDS] if lines else ""


def _find_refusals(status: Object) -> Iterator[AgentRefusal]:
    """What the agent's fetch refused, from its termination message: also while the kubelet waits to start it again."""
    fetch = _status_of(status.get("initContainerStatuses"), names.FETCH_CONTAINER)
    for state in (fetch.get("state") or {}, fetch.get("lastState") or {}):
        refusal = _parse_refusal(state.get("terminated") or {})
        if refusal is not None:
            yield refusal
            return


def _parse_refusal(ended: Object) -> AgentRefusal | None:
    if ended.get("exitCode") != REFUSED_EXIT:
        return None
    message = str(ended.get("message") or "")
    try:
        return AgentRefusal.model_validate_json(message)
    except ValidationError:
        return AgentRefusal(
            message=message[:MAX_TOLD] or "the agent refused what the pod is to serve, without saying why"
        )


# -- Deployments ---------------------------------------------------------------------------------------------------------------


def view_deployment(thing: Object) -> DeploymentView:
    """The Deployment as decisions see it."""
    metadata, spec, status = thing["metadata"], thing.get("spec") or {}, thing.get("status") or {}
    generation = int(metadata.get("generation") or 1)
    wanted = int(spec.get("replicas", 1))
    replicas, updated = int(status.get("replicas") or 0), int(status.get("updatedReplicas") or 0)
    available = int(status.get("availableReplicas") or 0)
    is_seen = int(status.get("observedGeneration") or 0) >= generation
    return DeploymentView(
        generation=generation,
        replicas=replicas,
        updated=updated,
        available=available,
        settled=is_seen and replicas == updated == available == wanted,
        serves=str((metadata.get("annotations") or {}).get(names.SERVES_ANNOTATION) or ""),
        message=_find_deployment_message(status),
    )


def read_serial(text: str | None) -> int:
    """The number of a list of adapters (`spec.serving.AgentWanted`); 0 where it can't be read."""
    try:
        return AgentWanted.model_validate_json(text or "").serial
    except ValidationError:
        return 0


def _find_deployment_message(status: Object) -> str:
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    failure, progress = conditions.get("ReplicaFailure") or {}, conditions.get("Progressing") or {}
    if failure.get("status") == "True":
        return sentence(failure.get("message") or failure.get("reason"))
    if progress.get("status") == "False":
        return sentence(progress.get("message") or progress.get("reason"))
    return ""
