"""datatrove's equivalent of the default recipe, files to files: Gopher's two filters, then MinHash in four stages.

The least number of words is off, as in llamero's default profile, so that all records reach the other rules.
"""

import json

from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from measurement import Figures, Job, run_side
from pipelines import count_lines, remove_near_duplicates, run_stage


def measure(job: Job, figures: Figures) -> None:
    source, filtered, kept = (job.folder / name for name in ("source", "filtered", "kept"))
    source.mkdir()
    rows = job.read_rows()
    with (source / "in.jsonl").open("w") as lines:
        for number, row in enumerate(rows):
            lines.write(json.dumps({"id": str(number), "text": row["text"]}) + "\n")
    with figures.clock():
        run_stage(
            [
                JsonlReader(str(source)),
                GopherQualityFilter(min_doc_words=None),
                GopherRepetitionFilter(),
                JsonlWriter(str(filtered), compression=None),
            ]
        )
        remove_near_duplicates(filtered, job.folder, kept)
    figures.documents = len(rows)
    figures.found = {"kept": count_lines(kept)}


run_side(measure)
