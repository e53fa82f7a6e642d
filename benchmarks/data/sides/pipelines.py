"""datatrove's pipeline of MinHash, which two sides share: signatures, buckets, clusters, filter, each stage from folder to folder."""

from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from loguru import logger

BUCKETS, HASHES = 16, 8


def run_stage(steps: list, tasks: int = 1) -> None:
    """One stage in this process."""
    logger.remove()
    LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=1, skip_completed=False, logging_dir=None).run()


def remove_near_duplicates(source: Path, work: Path, output: Path) -> None:
    """From a folder of JSONL files to another, without near duplicates: 128 permutations of the sets of single words."""
    config = MinhashConfig(n_grams=1, num_buckets=BUCKETS, hashes_per_bucket=HASHES)
    signatures, buckets, removed = (str(work / name) for name in ("signatures", "buckets", "removed"))
    run_stage([JsonlReader(str(source)), MinhashDedupSignature(output_folder=signatures, config=config)])
    run_stage([MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)], tasks=BUCKETS)
    run_stage([MinhashDedupCluster(input_folder=buckets, output_folder=removed, config=config)])
    run_stage(
        [
            JsonlReader(str(source)),
            MinhashDedupFilter(input_folder=removed),
            JsonlWriter(str(output), compression=None),
        ]
    )


def count_lines(folder: Path) -> int:
    return sum(sum(1 for _ in path.open("rb")) for path in folder.glob("*.jsonl"))
