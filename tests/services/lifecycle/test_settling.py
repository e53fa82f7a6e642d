"""Which changes of a status may wait for the next one, and which are written at once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llamero.lifecycle.settling import may_settle
from llamero.spec.status import AttemptStatus, Condition, ConditionType, JobPhase, JobStatus, ProgressStatus, WorkKind

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WORK = AttemptStatus(kind=WorkKind.TRAIN, attempt=1, job="j", started_at=NOW, seen=True, pod="u")


def condition(kind: ConditionType, status: Any, reason: str, **fields: Any) -> Condition:
    return Condition(type=kind, status=status, reason=reason, last_transition_time=NOW, observed_generation=1, **fields)


OLD = JobStatus(
    run=1,
    phase=JobPhase.TRAINING,
    work=WORK,
    conditions=[
        condition(ConditionType.READY, "False", "PodsStarting", message="It has no pod yet."),
        condition(ConditionType.SCHEDULED, "False", "PodsStarting"),
    ],
)
READY, SCHEDULED = OLD.conditions


def later(old: Condition, **fields: Any) -> Condition:
    return old.model_copy(update={"last_transition_time": NOW + timedelta(seconds=1), **fields})


@pytest.mark.parametrize(
    "change",
    [
        {"work": WORK.model_copy(update={"node": "a", "running_since": NOW})},
        {"conditions": [later(READY, reason="ReconcilingTraining", message="Run 1."), SCHEDULED]},
        {"conditions": [READY, later(SCHEDULED, status="True", reason="Scheduled")]},
    ],
    ids=["the pod has a node and runs", "other words", "scheduled"],
)
def test_where_the_pod_stands_may_wait(change: dict[str, Any]) -> None:
    assert may_settle(OLD, OLD.model_copy(update=change))


@pytest.mark.parametrize(
    "change",
    [
        {"work": WORK.model_copy(update={"pod": "other"})},
        {"work": WORK.model_copy(update={"seen": False})},
        {"work": WORK.model_copy(update={"sends": 1, "sent_at": NOW})},
        {"work": WORK.model_copy(update={"received": True})},
        {"work": WORK.model_copy(update={"attempt": 2})},
        {"work": None},
        {"phase": JobPhase.EVALUATING},
        {"progress": ProgressStatus(percent=5)},
        {"observed_generation": 2},
        {"conditions": [later(READY, status="True", reason="Succeeded"), SCHEDULED]},
        {"conditions": [READY.model_copy(update={"observed_generation": 2}), SCHEDULED]},
    ],
    ids=lambda change: str(next(iter(change))),
)
def test_everything_else_is_written_at_once(change: dict[str, Any]) -> None:
    assert not may_settle(OLD, OLD.model_copy(update=change))


def test_the_first_status_is_written_at_once() -> None:
    assert not may_settle(JobStatus(), OLD)
