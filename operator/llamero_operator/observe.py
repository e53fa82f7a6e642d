"""From the API's dictionaries to the views that decisions see: pods, batch Jobs, Adapters, the FineTuneJob itself. Pure.

Which objects there are is the store's knowledge; what is to be done about them is decided in `lifecycle`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from llamero.lifecycle.world import ChildView, PodView
from llamero.spec import names
from llamero.spec.adapter import AdapterResourceStatus, AdapterSpec
from llamero.spec.base import ResultModel
from llamero.spec.job import API_VERSION, KIND, FineTuneJob
from llamero.spec.problems import Problem, Severity
from llamero.spec.status import JobStatus, WorkKind
from llamero.spec.tasks import LogRequest, Outcome
from llamero.spec.validation import validate_job

Object = Mapping[str, Any]
Status = TypeVar("Status", bound=ResultModel)

MAX_SENTENCE = 400
MAX_PROBLEMS = 20

STARTING = frozenset({"ContainerCreating", "PodInitializing", ""})
"""A container that waits for these is on its way."""

NODE_GONE = frozenset(
    {"NodeLost", "NodeShutdown", "Shutdown", "Terminated", "DeletionByTaintManager", "DeletionByPodGC", "NodeAffinity"}
)
PUSHED_OUT = frozenset(
    {
        "Evicted", "Preempting", "Preempted", "PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet",
        "UnexpectedAdmissionError", "OutOfcpu", "OutOfmemory", "OutOfpods", "OutOfephemeral-storage",
    }
)  # fmt: skip
"""Words of the kubelet and of the DisruptionTarget condition for a pod that ended through no fault of its own."""


def parse_time(text: str | None) -> datetime | None:
    """A time as Kubernetes writes it."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# -- pods ----------------------------------------------------------------------------------------------------------------------


def view_pod(pod: Object) -> PodView:
    """The pod as decisions see it."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    main = _main_status(pod)
    state = main.get("state") or {}
    ended = state.get("terminated") or (main.get("lastState") or {}).get("terminated") or {}
    ended = ended or _failed_init(status)
    phase = str(status.get("phase") or "Pending")
    has_ended = bool(ended) and not state.get("running")
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=phase,
        created_at=parse_time(metadata.get("creationTimestamp")) or EPOCH,
        node=(pod.get("spec") or {}).get("nodeName"),
        running_since=parse_time((state.get("running") or state.get("terminated") or {}).get("startedAt")),
        deleting=bool(metadata.get("deletionTimestamp")),
        unschedulable=find_unschedulable(conditions),
        waiting=_find_waiting(status) if phase == "Pending" else None,
        exit_code=int(ended["exitCode"]) if has_ended and "exitCode" in ended else None,
        reason=_find_reason(status, conditions, ended if has_ended else {}),
        outcome=Outcome.from_termination_message(ended.get("message")) if has_ended else None,
    )


def _main_status(pod: Object) -> Object:
    """The status of the pod's first container: a mesh may have added others."""
    containers = (pod.get("spec") or {}).get("containers") or [{}]
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    wanted = containers[0].get("name")
    return next((s for s in statuses if s.get("name") == wanted), statuses[0] if statuses else {})


def _failed_init(status: Object) -> Object:
    """How an init container failed: then the main one never ran, and its end is the pod's."""
    for container in status.get("initContainerStatuses") or []:
        ended: Object = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return ended
    return {}


def find_unschedulable(conditions: Mapping[str, Object]) -> str | None:
    """Why the scheduler has no node for the pod, by its conditions."""
    scheduled = conditions.get("PodScheduled") or {}
    if scheduled.get("status") != "False":
        return None
    return sentence(scheduled.get("message")) or sentence(scheduled.get("reason")) or "the pod has no node"


def _find_waiting(status: Object) -> str | None:
    """Why a container does not start, the init containers first."""
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason") or "")
        if reason in STARTING:
            continue
        message = sentence(waiting.get("message"))
        return f"{reason}: {message}" if message else reason
    return None


def _find_reason(status: Object, conditions: Mapping[str, Object], ended: Object) -> str | None:
    """OOMKilled, Evicted, NodeLost, or what the container's end says."""
    disruption = conditions.get("DisruptionTarget") or {}
    words = [status.get("reason"), disruption.get("reason") if disruption.get("status") == "True" else None]
    if ended.get("reason") == "OOMKilled":
        return "OOMKilled"
    for word in words:
        if word in NODE_GONE:
            return "NodeLost"
        if word in PUSHED_OUT:
            return "Evicted"
    if disruption.get("status") == "True":
        return "Evicted"
    return str(ended.get("reason") or status.get("reason") or "") or None


def sentence(text: Any) -> str:
    """The text in one line, not too long."""
    return " ".join(str(text or "").split())[:MAX_SENTENCE]


# -- batch Jobs ----------------------------------------------------------------------------------------------------------------


def view_child(child: Object, pods: Iterable[PodView] = ()) -> ChildView | None:
    """The batch Job as decisions see it; None where its labels are not ours."""
    attempt = read_attempt(child)
    if attempt is None:
        return None
    metadata, status = child["metadata"], child.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or [] if c.get("status") == "True"}
    failed = conditions.get("Failed") or conditions.get("FailureTarget") or {}
    kind, run, number = attempt
    return ChildView(
        name=metadata["name"],
        kind=kind,
        run=run,
        attempt=number,
        created_at=parse_time(metadata.get("creationTimestamp")) or EPOCH,
        complete="Complete" in conditions,
        failed="Failed" in conditions,
        suspended=bool((child.get("spec") or {}).get("suspend")),
        deleting=bool(metadata.get("deletionTimestamp")),
        message=sentence(failed.get("message") or failed.get("reason")),
        pods=tuple(sorted(pods, key=lambda p: (p.created_at, p.name))),
    )


def view_orphan(job: str, uid: str, attempt: tuple[WorkKind, int, int], pods: Iterable[PodView]) -> ChildView:
    """Pods whose batch Job is gone already: they may run on for their grace, and count as long as they do."""
    kind, run, number = attempt
    found = tuple(sorted(pods, key=lambda p: (p.created_at, p.name)))
    return ChildView(
        name=names.child_job_name(job, uid, run, kind, number),
        kind=kind,
        run=run,
        attempt=number,
        created_at=min(p.created_at for p in found),
        deleting=True,
        message="its Job is gone",
        pods=found,
    )


def read_attempt(thing: Object) -> tuple[WorkKind, int, int] | None:
    """(kind, run, attempt) from the labels of a batch Job or a pod; None where they say something else."""
    labels = thing["metadata"].get("labels") or {}
    try:
        return WorkKind(labels[names.LABEL_KIND]), int(labels[names.LABEL_RUN]), int(labels[names.LABEL_ATTEMPT])
    except (KeyError, ValueError):
        return None


def read_job_uid(thing: Object) -> str | None:
    """The uid of the FineTuneJob that a child, pod or Adapter belongs to, by its label."""
    labels = thing["metadata"].get("labels") or {}
    return labels.get(names.LABEL_UID)


# -- the FineTuneJob and its Adapters ------------------------------------------------------------------------------------------


def read_job(job: Object) -> tuple[FineTuneJob | None, tuple[str, ...]]:
    """The job where its spec is right, and a sentence for each mistake where it is not."""
    metadata = job["metadata"]
    known = {k: metadata[k] for k in ("name", "namespace", "labels", "annotations") if k in metadata}
    raw = {"apiVersion": API_VERSION, "kind": KIND, "metadata": known, "spec": job.get("spec") or {}}
    parsed, problems = validate_job(raw)
    return parsed, explain_problems(problems)


def explain_problems(problems: Iterable[Problem]) -> tuple[str, ...]:
    """A sentence for each mistake; warnings are left out."""
    errors = [p for p in problems if p.severity is Severity.ERROR]
    return tuple(_explain(p.path, p.message) for p in errors[:MAX_PROBLEMS])


def _explain(path: tuple[Any, ...], message: str) -> str:
    where = ""
    for part in path:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    return f"{where}: {message}" if where else message


def read_status(job: Object) -> JobStatus:
    """The status as it stands. One that can't be read (an older version's, edited by hand) is read part by part."""
    return read_by_parts(JobStatus, job.get("status") or {})


def read_by_parts(model: type[Status], raw: Object) -> Status:
    """The status as it stands; where it can't be read, those of its fields that can."""
    try:
        return model.model_validate(raw)
    except ValidationError:
        status = model()
    for name, value in raw.items():
        try:
            part = model.model_validate({name: value})
        except ValidationError:
            continue
        fields = {n: getattr(part, n) for n in part.model_fields_set}
        status = status.model_copy(update=fields)
    return status


def read_adapter(adapter: Object) -> AdapterSpec | None:
    """The Adapter's spec; None where it can't be read."""
    try:
        return AdapterSpec.model_validate(adapter.get("spec") or {})
    except ValidationError:
        return None


def read_adapter_status(adapter: Object) -> AdapterResourceStatus:
    """What has become of the Adapter."""
    return read_by_parts(AdapterResourceStatus, adapter.get("status") or {})


def read_log_request(job: Object) -> LogRequest | None:
    """The log request in the annotation; None where there is none, or none that can be read."""
    text = (job["metadata"].get("annotations") or {}).get(names.READ_LOGS_ANNOTATION)
    try:
        return LogRequest.model_validate_json(text) if text else None
    except ValidationError:
        return None


def mark_deleting(child: ChildView) -> ChildView:
    """The child, whose deletion was asked for and has not shown yet."""
    return replace(child, deleting=True)


def speaks_alike(old: Object, new: Object) -> bool:
    """Whether the manifest is the same, so that it need not be read again."""
    a, b = old["metadata"], new["metadata"]
    return a.get("generation") == b.get("generation") and (a.get("labels"), a.get("annotations")) == (
        b.get("labels"),
        b.get("annotations"),
    )
