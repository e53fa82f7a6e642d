"""The life of a job on a real control plane, told quickly: the operator is its own process, its pods are played (tests/stack).

What needs real data, training and evaluation stands in test_cluster_stories.py; faults in tests/chaos.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest
from cluster.control_plane import ControlPlane
from cluster.node import NodeOptions
from cluster.waiting import until
from stack.protocol_worker import Script
from stack.stack import Stack, played_job

from llamero.spec.names import FINALIZER
from llamero.spec.status import ConditionType, JobStatus, WorkKind

MOMENTS = {
    "Preparing": (WorkKind.PREPARE, "taken"),
    "Training": (WorkKind.TRAIN, "step 5"),
    "Evaluating": (WorkKind.EVALUATE, "taken"),
}
"""Where a pod is held, so that its job is in the phase for as long as a story needs."""


@contextmanager
def held(stack: Stack, name: str, phase: str) -> Iterator[None]:
    """The job stays in a phase, once it comes there, until the block's end."""
    assert stack.worker is not None
    kind, moment = MOMENTS[phase]
    with stack.worker.halt(kind, moment, name) as halt:
        yield
        halt.release()


@pytest.fixture(scope="module")
def stack(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    script = Script(steps=40, step_seconds=0.05, prepare_seconds=1.0, evaluate_seconds=1.0)
    folder = tmp_path_factory.mktemp("life")
    settings = {"gpuClasses": {"spot": {"nodeSelector": {"gpu": "spot"}, "pricePerHour": 2}, "plenty": {}}}
    with Stack(control_plane, folder, script=script, settings=settings, node=NodeOptions(gpus=2)) as running:
        yield running


def holds(status: JobStatus, kind: ConditionType) -> str | None:
    condition = status.condition(kind)
    return condition.status if condition else None


def test_a_wrong_spec_is_told_in_the_status_and_starts_nothing(stack: Stack) -> None:
    uid = stack.submit(played_job("wrong", baseModel={"name": "some/model"}))
    status = stack.wait("wrong", lambda s: holds(s, ConditionType.STALLED) == "True", "Stalled")
    ready = status.condition(ConditionType.READY)
    assert ready is not None
    assert ready.status == "False"
    assert "revision" in ready.message
    assert status.observed_generation == 1
    assert not stack.children(uid)
    stack.patch("wrong", {"baseModel": {"name": None, "uri": "/played/base"}})
    assert stack.wait_phase("wrong", "Succeeded").run == 1


def test_a_job_has_a_false_ready_condition_from_its_first_status_on(stack: Stack) -> None:
    stack.submit(played_job("touched"))
    first = stack.wait("touched", lambda s: s.observed_generation, "a first status")
    assert holds(first, ConditionType.READY) == "False"
    done = stack.wait_phase("touched", "Succeeded")
    for kind in ("Ready", "Complete", "DataReady", "Trained", "EvaluationPassed", "AdapterPublished"):
        assert holds(done, ConditionType(kind)) == "True", kind
    assert done.progress is None or done.progress.percent == 100


def test_a_suspended_job_has_no_pods_and_goes_on_where_it_was(stack: Stack) -> None:
    with held(stack, "paused", "Training"):
        uid = stack.submit(played_job("paused"))
        stack.wait("paused", lambda s: s.progress is not None and (s.progress.step or 0) >= 5, "step 5")
        stack.patch("paused", {"suspend": True})
        stack.wait_phase("paused", "Suspended")
        until(lambda: not stack.pods(uid) and not stack.children(uid), "pods and Jobs to go")
    stack.patch("paused", {"suspend": False})
    status = stack.wait_phase("paused", "Succeeded")
    assert status.tries.counted == 0
    assert stack.worker is not None
    trained = [e for e in stack.worker.ledger if e.id.uid == uid and e.id.kind == WorkKind.TRAIN]
    assert len(trained) == 2
    assert trained[1].steps[0] == trained[0].steps[-1] + 1  # resumed: not one step twice


def test_an_edit_of_the_inputs_mid_run_supersedes_the_run(stack: Stack) -> None:
    with held(stack, "edited", "Training"):
        uid = stack.submit(played_job("edited"))
        stack.wait_phase("edited", "Training")
        stack.patch("edited", {"training": {"learningRate": 0.001}})
        stack.wait("edited", lambda s: s.run == 2, "run 2 to start")
    status = stack.wait("edited", lambda s: s.run == 2 and s.phase == "Succeeded", "run 2 to succeed")
    assert [(r.run, r.phase) for r in status.history] == [(1, "Superseded"), (2, "Succeeded")]
    assert status.run_cause == "SpecChanged"
    assert stack.worker is not None
    assert {e.id.run for e in stack.worker.ledger if e.id.uid == uid} == {1, 2}


def test_an_edit_of_something_else_leaves_the_run_alone(stack: Stack) -> None:
    with held(stack, "same", "Training"):
        stack.submit(played_job("same"))
        stack.wait_phase("same", "Training")
        stack.patch("same", {"backoffLimit": 7, "ttlSecondsAfterFinished": 100_000})
    status = stack.wait("same", lambda s: s.phase == "Succeeded", "success")
    assert [(r.run, r.phase) for r in status.history] == [(1, "Succeeded")]
    assert stack.wait("same", lambda s: s.observed_generation == 2, "generation 2")


def test_a_gate_that_refuses_fails_the_job_with_both_figures_and_an_eased_gate_lets_it_pass(stack: Stack) -> None:
    uid = stack.submit(played_job("gated", evaluation={"gate": {"minPerplexityImprovement": 0.9}}))
    failed = stack.wait_phase("gated", "Failed")
    verdict = failed.condition(ConditionType.EVALUATION_PASSED)
    assert verdict is not None
    assert verdict.status == "False"
    assert "10.000" in verdict.message
    assert "2.500" in verdict.message
    assert "gated-r1" not in stack.adapters()
    before = len(stack.worker.ledger) if stack.worker else 0
    stack.patch("gated", {"evaluation": {"gate": {"minPerplexityImprovement": 0.1}}})
    stack.wait_phase("gated", "Succeeded")
    assert "gated-r1" in stack.adapters()
    assert stack.worker is not None
    assert not [e for e in stack.worker.ledger[before:] if e.id.uid == uid]


@pytest.mark.parametrize("phase", ["Pending", *MOMENTS, "Succeeded", "Failed", "Suspended"])
def test_deletion_in_any_phase_leaves_nothing_but_published_adapters(stack: Stack, phase: str) -> None:
    name = f"gone-{phase.lower()}"
    spec: dict[str, Any] = {"suspend": phase == "Suspended"}
    if phase == "Failed":
        spec["evaluation"] = {"gate": {"minPerplexityImprovement": 0.9}}
    with held(stack, name, phase) if phase in MOMENTS else nullcontext():
        uid = stack.submit(played_job(name, **spec))
        if phase != "Pending":
            stack.wait_phase(name, phase)
        else:
            # What is cleaned up is promised from the finalizer on: a deletion that overtakes it takes the job away at once.
            until(
                lambda: FINALIZER in (stack.get(name)["metadata"].get("finalizers") or []), "the operator to see it", 30
            )
        stack.delete(name)
        stack.wait_gone(name)
    stack.wait_nothing_left(name, uid)
    published = stack.adapters().get(f"{name}-r1")
    assert (published is not None) == (phase == "Succeeded")
    if published is not None:
        assert (stack.storage / published["spec"]["uri"] / "manifest.json").is_file()
    else:
        assert not stack.stored(f"adapters/{stack.namespace}/{name}-r1/**/*")


def test_a_finished_job_goes_with_its_ttl_and_its_adapter_stays(stack: Stack) -> None:
    stack.submit(played_job("brief", ttlSecondsAfterFinished=1))
    stack.wait_gone("brief", 60)
    assert "brief-r1" in stack.adapters()


def test_a_job_past_its_deadline_fails_with_the_reason(stack: Stack) -> None:
    stack.submit(played_job("late", activeDeadlineSeconds=2))
    status = stack.wait_phase("late", "Failed")
    failed = status.condition(ConditionType.FAILED)
    assert failed is not None
    assert failed.reason == "DeadlineExceeded"


def test_a_gpu_that_cannot_be_scheduled_is_said_and_the_next_class_is_tried(stack: Stack) -> None:
    resources = {"gpus": 1, "gpuClass": ["spot", "plenty"]}
    stack.submit(played_job("classy", training={"resources": resources}))

    def is_unschedulable(status: JobStatus) -> bool:
        found = status.condition(ConditionType.SCHEDULED)
        return found is not None and found.reason == "Unschedulable"

    condition = stack.wait("classy", is_unschedulable, "Unschedulable").condition(ConditionType.SCHEDULED)
    assert condition is not None
    assert condition.status == "False"
    assert "node" in condition.message
    status = stack.wait_phase("classy", "Succeeded")
    assert status.tries.counted == 0


def test_a_schedule_starts_runs_in_its_time_zone(stack: Stack) -> None:
    stack.submit(played_job("weekly", retrain={"schedule": "0 3 * * 1", "timeZone": "Europe/Berlin"}))
    status = stack.wait("weekly", lambda s: s.retrain is not None and s.retrain.next_at, "the next time")
    assert status.retrain is not None
    assert status.retrain.next_at is not None
    assert status.retrain.next_at > datetime.now(UTC)
    assert status.retrain.next_at.weekday() == 0


def test_changed_data_starts_a_run_when_it_is_looked_at(stack: Stack) -> None:
    retrain = {"onDataChange": True, "pollIntervalSeconds": 5, "minIntervalSeconds": 0}
    stack.submit(played_job("watching", retrain=retrain))
    stack.wait_phase("watching", "Succeeded")
    assert stack.worker is not None
    try:
        stack.worker.script.data_digest = "f" * 64
        status = stack.wait("watching", lambda s: s.run == 2 and s.phase == "Succeeded", "run 2")
    finally:
        stack.delete("watching")
    assert status.run_cause == "DataChanged"


def test_a_status_holds_no_floats_and_stays_small(stack: Stack) -> None:
    stack.submit(played_job("small"))
    stack.wait_phase("small", "Succeeded")

    def floats(value: Any) -> list[float]:
        if isinstance(value, float):
            return [value]
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [f for child in children for f in floats(child)]

    raw = stack.plane.api.read("GET", stack.path("small"))
    assert len(raw) < 10_000
    assert not floats(stack.get("small")["status"])
    assert not any(k.startswith("kopf") for k in stack.get("small")["metadata"].get("annotations", {}))
