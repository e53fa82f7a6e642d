"""The operator as a process against the real control plane, with played pods: what it must survive, and what it tells."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cluster.api import path_of
from cluster.control_plane import ControlPlane
from cluster.faults import FaultProxy, TcpProxy
from cluster.waiting import until
from stack.protocol_worker import Script
from stack.stack import Stack, played_job


def lease(stack: Stack, **changes: float) -> dict[str, Any]:
    """Settings with a Lease of the test's own."""
    times = {"durationSeconds": 6, "renewSeconds": 4, "retrySeconds": 1}
    return {"lease": {"enabled": True, "namespace": stack.namespace, **times, **changes}}


@pytest.fixture
def stack(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Stack]:
    """Everything, with the operator not started yet."""
    with Stack(control_plane, tmp_path, script=Script(), start_operator=False) as running:
        yield running


def attempts_of(stack: Stack, uid: str) -> list[tuple[str, int, int]]:
    """(kind, run, attempt) of every pod that worked for the job."""
    assert stack.worker is not None
    return [(e.id.kind.value, e.id.run, e.id.attempt) for e in stack.worker.ledger if e.id.uid == uid]


def health(stack: Stack) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(stack.operator.read("/healthz", stack.operator.health_port))
    return told


def test_a_job_goes_to_succeeded_and_each_phase_runs_once(stack: Stack) -> None:
    stack.operator.start()
    uid = stack.submit(played_job("tutor"))
    stack.wait_phase("tutor", "Succeeded", "Failed")
    assert stack.status("tutor").phase == "Succeeded"
    assert attempts_of(stack, uid) == [("prepare", 1, 1), ("train", 1, 1), ("evaluate", 1, 1)]
    adapter = stack.adapters()["tutor-r1"]
    status = stack.status("tutor")
    assert status.adapter is not None and adapter["spec"]["sha256"] == status.adapter.sha256
    until(lambda: not stack.children(uid), "the child Jobs to be deleted")
    assert stack.redis_keys(uid) == []
    assert stack.operator.stop() == 0


def test_a_quiet_job_costs_no_writes(stack: Stack) -> None:
    stack.operator.start()
    stack.submit(played_job("tutor"))
    stack.wait_phase("tutor", "Succeeded")
    version = until_steady(stack, "tutor")
    writes = stack.operator.metric("llamero_api_writes_total")
    passes = stack.operator.metric("llamero_reconcile_seconds_count")
    time.sleep(3)  # longer than any interval of the settings: what is to be seen is that nothing happens
    assert stack.get("tutor")["metadata"]["resourceVersion"] == version
    assert stack.operator.metric("llamero_api_writes_total") == writes
    assert stack.operator.metric("llamero_reconcile_seconds_count") <= passes + 3


def until_steady(stack: Stack, name: str) -> str:
    """The job's resourceVersion once it has not changed for a second."""
    seen = ("", 0.0)

    def steady() -> str | None:
        nonlocal seen
        version = stack.get(name)["metadata"]["resourceVersion"]
        if version != seen[0]:
            seen = (version, time.monotonic())
        return version if time.monotonic() - seen[1] > 1 else None

    found = until(steady, f"job {name} to be quiet")
    assert found is not None
    return found


def test_a_killed_operator_is_taken_up_where_it_stood_and_pods_do_not_notice(stack: Stack) -> None:
    assert stack.worker is not None
    stack.worker.script.step_seconds = 0.5
    stack.operator.start()
    uid = stack.submit(played_job("tutor"))
    stack.wait_phase("tutor", "Training")
    until(lambda: any(e.steps for e in stack.worker.ledger), "training to be under way")  # type: ignore[union-attr]
    stack.operator.kill()
    stack.operator.start()
    stack.wait_phase("tutor", "Succeeded", "Failed")
    assert stack.status("tutor").phase == "Succeeded"
    assert attempts_of(stack, uid) == [("prepare", 1, 1), ("train", 1, 1), ("evaluate", 1, 1)]


def test_what_happened_while_no_operator_ran_is_seen_at_its_start(stack: Stack) -> None:
    stack.operator.start()
    uid = stack.submit(played_job("tutor"))
    stack.wait_phase("tutor", "Training")
    stack.operator.kill()
    until(lambda: any(c["status"].get("succeeded") for c in stack.children(uid)), "the training's Job to complete")
    stack.submit(played_job("second"))
    stack.operator.start()
    stack.wait_phase("tutor", "Succeeded")
    stack.wait_phase("second", "Succeeded")
    assert attempts_of(stack, uid).count(("train", 1, 1)) == 1


def test_a_deleted_job_leaves_nothing_behind_but_its_adapter(stack: Stack) -> None:
    stack.operator.start()
    uid = stack.submit(played_job("tutor"))
    stack.wait_phase("tutor", "Succeeded")
    stack.delete("tutor")
    stack.wait_gone("tutor")
    until(lambda: not stack.remains("tutor", uid), "nothing to be left")
    assert list(stack.adapters()) == ["tutor-r1"]


def test_writes_that_conflict_every_second_time_come_to_the_same_end(
    stack: Stack, control_plane: ControlPlane, tmp_path: Path
) -> None:
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        proxy.conflicts.every(2)
        proxy.only = lambda method, resource: resource.startswith("finetunejobs")
        operator = stack.operator = stack.build_operator(
            "conflicted", kubeconfig=proxy.write_kubeconfig(tmp_path / "proxy.kubeconfig")
        )
        operator.start()
        uid = stack.submit(played_job("tutor"))
        stack.wait_phase("tutor", "Succeeded", "Failed")
        assert stack.status("tutor").phase == "Succeeded"
        assert attempts_of(stack, uid) == [("prepare", 1, 1), ("train", 1, 1), ("evaluate", 1, 1)]
        assert proxy.conflicts.times >= 3
        operator.kill()


def test_a_server_that_asks_for_patience_gets_it(stack: Stack, control_plane: ControlPlane, tmp_path: Path) -> None:
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        operator = stack.operator = stack.build_operator(
            "throttled", kubeconfig=proxy.write_kubeconfig(tmp_path / "proxy.kubeconfig")
        )
        operator.start()
        proxy.throttles.every(3)
        stack.submit(played_job("tutor"))
        stack.wait_phase("tutor", "Succeeded")
        assert proxy.throttles.times > 0
        assert operator.metric("llamero_api_retries_total") > 0
        operator.kill()


def test_redis_being_away_stops_nothing_that_runs_and_everything_goes_on_when_it_is_back(stack: Stack) -> None:
    assert stack.worker is not None
    stack.worker.script.step_seconds = 0.5
    stack.operator.start()
    uid = stack.submit(played_job("tutor"))
    stack.wait_phase("tutor", "Training")
    until(lambda: any(e.steps for e in stack.worker.ledger), "training to be under way")  # type: ignore[union-attr]
    stack.redis.kill()
    until(lambda: stack.operator.metric("llamero_redis_up") == 0, "the operator to see that Redis is away")
    stack.wait(
        "tutor", lambda s: any("Redis" in c.message for c in s.conditions), "a condition that says that Redis is away"
    )
    assert health(stack)["problems"] == []
    stack.redis.start()
    stack.wait_phase("tutor", "Succeeded", "Failed")
    assert stack.status("tutor").phase == "Succeeded"
    assert attempts_of(stack, uid).count(("train", 1, 1)) == 1
    until(lambda: stack.operator.metric("llamero_redis_up") == 1, "the operator to see that Redis is back")


def test_a_redis_that_hangs_does_not_hold_up_passes(stack: Stack) -> None:
    with TcpProxy(stack.redis.host, stack.redis.port) as proxy:
        url = stack.redis.url.replace(str(stack.redis.port), str(proxy.port))
        stack.operator = stack.build_operator("hung", environment={"LLAMERO_REDIS_URL": url})
        stack.operator.start()
        stack.submit(played_job("tutor"))
        stack.wait_phase("tutor", "Training", "Evaluating", "Succeeded")
        proxy.silence()
        wrong = played_job("wrong")
        wrong["spec"]["training"] = {"resources": {"gpus": 0, "gpuClass": ["no-such-class"]}}
        stack.submit(wrong)
        stack.wait("wrong", lambda s: s.conditions, "its conditions", seconds=20)
        assert health(stack)["problems"] == []
        stack.operator.kill()


def test_metrics_and_health_are_there_over_http(stack: Stack) -> None:
    stack.operator.start()
    stack.submit(played_job("tutor"))
    stack.wait_phase("tutor", "Succeeded")
    operator = stack.operator
    until(lambda: operator.metric("llamero_jobs", phase="Succeeded") == 1, "the gauge of succeeded jobs")
    assert operator.metric("llamero_leader") == 1
    assert operator.metric("llamero_api_writes_total", verb="create", kind="Job") == 3
    assert operator.metric("llamero_api_writes_total", verb="update-status", code="200") >= 4
    assert operator.metric("llamero_tasks_sent_total", kind="train", outcome="sent") == 1
    assert operator.metric("llamero_reconcile_seconds_count", outcome="done") > 0
    assert operator.metric("llamero_workqueue_length") == 0
    text = operator.read("/metrics", operator.metrics_port)
    for kind in ("finetunejobs", "jobs", "pods", "adapters"):
        assert f'llamero_last_event_age_seconds{{kind="{kind}"}}' in text
    told = health(stack)
    assert told["stage"] == "working" and set(told["lastEventAgeSeconds"]) == {
        "adapters",
        "finetunejobs",
        "jobs",
        "pods",
    }
    assert "the-password" not in operator.log.read_text() + text


def test_the_log_is_json_and_names_the_job(stack: Stack) -> None:
    stack.operator.start()
    stack.submit(played_job("tutor"))
    stack.wait_phase("tutor", "Succeeded")
    lines = [json.loads(line) for line in stack.operator.log.read_text().splitlines()]
    created = next(line for line in lines if line["message"].startswith("created Job tutor-r1-train"))
    assert (created["namespace"], created["job"], created["run"]) == (stack.namespace, "tutor", 1)


def test_two_operators_with_a_lease_have_one_writer_and_the_second_takes_over_within_30_s(stack: Stack) -> None:
    first = stack.operator = stack.build_operator("first", lease(stack))
    second = stack.build_operator("second", lease(stack))
    try:
        first.start()
        until(lambda: first.metric("llamero_leader") == 1, "the first to lead")
        second.start()
        assert second.metric("llamero_leader") == 0
        uid = stack.submit(played_job("tutor"))
        stack.wait_phase("tutor", "Training")
        first.kill()
        began = time.monotonic()
        until(lambda: second.metric("llamero_leader") == 1, "the second to take over", 30)
        assert time.monotonic() - began < 30
        stack.wait_phase("tutor", "Succeeded")
        assert attempts_of(stack, uid) == [("prepare", 1, 1), ("train", 1, 1), ("evaluate", 1, 1)]
    finally:
        second.kill()


def test_a_leader_that_is_told_to_stop_gives_its_lease_back_at_once(stack: Stack) -> None:
    slow = lease(stack, durationSeconds=60, renewSeconds=40)
    first = stack.operator = stack.build_operator("first", slow)
    second = stack.build_operator("second", slow)
    try:
        first.start()
        until(lambda: first.metric("llamero_leader") == 1, "the first to lead")
        second.start()
        assert first.stop() == 0
        until(
            lambda: second.metric("llamero_leader") == 1, "the second to take over long before the lease runs out", 20
        )
        code = second.stop()
        assert code == 0, second.log.read_text()[-4000:]
    finally:
        second.kill()


def test_a_leader_that_can_not_renew_ends_its_process(
    stack: Stack, control_plane: ControlPlane, tmp_path: Path
) -> None:
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        operator = stack.operator = stack.build_operator(
            "cut-off", lease(stack), kubeconfig=proxy.write_kubeconfig(tmp_path / "proxy.kubeconfig")
        )
        operator.start()
        until(lambda: operator.metric("llamero_leader") == 1, "it to lead")
        proxy.block()
        assert operator.wait_ended(20) == 21
        assert "there is one writer" in operator.log.read_text()


def test_a_leader_that_stood_still_past_its_lease_writes_nothing_any_more(stack: Stack) -> None:
    first = stack.operator = stack.build_operator("first", lease(stack))
    second = stack.build_operator("second", lease(stack))
    try:
        first.start()
        until(lambda: first.metric("llamero_leader") == 1, "the first to lead")
        first.signal(signal.SIGSTOP)
        second.start()
        until(lambda: second.metric("llamero_leader") == 1, "the second to take over", 30)
        first.signal(signal.SIGCONT)
        assert first.wait_ended(20) == 21
    finally:
        second.kill()


class MutedProxy(FaultProxy):
    """A proxy whose watches can be muted: they stay open, are answered, and show nothing."""

    muted = False

    async def _relay(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        if "watch" not in request.query:
            return await super()._relay(request, body)
        async with self._ask(request, body) as upstream:
            response = web.StreamResponse(status=upstream.status)
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                if not self.muted:
                    await response.write(chunk)
            await response.write_eof()
            return response


def test_a_watch_that_is_answered_but_shows_nothing_ends_the_process(
    stack: Stack, control_plane: ControlPlane, tmp_path: Path
) -> None:
    settings = {"intervals": {"watchdogSeconds": 12}}
    with MutedProxy(control_plane.access, control_plane.server_pair) as proxy:
        operator = stack.operator = stack.build_operator(
            "muted", settings, kubeconfig=proxy.write_kubeconfig(tmp_path / "proxy.kubeconfig")
        )
        operator.start()
        stack.submit(played_job("tutor"))
        stack.wait_phase("tutor", "Succeeded")
        time.sleep(14)  # a quiet cluster for longer than the watchdog's time: that alone must not end it
        assert operator.is_running
        proxy.muted = True
        stack.submit(played_job("unseen"))
        assert operator.wait_ended(60) == 20
        assert "did not show" in operator.log.read_text()
    stack.operator = stack.build_operator("again").start()
    stack.wait_phase("unseen", "Succeeded")


def test_an_api_server_that_is_away_ends_nothing(stack: Stack, control_plane: ControlPlane, tmp_path: Path) -> None:
    assert stack.worker is not None
    stack.worker.script.step_seconds = 0.3
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        operator = stack.operator = stack.build_operator(
            "away",
            {"intervals": {"watchdogSeconds": 12}},
            kubeconfig=proxy.write_kubeconfig(tmp_path / "proxy.kubeconfig"),
        )
        operator.start()
        uid = stack.submit(played_job("tutor"))
        stack.wait_phase("tutor", "Training")
        proxy.block()
        time.sleep(20)  # longer than the watchdog's time
        assert operator.is_running
        proxy.unblock()
        stack.wait_phase("tutor", "Succeeded")
        assert attempts_of(stack, uid).count(("train", 1, 1)) == 1
        operator.kill()


def test_watches_that_expired_are_listed_anew_and_miss_nothing(
    stack: Stack, control_plane: ControlPlane, tmp_path: Path
) -> None:
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        operator = stack.operator = stack.build_operator(
            "expired", kubeconfig=proxy.write_kubeconfig(tmp_path / "proxy.kubeconfig")
        )
        operator.start()
        proxy.gone.every(2)
        proxy.cut_connections()
        stack.submit(played_job("tutor"))
        stack.wait_phase("tutor", "Succeeded")
        assert proxy.gone.times > 0
        operator.kill()


def test_an_adapter_of_the_same_name_with_other_files_is_never_overwritten_and_the_job_says_so(stack: Stack) -> None:
    spec = {"uri": "s3://a", "sha256": "f" * 64, "base": "b", "baseSha256": "c", "model": "tutor"}
    manifest = {"apiVersion": "llamero.dev/v1alpha1", "kind": "Adapter", "metadata": {"name": "tutor-r1"}, "spec": spec}
    stack.plane.api.create(manifest, stack.namespace)
    stack.operator.start()
    stack.submit(played_job("tutor"))
    stack.wait(
        "tutor", lambda s: any("other files" in c.message for c in s.conditions), "a condition that names the Adapter"
    )
    assert stack.adapters()["tutor-r1"]["spec"]["sha256"] == "f" * 64


def test_a_quota_that_refuses_pods_jobs_is_told_and_waited_for(stack: Stack) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    path = path_of("v1", "ResourceQuota", stack.namespace, "none")
    stack.plane.api.create(quota, stack.namespace)
    until(lambda: "hard" in stack.plane.api.get(path).get("status", {}), "the quota to be in force")
    stack.operator.start()
    stack.submit(played_job("tutor"))
    stack.wait("tutor", lambda s: any("quota" in c.message for c in s.conditions), "a condition that names the quota")
    stack.plane.api.delete(path)
    stack.wait_phase("tutor", "Succeeded")


def test_wrong_settings_end_the_process_with_a_sentence_for_each(stack: Stack) -> None:
    operator = stack.operator = stack.build_operator("wrong", {"concurrency": 0, "colour": "red"})
    operator.start(wait=False)
    assert operator.wait_ended(30) == 2
    log = operator.log.read_text()
    assert "concurrency" in log and "colour" in log
