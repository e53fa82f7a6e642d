"""The default recipe by llamero, from a file of records to the finished folder, in `options.workers` worker processes.

No base model: lengths are counted in words and nothing is tokenised, as the peers do not either. The clock holds the start of the workers.
Memory is that of the largest worker; the coordinator's, this process with all that it imported, is told apart.
"""

import shutil
from pathlib import Path

from measurement import Figures, Job, read_peak, run_side

from llamero.data.prepare import plan_data, prepare_data
from llamero.spec.job import FineTuneJobSpec


def measure(job: Job, figures: Figures) -> None:
    measure_with(job, figures, job.options.get("workers", 1))


def measure_with(job: Job, figures: Figures, workers: int) -> None:
    """Prepare the first `size` records in so many worker processes."""
    source, output, cache = cut(job), job.folder / "prepared", job.folder / "cache"
    spec = FineTuneJobSpec.model_validate(
        {
            "baseModel": {"uri": "/base"},
            "data": {"sources": [{"uri": str(source), "format": "alpaca"}], **job.options.get("data", {})},
            "training": {"sequenceLength": 4096},
        }
    )
    with figures.clock():
        plan = plan_data(spec)
        result = prepare_data(spec, plan, None, output, cache, lambda progress: None, workers)
    figures.documents = job.size
    worker, coordinator = read_peak(of_children=True), read_peak(of_children=False)
    figures.peak_rss_bytes = worker or coordinator
    figures.found = {
        "kept": result.kept, "read": result.read, "rejected": result.rejected, "coordinator_mib": coordinator / 2**20,
    }  # fmt: skip
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)


def cut(job: Job) -> Path:
    """The first `size` lines of the input, as they are."""
    path = job.folder / "source.jsonl"
    with Path(job.input).open("rb") as lines, path.open("wb") as first:
        for _, line in zip(range(job.size), lines, strict=False):
            first.write(line)
    return path


if __name__ == "__main__":
    run_side(measure)
