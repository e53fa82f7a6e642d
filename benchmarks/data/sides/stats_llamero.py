"""`llamero data stats` on a file, as a person calls it: the whole command, its start included."""

import subprocess
import sys

from measurement import Figures, Job, run_side
from recipe_llamero import cut


def measure(job: Job, figures: Figures) -> None:
    source = cut(job)
    command = [sys.executable, "-m", "llamero", "data", "stats", str(source)]
    with figures.clock():
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    figures.documents = job.size
    figures.found = {"lines": len(ended.stdout.splitlines())}


run_side(measure)
