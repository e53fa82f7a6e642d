"""Near duplicates by rensa: a sketch of each text's words, then its index of bands asked about each; as its documentation shows."""

from measurement import Figures, Job, run_side
from rensa import RMinHash, RMinHashLSH

PERMUTATIONS, THRESHOLD = 128, 0.8


def measure(job: Job, figures: Figures) -> None:
    texts = [row["text"] for row in job.read_rows()]
    with figures.clock():
        index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=16)
        sketches = []
        for number, text in enumerate(texts):
            sketch = RMinHash(num_perm=PERMUTATIONS, seed=42)
            sketch.update(text.split())
            index.insert(number, sketch)
            sketches.append(sketch)
        candidates = sum(len(index.query(sketch)) - 1 for sketch in sketches) // 2
    with_apart = Figures()
    with with_apart.clock():
        for number, sketch in enumerate(sketches):
            for other in index.query(sketch):
                if other < number:
                    sketch.jaccard(sketches[other])
    figures.documents = len(texts)
    figures.found = {"candidates": candidates, "verify_seconds": with_apart.wall_seconds}


run_side(measure)
