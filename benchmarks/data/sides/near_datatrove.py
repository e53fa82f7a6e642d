"""Near duplicates by datatrove's four stages of MinHash, files to files."""

import json

from measurement import Figures, Job, run_side
from pipelines import count_lines, remove_near_duplicates


def measure(job: Job, figures: Figures) -> None:
    source = job.folder / "source"
    source.mkdir()
    rows = job.read_rows()
    with (source / "in.jsonl").open("w") as lines:
        for number, row in enumerate(rows):
            lines.write(json.dumps({"id": str(number), "text": row["text"]}) + "\n")
    with figures.clock():
        remove_near_duplicates(source, job.folder, job.folder / "kept")
    figures.documents = len(rows)
    figures.found = {"kept": count_lines(job.folder / "kept")}


run_side(measure)
