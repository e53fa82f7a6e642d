"""What the routes say of a server's pods, and when an adapter may be unloaded."""

from dataclasses import replace
from typing import Any

import pytest
from services.lifecycle.serving.simulation import START, Chat, Cluster, build_server

from llamero.lifecycle.serving.world import ServerRoutes
from llamero.spec.routes import Backend, Route, Target
from llamero.spec.serving import AgentReport


def build_cluster(chats: int = 1, **spec: Any) -> Cluster:
    """A server with two pods that serves tutor-r1."""
    cluster = Cluster(
        server=build_server(**{"replicas": 2, **spec}), chats=[Chat(f"chat-{i}") for i in range(chats)], traffic=20
    )
    cluster.publish("tutor-r1")
    cluster.run_until(lambda: cluster.status.phase == "Ready")
    return cluster


def backends(cluster: Cluster) -> dict[str, list[str]]:
    """The adapters of each backend, by pod and Adapter."""
    by_id = {a.served_id: a.name for a in cluster.adapters.values()}
    return {b.pod: [by_id[i] for i in b.adapters] for b in cluster.routed.backends}


def begin_rollout(cluster: Cluster) -> str:
    """tutor-r2 at 5%; its id."""
    adapter = cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares() == {"tutor-r1": 95, "tutor-r2": 5})
    return adapter.served_id


def test_backends_are_told_by_pod_with_what_each_has() -> None:
    cluster = build_cluster()
    assert backends(cluster) == {"llama-engine-1": ["tutor-r1"], "llama-engine-2": ["tutor-r1"]}
    assert [b.url for b in cluster.routed.backends] == ["http://10.0.0.2:8080", "http://10.0.0.3:8080"]
    assert {b.engine for b in cluster.routed.backends} == {"cpu"}
    assert [r.server for r in cluster.routed.routes] == ["team/llama"]


def test_an_engine_on_a_laptop_answers_where_it_says() -> None:
    cluster = build_cluster(replicas=1)
    world = cluster.world()
    pod = replace(world.pods[0], ip="", url="http://127.0.0.1:40123")
    from llamero.lifecycle.serving.servers import decide

    decision = decide(replace(world, pods=(pod,)), cluster.limits, cluster.now)
    assert [b.url for b in decision.routes.backends] == ["http://127.0.0.1:40123"]


def test_an_operator_that_was_restarted_leaves_the_routes_while_agents_are_silent() -> None:
    cluster = build_cluster()
    begin_rollout(cluster)
    for pod in cluster.pods:
        pod.silent, pod.report, pod.heard_at = True, None, None
    before = cluster.routed
    cluster.look()
    assert cluster.routed == before
    cluster.run(300)
    assert cluster.routed.backends == before.backends, "as long as Kubernetes calls the pods ready"


def test_a_silent_agents_pod_that_is_not_ready_takes_no_requests() -> None:
    cluster = build_cluster()
    pod = cluster.pods[0]
    pod.silent, pod.crashes = True, True
    cluster.run(40)
    assert set(backends(cluster)) == {"llama-engine-2"}
    assert cluster.shares() == {"tutor-r1": 100}


def test_a_pod_that_lost_its_adapters_loses_their_requests_at_once() -> None:
    cluster = build_cluster(engine={"type": "vllm"})
    begin_rollout(cluster)
    pod = cluster.pods[0]
    assert pod.report is not None
    pod.report = AgentReport(pod=pod.name, started_at=START, serial=pod.report.serial, engine_ready=True)
    cluster.look()
    assert backends(cluster) == {"llama-engine-1": [], "llama-engine-2": ["tutor-r1", "tutor-r2"]}
    assert cluster.shares() == {"tutor-r1": 95, "tutor-r2": 5}
    cluster.run(5)
    assert backends(cluster)["llama-engine-1"] == ["tutor-r1", "tutor-r2"], "its agent loads them again"


def test_an_engine_that_does_not_answer_takes_no_requests() -> None:
    cluster = build_cluster()
    cluster.pods[0].starts_in = 3
    cluster.tick()
    cluster.look()
    assert set(backends(cluster)) == {"llama-engine-2"}


def test_a_pod_that_is_deleted_takes_no_requests() -> None:
    cluster = build_cluster()
    cluster.pods[0].deleting = True
    cluster.look()
    assert set(backends(cluster)) == {"llama-engine-2"}


def test_when_no_pod_has_the_canary_the_old_adapter_answers_all_and_the_other_way_round() -> None:
    cluster = build_cluster(replicas=1)
    served_id = begin_rollout(cluster)
    pod = cluster.pods[0]
    assert pod.report is not None
    for lost, left in ((served_id, "tutor-r1"), (cluster.adapters["tutor-r1"].served_id, "tutor-r2")):
        whole = pod.report
        pod.report = whole.model_copy(update={"adapters": [a for a in whole.adapters if a.id != lost]})
        cluster.look()
        assert cluster.shares() == {left: 100}
        pod.report = whole
        cluster.look()
        assert cluster.shares() == {"tutor-r1": 95, "tutor-r2": 5}


def test_a_name_without_any_pod_stays_in_the_routes_so_that_callers_are_told_to_come_again() -> None:
    cluster = build_cluster()
    cluster.edit(replicas=0)
    cluster.run(5)
    assert cluster.routed.backends == () and [(r.model, r.targets) for r in cluster.routed.routes] == [("tutor", [])]
    assert cluster.status.phase == "Suspended"
    cluster.edit(replicas=1)
    cluster.run_until(lambda: cluster.shares() == {"tutor-r1": 100}, 20)
    assert cluster.name().adapter == "tutor-r1"


@pytest.mark.parametrize(
    ("engine", "template", "stop"),
    [("cpu", None, []), ("vllm", "chatml", ["<|im_end|>"]), ("tgi", "chatml", ["<|im_end|>"])],
)
def test_template_and_stop_tokens_travel_with_the_adapter_where_the_engine_does_not_know_them(
    engine: str, template: str | None, stop: list[str]
) -> None:
    cluster = Cluster(server=build_server(engine={"type": engine}), chats=[Chat("a")])
    cluster.publish("tutor-r1", template="chatml", stopTokens=["<|im_end|>"])
    cluster.publish("other-r1", model="other", template="base", stopTokens=["</s>"])
    cluster.run_until(lambda: cluster.shares("other") == {"other-r1": 100} and cluster.shares() != {})
    targets = {r.model: r.targets[0] for r in cluster.routed.routes}
    assert (targets["tutor"].template, targets["tutor"].stop) == (template, stop)
    assert (targets["other"].template, targets["other"].stop) == (None, [])


def test_routes_are_told_in_the_order_of_their_names() -> None:
    cluster = Cluster(chats=[Chat("a")])
    for name in ("zebra", "ant", "mole"):
        cluster.publish(f"{name}-r1", model=name)
    cluster.run(10)
    assert [r.model for r in cluster.routed.routes] == ["ant", "mole", "zebra"]


def test_a_manifest_that_turns_wrong_leaves_what_is_served() -> None:
    cluster = build_cluster()
    begin_rollout(cluster)
    shares, wanted = cluster.shares(), cluster.wanted
    cluster.server, cluster.problems = None, ("spec.replicas: must be a number",)
    cluster.pods[0].deleting = True
    decision = cluster.look()
    assert cluster.shares() == shares and set(backends(cluster)) == {"llama-engine-2"}
    assert decision.wanted is None and not decision.deploy and cluster.wanted == wanted
    assert not decision.hold and not decision.release
    stalled = next(c for c in cluster.status.conditions if c.type == "Stalled")
    assert (stalled.status, stalled.reason, stalled.message) == (
        "True", "InvalidSpec", "spec.replicas: must be a number.")  # fmt: skip
    assert cluster.status.phase == "Degraded"


# -- unloading -----------------------------------------------------------------------------------------------------------------


def take_back(cluster: Cluster) -> str:
    """tutor-r2 had 5%, and is in the rollback list now; its id."""
    served_id = begin_rollout(cluster)
    cluster.edit_name(rollback=["tutor-r2"])
    cluster.look()
    assert cluster.shares() == {"tutor-r1": 100}
    return served_id


def is_loaded(cluster: Cluster, served_id: str) -> bool:
    return cluster.wanted is not None and served_id in {a.id for a in cluster.wanted.adapters}


def test_an_adapter_is_unloaded_once_all_chat_services_work_by_routes_without_it() -> None:
    cluster = build_cluster(chats=2)
    cluster.chats[1].stuck = True
    served_id = take_back(cluster)
    cluster.run(60)
    assert is_loaded(cluster, served_id), "one chat service still has the old routes"
    assert next(a.state for a in cluster.status.adapters if a.id == served_id) == "Draining"
    cluster.chats[1].stuck = False
    cluster.run(3)
    assert not is_loaded(cluster, served_id) and cluster.status.drains == {}


def test_an_adapter_with_a_request_under_way_is_not_unloaded_before_its_bound() -> None:
    cluster = build_cluster(chats=2)
    served_id = take_back(cluster)
    cluster.chats[0].in_flight["http://10.0.0.2:8080", served_id] = 1
    cluster.run(100)
    assert is_loaded(cluster, served_id)
    cluster.run(40)
    assert not is_loaded(cluster, served_id), "after drainSeconds it is"


def test_a_silent_chat_service_holds_an_adapter_until_its_bound() -> None:
    cluster = build_cluster(chats=2)
    served_id = take_back(cluster)
    cluster.chats[0].silent = True
    cluster.run(100)
    assert is_loaded(cluster, served_id)
    cluster.run(40)
    assert not is_loaded(cluster, served_id)


def test_without_any_chat_service_routes_count_as_taken_in_after_a_while() -> None:
    cluster = build_cluster(chats=0)
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: "tutor-r2" in cluster.shares())
    served_id = cluster.adapters["tutor-r2"].served_id
    cluster.edit_name(rollback=["tutor-r2"])
    cluster.look()
    cluster.run(9)
    assert is_loaded(cluster, served_id)
    cluster.run(5)
    assert not is_loaded(cluster, served_id)


def test_routes_that_could_not_be_written_stop_the_clock() -> None:
    cluster = build_cluster(chats=0)
    served_id = begin_rollout_without_chats(cluster)
    old = cluster.routed
    cluster.edit_name(rollback=["tutor-r2"])
    for _ in range(200):
        cluster.look()
        cluster.routed = old
        cluster.tick()
    assert is_loaded(cluster, served_id), "the routes still name it"


def begin_rollout_without_chats(cluster: Cluster) -> str:
    adapter = cluster.publish("tutor-r2")
    cluster.run_until(lambda: "tutor-r2" in cluster.shares())
    return adapter.served_id


def test_an_adapter_that_is_wanted_again_while_it_drains_stays() -> None:
    cluster = build_cluster(chats=1)
    cluster.chats[0].stuck = True
    served_id = take_back(cluster)
    cluster.run(10)
    assert served_id in cluster.status.drains
    cluster.edit_name()
    cluster.run(3)
    assert served_id not in cluster.status.drains and is_loaded(cluster, served_id)
    assert "tutor-r2" in cluster.shares()


def test_a_finalizer_goes_only_when_no_pod_has_the_adapter_any_more() -> None:
    cluster = build_cluster()
    served_id = take_back(cluster)
    cluster.delete_adapter("tutor-r2")
    cluster.tick()
    cluster.look()
    assert not is_loaded(cluster, served_id) and "tutor-r2" in cluster.adapters, "pods were only just told"
    cluster.run(3)
    assert "tutor-r2" not in cluster.adapters


def test_there_is_room_for_so_many_adapters_and_the_one_before_gives_way() -> None:
    cluster = build_cluster(engine={"type": "cpu", "maxAdapters": 2})
    for run in (2, 3):
        cluster.publish(f"tutor-r{run}")
        cluster.run_until(lambda r=run: cluster.name().adapter == f"tutor-r{r}")  # type: ignore[misc]
        assert cluster.wanted is not None and len(cluster.wanted.adapters) <= 2
    assert {a.name for a in cluster.status.adapters} == {"tutor-r2", "tutor-r3"}


def test_an_adapter_without_room_waits_and_says_so() -> None:
    cluster = build_cluster(engine={"type": "cpu", "maxAdapters": 1})
    cluster.publish("tutor-r2")
    cluster.run(10)
    assert cluster.shares() == {"tutor-r1": 100} and "engine.maxAdapters" in cluster.name().message
    assert [(a.name, a.state) for a in cluster.status.adapters] == [("tutor-r1", "Ready"), ("tutor-r2", "Pending")]
    cluster.edit(engine={"type": "cpu", "maxAdapters": 2})
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_an_adapter_that_was_imported_twice_is_told_once() -> None:
    cluster = build_cluster()
    twin = replace(cluster.adapters["tutor-r1"], name="twin", uid="uid-twin", created_at=cluster.now)
    cluster.adapters["twin"] = replace(twin, spec=twin.spec.model_copy(update={"model": "other"}))
    cluster.run(10)
    assert cluster.wanted is not None and len(cluster.wanted.adapters) == 1
    assert [sum(t.weight for t in r.targets) for r in cluster.routed.routes] == [100, 100]


def test_a_list_that_was_told_before_the_operator_died_never_shares_its_number() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    decision = cluster.look()
    status = cluster.status
    cluster.carry_out(decision)
    assert decision.wanted is not None
    cluster.status = status.model_copy(update={"wanted_serial": 1, "wanted_digest": ""})
    cluster.delete_adapter("tutor-r2")
    again = cluster.look()
    assert again.wanted is not None and again.wanted.serial > decision.wanted.serial


# -- deletion ------------------------------------------------------------------------------------------------------------------


def test_a_deleted_server_is_routed_away_from_before_its_pods_go() -> None:
    cluster = build_cluster()
    cluster.deleting = True
    cluster.chats[0].in_flight["http://10.0.0.2:8080", cluster.adapters["tutor-r1"].served_id] = 1
    cluster.look()
    assert cluster.routed.routes == () and len(cluster.routed.backends) == 2 and not cluster.gone
    cluster.run(20)
    assert not cluster.gone and cluster.status.deletion_message
    ready = next(c for c in cluster.status.conditions if c.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "Deleting")
    cluster.chats[0].in_flight.clear()
    cluster.run(3)
    assert cluster.gone and cluster.routed == ServerRoutes()
    adapter = cluster.adapters["tutor-r1"]
    assert not adapter.held and adapter.status.server == "" and adapter.status.weight == 0


def test_a_deletion_is_not_held_up_for_ever() -> None:
    cluster = build_cluster()
    cluster.deleting = True
    cluster.chats[0].in_flight["http://10.0.0.2:8080", None] = 1
    cluster.run(130)
    assert cluster.gone and [n.reason for n in cluster.notes if n.warning] == ["DrainGivenUp"]


def test_a_server_that_was_never_routed_goes_at_once() -> None:
    cluster = Cluster(deleting=True)
    assert cluster.look().let_go


def test_a_server_whose_manifest_is_wrong_can_be_deleted() -> None:
    cluster = build_cluster()
    cluster.server, cluster.problems, cluster.deleting = None, ("broken",), True
    cluster.run(5)
    assert cluster.gone


def test_what_routes_name_of_an_adapter_that_is_gone_is_forgotten() -> None:
    cluster = Cluster(chats=[Chat("a")])
    cluster.routed = ServerRoutes(
        backends=(Backend(url="http://10.0.0.2:8080", adapters=["ghost"], pod="x"),),
        routes=(Route(model="tutor", server="team/llama", targets=[Target(adapter="ghost")]),),
    )
    cluster.look()
    assert cluster.routed == ServerRoutes()
