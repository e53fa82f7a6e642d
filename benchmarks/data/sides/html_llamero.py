"""HTML bodies to Markdown by llamero."""

from measurement import Figures, Job, run_side, write_rows

from llamero.data.html import convert_html


def measure(job: Job, figures: Figures) -> None:
    bodies = [row["body"] for row in job.read_rows()]
    texts: list[str] = []
    for _ in range(job.options["loops"]):
        with figures.clock():
            texts = [convert_html(body) for body in bodies]
        figures.documents += len(texts)
    write_rows(job.folder / "texts.jsonl", texts)


run_side(measure)
