"""What decisions see of engine pods, Deployments, Adapters and ModelServers, as the API has them."""

import json
from typing import Any

import pytest

from llamero.spec import names
from llamero_operator.serving import observe

FETCH, ENGINE = names.FETCH_CONTAINER, names.ENGINE_CONTAINER


def pod(annotations: dict[str, str] | None = None, deleting: bool = False, **status: Any) -> dict[str, Any]:
    metadata = {
        "name": "tiny-engine-7df4-abcde",
        "namespace": "team-a",
        "uid": "p-1",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {**names.server_labels("tiny", "s-1"), "pod-template-hash": "7df4"},
        "annotations": annotations or {},
    }
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-02T03:05:05Z"
    return {"metadata": metadata, "spec": {}, "status": status}


def container(
    name: str, state: dict[str, Any], last: dict[str, Any] | None = None, restarts: int = 0
) -> dict[str, Any]:
    return {"name": name, "state": state, "lastState": last or {}, "restartCount": restarts}


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


WAITS_TO_RESTART = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}}


def test_a_running_pod_is_seen_with_its_address_and_what_it_was_started_with() -> None:
    annotations = {names.GATHERED_ANNOTATION: json.dumps(["team-a-tutor-r1-aaaa", "team-a-tutor-r2-bbbb"])}
    seen = observe.view_engine_pod(
        pod(
            annotations,
            phase="Running",
            podIP="10.0.0.7",
            conditions=[{"type": "Ready", "status": "True"}],
            containerStatuses=[
                container("agent", {"running": {}}, restarts=9),
                container(ENGINE, {"running": {}}, restarts=1),
            ],
        )
    )
    assert (seen.ip, seen.ready, seen.deleting, seen.restarts, seen.template) == ("10.0.0.7", True, False, 1, "7df4")
    assert seen.gathered == ("team-a-tutor-r1-aaaa", "team-a-tutor-r2-bbbb")
    assert (seen.problem, seen.refusals, seen.report) == ("", (), None)


@pytest.mark.parametrize("text", ["", "not JSON", "{}", "[1, 2]"])
def test_an_annotation_that_says_nothing_gathers_nothing(text: str) -> None:
    assert observe.view_engine_pod(pod({names.GATHERED_ANNOTATION: text})).gathered == ()


def test_a_pod_that_is_told_to_end_is_deleting() -> None:
    assert observe.view_engine_pod(pod(deleting=True)).deleting


REFUSAL = (
    '{"id": "team-a-tutor-r2-bbbb", "message": "adapter_model.safetensors has another sha256 than its manifest says"}'
)


@pytest.mark.parametrize(
    "state, last",
    [
        (ended(3, REFUSAL), None),
        (WAITS_TO_RESTART, ended(3, REFUSAL)),
        ({"running": {}}, ended(3, REFUSAL)),
    ],
    ids=["it has just ended", "the kubelet waits", "it tries again"],
)
def test_what_the_fetch_refused_is_known_however_far_the_kubelet_is(
    state: dict[str, Any], last: dict[str, Any] | None
) -> None:
    seen = observe.view_engine_pod(pod(phase="Pending", initContainerStatuses=[container(FETCH, state, last)]))
    (refusal,) = seen.refusals
    assert refusal.id == "team-a-tutor-r2-bbbb" and "another sha256" in refusal.message


def test_a_refusal_without_a_readable_message_blames_no_adapter() -> None:
    seen = observe.view_engine_pod(pod(initContainerStatuses=[container(FETCH, ended(3, "Traceback ..."))]))
    assert [(r.id, r.message) for r in seen.refusals] == [(None, "Traceback ...")]


@pytest.mark.parametrize("code", [1, 137, 0])
def test_a_fetch_that_ended_otherwise_refused_nothing(code: int) -> None:
    assert observe.view_engine_pod(pod(initContainerStatuses=[container(FETCH, ended(code, REFUSAL))])).refusals == ()


@pytest.mark.parametrize(
    "status, words",
    [
        ({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no GPU"}]}, "no node takes it: 0/3 nodes: no GPU"),
        (
            {"containerStatuses": [container(ENGINE, {"waiting": {"reason": "ErrImagePull", "message": "not found"}})]},
            "the container engine waits: ErrImagePull: not found",
        ),
        (
            {"containerStatuses": [container(ENGINE, WAITS_TO_RESTART, ended(1), restarts=4)]},
            "the container engine ended with exit code 1",
        ),
        (
            {"containerStatuses": [container(ENGINE, WAITS_TO_RESTART, ended(2, "Traceback\n\nmax_total_tokens: ask for less\n"), restarts=4)]},
            "the container engine ended with exit code 2: max_total_tokens: ask for less",
        ),
        (
            {"containerStatuses": [container(ENGINE, WAITS_TO_RESTART, ended(137, reason="OOMKilled"), restarts=4)]},
            "the container engine ran out of memory and was ended",
        ),
        (
            {"initContainerStatuses": [container(FETCH, WAITS_TO_RESTART, ended(3, REFUSAL))]},
            "the container fetch ended with exit code 3: adapter_model.safetensors has another sha256 than its manifest says",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}, "Evicted: The node was low on memory."),
        ({"phase": "Failed"}, "the pod has ended (Failed)"),
        ({"initContainerStatuses": [container(FETCH, {"waiting": {"reason": "PodInitializing"}})]}, ""),
        ({"containerStatuses": [container(ENGINE, {"running": {}}, ended(1), restarts=1)]}, ""),
    ],
)  # fmt: skip
def test_why_a_pod_does_not_run_is_a_sentence(status: dict[str, Any], words: str) -> None:
    assert observe.view_engine_pod(pod(**status)).problem == words


def deployment(spec: int = 2, generation: int = 4, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "tiny-engine", "generation": generation}, "spec": {"replicas": spec}, "status": status}


ALL_THERE = {"observedGeneration": 4, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}


@pytest.mark.parametrize(
    "changes, settled",
    [
        ({}, True),
        ({"observedGeneration": 3}, False),
        ({"replicas": 3}, False),
        ({"updatedReplicas": 1}, False),
        ({"availableReplicas": 1}, False),
    ],
)
def test_a_deployment_is_settled_once_its_newest_template_is_in_all_its_pods(
    changes: dict[str, int], settled: bool
) -> None:
    assert observe.view_deployment(deployment(**ALL_THERE | changes)).settled is settled


def test_a_deployment_says_why_it_does_not_get_on() -> None:
    stuck = {"type": "Progressing", "status": "False", "message": "ReplicaSet has timed out progressing."}
    quota = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
    assert observe.view_deployment(deployment(conditions=[stuck])).message == "ReplicaSet has timed out progressing."
    assert observe.view_deployment(deployment(conditions=[stuck, quota])).message == "exceeded quota: gpus"
    assert observe.view_deployment(deployment(conditions=[{"type": "Progressing", "status": "True"}])).message == ""


def adapter(source: dict[str, Any] | None = None, finalizers: list[str] | None = None) -> dict[str, Any]:
    spec = {"uri": "s3://a", "sha256": "1234abcd" + "0" * 56, "base": "b", "baseSha256": "c", "model": "tutor"}
    metadata = {
        "name": "tutor-r3",
        "namespace": "team-a",
        "uid": "a-1",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "finalizers": finalizers or [],
    }
    return {"metadata": metadata, "spec": spec | ({"source": source} if source else {})}


def test_an_adapter_of_a_run_is_served_by_job_run_and_digest_and_an_imported_one_by_its_name() -> None:
    made = observe.view_adapter(adapter({"job": "tutor", "uid": "u", "run": 3}))
    imported = observe.view_adapter(adapter())
    assert made is not None and made.served_id == "team-a-tutor-r3-1234abcd"
    assert imported is not None and imported.served_id == names.imported_adapter_id("team-a", "tutor-r3", "1234abcd")


def test_an_adapter_is_held_by_our_finalizer_alone() -> None:
    held, other = (observe.view_adapter(adapter(finalizers=[f])) for f in (names.SERVED_FINALIZER, "else/where"))
    assert held is not None and held.held
    assert other is not None and not other.held


def test_an_adapter_that_can_not_be_read_is_not_seen() -> None:
    wrong = adapter()
    wrong["spec"]["sha256"] = "short"
    assert observe.view_adapter(wrong) is None


def test_every_mistake_in_a_servers_spec_is_a_sentence() -> None:
    spec = {"baseModel": {"name": "a/b"}, "engine": {"type": "cpu"}, "replicas": -1}
    parsed, problems = observe.read_server({"metadata": {"name": "tiny", "namespace": "team-a"}, "spec": spec})
    assert parsed is None
    assert any(p.startswith("spec.replicas:") for p in problems) and any("pinned" in p for p in problems)


def test_a_status_of_another_version_is_read_part_by_part() -> None:
    status = observe.read_server_status({"status": {"phase": "Ready", "wantedSerial": 7, "models": "no list"}})
    assert (status.phase, status.wanted_serial, status.models) == ("Ready", 7, [])


WANTED = '{"version": 1, "serial": 1767323045000, "engine": "tgi", "base": {"uri": "/models/tiny"}, "adapters": []}'


@pytest.mark.parametrize("text, serial", [(WANTED, 1767323045000), ("{", 0), (None, 0)])
def test_the_number_of_a_list_that_can_not_be_read_is_0(text: str | None, serial: int) -> None:
    assert observe.read_serial(text) == serial
