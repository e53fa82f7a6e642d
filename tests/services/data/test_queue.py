"""Data shared by several workers: whatever becomes of messages and workers, the bytes are those of one process alone."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamero.data import coordinator as coordinator_module
from llamero.data import queue as queue_module
from llamero.data.errors import DataError, NoSpaceError
from llamero.data.pool import MAX_ATTEMPTS, InlineRunner
from llamero.data.prepare import plan_data, prepare_data
from llamero.data.queue import QueueRunner, run_shard_task
from llamero.data.shards import commit_shard, discard_folder, read_shard
from llamero.data.signs import Failure, hold_claim, write_failure
from llamero.data.tasks import TASKS, Task
from llamero.data.worker import SPACE, STORAGE
from llamero.storage import StorageError

WORKER = Path(__file__).parent / "spool_worker.py"
KINDS = ["read", "clean", "cap", "settle", "set", "refine", "write"]


class Spool:
    """A folder as a queue, and worker processes at it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent = folder, 0
        self.workers: list[subprocess.Popen[str]] = []
        folder.mkdir()

    def send(self, task: Task) -> None:
        self.sent += 1
        partial = self.folder / f".{self.sent:06d}"
        partial.write_text(json.dumps(task))
        partial.rename(self.folder / f"{self.sent:06d}.json")

    def start(self, count: int = 1, doom: str = "") -> None:
        started = []
        for _ in range(count):
            scratch = self.folder.parent / f"scratch-{len(self.workers) + len(started)}"
            command = [sys.executable, str(WORKER), str(self.folder), str(scratch), doom]
            environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)}
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        self.workers += started
        for worker in started:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"

    def taken(self) -> list[int]:
        """How many messages each worker took."""
        return [len(list(self.folder.glob(f"*.taken-{w.pid}"))) for w in self.workers]

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "spool")
    yield made
    made.stop()


@pytest.fixture
def job(write_alpaca, make_spec, monkeypatch):
    """A job whose preparation has many tasks of every kind, and rows that are rejected in every step."""
    monkeypatch.setattr(coordinator_module, "CANDIDATES_PER_RANGE", 150)
    rows = [(f"question {i % 500} of many", "answer " * (i % 30) + str(i % 500)) for i in range(600)]
    first = write_alpaca([*rows, ("empty", ""), ("too long", "word " * 900)], "first.json")
    second = write_alpaca([(f"other question {i}", f"other answer {i}") for i in range(200)], "second.json")
    sources = [{"uri": str(first), "format": "alpaca"}, {"uri": str(second), "format": "alpaca", "maxRecords": 120}]
    steps = [
        {"length": {"unit": "words", "min": 2}},
        {"random": {"fraction": 0.9}},
        {"length": {"unit": "words", "max": 28}},
    ]
    return make_spec(sources, shard_records=120, evaluation_fraction=0.1, steps=steps)


@pytest.fixture
def base(random_base: Path) -> Path:
    return random_base


class Outcome:
    """A finished preparation's result and files."""

    def __init__(self, folder: Path, result) -> None:
        self.result = result
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
        self.files = {str(p.relative_to(folder)): p.read_bytes() for p in paths}
        self.counts = result.model_dump(exclude={"seconds", "reused_shards"})


def prepare(job, base, folder: Path, runner, name: str) -> Outcome:
    output = folder / name / "data"
    result = prepare_data(
        job, plan_data(job, "t"), base, output, folder / f"{name}-shards", lambda p: None,
        runner=runner, staging=str(folder / name / "staging"),
    )  # fmt: skip
    return Outcome(output, result)


@pytest.fixture
def alone(job, base, tmp_path) -> Outcome:
    """What one process makes of the job."""
    return prepare(job, base, tmp_path, InlineRunner(), "alone")


def check_same(outcome: Outcome, alone: Outcome) -> None:
    assert outcome.files == alone.files
    assert outcome.counts == alone.counts


def find_leavings(folder: Path, name: str) -> list[str]:
    """What is left beside the outcome and the shards."""
    beside = [p.name for p in (folder / name).iterdir() if p.name != "data"]
    hidden = [p.name for p in (folder / name / "data").iterdir() if p.name.startswith(".")]
    return beside + hidden + [p.name for p in (folder / f"{name}-shards").iterdir() if p.suffix or p.name[0] == "."]


@pytest.mark.parametrize("others", [0, 1, 3])
def test_the_number_of_workers_changes_no_byte(job, base, alone, tmp_path, spool, others):
    spool.start(others)
    outcome = prepare(job, base, tmp_path, QueueRunner(spool.send), "shared")
    check_same(outcome, alone)
    assert all(spool.taken())
    assert find_leavings(tmp_path, "shared") == []


def test_doubled_messages_and_late_ones_change_nothing(job, base, alone, tmp_path, spool):
    spool.start(2)
    sent: list[Task] = []

    def send(task: Task) -> None:
        sent.append(task)
        for _ in range(3):
            spool.send(task)

    outcome = prepare(job, base, tmp_path, QueueRunner(send), "shared")
    check_same(outcome, alone)
    assert {task["task"] for task in sent} == set(KINDS)
    for task in sent:
        run_shard_task(task)
    assert find_leavings(tmp_path, "shared") == []
    check_same(Outcome(tmp_path / "shared" / "data", outcome.result), alone)


def test_a_task_that_two_do_at_once_is_done_right(job, base, alone, tmp_path, monkeypatch, spool):
    monkeypatch.setattr(queue_module, "read_claim", lambda folder: None)  # the coordinator sees nobody at work
    spool.start(1)
    outcome = prepare(job, base, tmp_path, QueueRunner(spool.send), "shared")
    check_same(outcome, alone)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.long if n else ()) for n, k in enumerate(KINDS)])
def test_a_worker_killed_half_way_costs_time_and_no_byte(job, base, alone, tmp_path, spool, kind):
    spool.start(1, doom=kind)
    (worker,) = spool.workers

    def send(task: Task) -> None:
        spool.send(task)
        if task["task"] == kind:
            worker.wait(60)

    outcome = prepare(job, base, tmp_path, QueueRunner(send, stale_seconds=0.5), "shared")
    assert worker.returncode == -9
    check_same(outcome, alone)
    assert not [name for name in find_leavings(tmp_path, "shared") if not name.endswith(".claim.json")]


def test_where_no_message_can_be_sent_the_coordinator_does_all_alone(job, base, alone, tmp_path):
    def send(task: Task) -> None:
        raise ConnectionError("the broker is away")

    check_same(prepare(job, base, tmp_path, QueueRunner(send), "shared"), alone)


def test_others_may_do_it_all(job, base, alone, tmp_path, monkeypatch):
    def refuse(*args: object) -> None:
        raise AssertionError("the coordinator did a task")

    monkeypatch.setattr("llamero.data.queue._Step.do", refuse)
    check_same(prepare(job, base, tmp_path, QueueRunner(run_shard_task), "shared"), alone)


def test_a_second_attempt_goes_on_from_the_shards_of_the_first_and_makes_damaged_ones_again(job, base, alone, tmp_path):
    first = prepare(job, base, tmp_path, QueueRunner(lambda task: None), "shared")
    shards = sorted((tmp_path / "shared-shards").glob("clean-*"))
    (shards[0] / "records.jsonl").write_bytes((shards[0] / "records.jsonl").read_bytes().replace(b"answer", b"ansver"))
    write_failure(str(shards[0]), Failure(SPACE, "of an earlier attempt"))
    output = tmp_path / "second" / "data"
    result = prepare_data(
        job, plan_data(job, "t"), base, output, tmp_path / "shared-shards", lambda p: None,
        runner=QueueRunner(lambda task: None), staging=str(tmp_path / "second" / "staging"),
    )  # fmt: skip
    check_same(Outcome(output, result), alone)
    assert (first.result.reused_shards, result.reused_shards) == (0, result.shards - 1)


# -- the runner alone ----------------------------------------------------------------------------------------------------------


def run(runner: QueueRunner, *tasks: Task):
    return runner.run(tasks, lambda number, rows: None, lambda number, shard: None)


def read_task(path: Path, folder: Path) -> Task:
    return {"task": "read", "uri": str(path), "name": path.name, "format": "alpaca", "shardRecords": 10, "folder": str(folder)}  # fmt: skip


def test_what_is_wrong_with_the_data_ends_the_step_with_the_workers_sentence(tmp_path):
    with pytest.raises(DataError, match=r"none.json does not exist"):
        run(QueueRunner(run_shard_task), read_task(tmp_path / "none.json", tmp_path / "shards" / "a"))


def test_a_source_that_nobody_serves_is_no_fault_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("llamero.data.tasks._RETRY_SECONDS", 0)
    task = read_task(tmp_path / "a", tmp_path / "shards" / "a") | {
        "uri": "http://127.0.0.1:9/a.json",
        "allowHttp": True,
    }
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        run(QueueRunner(run_shard_task), task)


@pytest.mark.parametrize(
    "failure, error, words",
    [
        (Failure(SPACE, "disk full"), NoSpaceError, "No space is left for .*disk full"),
        (Failure(STORAGE, "the bucket is away"), StorageError, "the bucket is away"),
        (Failure("bug", "KeyError: 'x'"), RuntimeError, "failed:\nKeyError: 'x'"),
    ],
)
def test_a_workers_failure_is_raised_by_its_class(tmp_path, monkeypatch, failure, error, words):
    monkeypatch.setitem(TASKS, "fail", lambda task, report, files: pytest.fail("done by the coordinator"))
    sent: list[Task] = []

    def send(task: Task) -> None:
        sent.append(task)
        write_failure(task["folder"], failure)

    monkeypatch.setattr("llamero.data.queue._Step.choose_own", lambda step: None)
    with pytest.raises(error, match=words):
        run(QueueRunner(send), {"task": "fail", "folder": str(tmp_path / "a")})
    assert len(sent) == (1 if failure.failure == SPACE else MAX_ATTEMPTS)


def test_a_bug_that_happens_once_is_tried_again(tmp_path, monkeypatch):
    tries: list[int] = []

    def stumble(task, report, files):
        tries.append(1)
        if len(tries) < MAX_ATTEMPTS:
            raise KeyError("x")
        return files.commit(task["folder"], lambda partial: {})

    monkeypatch.setitem(TASKS, "stumble", stumble)
    (shard,) = run(QueueRunner(lambda task: None), {"task": "stumble", "folder": str(tmp_path / "a")})
    assert (shard.folder, len(tries)) == (tmp_path / "a", MAX_ATTEMPTS)


def test_lost_messages_are_sent_again_while_the_coordinator_is_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(queue_module, "_LOOK_SECONDS", 0.02)
    sent: list[str] = []

    def send(task: Task) -> None:
        sent.append(task["folder"])
        if sent.count(task["folder"]) == 2:  # the first one is lost
            run_shard_task(task)

    def make(task, report, files):
        return files.commit(task["folder"], lambda partial: {})

    def wait(task, report, files):
        began = time.monotonic()
        while read_shard(tmp_path / "first") is None:
            report(1)
            assert time.monotonic() - began < 60
            time.sleep(0.005)
        return make(task, report, files)

    monkeypatch.setitem(TASKS, "make", make)
    monkeypatch.setitem(TASKS, "wait", wait)
    tasks = [{"task": "make", "folder": str(tmp_path / "first")}, {"task": "wait", "folder": str(tmp_path / "last")}]
    run(QueueRunner(send, resend_seconds=0.05), *tasks)
    assert sent.count(str(tmp_path / "first")) == 2
    assert sent.count(str(tmp_path / "last")) == 1


def test_the_coordinator_waits_for_one_that_lives_and_takes_over_from_one_that_does_not(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "make", lambda task, report, files: files.commit(task["folder"], lambda partial: {}))
    folder, rows = str(tmp_path / "a"), list[int]()
    seen_rows = threading.Event()

    def send(task: Task) -> None:
        threading.Thread(target=work).start()
        assert is_claimed.wait(60)

    is_claimed, is_over = threading.Event(), threading.Event()

    def work() -> None:
        with hold_claim(folder, "another worker", beat_seconds=0.05) as claim:
            claim.rows = 7
            is_claimed.set()
            assert seen_rows.wait(60)
            assert read_shard(tmp_path / "a") is None
        is_over.set()

    def on_rows(number: int, count: int) -> None:
        rows.append(count)
        seen_rows.set()

    (shard,) = QueueRunner(send, poll_seconds=0.02).run(
        [{"task": "make", "folder": folder}], on_rows, lambda n, s: None
    )
    assert is_over.is_set()
    assert rows == [7]
    assert shard.folder == tmp_path / "a"


# -- the folder's own races ----------------------------------------------------------------------------------------------------


def _tear_and_mend(folder: str, seed: int, seconds: float) -> None:
    chance, ends = random.Random(seed), time.monotonic() + seconds
    path = Path(folder)

    def build(partial: Path) -> dict[str, int]:
        for number in range(20):
            (partial / f"{number}.txt").write_text("x" * 100)
        return {}

    while time.monotonic() < ends:
        if chance.random() < 0.3:
            (path / f"{chance.randrange(20)}.txt").unlink(missing_ok=True)
            discard_folder(path)
        else:
            assert len(commit_shard(path, build).files) == 20


def test_workers_that_find_a_torn_shard_at_once_mend_it_and_leave_nothing_behind(tmp_path):
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_tear_and_mend, args=(str(tmp_path / "shard"), n, 1.5)) for n in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 4
    _tear_and_mend(str(tmp_path / "shard"), 99, 0.1)
    assert {p.name for p in tmp_path.iterdir()} <= {"shard"}


# -- an object store -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(base: Path) -> Iterator[str]:
    """A bucket of a real S3 server that holds the base model."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for key, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{key}", value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="shared")
        for file in base.iterdir():
            client.upload_file(str(file), "shared", f"base/{file.name}")
        yield "s3://shared"
    server.stop()


@pytest.mark.parametrize("doom", [pytest.param("", marks=pytest.mark.long), "clean"])
def test_workers_that_share_no_disk_share_an_object_store(job, base, tmp_path, spool, store, doom):
    import boto3

    # Each task is many requests: a few large ones.
    job = job.model_copy(update={"data": job.data.model_copy(update={"shard_records": 400})})
    alone = prepare(job, base, tmp_path, InlineRunner(), "alone")
    spool.start(1)
    spool.start(1, doom=doom)
    output, scratch = tmp_path / "own" / "data", tmp_path / "own" / "scratch"
    result = prepare_data(
        job, plan_data(job, "t"), f"{store}/base", output, f"{store}/shards", lambda p: None,
        runner=QueueRunner(spool.send, scratch=scratch, stale_seconds=2), staging=f"{store}/staging", scratch=scratch,
    )  # fmt: skip
    check_same(Outcome(output, result), alone)
    assert all(spool.taken())
    listed = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="shared", Prefix="staging")
    assert not [key for page in listed for key in page.get("Contents", [])]
    left = [p.relative_to(scratch).parts[0] for p in scratch.rglob("*") if p.is_file()]
    assert set(left) <= {"fetched", "tokenizer"}


# -- without torch -------------------------------------------------------------------------------------------------------------

WITHOUT_TORCH = textwrap.dedent(
    """
    import importlib.machinery, json, sys
    from pathlib import Path

    class NoTorch(importlib.machinery.PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name.partition(".")[0] == "torch":
                return None
            return importlib.machinery.PathFinder.find_spec(name, path, target)

    sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = NoTorch
    from llamero.data.prepare import plan_data, prepare_data
    from llamero.data.queue import QueueRunner
    from llamero.spec.job import FineTuneJobSpec
    spec = FineTuneJobSpec.model_validate(json.loads(sys.argv[1]))
    base, output, shards, staging = sys.argv[2:6]
    prepare_data(
        spec, plan_data(spec, "t"), base, Path(output), shards, lambda p: None,
        runner=QueueRunner(lambda task: None), staging=staging,
    )
    assert "torch" not in sys.modules
    try:
        import torch
    except ImportError:
        print("done without torch")
    """
)


@pytest.mark.parametrize("template", ["base", "alpaca"])
def test_data_is_prepared_where_torch_is_not_installed(job, base, tmp_path, template):
    spec = job.model_copy(update={"data": job.data.model_copy(update={"template": template})})
    here = prepare(spec, base, tmp_path, InlineRunner(), "here")
    output = tmp_path / "there" / "data"
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(spec.to_json_dict()), str(base), str(output),
         str(tmp_path / "there-shards"), str(tmp_path / "there" / "staging")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)},
    )  # fmt: skip
    assert ended.stdout == "done without torch\n", ended.stderr
    assert Outcome(output, here.result).files == here.files
