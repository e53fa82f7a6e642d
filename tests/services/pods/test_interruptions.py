"""Pods that are told to stop, killed, hang, or lose their Redis: what is kept, how they answer, and that the next attempt goes on."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from cluster.redis_server import RedisServer
from cluster.waiting import until

from llamero.lifecycle.failures import PhaseExit
from llamero.spec.results import TrainingResult
from llamero.spec.status import TrainingStatus, WorkKind

MakeJob = Callable[..., Any]
LONG = {"training__maxSteps": 40, "training__epochs": 1000, "training__saveIntervalSeconds": 1}


def read_losses(training: TrainingStatus) -> list[float]:
    result = TrainingResult.model_validate_json(Path(training.uri, "checkpoints", "result.json").read_bytes())
    assert [p.step for p in result.curve] == list(range(1, training.steps + 1))
    return [p.loss for p in result.curve]


def list_kept(pod: Any) -> list[str]:
    return sorted(p.parent.name for p in Path(pod.own.checkpoints).glob("step-*/manifest.json"))


def test_a_stopped_training_keeps_a_checkpoint_and_the_next_attempt_goes_on_as_if_nothing_had_been(
    prepared_job: MakeJob,
) -> None:
    job, fields = prepared_job(**LONG)
    first = job.run(WorkKind.TRAIN, **fields)
    job.wait_for_step(first.id, 6)
    first.terminate()
    outcome = first.outcome(PhaseExit.INTERRUPTED)
    kept = list_kept(first)
    assert kept and "step" in outcome.message and int(kept[-1][5:]) >= 6
    assert not any(p.name.startswith(".") for p in Path(first.own.checkpoints).iterdir())

    second = job.run(WorkKind.TRAIN, attempt=2, **fields).outcome()
    assert second.resumed_from == int(kept[-1][5:])
    unbroken, fields = prepared_job(**LONG)
    third = unbroken.run(WorkKind.TRAIN, **fields).outcome()
    assert third.resumed_from is None
    assert read_losses(second.training) == read_losses(third.training)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(prepared_job: MakeJob) -> None:
    job, fields = prepared_job(**LONG)
    first = job.run(WorkKind.TRAIN, **fields)
    until(lambda: len(list_kept(first)) >= 2, "two kept checkpoints", 90)
    first.terminate()
    first.outcome(PhaseExit.INTERRUPTED)
    *_, before, newest = list_kept(first)
    weights = Path(first.own.checkpoints, newest, "adapter.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF
    weights.write_bytes(content)
    second = job.run(WorkKind.TRAIN, attempt=2, **fields)
    assert second.outcome().resumed_from == int(before[5:])
    assert "passed over" in second.log and newest in second.log


def test_a_worker_that_is_killed_takes_its_training_with_it_and_the_next_goes_on(prepared_job: MakeJob) -> None:
    job, fields = prepared_job(**LONG)
    first = job.run(WorkKind.TRAIN, **fields)
    until(lambda: list_kept(first), "a kept checkpoint", 90)
    child = first.find_child("llamero.training")
    first.process.kill()
    assert first.wait() == -signal.SIGKILL
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()
    second = job.run(WorkKind.TRAIN, attempt=2, **fields).outcome()
    assert second.resumed_from is not None and second.training.steps == 40


def test_a_training_that_is_killed_is_told_as_out_of_memory_and_its_checkpoint_is_kept(prepared_job: MakeJob) -> None:
    job, fields = prepared_job(**LONG)
    pod = job.run(WorkKind.TRAIN, **fields)
    until(lambda: list_kept(pod), "a kept checkpoint", 90)
    pod.find_child("llamero.training").kill()
    assert "signal 9" in pod.outcome(PhaseExit.OUT_OF_MEMORY).message
    assert list_kept(pod)


def test_a_training_that_hangs_is_ended_with_its_stacks_in_the_log(prepared_job: MakeJob) -> None:
    job, fields = prepared_job(**LONG)
    pod = job.run(
        WorkKind.TRAIN,
        environment={"LLAMERO_PROGRESS_DEADLINE_SECONDS": "20", "LLAMERO_GRACE_SECONDS": "4"},
        **fields,
    )
    job.wait_for_step(pod.id, 2)
    os.kill(pod.find_child("llamero.training").pid, signal.SIGSTOP)
    outcome = pod.outcome(PhaseExit.HUNG)
    assert "No progress for 20 s" in outcome.message


def test_a_training_goes_on_undisturbed_while_redis_is_dead(prepared_job: MakeJob) -> None:
    with RedisServer() as redis:
        job, fields = prepared_job(redis, **LONG)
        pod = job.run(WorkKind.TRAIN, **fields)
        job.wait_for_step(pod.id, 3)
        redis.kill()
        outcome = pod.outcome()
    assert outcome.training.steps == 40
    assert "progress can't be told" in pod.log


def test_progress_is_told_again_to_a_redis_that_lost_everything(prepared_job: MakeJob) -> None:
    with RedisServer() as redis:
        job, fields = prepared_job(redis, **LONG | {"training__maxSteps": 4000})
        pod = job.run(WorkKind.TRAIN, **fields)
        job.wait_for_step(pod.id, 2)
        redis.kill()
        redis.start()
        job.wait_for_step(pod.id, 4)
        report = job.progress(pod.id)
        assert report.pod == pod.uid and report.phase == "Training" and report.total == 4000
        assert report.loss is not None
        pod.terminate()
        pod.outcome(PhaseExit.INTERRUPTED)


def test_an_idle_worker_that_is_told_to_stop_ends_at_once_with_its_code(make_job: MakeJob) -> None:
    job = make_job()
    pod = job.start(job.identify(WorkKind.TRAIN))
    pod.wait_for_log("ready.")
    pod.terminate()
    assert "told to stop" in pod.outcome(PhaseExit.INTERRUPTED).message


def test_a_worker_that_waits_for_redis_can_be_told_to_stop(make_job: MakeJob) -> None:
    with RedisServer() as redis:
        job = make_job(redis)
        redis.kill()
        pod = job.start(job.identify(WorkKind.TRAIN), LLAMERO_IDLE_SECONDS="2")
        pod.wait_for_log("Cannot connect")
        pod.terminate()
        pod.outcome(PhaseExit.INTERRUPTED)


def test_a_worker_is_not_idle_while_redis_is_away_and_takes_its_task_when_it_is_back(prepared_job: MakeJob) -> None:
    with RedisServer() as redis:
        job, fields = prepared_job(redis)
        redis.kill()
        id = job.identify(WorkKind.TRAIN)
        # Longer than Celery waits between two tries to connect.
        pod = job.start(id, LLAMERO_IDLE_SECONDS="8")
        pod.wait_for_log("Trying again in 6")
        assert pod.process.poll() is None
        redis.start()
        job.send(id, job.message(id, **fields))
        assert pod.outcome().training.steps == 3


def test_a_preparation_that_is_stopped_is_taken_up_again_from_its_shards(make_job: MakeJob) -> None:
    job = make_job(rows=3000, data__shardRecords=20, data__workers=1)
    first = job.run(WorkKind.PREPARE)
    shards = Path(job.places.shards)
    until(lambda: len(list(shards.glob("clean-*/manifest.json"))) >= 3, "some shards", 60)
    first.terminate()
    first.outcome(PhaseExit.INTERRUPTED)
    second = job.run(WorkKind.PREPARE, attempt=2)
    outcome = second.outcome()
    result = json.loads(Path(second.own.data, "manifest.json").read_text())
    assert outcome.data.read == 3000 and result["reusedShards"] >= 3


def test_a_stopped_pod_ends_within_its_grace_even_where_its_training_does_not_listen(prepared_job: MakeJob) -> None:
    job, fields = prepared_job(**LONG)
    pod = job.run(WorkKind.TRAIN, environment={"LLAMERO_GRACE_SECONDS": "8"}, **fields)
    until(lambda: list_kept(pod), "a kept checkpoint", 90)
    os.kill(pod.find_child("llamero.training").pid, signal.SIGSTOP)
    pod.terminate()
    assert pod.wait(8) == PhaseExit.INTERRUPTED
    assert "is kept" in pod.outcome(PhaseExit.INTERRUPTED).message


def test_a_preparation_goes_on_alone_while_redis_is_dead(make_job: MakeJob) -> None:
    with RedisServer() as redis:
        job = make_job(redis, rows=400, data__shardRecords=20, data__workers=2)
        pod = job.run(WorkKind.PREPARE)
        pod.wait_for_log("looking at the sources")
        redis.kill()
        assert pod.outcome().data.read == 400


def test_an_evaluation_that_is_stopped_ends_at_once_and_is_done_anew(prepared_job: MakeJob) -> None:
    job, fields = prepared_job()
    fields["training"] = job.run(WorkKind.TRAIN, **fields).outcome().training
    first = job.run(WorkKind.EVALUATE, **fields)
    child = first.find_child("llamero.evaluation")
    first.terminate()
    first.outcome(PhaseExit.INTERRUPTED)
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()
    assert job.run(WorkKind.EVALUATE, attempt=2, **fields).outcome().evaluation.records == 4
