"""Near duplicates by llamero: sketches, pairs that meet in a band, pairs verified; the verification is timed apart.

Outside the clock, for rows that say of which other row they are an edited copy (`of`): which of those pairs are found, and how alike
all found pairs are, by plain sets of their words.
"""

from measurement import Figures, Job, run_side

from llamero.data.near import NearDuplicates, find_near_duplicates
from llamero.data.near.words import hash_words
from llamero.spec.steps import NearDuplicatesStep


def measure(job: Job, figures: Figures) -> None:
    rows = job.read_rows()
    texts = [row["text"] for row in rows]
    options = NearDuplicatesStep()
    with figures.clock():
        result = find_near_duplicates(texts, options)
    apart = result.seconds["verify"]
    figures.wall_seconds -= apart
    figures.cpu_seconds -= apart
    figures.documents = len(texts)
    figures.found = {"verify_seconds": apart, "candidates": result.candidates, "pairs": len(result.pairs)}
    planted = {(row["of"], number) for number, row in enumerate(rows) if "of" in row}
    if planted:
        figures.found |= compare(texts, planted, result, options.threshold)


def compare(texts: list[str], planted: set[tuple[int, int]], result: NearDuplicates, threshold: float) -> dict:
    """Recall of the planted pairs: of all, and of those that are alike by the exact measure; precision of what was found."""
    words = hash_words(texts)
    sets = [
        frozenset(words.hashes[start:end].tolist())
        for start, end in zip(words.offsets[:-1].tolist(), words.offsets[1:].tolist(), strict=True)
    ]

    def is_alike(pair: tuple[int, int]) -> bool:
        left, right = sets[pair[0]], sets[pair[1]]
        return len(left & right) >= threshold * len(left | right) - 1e-9

    found = {(min(pair), max(pair)) for pair in result.pairs.tolist()}
    alike = {pair for pair in planted if is_alike(pair)}
    return {
        "planted": len(planted),
        "planted_alike": len(alike),
        "recall_of_planted": len(planted & found) / len(planted),
        "recall": len(alike & found) / max(1, len(alike)),
        "precision": sum(map(is_alike, found)) / max(1, len(found)),
    }


run_side(measure)
