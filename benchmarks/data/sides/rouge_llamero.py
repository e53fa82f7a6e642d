"""Self-Instruct's check by llamero: the best ROUGE-L F of each new instruction against a pool."""

import time

from measurement import Figures, Job, run_side

from llamero.data.rouge import RougePool


def measure(job: Job, figures: Figures) -> None:
    rows = job.read_rows()
    asked = job.options["asked"]
    start = time.perf_counter()
    pool = RougePool(job.options["limit"], [row["instruction"] for row in rows[:-asked]])
    figures.found["build_seconds"] = time.perf_counter() - start
    with figures.clock():
        best = [pool.best(row["instruction"]) for row in rows[-asked:]]
    figures.documents = asked
    figures.found["best"] = best


run_side(measure)
