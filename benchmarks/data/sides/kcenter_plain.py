"""Greedy k-center as it is commonly written: after each choice one distance from it to every vector."""

import json

import numpy as np
from measurement import Figures, Job, run_side
from vectors import make_vectors, measure_radius


def measure(job: Job, figures: Figures) -> None:
    vectors, centres, count = make_vectors(job.size, job.options)
    with figures.clock():
        chosen = list(dict.fromkeys(centres.tolist()))[:count]
        nearest = np.full(len(vectors), np.inf, dtype=np.float32)
        for index in chosen:
            np.minimum(nearest, 2 - 2 * (vectors @ vectors[index]), out=nearest)
        while len(chosen) < count:
            index = int(nearest.argmax())
            chosen.append(index)
            np.minimum(nearest, 2 - 2 * (vectors @ vectors[index]), out=nearest)
    figures.documents = job.size
    figures.found = {"chosen": len(chosen), "radius": measure_radius(vectors, np.array(chosen))}
    (job.folder / "chosen.json").write_text(json.dumps(chosen))


run_side(measure)
