"""What decisions see of pods, batch Jobs and FineTuneJobs, as tables."""

from datetime import UTC, datetime
from typing import Any

import pytest

from llamero.spec.status import JobPhase, WorkKind
from llamero.spec.tasks import AttemptId, Outcome
from llamero_operator import observe

NOW = "2026-01-02T03:04:05Z"
ATTEMPT = AttemptId(namespace="team-a", job="tutor", uid="u-1", run=1, kind=WorkKind.TRAIN, attempt=2)
ANSWER = Outcome(id=ATTEMPT, pod="p-1", exit_code=0, message="done").to_termination_message()
LABELS = {"llamero.dev/job-uid": "u-1", "llamero.dev/work": "train", "llamero.dev/run": "1", "llamero.dev/attempt": "2"}


def build_pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "pod", "uid": "p-1", "creationTimestamp": NOW, "labels": LABELS},
        "spec": {"nodeName": "node-a", "containers": [{"name": "work"}]},
        "status": {"phase": "Running", **status},
    }


def main_container(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "work", "state": state}]}


def terminated(code: int, reason: str, message: str = "") -> dict[str, Any]:
    return main_container(terminated={"exitCode": code, "reason": reason, "message": message, "startedAt": NOW})


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": message}]}


PODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a pod that runs": (
        main_container(running={"startedAt": NOW}),
        {
            "running_since": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "exit_code": None,
            "reason": None,
            "node": "node-a",
        },
    ),
    "a pod without a node, with the scheduler's sentence": (
        {"phase": "Pending", **condition("PodScheduled", "False", "Unschedulable", "0/3 nodes:  too few GPUs.\n")},
        {"unschedulable": "0/3 nodes: too few GPUs.", "waiting": None},
    ),
    "a pod that a gate holds back": (
        {"phase": "Pending", **condition("PodScheduled", "False", "SchedulingGated")},
        {"unschedulable": "SchedulingGated"},
    ),
    "a pod that has a node": ({"phase": "Pending", **condition("PodScheduled", "True")}, {"unschedulable": None}),
    "an image that can't be pulled": (
        {"phase": "Pending", **main_container(waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling"})},
        {"waiting": "ImagePullBackOff: Back-off pulling"},
    ),
    "a container that is on its way": (
        {"phase": "Pending", **main_container(waiting={"reason": "ContainerCreating"})},
        {"waiting": None},
    ),
    "a secret that is missing": (
        {
            "phase": "Pending",
            **main_container(
                waiting={"reason": "CreateContainerConfigError", "message": 'secret "llamero-redis" not found'}
            ),
        },
        {"waiting": 'CreateContainerConfigError: secret "llamero-redis" not found'},
    ),
    "an init container whose image can't be pulled": (
        {
            "phase": "Pending",
            "initContainerStatuses": [{"name": "mesh", "state": {"waiting": {"reason": "ErrImagePull"}}}],
            **main_container(waiting={"reason": "PodInitializing"}),
        },
        {"waiting": "ErrImagePull"},
    ),
    "an init container that failed": (
        {
            "phase": "Failed",
            "initContainerStatuses": [{"name": "mesh", "state": {"terminated": {"exitCode": 7, "reason": "Error"}}}],
            **main_container(waiting={"reason": "PodInitializing"}),
        },
        {"exit_code": 7, "reason": "Error", "waiting": None},
    ),
    "a success with its answer": (
        {"phase": "Succeeded", **terminated(0, "Completed", ANSWER)},
        {"exit_code": 0, "reason": "Completed", "outcome": Outcome.from_termination_message(ANSWER)},
    ),
    "a crash whose message is a log": (
        {"phase": "Failed", **terminated(1, "Error", "Traceback (most recent call last)")},
        {"exit_code": 1, "reason": "Error", "outcome": None},
    ),
    "out of memory": ({"phase": "Failed", **terminated(137, "OOMKilled")}, {"exit_code": 137, "reason": "OOMKilled"}),
    "out of memory on a node that is being drained": (
        {
            "phase": "Failed",
            **terminated(137, "OOMKilled"),
            **condition("DisruptionTarget", "True", "EvictionByEvictionAPI"),
        },
        {"reason": "OOMKilled"},
    ),
    "an eviction by the kubelet": (
        {"phase": "Failed", "reason": "Evicted", "message": "disk"},
        {"reason": "Evicted", "exit_code": None},
    ),
    "a pod that the scheduler pushed out": (
        {
            "phase": "Failed",
            **terminated(143, "Error"),
            **condition("DisruptionTarget", "True", "PreemptionByScheduler"),
        },
        {"reason": "Evicted", "exit_code": 143},
    ),
    "a disruption that was called off": (
        {
            "phase": "Failed",
            **terminated(1, "Error"),
            **condition("DisruptionTarget", "False", "PreemptionByScheduler"),
        },
        {"reason": "Error"},
    ),
    "a disruption of a new sort": (
        {"phase": "Failed", **condition("DisruptionTarget", "True", "SomethingNew")},
        {"reason": "Evicted"},
    ),
    "a node that was lost": ({"phase": "Running", "reason": "NodeLost"}, {"reason": "NodeLost"}),
    "a pod that a taint took away": (
        {"phase": "Failed", **condition("DisruptionTarget", "True", "DeletionByTaintManager")},
        {"reason": "NodeLost"},
    ),
    "a node that was shut down": (
        {"phase": "Failed", "reason": "Terminated", **terminated(143, "Error")},
        {"reason": "NodeLost"},
    ),
    "a node that would not have it": ({"phase": "Failed", "reason": "UnexpectedAdmissionError"}, {"reason": "Evicted"}),
    "a sidecar that ended first": (
        {
            "containerStatuses": [
                {"name": "mesh", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}},
                {"name": "work", "state": {"running": {"startedAt": NOW}}},
            ]
        },
        {"exit_code": None, "reason": None},
    ),
    "a pod without a status": ({"phase": None}, {"phase": "Pending", "exit_code": None}),
}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_seen_as_it_is(name: str) -> None:
    status, expected = PODS[name]
    view = observe.view_pod(build_pod(**status))
    assert {field: getattr(view, field) for field in expected} == expected


def test_a_pod_that_is_being_deleted_says_so() -> None:
    pod = build_pod(**main_container(running={"startedAt": NOW}))
    pod["metadata"]["deletionTimestamp"] = NOW
    assert observe.view_pod(pod).deleting


def build_child(
    labels: dict[str, str] = LABELS, spec: dict[str, Any] | None = None, *conditions: dict[str, Any]
) -> dict[str, Any]:
    return {
        "metadata": {"name": "job", "uid": "j-1", "creationTimestamp": NOW, "labels": labels},
        "spec": spec or {},
        "status": {"conditions": list(conditions)},
    }


CHILDREN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a Job at work": (build_child(), {"kind": "train", "run": 1, "attempt": 2, "complete": False, "failed": False}),
    "a Job that is done": (build_child(LABELS, None, {"type": "Complete", "status": "True"}), {"complete": True}),
    "a Job that failed, and why": (
        build_child(LABELS, None, {"type": "Failed", "status": "True", "message": "too many pods failed"}),
        {"failed": True, "message": "too many pods failed"},
    ),
    "a condition that does not hold": (
        build_child(LABELS, None, {"type": "Failed", "status": "False", "message": "x"}),
        {"failed": False, "message": ""},
    ),
    "a Job that Kueue holds": (build_child(LABELS, {"suspend": True}), {"suspended": True}),
}


@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_is_seen_as_it_is(name: str) -> None:
    child, expected = CHILDREN[name]
    view = observe.view_child(child)
    assert view is not None
    assert {field: getattr(view, field) for field in expected} == expected


@pytest.mark.parametrize("labels", [{}, LABELS | {"llamero.dev/work": "bake"}, LABELS | {"llamero.dev/run": "first"}])
def test_a_job_with_labels_that_say_something_else_is_not_ours(labels: dict[str, str]) -> None:
    assert observe.view_child(build_child(labels)) is None


def build_job(**parts: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "tutor", "namespace": "team-a", "uid": "u-1", "resourceVersion": "7", "generation": 1},
        "spec": {
            "baseModel": {"uri": "s3://models/tiny"},
            "data": {"sources": [{"uri": "s3://data/alpaca.json", "format": "alpaca"}]},
        },
        **parts,
    }


def test_a_right_spec_is_read_with_its_defaults() -> None:
    job, problems = observe.read_job(build_job())
    assert job is not None and job.metadata.namespace == "team-a"
    assert problems == ()


def test_a_wrong_spec_gives_a_sentence_for_each_mistake_with_its_place() -> None:
    job, problems = observe.read_job(
        build_job(spec={"baseModel": {"uri": "s3://m"}, "data": {"sources": [{"uri": 7}]}, "epochs": 1})
    )
    assert job is None
    assert any(p.startswith("spec.data.sources[0]") for p in problems)
    assert any(p.startswith("spec.epochs: unknown field") for p in problems)


def test_a_status_is_read_back() -> None:
    status = observe.read_status(build_job(status={"phase": "Training", "run": 3, "runDigest": "d"}))
    assert (status.phase, status.run, status.run_digest) == (JobPhase.TRAINING, 3, "d")


def test_of_a_status_that_can_not_be_read_the_readable_parts_are_kept() -> None:
    status = observe.read_status(build_job(status={"phase": "Dreaming", "run": 3, "work": {"kind": "bake"}}))
    assert (status.phase, status.run, status.work) == (JobPhase.PENDING, 3, None)


@pytest.mark.parametrize(
    ("annotation", "number"),
    [('{"number": 5, "kind": "train"}', 5), ("yes", None), ('{"number": 0}', None), (None, None)],
)
def test_a_request_for_logs_is_read_where_it_is_one(annotation: str | None, number: int | None) -> None:
    job = build_job()
    if annotation is not None:
        job["metadata"]["annotations"] = {"llamero.dev/read-logs": annotation}
    request = observe.read_log_request(job)
    assert (request.number if request else None) == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.678901Z", datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
        (None, None),
        ("yesterday", None),
    ],
)
def test_times_are_read_as_kubernetes_writes_them(text: str | None, expected: datetime | None) -> None:
    assert observe.parse_time(text) == expected
