"""Gopher's quality and repetition rules by datatrove's filters: each document by both, as llamero's side does.

Outside the clock: the tokens that its filters saw, taken from its own cache of the last document.
"""

from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import split_into_words
from measurement import Figures, Job, run_side, write_rows


def measure(job: Job, figures: Figures) -> None:
    documents = [Document(text=row["text"], id=str(number)) for number, row in enumerate(job.read_rows())]
    quality, repetition = GopherQualityFilter(), GopherRepetitionFilter()
    quality.filter(Document(text="The tokeniser is loaded by this.", id="first"))
    rows = []
    for document in documents:
        with figures.clock():
            verdicts = quality.filter(document), repetition.filter(document)
        passes = [verdict is True for verdict in verdicts]
        rows.append({"quality": passes[0], "repetition": passes[1], "tokens": split_into_words(document.text)})
    figures.documents = len(documents)
    figures.found["kept"] = sum(row["quality"] and row["repetition"] for row in rows)
    write_rows(job.folder / "tokens.jsonl", rows)


run_side(measure)
