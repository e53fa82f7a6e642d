"""The same by rouge_score, as Self-Instruct's code does it: each new instruction is scored with every one of the pool."""

from measurement import Figures, Job, run_side
from rouge_score import rouge_scorer


def measure(job: Job, figures: Figures) -> None:
    rows = job.read_rows()
    asked = min(job.options["asked"], job.options["most_asked"])
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    pool = [row["instruction"] for row in rows[: -job.options["asked"]]]
    questions = [row["instruction"] for row in rows[-job.options["asked"] :]][:asked]
    with figures.clock():
        best = [max(scorer.score(other, question)["rougeL"].fmeasure for other in pool) for question in questions]
    figures.documents = asked
    figures.found = {"best": best}


run_side(measure)
