"""What a server says of itself: phase, conditions, pods; and that it says it in few bytes."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from services.lifecycle.serving.simulation import START, Chat, Cluster, build_server

from llamero.lifecycle.bounds import MAX_STATUS_BYTES
from llamero.lifecycle.serving.bounds import fits, shrink
from llamero.lifecycle.serving.servers import decide
from llamero.lifecycle.serving.world import ServingCapabilities, ServingLimits
from llamero.spec.names import serves_mark
from llamero.spec.server import (
    ModelServerStatus,
    NameStatus,
    ServedAdapterStatus,
    ServerPodStatus,
)
from llamero.spec.status import Condition, ConditionType


def build_cluster(**spec: Any) -> Cluster:
    cluster = Cluster(server=build_server(**{"replicas": 2, **spec}), chats=[Chat("a")], traffic=20)
    cluster.publish("tutor-r1")
    cluster.run_until(lambda: cluster.status.phase == "Ready")
    return cluster


def conditions(cluster: Cluster) -> dict[str, tuple[str, str]]:
    return {c.type.value: (c.status, c.reason) for c in cluster.status.conditions}


def message(cluster: Cluster, kind: str) -> str:
    return next(c.message for c in cluster.status.conditions if c.type == kind)


def test_a_server_at_rest_is_ready() -> None:
    cluster = build_cluster()
    assert conditions(cluster) == {
        "Ready": ("True", "Ready"),
        "Reconciling": ("False", "Settled"),
        "Stalled": ("False", "NotStalled"),
        "Suspended": ("False", "NotSuspended"),
        "Available": ("True", "Available"),
        "Progressing": ("False", "Settled"),
        "Protected": ("True", "Protected"),
        "Autoscaled": ("False", "NotAsked"),
    }
    assert (cluster.status.replicas, cluster.status.ready_replicas, cluster.status.observed_generation) == (2, 2, 1)
    assert [(p.name, p.ready, len(p.adapters)) for p in cluster.status.pods] == [
        ("llama-engine-1", True, 1),
        ("llama-engine-2", True, 1),
    ]


def test_a_server_that_starts_is_pending_then_progressing() -> None:
    cluster = Cluster(chats=[Chat("a")])
    cluster.publish("tutor-r1")
    cluster.look()
    assert cluster.status.phase == "Pending" and conditions(cluster)["Ready"] == ("False", "PodsStarting")
    assert conditions(cluster)["Available"] == ("False", "NoPod")
    cluster.tick()
    cluster.look()
    assert cluster.status.phase == "Progressing" and conditions(cluster)["Ready"] == ("False", "Loading")
    assert conditions(cluster)["Reconciling"][0] == "True"


def test_a_rollout_leaves_a_server_ready_and_reconciling() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: "tutor-r2" in cluster.shares())
    assert cluster.status.phase == "Progressing"
    assert conditions(cluster)["Ready"] == ("True", "Ready")
    assert conditions(cluster)["Reconciling"] == ("True", "RollingOut")
    assert "answers 5%" in message(cluster, "Progressing")


def test_a_status_that_says_the_same_does_not_change() -> None:
    cluster = build_cluster(strategy={"intervalSeconds": 100})
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: "tutor-r2" in cluster.shares())
    cluster.run(3)
    status = cluster.status
    for _ in range(20):
        decision = cluster.look()
        assert decision.status == status and decision.adapter_statuses == {} and decision.notes == ()
        cluster.tick()


def test_what_discovery_lacks_is_said() -> None:
    cluster = build_cluster(autoscaling={"minReplicas": 2, "maxReplicas": 5})
    assert conditions(cluster)["Autoscaled"] == ("True", "Autoscaled")
    cluster.capabilities = ServingCapabilities()
    decision = cluster.look()
    assert conditions(cluster)["Protected"] == ("False", "NoPolicyV1")
    assert conditions(cluster)["Autoscaled"] == ("False", "NoAutoscalingV2")
    assert "autoscaling/v2" in message(cluster, "Autoscaled") and decision.replicas == 2


def test_an_autoscalers_replicas_are_left_to_it() -> None:
    cluster = build_cluster(autoscaling={"minReplicas": 2, "maxReplicas": 5})
    for set_by_it, replicas in ((1, 2), (4, 4), (9, 5)):
        cluster.replicas = set_by_it
        assert decide(cluster.world(), cluster.limits, cluster.now).replicas == replicas


def test_a_server_of_no_replicas_is_suspended() -> None:
    cluster = build_cluster()
    cluster.edit(replicas=0)
    cluster.run(5)
    assert cluster.status.phase == "Suspended" and conditions(cluster)["Suspended"] == ("True", "Suspended")
    assert conditions(cluster)["Ready"] == ("False", "Suspended")
    assert conditions(cluster)["Reconciling"] == ("False", "Settled")
    assert cluster.has_settled()


def test_a_pod_that_does_not_start_degrades_a_server_that_serves() -> None:
    cluster = build_cluster()
    cluster.pods[0].crashes = True
    cluster.run(40)
    assert cluster.status.phase == "Degraded" and conditions(cluster)["Available"] == ("True", "Available")
    assert "llama-engine-1: The engine ended with code 1" in message(cluster, "Ready")
    assert next(p.message for p in cluster.status.pods if not p.ready).startswith("The engine ended")


def test_what_the_api_server_refuses_is_told() -> None:
    cluster = build_cluster()
    cluster.refused = {"deployment llama-engine": "exceeded quota: gpus"}
    cluster.look()
    assert conditions(cluster)["Ready"] == ("False", "ObjectRefused") and "exceeded quota" in message(cluster, "Ready")


@pytest.mark.parametrize(
    ("spec", "limits", "reason"),
    [
        ({}, {"allowed_bases": ("org/*",)}, "BaseNotAllowed"),
        ({"resources": {"gpuClass": "h900"}}, {"known_gpu_classes": frozenset({"a100"})}, "UnknownGpuClass"),
    ],
)
def test_what_the_operators_settings_forbid_stalls_a_server(
    spec: dict[str, Any], limits: dict[str, Any], reason: str
) -> None:
    cluster = Cluster(server=build_server(**spec))
    cluster.limits = replace(cluster.limits, **limits)
    decision = cluster.look()
    assert cluster.status.phase == "Failed" and conditions(cluster)["Stalled"] == ("True", reason)
    assert not decision.deploy and decision.wanted is None


def test_a_server_made_for_another_base_serves_on_and_says_so() -> None:
    world = build_cluster().world()
    assert world.deployment is not None and world.server is not None
    moved = replace(world, deployment=replace(world.deployment, serves="cpu s3://models/another"))
    decision = decide(moved, ServingLimits(), START)
    stalled = decision.status.conditions[2]
    assert (stalled.type, stalled.reason) == ("Stalled", "BaseChanged") and "another" in stalled.message
    assert not decision.deploy and decision.wanted is None and decision.routes == world.routed
    base = world.server.spec.base_model
    mark = serves_mark(world.server.spec.engine.type, base.name or base.uri or "", base.revision)
    same = replace(world, deployment=replace(world.deployment, serves=mark))
    assert decide(same, ServingLimits(), START).deploy


def test_more_names_than_there_is_room_for_are_told() -> None:
    cluster = Cluster(chats=[Chat("a")])
    cluster.edit(engine={"type": "cpu", "maxAdapters": 64})
    for index in range(40):
        cluster.publish(f"name{index:02}-r1", model=f"name{index:02}")
        cluster.now += timedelta(seconds=1)
    cluster.run(20)
    assert len(cluster.status.models) == 32 and conditions(cluster)["Ready"] == ("False", "TooManyNames")
    assert "name32" in message(cluster, "Ready") and cluster.shares("name31") == {"name31-r1": 100}
    assert len(json.dumps(cluster.status.to_json_dict())) <= MAX_STATUS_BYTES
    quiet = (cluster.status, cluster.wanted)
    cluster.run(10)
    assert (cluster.status, cluster.wanted) == quiet, "what was cut is found again in the routes"


def build_large_status(names: int, adapters: int) -> ModelServerStatus:
    conditions = [
        Condition(type=k, status="True", reason="R", message="m" * 512, last_transition_time=START)
        for k in list(ConditionType)[:8]
    ]
    models = [
        NameStatus(
            name=f"name-{i:02}", message="m" * 300, adapter=f"job-{i}-r1", canary=f"job-{i}-r2", weight=5, since=START,
            step_id=f"job-{i}-r2-0-1767614400", step_started_at=START, previous=f"job-{i}-r0",
        )
        for i in range(names)
    ]  # fmt: skip
    served = [
        ServedAdapterStatus(name=f"job-{i}-r1", id=f"team-job-{i}-r1-12345678", state="Loading", message="m" * 300)
        for i in range(adapters)
    ]
    pods = [
        ServerPodStatus(name=f"pod-{i}", message="m" * 200, adapters=[f"team-job-{n}-r1-12345678" for n in range(8)])
        for i in range(16)
    ]
    return ModelServerStatus(conditions=conditions, models=models, adapters=served, pods=pods)


@pytest.mark.parametrize(("names", "adapters"), [(1, 2), (4, 8), (12, 16), (16, 24)])
def test_a_status_is_cut_until_it_fits_and_no_rollout_is_forgotten(names: int, adapters: int) -> None:
    status = build_large_status(names, adapters)
    small = shrink(status)
    assert len(json.dumps(small.to_json_dict())) <= MAX_STATUS_BYTES
    assert [m.model_copy(update={"message": ""}) for m in small.models] == [
        m.model_copy(update={"message": ""}) for m in status.models
    ]
    assert [a.id for a in small.adapters] == [a.id for a in status.adapters]


def test_a_status_that_fits_is_not_cut() -> None:
    cluster = build_cluster()
    assert fits(cluster.status) and shrink(cluster.status) == cluster.status


def test_a_deployment_that_does_not_get_on_is_told() -> None:
    cluster = build_cluster()
    world = cluster.world()
    assert world.deployment is not None
    stuck = replace(world.deployment, settled=False, message="ProgressDeadlineExceeded: no pod became ready.")
    status = decide(replace(world, deployment=stuck), cluster.limits, cluster.now).status
    assert status.phase == "Degraded"
    assert any(c.type == "Progressing" and c.status == "False" for c in status.conditions)
