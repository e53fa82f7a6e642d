"""The shard protocol: done once, harmless when doubled, made again when torn; and workers that leave nothing behind."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamero.data import prepare as prepare_module
from llamero.data.errors import DataError
from llamero.data.pool import MAX_ATTEMPTS, InlineRunner, WorkerPool
from llamero.data.rows import BrokenRow, RawRow
from llamero.data.shards import (
    code_version,
    commit_shard,
    read_raw_rows,
    read_shard,
    remove_partials,
    write_raw_row,
)


def build_one(folder: Path) -> dict[str, int]:
    (folder / "a.txt").write_text("content")
    (folder / "deep").mkdir()
    (folder / "deep" / "b.txt").write_text("more")
    return {"rows": 3}


def test_a_finished_shard_is_never_done_twice(tmp_path):
    first = commit_shard(tmp_path / "shard", build_one)
    assert (first.is_reused, first.summary) == (False, {"rows": 3})
    assert [f.name for f in first.files] == ["a.txt", "deep/b.txt"]

    def refuse(folder: Path) -> dict[str, int]:
        raise AssertionError("done twice")

    second = commit_shard(tmp_path / "shard", refuse)
    assert (second.is_reused, second.files, second.summary) == (True, first.files, first.summary)


@pytest.mark.parametrize("damage", ["no manifest", "missing file", "short file", "changed byte", "torn manifest"])
def test_a_torn_shard_does_not_exist_and_is_made_again(tmp_path, damage):
    folder = tmp_path / "shard"
    commit_shard(folder, build_one)
    match damage:
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "missing file":
            (folder / "deep" / "b.txt").unlink()
        case "short file":
            (folder / "a.txt").write_text("conten")
        case "changed byte":
            (folder / "a.txt").write_text("Content")
        case "torn manifest":
            text = (folder / "manifest.json").read_text()
            (folder / "manifest.json").write_text(text[: len(text) // 2])
    assert read_shard(folder) is None
    again = commit_shard(folder, build_one)
    assert not again.is_reused
    assert (folder / "a.txt").read_text() == "content"
    assert read_shard(folder) is not None


def test_a_task_that_fails_leaves_nothing_behind(tmp_path):
    def fail(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError):
        commit_shard(tmp_path / "shard", fail)
    assert list(tmp_path.iterdir()) == []


def _commit_slowly(folder: str, wait: float) -> None:
    def build(partial: Path) -> dict[str, int]:
        summary = build_one(partial)
        time.sleep(wait)
        return summary

    commit_shard(Path(folder), build)


def test_a_doubled_task_changes_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    twins = [context.Process(target=_commit_slowly, args=(str(tmp_path / "shard"), 0.2)) for _ in range(4)]
    for twin in twins:
        twin.start()
    for twin in twins:
        twin.join()
    assert [twin.exitcode for twin in twins] == [0] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["shard"]
    assert read_shard(tmp_path / "shard") is not None


def test_what_a_killed_worker_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    commit_shard(tmp_path / "shard", lambda partial: {"name": partial.name})
    own = read_shard(tmp_path / "shard").summary["name"].rpartition("-")[0]
    left = own.replace(str(os.getpid()), str(dead.pid))
    (tmp_path / f"{own}-abc").mkdir()
    (tmp_path / f"{left}-abc").mkdir()
    remove_partials(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"shard", f"{own}-abc", f"{left}-abc"}
    dead.kill()
    dead.wait()
    remove_partials(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"shard", f"{own}-abc"}


def test_what_another_machines_worker_writes_is_left_alone_until_nobody_touched_it_for_hours(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("busy", "left"):
        folder = tmp_path / f".partial-{name}.pod-{dead.pid}-abc"
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "file").write_text("x")
        for path in (folder, folder / "deep", *((folder / "deep" / "file",) if name == "left" else ())):
            os.utime(path, (0, 0))
    remove_partials(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f".partial-busy.pod-{dead.pid}-abc"]


@given(st.lists(st.one_of(
    st.builds(RawRow, st.integers(1, 2**40), st.text().map(lambda t: json.dumps(t).encode())),
    st.builds(BrokenRow, st.integers(1, 2**40), st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))),
)))  # fmt: skip
def test_raw_rows_come_back_as_they_were_written(rows):
    stream = io.BytesIO()
    for row in rows:
        write_raw_row(stream, row)
    assert list(read_raw_rows(stream.getvalue().splitlines(keepends=True))) == rows


def test_the_code_version_is_a_digest_of_the_code():
    assert len(code_version()) == 16


def read_task(path: Path, folder: Path, **more: object) -> dict[str, object]:
    task = {"task": "read", "uri": str(path), "name": path.name, "format": "alpaca", "shardRecords": 10}
    return task | {"folder": str(folder)} | more


@pytest.mark.parametrize("runner", ["inline", "pool"])
def test_a_task_that_can_not_be_done_says_why(tmp_path, runner):
    task = read_task(tmp_path / "none.json", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        if runner == "inline":
            InlineRunner().run([task], lambda n, r: None, lambda n, s: None)
        else:
            with WorkerPool(1) as pool:
                pool.run([task], lambda n, r: None, lambda n, s: None)


def test_a_bug_in_a_task_comes_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="KeyError"), WorkerPool(1) as pool:
        pool.run([{"task": "nonsense", "folder": "x"}], lambda n, r: None, lambda n, s: None)


def test_a_full_disk_is_said_to_be_full():
    from llamero.data.worker import SPACE, describe_failure

    assert describe_failure(OSError(28, "No space left on device", "/x"))[0] == SPACE


def test_a_task_that_kills_every_worker_is_given_up(tmp_path):
    fifo = tmp_path / "endless.json"  # opening it waits for a writer that never comes
    os.mkfifo(fifo)
    is_over = threading.Event()

    def kill_workers(pool: WorkerPool) -> None:
        while not is_over.wait(0.05):
            for pid in pool.process_ids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with WorkerPool(1) as pool:
        killer = threading.Thread(target=kill_workers, args=(pool,))
        killer.start()
        try:
            with pytest.raises(DataError, match=f"ended {MAX_ATTEMPTS} times .* by signal 9"):
                pool.run([read_task(fifo, tmp_path / "out")], lambda n, r: None, lambda n, s: None)
        finally:
            is_over.set()
            killer.join()


RUN = textwrap.dedent(
    """
    import sys, json, os
    from pathlib import Path
    from llamero.data import prepare
    from llamero.spec.job import FineTuneJobSpec
    prepare.INLINE_BYTES = 0
    spec = FineTuneJobSpec.model_validate(json.loads(sys.argv[1]))
    plan = prepare.plan_data(spec, "tokenizer")
    def show(p):
        print(p.activity, int(p.done), flush=True)
    prepare.prepare_data(spec, plan, Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), show, 2)
    """
)


def start_preparing(spec, base: Path, out: Path, cache: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps(spec.to_json_dict()), str(base), str(out), str(cache)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)},
    )  # fmt: skip


def wait_for_cleaning(process: subprocess.Popen) -> None:
    for line in process.stdout:
        # Two workers, each at a shard of 100 rows: more than 200 means that some are finished.
        if line.startswith("cleaning") and int(line.split()[-1]) >= 400:
            return
    raise AssertionError("it ended before")


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []


@pytest.fixture
def many(write_alpaca, make_spec):
    path = write_alpaca([(f"question {i} of many", "answer " * (i % 40) + str(i)) for i in range(3000)])
    return make_spec([{"uri": str(path), "format": "alpaca"}], shard_records=100)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_preparation_leaves_no_process_and_goes_on_where_it_was(
    tmp_path, random_base, many, monkeypatch, signal_number
):
    process = start_preparing(many, random_base, tmp_path / "broken", tmp_path / "cache")
    wait_for_cleaning(process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.send_signal(signal_number)
    process.wait(timeout=20)
    process.stdout.close()
    wait_until_gone(children)
    assert not (tmp_path / "broken" / "manifest.json").exists()

    plan = prepare_module.plan_data(many, "tokenizer")
    again = prepare_module.prepare_data(
        many, plan, random_base, tmp_path / "broken", tmp_path / "cache", lambda p: None
    )
    fresh = prepare_module.prepare_data(many, plan, random_base, tmp_path / "fresh", tmp_path / "other", lambda p: None)
    assert again.reused_shards > 0
    assert fresh.reused_shards == 0
    assert again.files == fresh.files
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".partial")]


def find_workers() -> list[psutil.Process]:
    """This process's data workers; other tests' servers may be its children too."""
    return [p for p in psutil.Process().children() if "llamero.data" in p.cmdline()]


def test_a_killed_workers_task_is_done_by_another(tmp_path, random_base, many, monkeypatch):
    monkeypatch.setattr(prepare_module, "INLINE_BYTES", 0)
    killed: list[int] = []

    def kill_one(progress) -> None:
        if progress.activity.startswith("cleaning") and progress.done >= 200 and not killed:
            worker = find_workers()[0]
            killed.append(worker.pid)
            worker.kill()

    plan = prepare_module.plan_data(many, "tokenizer")
    disturbed = prepare_module.prepare_data(many, plan, random_base, tmp_path / "a", tmp_path / "c1", kill_one, 2)
    calm = prepare_module.prepare_data(many, plan, random_base, tmp_path / "b", tmp_path / "c2", lambda p: None, 1)
    assert len(killed) == 1
    assert disturbed.files == calm.files
    assert find_workers() == []
