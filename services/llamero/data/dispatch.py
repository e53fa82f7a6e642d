"""Tasks on their way to the runner: the folders that their results go to, named by what decides them, and what is told meanwhile."""

from collections.abc import Callable, Sequence
from typing import Any

from llamero.data.pool import TaskRunner
from llamero.data.shards import Shard, code_version
from llamero.data.taskfiles import Task
from llamero.spec.digest import digest_json
from llamero.spec.progress import Progress
from llamero.storage import join_uri

PHASE = "Preparing"

OnProgress = Callable[[Progress], None]


class Dispatch:
    """Runs tasks whose folders lie in the shard cache (kept for later runs of the job) or in staging (this preparation's alone)."""

    def __init__(self, runner: TaskRunner, shard_cache: str, staging: str, on_progress: OnProgress) -> None:
        self.runner, self.shard_cache, self.staging, self.on_progress = runner, shard_cache, staging, on_progress

    def name_folder(self, kind: str, decides: Any, is_kept: bool) -> str:
        """Where the result of a task goes. `decides` (JSON) holds all that its bytes hang on; shards' URIs count by their names."""
        key = digest_json({"decides": self._strip(decides), "code": code_version()})
        return join_uri(self.shard_cache if is_kept else self.staging, f"{kind}-{key[:32]}")

    def _strip(self, value: Any) -> Any:
        """The value without the roots of the folders: the same shard has the same name in every run."""
        if isinstance(value, str):
            for root in (self.staging, self.shard_cache):
                value = value.replace(root.rstrip("/") + "/", "")
            return value
        if isinstance(value, dict):
            return {key: self._strip(part) for key, part in value.items()}
        return [self._strip(part) for part in value] if isinstance(value, (list, tuple)) else value

    def run(
        self,
        tasks: Sequence[Task],
        activity: str,
        total: int | None,
        rows: Sequence[int] | None = None,
        unit: str = "records",
    ) -> list[Shard]:
        """Do the tasks, reporting the rows that are done; `rows` says how many each task has."""
        done = [0] * len(tasks)

        def on_rows(number: int, count: int) -> None:
            done[number] = min(count, rows[number]) if rows else count
            self.report(activity, sum(done), total, unit)

        def on_done(number: int, shard: Shard) -> None:
            counted = shard.summary.get("rows")
            done[number] = rows[number] if rows else sum(counted) if isinstance(counted, list) else 1
            self.report(activity, sum(done), total, unit)

        self.report(activity, 0, total, unit)
        return self.runner.run(tasks, on_rows, on_done)

    def report(
        self, activity: str, done: float = 0, total: float | None = None, unit: str = "records", message: str = ""
    ) -> None:
        self.on_progress(Progress(PHASE, activity, done, total, unit, message))
