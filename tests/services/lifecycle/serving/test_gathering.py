"""An engine that reads its adapters at start: several in one restart, and whoever breaks a start is found."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from services.lifecycle.serving.simulation import Chat, Cluster, build_server

from llamero.lifecycle.serving.gathering import find_opening
from llamero.spec.server import WindowSpec
from llamero.spec.status import ConditionType


def build_cluster(**spec: Any) -> Cluster:
    """TGI with two pods that serve tutor-r1."""
    cluster = Cluster(
        server=build_server(**{"engine": {"type": "tgi"}, "replicas": 2, **spec}), chats=[Chat("a")], traffic=20
    )
    cluster.publish("tutor-r1")
    cluster.run_until(lambda: cluster.status.phase == "Ready")
    return cluster


def restarts(cluster: Cluster) -> int:
    return sum(n.reason == "Restarting" for n in cluster.notes)


def verified(cluster: Cluster, name: str) -> tuple[str, str]:
    found = cluster.adapters[name].status.condition(ConditionType.VERIFIED)
    assert found is not None
    return found.status, found.reason


def test_the_first_start_waits_for_nobody() -> None:
    cluster = Cluster(server=build_server(engine={"type": "tgi"}))
    cluster.publish("tutor-r1")
    decision = cluster.look()
    assert decision.status.gathered == ["tutor-r1"]
    assert decision.wanted is not None and [a.name for a in decision.wanted.adapters] == ["tutor-r1"]


def test_jobs_that_finish_within_a_minute_share_a_restart() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run(30)
    cluster.publish("other-r1", model="other")
    cluster.run(20)
    cluster.publish("third-r1", model="third")
    cluster.run(9)
    assert restarts(cluster) == 0 and cluster.status.gathered == ["tutor-r1"]
    cluster.run_until(lambda: cluster.shares("third") == {"third-r1": 100} and "tutor-r2" in cluster.shares(), 60)
    assert restarts(cluster) == 1
    assert cluster.status.gathered == ["other-r1", "third-r1", "tutor-r1", "tutor-r2"]


def test_an_adapter_without_room_waits_and_says_so_and_the_one_before_gives_way() -> None:
    cluster = build_cluster(engine={"type": "tgi", "maxAdapters": 1})
    cluster.publish("tutor-r2")
    cluster.run(100)
    assert cluster.status.gathered == ["tutor-r1"] and "engine.maxAdapters" in cluster.name().message
    cluster.edit(engine={"type": "tgi", "maxAdapters": 2})
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    cluster.publish("tutor-r3")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r3")
    assert cluster.status.gathered == ["tutor-r2", "tutor-r3"]


def test_no_pod_is_started_anew_before_the_last_ones_have_started() -> None:
    cluster = build_cluster()
    cluster.slow = 100
    cluster.publish("tutor-r2")
    cluster.run(70)
    cluster.publish("other-r1", model="other")
    cluster.run(80)
    assert restarts(cluster) == 1
    cluster.run_until(lambda: cluster.shares("other") == {"other-r1": 100}, 900)
    assert restarts(cluster) == 2


def test_a_start_that_finds_no_place_does_not_hold_up_others_for_ever() -> None:
    cluster = build_cluster()
    cluster.limits = replace(cluster.limits, start_seconds=300)
    cluster.slow = 100_000
    cluster.publish("tutor-r2")
    cluster.run(70)
    cluster.publish("other-r1", model="other")
    for _ in range(400):
        for pod in cluster.pods:
            pod.restarts = 0
            if len(pod.gathered) > 1:
                pod.starts_in = 10  # no GPU is free for it
        cluster.look()
        cluster.tick()
    assert restarts(cluster) == 2 and verified(cluster, "tutor-r2")[0] == "Unknown"


def test_callers_are_answered_all_through_a_restart() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    for _ in range(400):
        cluster.look()
        cluster.tick()
        assert sum(cluster.shares().values()) == 100
        assert all(
            any(t.adapter in b.adapters for b in cluster.routed.backends) for t in cluster.routed.routes[0].targets
        )
    assert cluster.name().adapter == "tutor-r2"


def test_an_adapter_that_the_fetch_refuses_is_left_out_and_named() -> None:
    cluster = build_cluster()
    cluster.bad_files[cluster.publish("tutor-r2").served_id] = "A file is corrupt."
    cluster.publish("other-r1", model="other")
    for _ in range(300):
        cluster.look()
        cluster.tick()
        assert cluster.shares() == {"tutor-r1": 100}
    assert verified(cluster, "tutor-r2") == ("False", "Refused") and cluster.shares("other") == {"other-r1": 100}
    assert cluster.status.gathered == ["other-r1", "tutor-r1"] and cluster.status.phase == "Ready"


def test_the_one_new_adapter_that_an_engine_does_not_start_with_is_to_blame() -> None:
    cluster = build_cluster()
    cluster.breaks.add(cluster.publish("tutor-r2").served_id)
    cluster.run(300)
    assert verified(cluster, "tutor-r2") == ("False", "EngineFailed")
    assert cluster.shares() == {"tutor-r1": 100} and cluster.status.gathered == ["tutor-r1"]
    assert cluster.name().state == "RolledBack" and "does not start with it" in cluster.name().message


def test_of_several_new_adapters_the_one_to_blame_is_found_by_trying_each_alone() -> None:
    cluster = build_cluster()
    cluster.publish("a-r1", model="a")
    cluster.breaks.add(cluster.publish("b-r1", model="b").served_id)
    cluster.publish("c-r1", model="c")
    suspected: list[str] = []
    for _ in range(900):
        cluster.look()
        cluster.tick()
        suspected = cluster.status.suspects or suspected
        new = set(cluster.status.gathered) - {"tutor-r1"}
        if cluster.status.suspects:
            assert len(new & set(cluster.status.suspects)) <= 1
        assert cluster.shares() == {"tutor-r1": 100}
    assert verified(cluster, "b-r1") == ("False", "EngineFailed")
    assert cluster.shares("a") == {"a-r1": 100} and cluster.shares("c") == {"c-r1": 100}
    assert cluster.status.suspects == [] and cluster.status.gathered == ["a-r1", "c-r1", "tutor-r1"]


def test_at_the_first_start_too_the_one_to_blame_is_found() -> None:
    cluster = Cluster(server=build_server(engine={"type": "tgi"}), chats=[Chat("a")])
    cluster.publish("a-r1", model="a")
    cluster.breaks.add(cluster.publish("b-r1", model="b").served_id)
    cluster.run_until(lambda: cluster.shares("a") == {"a-r1": 100} and cluster.status.phase == "Ready", 200)
    assert verified(cluster, "b-r1") == ("False", "EngineFailed") and cluster.name("b").state == "Waiting"


def test_an_adapter_that_broke_the_start_is_tried_again_when_retry_is_raised() -> None:
    cluster = build_cluster()
    cluster.breaks.add(cluster.publish("tutor-r2").served_id)
    cluster.run_until(lambda: cluster.name().state == "RolledBack")
    cluster.breaks.clear()
    cluster.edit_name(retry=1)
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_a_start_that_fails_for_another_reason_condemns_no_adapter() -> None:
    cluster = build_cluster()
    cluster.breaks.add(cluster.adapters["tutor-r1"].served_id)
    cluster.run(100)
    assert verified(cluster, "tutor-r1") == ("True", "Proven") and cluster.status.gathered == ["tutor-r1"]
    assert cluster.status.phase == "Degraded"
    ready = next(c for c in cluster.status.conditions if c.type == "Ready")
    assert ready.reason == "PodsFail" and "again and again" in ready.message


def test_a_pod_that_is_late_has_failed_but_one_without_a_place_has_not() -> None:
    for phase, outcome in (("Running", "False"), ("Pending", "Unknown")):
        cluster = build_cluster()
        cluster.limits = replace(cluster.limits, start_seconds=200)
        cluster.slow = 100_000
        cluster.publish("tutor-r2")
        for _ in range(320):
            world = cluster.world()
            pods = tuple(replace(p, phase=phase) if len(p.gathered) > 1 else p for p in world.pods)
            from llamero.lifecycle.serving.servers import decide

            cluster.carry_out(decide(replace(world, pods=pods), cluster.limits, cluster.now))
            cluster.tick()
        assert verified(cluster, "tutor-r2")[0] == outcome


def test_what_is_not_needed_stays_until_there_is_another_reason_to_restart() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    cluster.publish("tutor-r3")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r3")
    cluster.run(200)
    assert cluster.status.gathered == ["tutor-r1", "tutor-r2", "tutor-r3"] and restarts(cluster) == 2
    quiet = cluster.status
    cluster.run(300)
    assert cluster.status == quiet, "nothing changes meanwhile"
    cluster.publish("tutor-r4")
    cluster.run(100)
    assert cluster.status.gathered == ["tutor-r2", "tutor-r3", "tutor-r4"]


def test_a_deleted_adapter_is_taken_out_of_the_pods_before_it_goes() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    cluster.run(5)
    cluster.delete_adapter("tutor-r1")
    cluster.run_until(lambda: "tutor-r1" not in cluster.adapters, 60)
    assert cluster.status.gathered == ["tutor-r2"] and cluster.shares() == {"tutor-r2": 100}


def test_a_lost_status_is_found_again_in_the_pods() -> None:
    cluster = build_cluster()
    pods, told = [p.name for p in cluster.pods], cluster.wanted
    cluster.status = type(cluster.status)()
    cluster.run(60)
    assert cluster.status.gathered == ["tutor-r1"] and cluster.shares() == {"tutor-r1": 100}
    assert [p.name for p in cluster.pods] == pods and cluster.wanted == told, "nothing was started anew"


def test_recreate_waits_for_its_window() -> None:
    window = {"schedule": "0 3 * * *", "durationSeconds": 3600, "timeZone": "UTC"}
    cluster = build_cluster(replicas=1, updateStrategy="Recreate", window=window)
    cluster.publish("tutor-r2")
    cluster.run(100)
    assert cluster.status.gathered == ["tutor-r1"] and "2026-01-06 03:00 UTC" in cluster.name().message
    cluster.now = datetime(2026, 1, 6, 3, 20, tzinfo=UTC)
    cluster.run(10)
    assert cluster.status.gathered == ["tutor-r1", "tutor-r2"]
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_recreate_without_a_window_does_it_at_once_and_callers_are_told_to_come_again() -> None:
    cluster = build_cluster(replicas=1, updateStrategy="Recreate")
    cluster.publish("tutor-r2")
    seen = []
    for _ in range(100):
        cluster.look()
        cluster.tick()
        assert [r.model for r in cluster.routed.routes] == ["tutor"]
        seen.append(cluster.shares())
    assert {} in seen and {"tutor-r1": 95, "tutor-r2": 5} in seen


def test_recreate_with_an_adapter_that_breaks_the_start_goes_back_whatever_the_window_says() -> None:
    window = {"schedule": "0 12 * * *", "durationSeconds": 300, "timeZone": "UTC"}
    cluster = build_cluster(replicas=1, updateStrategy="Recreate", window=window)
    cluster.breaks.add(cluster.publish("tutor-r2").served_id)
    cluster.run_until(lambda: "tutor-r2" in cluster.status.gathered)
    cluster.now += timedelta(hours=1)
    cluster.run_until(lambda: cluster.shares() == {"tutor-r1": 100} and cluster.status.phase == "Ready", 60)
    assert verified(cluster, "tutor-r2") == ("False", "EngineFailed")


@pytest.mark.parametrize(
    ("now", "opens"),
    [
        pytest.param("2026-01-05T02:00:00", "2026-01-05T03:00:00", id="before"),
        pytest.param("2026-01-05T03:00:01", "2026-01-05T03:00:00", id="just opened"),
        pytest.param("2026-01-05T03:59:00", "2026-01-05T03:00:00", id="still open"),
        pytest.param("2026-01-05T04:00:00", "2026-01-06T03:00:00", id="closed"),
    ],
)
def test_a_window_opens_by_its_schedule(now: str, opens: str) -> None:
    window = WindowSpec(schedule="0 3 * * *", duration_seconds=3600)
    assert find_opening(window, datetime.fromisoformat(f"{now}+00:00")) == datetime.fromisoformat(f"{opens}+00:00")


def test_a_window_that_never_opens_says_so() -> None:
    cluster = build_cluster(replicas=1, updateStrategy="Recreate", window={"schedule": "0 0 30 2 *"})
    cluster.publish("tutor-r2")
    cluster.run(70)
    assert "never opens" in cluster.name().message
