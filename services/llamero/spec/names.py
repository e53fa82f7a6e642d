"""Every name, label and path of llamero, each built in exactly one function.

Paths are `pathlib.PurePosixPath`-like joins on URIs or local folders; nothing here touches a disk.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLayout:
    """Where the files of one run lie: `<workdir>/<job>/r<run>/…`."""

    workdir: Path
    job: str
    run: int

    @property
    def job_folder(self) -> Path:
        return self.workdir / self.job

    @property
    def folder(self) -> Path:
        return self.job_folder / run_name(self.run)

    @property
    def state(self) -> Path:
        """Where the run stands (`spec.run.RunState`)."""
        return self.folder / "run.json"

    @property
    def manifest(self) -> Path:
        """The manifest that the run was started with, as JSON."""
        return self.folder / "job.json"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def report_html(self) -> Path:
        return self.folder / "report.html"

    @property
    def report_json(self) -> Path:
        return self.folder / "report.json"

    @property
    def shard_cache(self) -> Path:
        """Finished data shards, keyed by content, shared by the runs of a job."""
        return self.job_folder / "shards"

    @property
    def lock(self) -> Path:
        """Held by the one process that works on the job."""
        return self.job_folder / ".lock"

    @property
    def routes(self) -> Path:
        """The routes file (`spec.routes.Routes`) that the chat service reads."""
        return self.job_folder / "routes.json"


MANIFEST_NAME = "manifest.json"
"""A folder's manifest (names, sizes, sha256), written last: what has none does not exist."""


def run_name(run: int) -> str:
    """`r3` for run 3."""
    return f"r{run}"


def parse_run_name(name: str) -> int | None:
    """3 for `r3`; None where the name is not a run's."""
    return int(name[1:]) if name.startswith("r") and name[1:].isdigit() else None


def adapter_resource_name(job: str, run: int) -> str:
    """The Adapter resource of a run: `<job>-r<run>`."""
    return f"{job}-{run_name(run)}"


def served_adapter_id(namespace: str, job: str, run: int, digest: str) -> str:
    """The id that an engine serves an adapter under, never reused: `<namespace>-<job>-r<run>-<digest8>`.

    `digest` is the adapter's sha256 in hex.
    """
    return f"{namespace}-{adapter_resource_name(job, run)}-{digest[:8]}"


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after optimiser step `step`: `step-00000120`."""
    return f"step-{step:08d}"


def parse_checkpoint_name(name: str) -> int | None:
    """120 for `step-00000120`; None where the name is not a checkpoint's."""
    return int(name[5:]) if name.startswith("step-") and name[5:].isdigit() else None


def shard_name(index: int) -> str:
    """`part-00007` for shard 7."""
    return f"part-{index:05d}"
