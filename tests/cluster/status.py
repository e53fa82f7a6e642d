"""A pod's status as a kubelet writes it, from what its containers do. Pure; times are passed in as RFC 3339 strings."""

from dataclasses import dataclass, field
from typing import Any

from cluster.runtimes import Exit

Object = dict[str, Any]


@dataclass
class ContainerRecord:
    """What is known of one container; `state` and `last_state` are as in the API."""

    spec: Object
    restarts: int = 0
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: Object = field(default_factory=dict)
    ready: bool = False
    started: bool = False
    container_id: str = ""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def ended(self) -> Object | None:
        """The terminated state, where it is in one."""
        found: Object | None = self.state.get("terminated")
        return found

    def wait(self, reason: str, message: str = "") -> None:
        """It waits; an end so far becomes its last state."""
        if self.ended:
            self.last_state = {"terminated": self.ended}
        self.state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        self.ready = self.started = False

    def run(self, container_id: str, now: str) -> None:
        """It runs since now; another start than the first counts as a restart."""
        if self.ended:
            self.last_state = {"terminated": self.ended}
        self.container_id = container_id
        self.state = {"running": {"startedAt": now}}

    def end(self, outcome: Exit, now: str) -> None:
        """It ended."""
        began = self.state.get("running", {}).get("startedAt", now)
        self.ready = self.started = False
        self.state = {
            "terminated": {
                "exitCode": outcome.code,
                "reason": outcome.reason or ("Completed" if outcome.code == 0 else "Error"),
                "startedAt": began,
                "finishedAt": now,
                "containerID": self.container_id,
                **({"message": outcome.message} if outcome.message else {}),
                **({"signal": outcome.signal} if outcome.signal else {}),
            }
        }


@dataclass(frozen=True)
class Verdict:
    """The node's own end of a pod: Evicted, DeadlineExceeded, with a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class PodView:
    """All that a pod's status follows from."""

    pod: Object
    init: list[ContainerRecord]
    main: list[ContainerRecord]
    ip: str
    host_ip: str
    start_time: str
    conditions: list[Object]
    verdict: Verdict | None = None


def phase_of(view: PodView) -> str:
    """Pending, Running, Succeeded or Failed."""
    if view.verdict:
        return "Failed"
    policy = view.pod["spec"].get("restartPolicy", "Always")
    for record in view.init:
        if _has_succeeded(record):
            continue
        return "Failed" if record.ended and policy == "Never" else "Pending"
    if all(record.ended for record in view.main):
        codes = [record.ended["exitCode"] for record in view.main if record.ended]
        if policy == "Always" or (policy == "OnFailure" and any(codes)):
            return "Running"
        return "Failed" if any(codes) else "Succeeded"
    never_ran = all("waiting" in record.state and not record.last_state for record in view.main)
    return "Pending" if never_ran else "Running"


def build_status(view: PodView, now: str) -> Object:
    """The whole status; conditions keep their time where they have not changed."""
    phase = phase_of(view)
    status: Object = {
        "phase": phase,
        "conditions": _conditions(view, phase, now),
        "hostIP": view.host_ip,
        "podIP": view.ip,
        "podIPs": [{"ip": view.ip}],
        "startTime": view.start_time,
        "containerStatuses": [_container_status(record, record.ready) for record in view.main],
        "qosClass": view.pod.get("status", {}).get("qosClass"),
    }
    if view.init:
        status["initContainerStatuses"] = [_container_status(record, _has_succeeded(record)) for record in view.init]
    if view.verdict:
        status.update(reason=view.verdict.reason, message=view.verdict.message)
    return {key: value for key, value in status.items() if value is not None}


def _has_succeeded(record: ContainerRecord) -> bool:
    return record.ended is not None and record.ended["exitCode"] == 0


def _container_status(record: ContainerRecord, ready: bool) -> Object:
    image = record.spec.get("image", "")
    return {
        "name": record.name,
        "image": image,
        "imageID": f"process://{image}",
        "containerID": record.container_id,
        "restartCount": record.restarts,
        "ready": ready,
        "started": record.started,
        "state": record.state,
        "lastState": record.last_state,
    }


def _conditions(view: PodView, phase: str, now: str) -> list[Object]:
    initialised = all(_has_succeeded(record) for record in view.init)
    unready = [record.name for record in view.main if not record.ready]
    reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    if phase == "Succeeded":
        reason, message = "PodCompleted", ""
    ready = not unready and phase == "Running"
    wanted = [
        ("Initialized", initialised, "" if initialised else "ContainersNotInitialized", ""),
        ("Ready", ready, "" if ready else reason, "" if ready else message),
        ("ContainersReady", ready, "" if ready else reason, "" if ready else message),
    ]
    before = {condition["type"]: condition for condition in view.conditions}
    conditions = []
    for kind, holds, why, sentence in wanted:
        known = before.pop(kind, {})
        value = "True" if holds else "False"
        since = known.get("lastTransitionTime", now) if known.get("status") == value else now
        condition = {"type": kind, "status": value, "lastProbeTime": None, "lastTransitionTime": since}
        condition.update({key: text for key, text in (("reason", why), ("message", sentence)) if text})
        conditions.append(condition)
    before.setdefault(
        "PodScheduled", {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    )
    return [*conditions, *before.values()]
