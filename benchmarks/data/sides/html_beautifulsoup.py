"""HTML bodies to text by BeautifulSoup on lxml's parser."""

from bs4 import BeautifulSoup
from measurement import Figures, Job, run_side, write_rows


def measure(job: Job, figures: Figures) -> None:
    bodies = [row["body"] for row in job.read_rows()]
    texts: list[str] = []
    for _ in range(job.options["loops"]):
        with figures.clock():
            texts = [BeautifulSoup(body, "lxml").get_text() for body in bodies]
        figures.documents += len(texts)
    write_rows(job.folder / "texts.jsonl", texts)


run_side(measure)
