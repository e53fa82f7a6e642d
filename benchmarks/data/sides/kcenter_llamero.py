"""Greedy k-center by llamero."""

import json

from measurement import Figures, Job, run_side
from vectors import make_vectors, measure_radius

from llamero.data.choosing import k_center


def measure(job: Job, figures: Figures) -> None:
    vectors, centres, count = make_vectors(job.size, job.options)
    with figures.clock():
        chosen = k_center(vectors, centres, count)
    figures.documents = job.size
    figures.found = {"chosen": len(chosen), "radius": measure_radius(vectors, chosen)}
    (job.folder / "chosen.json").write_text(json.dumps(chosen.tolist()))


run_side(measure)
