"""Data-Juicer's equivalent of the default recipe, files to files: its filters that come nearest to Gopher's rules, then MinHash.

Monitoring, tracing and caches are off, which makes it faster; the least number of words is off, as in llamero's default profile.
"""

import json

import yaml
from data_juicer.config import init_configs
from data_juicer.core import DefaultExecutor
from measurement import Figures, Job, run_side

PROCESS = [
    {"words_num_filter": {"min_num": 1, "max_num": 100_000}},
    {"average_line_length_filter": {"min_len": 1}},
    {"alphanumeric_filter": {"min_ratio": 0.6}},
    {"special_characters_filter": {"max_ratio": 0.4}},
    {"word_repetition_filter": {"rep_len": 10, "max_ratio": 0.1}},
    {"character_repetition_filter": {"rep_len": 10, "max_ratio": 0.2}},
    {
        "document_minhash_deduplicator": {
            "tokenization": "space",
            "window_size": 1,
            "num_permutations": 128,
            "jaccard_threshold": 0.8,
        }
    },
]


def measure(job: Job, figures: Figures) -> None:
    rows = job.read_rows()
    source, output = job.folder / "in.jsonl", job.folder / "kept" / "out.jsonl"
    with source.open("w") as lines:
        for row in rows:
            lines.write(json.dumps({"text": row["text"]}) + "\n")
    config = job.folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "project_name": "bench",
                "dataset_path": str(source),
                "export_path": str(output),
                "work_dir": str(job.folder / "work"),
                "np": 1,
                "open_monitor": False,
                "open_tracer": False,
                "use_cache": False,
                "turbo": True,
                "process": PROCESS,
            }
        )
    )
    with figures.clock():
        DefaultExecutor(init_configs(["--config", str(config)])).run()
    figures.documents = len(rows)
    figures.found = {"kept": sum(1 for _ in output.open("rb"))}


run_side(measure)
