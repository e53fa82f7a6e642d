"""Runs data tasks in worker processes of this machine: hands them out, takes a dead worker's task up again, leaves no orphan."""

import os
import selectors
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import orjson

from llamero.data.errors import DataError
from llamero.data.shards import Shard, read_shard
from llamero.data.tasks import Task, run_task
from llamero.data.worker import DATA, SPACE, STORAGE, describe_failure

MAX_ATTEMPTS = 3
_GRACE_SECONDS = 5.0

OnRows = Callable[[int, int], None]
"""Told (number of the task, its rows done so far)."""

OnDone = Callable[[int, Shard], None]


class TaskRunner(Protocol):
    """Does tasks and returns their shards in the tasks' order. Raises DataError, or RuntimeError for a bug."""

    def run(self, tasks: Sequence[Task], on_rows: OnRows, on_done: OnDone) -> list[Shard]: ...


def _raise_failure(failure: str, message: str, task: Task) -> None:
    if failure in (DATA, STORAGE):
        raise DataError(message)
    if failure == SPACE:
        raise DataError(f"No space is left for {task['folder']}: {message}. Free some, or choose another --workdir.")
    raise RuntimeError(f"The data task {task['task']} for {task['folder']} failed:\n{message}")


class InlineRunner:
    """Does the tasks in this process: for little data, where starting workers would take longer than the work."""

    def run(self, tasks: Sequence[Task], on_rows: OnRows, on_done: OnDone) -> list[Shard]:
        shards: list[Shard] = []
        for number, task in enumerate(tasks):
            try:
                shard = run_task(task, lambda rows, number=number: on_rows(number, rows))  # type: ignore[misc]
            except Exception as error:
                _raise_failure(*describe_failure(error), task)
                raise
            shards.append(shard)
            on_done(number, shard)
        return shards


class _Worker:
    """One process, and the task that it is at."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        environment = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        # Found the way that this process found it, installed or not.
        package_root = str(Path(__file__).parents[2])
        path = os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH", "")) if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llamero.data", str(os.getpid()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,  # Ctrl-C is the coordinator's to handle
            env={**os.environ, **environment, "PYTHONPATH": path},
            bufsize=0,
        )
        self.task: int | None = None
        self.unread = b""

    def send(self, number: int, task: Task) -> bool:
        self.task = number
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(orjson.dumps(task) + b"\n")
        except BrokenPipeError:
            return False
        return True

    def read_answers(self) -> list[dict[str, Any]] | None:
        """The whole lines that are there; None where the process has ended."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        if not data:
            return None
        *lines, self.unread = (self.unread + data).split(b"\n")
        return [orjson.loads(line) for line in lines]

    def describe_end(self) -> str:
        code = self.process.wait()
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - 2000))
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        return f"ended {how}. {self.log.read().decode('utf-8', 'replace').strip()}".strip()

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.log.close()


class WorkerPool:
    """Worker processes, all started at once; a context manager that ends them, however it is left.

    `modules` are what they may import while there is no task yet.
    """

    def __init__(self, workers: int, modules: Sequence[str] = ()) -> None:
        self._limit, self._modules = workers, tuple(modules)
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        for _ in range(self._limit):
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.kill() if kind is not None else worker.process.stdin and worker.process.stdin.close()
        for worker in self._workers:
            try:
                worker.process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.close()
        self._workers.clear()
        self._selector.close()

    @property
    def process_ids(self) -> list[int]:
        """The workers that are running."""
        return [w.process.pid for w in self._workers]

    def run(self, tasks: Sequence[Task], on_rows: OnRows, on_done: OnDone) -> list[Shard]:
        """All tasks' shards, in the tasks' order. A task whose worker died is given to another, at most three times in all."""
        waiting = deque(range(len(tasks)))
        attempts = [0] * len(tasks)
        shards: dict[int, Shard] = {}
        while len(shards) < len(tasks):
            self._hand_out(tasks, waiting, attempts)
            for key, _ in self._selector.select():
                worker: _Worker = key.data
                answers = worker.read_answers()
                if answers is None:
                    self._bury(worker, tasks, waiting, attempts)
                    continue
                for answer in answers:
                    self._take(worker, answer, tasks, shards, on_rows, on_done)
        return [shards[number] for number in range(len(tasks))]

    def _hand_out(self, tasks: Sequence[Task], waiting: deque[int], attempts: list[int]) -> None:
        idle = [w for w in self._workers if w.task is None]
        while waiting and (idle or len(self._workers) < self._limit):
            worker = idle.pop() if idle else self._start()
            number = waiting.popleft()
            attempts[number] += 1
            worker.send(number, tasks[number])  # a dead one is noticed by its closed pipe

    def _start(self) -> _Worker:
        worker = _Worker(self._modules)
        self._workers.append(worker)
        assert worker.process.stdout is not None
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _bury(self, worker: _Worker, tasks: Sequence[Task], waiting: deque[int], attempts: list[int]) -> None:
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        self._workers.remove(worker)
        end = worker.describe_end()
        worker.close()
        if worker.task is None:
            return
        if attempts[worker.task] >= MAX_ATTEMPTS:
            task = tasks[worker.task]
            raise DataError(
                f"Workers ended {MAX_ATTEMPTS} times at the data task {task['task']} for {task['folder']}; the last one {end} "
                "If the machine is short of memory, lower data.workers or data.shardRecords."
            )
        waiting.appendleft(worker.task)

    def _take(
        self,
        worker: _Worker,
        answer: dict[str, Any],
        tasks: Sequence[Task],
        shards: dict[int, Shard],
        on_rows: OnRows,
        on_done: OnDone,
    ) -> None:
        number = worker.task
        if number is None:
            return
        if "rows" in answer:
            on_rows(number, answer["rows"])
            return
        worker.task = None
        if "failure" in answer:
            _raise_failure(answer["failure"], answer["message"], tasks[number])
        shard = read_shard(Path(answer["folder"]), read_content=False)
        if shard is None:
            raise RuntimeError(f"{answer['folder']} was reported done but is torn")
        shard = Shard(shard.uri, shard.files, shard.summary, is_reused=answer["reused"])
        shards[number] = shard
        on_done(number, shard)
