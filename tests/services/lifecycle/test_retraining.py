"""Further runs by themselves: times of a schedule, changed data, the least interval between two starts."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from services.lifecycle.simulation import START, Cluster, build_job

from llamero.lifecycle.retrain import find_next_time
from llamero.spec.status import WorkKind


@pytest.mark.parametrize(
    ("schedule", "zone", "after", "expected"),
    [
        ("0 3 * * *", "UTC", (2026, 1, 5, 12), (2026, 1, 6, 3)),
        ("0 3 * * 1", "UTC", (2026, 1, 5, 3), (2026, 1, 12, 3)),
        ("0 3 * * *", "Europe/Berlin", (2026, 1, 5, 12), (2026, 1, 6, 2)),
        ("0 3 * * *", "Europe/Berlin", (2026, 7, 5, 12), (2026, 7, 6, 1)),
        pytest.param(
            "0 3 * * *", "Europe/Berlin", (2026, 3, 28, 12), (2026, 3, 29, 1), id="the day that summer begins"
        ),
        pytest.param("30 2 * * *", "Europe/Berlin", (2026, 3, 28, 12), (2026, 3, 29, 1), id="a time that there is not"),
        pytest.param(
            "0 3 * * *", "Europe/Berlin", (2026, 10, 24, 12), (2026, 10, 25, 2), id="the day that summer ends"
        ),
    ],
)
def test_the_next_time_is_counted_in_the_schedules_zone(
    schedule: str, zone: str, after: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    found = find_next_time(schedule, zone, datetime(*after, tzinfo=UTC))  # type: ignore[misc, arg-type]
    assert found == datetime(*expected, tzinfo=UTC)  # type: ignore[misc, arg-type]


def test_an_hour_that_comes_twice_starts_a_daily_run_once() -> None:
    found, now = [], datetime(2026, 10, 24, 12, tzinfo=UTC)
    while now < datetime(2026, 10, 26, 0, tzinfo=UTC):
        following = find_next_time("30 2 * * *", "Europe/Berlin", now)
        assert following is not None and following > now
        found.append(now := following)
    assert found[0] in (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 30, tzinfo=UTC))
    assert len([t for t in found if t.day == 25]) == 1


@pytest.mark.parametrize(
    ("schedule", "zone"), [("no cron line", "UTC"), ("0 3 30 2 *", "UTC"), ("0 3 * * *", "Mars/Base")]
)
def test_a_schedule_without_a_time_has_none(schedule: str, zone: str) -> None:
    assert find_next_time(schedule, zone, START) is None


def scheduled(**more: Any) -> Cluster:
    cluster = Cluster(build_job(retrain={"schedule": "0 * * * *", "minIntervalSeconds": 0, **more}))
    cluster.settle(20)
    assert cluster.status.phase == "Succeeded"
    return cluster


def test_a_run_starts_at_the_schedules_time_and_not_before() -> None:
    cluster = scheduled()
    assert cluster.status.retrain is not None
    assert cluster.status.retrain.next_at == START + timedelta(hours=1)
    cluster.now = START + timedelta(minutes=59, seconds=59)
    assert cluster.reconcile().wake_after == 1
    assert cluster.status.run == 1
    cluster.wait(1)
    cluster.settle(20)
    assert (cluster.status.run, cluster.status.run_cause, cluster.status.phase) == (2, "Schedule", "Succeeded")
    assert cluster.status.retrain.next_at == START + timedelta(hours=2)


def test_missed_times_start_one_run() -> None:
    cluster = scheduled()
    cluster.now = START + timedelta(hours=9, minutes=30)
    cluster.settle(40)
    assert cluster.status.run == 2
    assert cluster.status.retrain is not None
    assert cluster.status.retrain.next_at == START + timedelta(hours=10)


def test_a_time_that_comes_while_a_run_is_at_hand_starts_one_run_after_it() -> None:
    cluster = scheduled()
    cluster.now = START + timedelta(hours=1)
    cluster.go_to(WorkKind.TRAIN)
    cluster.now = START + timedelta(hours=4, minutes=10)
    cluster.settle(40)
    assert cluster.status.run == 3
    assert cluster.status.retrain is not None
    assert cluster.status.retrain.next_at == START + timedelta(hours=5)


def test_a_due_run_waits_until_the_least_interval_has_passed() -> None:
    cluster = scheduled(minIntervalSeconds=5400)
    cluster.now = START + timedelta(hours=1)
    decision = cluster.reconcile()
    assert cluster.status.run == 1
    assert cluster.status.retrain is not None
    assert cluster.status.retrain.pending == "Schedule"
    assert decision.wake_after == 1800
    cluster.wait(1800)
    cluster.reconcile()
    assert (cluster.status.run, cluster.status.run_cause) == (2, "Schedule")


def test_an_edited_or_removed_schedule_takes_effect() -> None:
    cluster = scheduled()
    cluster.edit(retrain={"schedule": "30 * * * *", "timeZone": "Asia/Kolkata"})
    cluster.reconcile()
    assert cluster.status.retrain is not None
    assert cluster.status.retrain.next_at == START + timedelta(hours=1)
    cluster.edit(retrain={"schedule": "15 * * * *"})
    cluster.reconcile()
    assert cluster.status.retrain.next_at == START + timedelta(minutes=15)
    cluster.edit()
    cluster.reconcile()
    assert cluster.status.retrain is None
    cluster.wait(86_400)
    cluster.reconcile()
    assert cluster.status.run == 1


def test_a_failed_job_is_retrained_by_its_schedule_too() -> None:
    cluster = Cluster(build_job(retrain={"schedule": "0 * * * *", "minIntervalSeconds": 0}))
    cluster.perplexity = "9.0"
    cluster.settle(20)
    assert cluster.status.phase == "Failed"
    cluster.perplexity = "2.0"
    cluster.now = START + timedelta(hours=1)
    cluster.settle(20)
    assert (cluster.status.run, cluster.status.phase) == (2, "Succeeded")
    assert [(r.run, r.phase) for r in cluster.status.history] == [(1, "Failed"), (2, "Succeeded")]


WATCHED = {"onDataChange": True, "pollIntervalSeconds": 60, "minIntervalSeconds": 0}


def test_data_that_has_changed_starts_a_run_from_the_adapter_before() -> None:
    training = {"initFrom": "previous", "resources": {"gpus": 0}}
    cluster = Cluster(build_job(retrain=WATCHED, training=training))
    cluster.settle(8)
    assert cluster.status.phase == "Succeeded"
    cluster.data_digest = "e" * 64
    cluster.wait(60)
    cluster.go_to(WorkKind.PROBE)
    assert cluster.status.phase == "Succeeded"
    cluster.go_to(WorkKind.TRAIN)
    assert (cluster.status.run, cluster.status.run_cause) == (2, "DataChanged")
    assert [w.init_adapter for w in cluster.sent if w.kind is WorkKind.TRAIN] == [None, "/adapters/a"]
    cluster.settle(10)
    assert [(r.run, r.cause) for r in cluster.status.history] == [(1, "Created"), (2, "DataChanged")]


def test_a_first_run_from_the_previous_adapter_starts_from_the_base_and_says_so() -> None:
    cluster = Cluster(build_job(training={"initFrom": "previous", "resources": {"gpus": 0}}))
    cluster.go_to(WorkKind.TRAIN)
    assert cluster.sent[-1].init_adapter is None
    assert [n.reason for n in cluster.reported] == ["RunStarted", "NoPreviousAdapter"]


def test_data_that_has_not_changed_is_looked_at_again_and_starts_nothing() -> None:
    cluster = Cluster(build_job(retrain=WATCHED))
    cluster.settle(8)
    for number in (1, 2, 3):
        cluster.wait(60)
        probe = cluster.go_to(WorkKind.PROBE)
        assert probe.attempt == number
        cluster.finish(probe.name)
        cluster.reconcile()
    assert cluster.status.run == 1
    assert cluster.status.attempts[WorkKind.PROBE] == 3
    assert cluster.sent[-1].kind is WorkKind.EVALUATE, "a look needs no queue"


@pytest.mark.parametrize("ends", ["failed", "silent", "taken away"])
def test_a_look_that_failed_is_tried_after_the_interval_and_is_no_failure_of_the_job(ends: str) -> None:
    cluster = Cluster(build_job(retrain=WATCHED))
    cluster.settle(8)
    cluster.wait(60)
    probe = cluster.go_to(WorkKind.PROBE)
    if ends == "taken away":
        cluster.change_pod(probe.name, deleting=True)
    else:
        cluster.finish(probe.name, 14, "It can't be read.", silent=ends == "silent")
    decision = cluster.reconcile()
    cluster.reap()
    assert cluster.status.phase == "Succeeded"
    assert cluster.reported[-1].reason == "ProbeFailed"
    assert decision.wake_after == 60
    cluster.wait(60)
    cluster.reconcile()
    assert cluster.status.work is not None
    assert cluster.status.work.attempt == 2


def test_no_look_is_taken_while_a_run_is_at_hand() -> None:
    cluster = Cluster(build_job(retrain=WATCHED))
    cluster.go_to(WorkKind.TRAIN)
    cluster.wait(600)
    cluster.reconcile()
    assert not [c for c in cluster.children.values() if c.kind is WorkKind.PROBE]


def test_a_look_is_ended_when_nobody_wants_it_any_more() -> None:
    cluster = Cluster(build_job(retrain=WATCHED))
    cluster.settle(8)
    cluster.wait(60)
    cluster.go_to(WorkKind.PROBE)
    cluster.edit()
    cluster.reconcile()
    cluster.reap()
    assert not cluster.live()
    assert cluster.status.work is None
