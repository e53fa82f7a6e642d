"""What a worker can't do or understand it says in a sentence, with a code that tells whether another try can mend it."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from llamero.lifecycle.failures import PhaseExit
from llamero.spec.names import queue_name
from llamero.spec.status import WorkKind

MakeJob = Callable[..., Any]


def test_no_task_for_too_long_is_told_as_idle(make_job: MakeJob) -> None:
    job = make_job()
    pod = job.start(job.identify(WorkKind.TRAIN), LLAMERO_IDLE_SECONDS="2")
    assert "No task came within 2 s" in pod.outcome(PhaseExit.IDLE).message


def test_an_unknown_task_names_both_sides_versions(make_job: MakeJob) -> None:
    job = make_job()
    id = job.identify(WorkKind.TRAIN)
    job.send(id, {}, name="llamero.work.v2")
    message = job.start(id).outcome(PhaseExit.BAD_CONFIG).message
    assert "llamero.work.v1" in message and "llamero.work.v2" in message and "one release" in message


def test_a_message_of_another_version_names_both(make_job: MakeJob) -> None:
    job = make_job()
    id = job.identify(WorkKind.TRAIN)
    job.send(id, job.message(id) | {"version": 7})
    message = job.start(id).outcome(PhaseExit.BAD_CONFIG).message
    assert "version 1" in message and "version 7" in message


def test_a_message_with_an_unreadable_part_names_it(make_job: MakeJob) -> None:
    job = make_job()
    id = job.identify(WorkKind.TRAIN)
    message = job.message(id)
    message["manifest"]["spec"]["training"]["telepathy"] = True
    job.send(id, message)
    assert "telepathy" in job.start(id).outcome(PhaseExit.BAD_CONFIG).message


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("application/json", "bm90IGpzb24="), ("application/x-python-serialize", "gASVBQAAAAAAAABLAS4=")],
    ids=["garbage", "pickle"],
)
def test_what_cannot_be_decoded_is_refused_not_dropped(make_job: MakeJob, content_type: str, body: str) -> None:
    job = make_job()
    id = job.identify(WorkKind.TRAIN)
    queue = queue_name(id.uid, id.run, id.kind, id.attempt)
    envelope = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": {"task": "llamero.work.v1", "id": "x", "lang": "py", "argsrepr": "", "kwargsrepr": ""},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "t",
            "delivery_mode": 2,
            "delivery_info": {"exchange": queue, "routing_key": queue},
        },
    }
    with redis_client.Redis.from_url(job.redis.url) as client:
        client.lpush(queue, json.dumps(envelope))
    assert "one release" in job.start(id).outcome(PhaseExit.BAD_CONFIG).message


def test_a_message_for_another_attempt_is_passed_over(make_job: MakeJob) -> None:
    job = make_job()
    id = job.identify(WorkKind.TRAIN)
    job.send(id, job.message(job.identify(WorkKind.TRAIN, attempt=9)))
    pod = job.start(id, LLAMERO_IDLE_SECONDS="3")
    pod.outcome(PhaseExit.IDLE)
    assert "passed over" in pod.log


def test_data_that_will_not_do_is_final_and_the_rejected_rows_can_be_read(make_job: MakeJob) -> None:
    job = make_job()
    job.manifest["spec"]["data"]["sources"][0]["format"] = "sharegpt"
    outcome = job.run(WorkKind.PREPARE).outcome(PhaseExit.DATA_ERROR)
    assert "maxRejectedFraction" in outcome.message
    rejected = Path(job.pods[0].own.data, "rejected.jsonl")
    assert str(rejected) in outcome.message and len(rejected.read_text().splitlines()) == 60


def test_a_source_that_is_missing_is_final_and_named(make_job: MakeJob) -> None:
    job = make_job(data__sources=[{"uri": "missing.json", "format": "alpaca"}])
    outcome = job.run(WorkKind.PREPARE).outcome(PhaseExit.DATA_ERROR)
    assert f"{job.storage}/missing.json" in outcome.message


def test_a_source_that_does_not_answer_may_be_tried_again(make_job: MakeJob) -> None:
    job = make_job(data__sources=[{"uri": "http://127.0.0.1:9/data.json", "format": "alpaca"}], data__allowHttp=True)
    job.run(WorkKind.PREPARE).outcome(PhaseExit.STORAGE)


def test_prepared_data_that_is_gone_is_told_with_its_place(prepared_job: MakeJob) -> None:
    job, fields = prepared_job()
    shutil.rmtree(fields["data"].uri)
    outcome = job.run(WorkKind.TRAIN, **fields).outcome(PhaseExit.STORAGE)
    assert fields["data"].uri in outcome.message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no disk of a size can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_storage_is_told_as_such_and_not_as_a_bug(prepared_job: MakeJob, small_disk: Path) -> None:
    job, fields = prepared_job()
    prefix = Path(job.places.prefix) / "r1" / "train"
    shutil.rmtree(prefix, ignore_errors=True)
    prefix.symlink_to(small_disk)
    (small_disk / "ballast").write_bytes(b"\0" * 2_900_000)
    pod = job.run(WorkKind.TRAIN, **fields)
    outcome = pod.outcome(PhaseExit.STORAGE)
    assert "No space left on device" in outcome.message and "Free space" in outcome.message
    assert not list(small_disk.glob("a1-*/adapter")) and not list(small_disk.glob("a1-*/.adapter*"))


def test_a_full_scratch_disk_is_told_as_such(prepared_job: MakeJob, small_disk: Path) -> None:
    job, fields = prepared_job(training__lora={"rank": 64})
    pod = job.run(WorkKind.TRAIN, environment={"LLAMERO_SCRATCH": str(small_disk / "scratch")}, **fields)
    outcome = pod.outcome(PhaseExit.STORAGE)
    assert "disk" in outcome.message or "space" in outcome.message
