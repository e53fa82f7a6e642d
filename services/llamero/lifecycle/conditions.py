"""All conditions, as a table from the job's state: Ready, Reconciling and Stalled as kstatus reads them, the others as for batch Jobs."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from llamero.lifecycle.attempts import Wait
from llamero.lifecycle.validity import Obstacle
from llamero.spec.status import MAX_MESSAGE, Condition, ConditionType, JobPhase, JobStatus

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class State:
    """What the conditions are made from, besides the status itself."""

    obstacle: Obstacle | None
    suspended: bool
    deleting: bool
    wait: Wait | None
    scheduled: bool | None
    redis_problem: str | None
    generation: int
    rolled_out: tuple[Truth, str, str] | None = None


REDIS_AWAY = "RedisAway"


def build_conditions(status: JobStatus, state: State, now: datetime) -> list[Condition]:
    """The conditions, in a fixed order; the time of a transition is kept where the condition's status stays."""
    rows: list[tuple[ConditionType, Truth, str, str]] = [
        (ConditionType.READY, *_ready(status, state)),
        (ConditionType.RECONCILING, *_reconciling(status, state)),
        (ConditionType.STALLED, *_stalled(status, state)),
        (ConditionType.SUSPENDED, *_either(state.suspended, "Suspended", "NotSuspended", "spec.suspend is true.")),
        (ConditionType.COMPLETE, *_either(status.phase is JobPhase.SUCCEEDED, "Succeeded", "NotComplete")),
        (ConditionType.FAILED, *_failed(status, state)),
        (ConditionType.SCHEDULED, *_scheduled(state)),
        (ConditionType.DATA_READY, *_either(status.data is not None, "Prepared", "NotPrepared", _data(status))),
        (ConditionType.TRAINED, *_either(status.training is not None, "Trained", "NotTrained", _training(status))),
        (ConditionType.EVALUATION_PASSED, *_evaluation(status)),
        (ConditionType.ADAPTER_PUBLISHED, *_adapter(status)),
    ]
    if state.rolled_out is not None:
        rows.append((ConditionType.ROLLED_OUT, *state.rolled_out))
    return [_write(status, *row, generation=state.generation, now=now) for row in rows]


def _write(
    status: JobStatus, kind: ConditionType, truth: Truth, reason: str, message: str, generation: int, now: datetime
) -> Condition:
    old = status.condition(kind)
    since = old.last_transition_time if old is not None and old.status == truth else now
    return Condition(
        type=kind,
        status=truth,
        reason=reason[:64],
        message=message[:MAX_MESSAGE],
        last_transition_time=since,
        observed_generation=generation,
    )


def _either(holds: bool, yes: str, no: str, message: str = "") -> tuple[Truth, str, str]:
    return ("True", yes, message) if holds else ("False", no, "")


def _stall(status: JobStatus, state: State) -> tuple[str, str] | None:
    """Why only a person can go on from here."""
    if state.obstacle is not None and not state.obstacle.waits:
        return state.obstacle.reason, state.obstacle.message
    if status.failure is not None:
        return status.failure.reason, status.failure.message
    return None


def _ready(status: JobStatus, state: State) -> tuple[Truth, str, str]:
    if state.deleting:
        return "False", "Deleting", "The job is being deleted."
    if stall := _stall(status, state):
        return "False", *stall
    if status.phase is JobPhase.SUCCEEDED:
        return "True", "Succeeded", f"Run {status.run} has succeeded."
    return "False", *_hold(status, state)


def _hold(status: JobStatus, state: State) -> tuple[str, str]:
    """What the job is at, or waits for."""
    if state.obstacle is not None:
        return state.obstacle.reason, state.obstacle.message
    if status.phase is JobPhase.SUSPENDED:
        return "Suspended", "The job is suspended: set spec.suspend to false to go on."
    if state.wait is not None:
        return state.wait.reason, state.wait.message
    if state.redis_problem is not None:
        return REDIS_AWAY, f"Redis can't be asked, so progress is not known; what runs goes on: {state.redis_problem}"
    last = f" {status.tries.message}" if status.tries.message else ""
    return f"Reconciling{status.phase}", f"Run {status.run} is {status.phase}, attempt {status.attempt}.{last}"


def _reconciling(status: JobStatus, state: State) -> tuple[Truth, str, str]:
    if state.deleting:
        return "True", "Deleting", "The job is being deleted."
    if _stall(status, state) or status.phase in (JobPhase.SUCCEEDED, JobPhase.SUSPENDED):
        return "False", "Settled", ""
    return "True", *_hold(status, state)


def _stalled(status: JobStatus, state: State) -> tuple[Truth, str, str]:
    stall = None if state.deleting else _stall(status, state)
    return ("True", *stall) if stall else ("False", "NotStalled", "")


def _failed(status: JobStatus, state: State) -> tuple[Truth, str, str]:
    stall = _stall(status, state)
    return ("True", *stall) if stall else ("False", "NotFailed", "")


def _scheduled(state: State) -> tuple[Truth, str, str]:
    if state.wait is not None and state.wait.unscheduled:
        return "False", state.wait.reason, state.wait.message
    if state.scheduled is None:
        return "Unknown", "NoPods", ""
    return ("True", "Scheduled", "") if state.scheduled else ("Unknown", "PodsStarting", "")


def _data(status: JobStatus) -> str:
    data = status.data
    return f"{data.kept} of {data.read} records are kept, {data.rejected} rejected." if data else ""


def _training(status: JobStatus) -> str:
    done = status.training
    return f"{done.steps} steps, loss from {done.first_loss} to {done.last_loss}." if done else ""


def _evaluation(status: JobStatus) -> tuple[Truth, str, str]:
    found = status.evaluation
    if found is None or found.passed is None:
        return "Unknown", "NotEvaluated", ""
    return ("True", "GatePassed", found.reason) if found.passed else ("False", "GateRefused", found.reason)


def _adapter(status: JobStatus) -> tuple[Truth, str, str]:
    if status.adapter is None:
        return "False", "NotPublished", ""
    return "True", "Published", f"The newest published adapter is {status.adapter.name}."
