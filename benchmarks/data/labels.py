"""How far cheap scores agree with AlpaGasus's published selection of Alpaca: a yardstick for choosing without a judge.

    python benchmarks/data/labels.py [--scored 6000] [--base examples/tiny-base] [--output FILE]

Reads alpaca_data.json and alpagasus_claude_t45.json from the folder that LLAMERO_DATA names. Prints a table in Markdown, and at the end a line of
JSON. Each score orders the records; what is told is which share of the published selection stands among as many first records as it has (a
random order finds its share of the whole), and the area under the ROC curve (a random order: 0.5). Perplexity and IFD are measured on a part of the
records, chosen by content hash, since a model has to read them.
"""

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "services"))

from llamero.data.choosing import hashed, k_center, keep_dissimilar  # noqa: E402
from llamero.data.choosing.clusters import assign, find_k_means  # noqa: E402
from llamero.data.choosing.greedy import find_nearest  # noqa: E402
from llamero.data.choosing.neighbours import measure_neighbours  # noqa: E402
from llamero.data.choosing.tables import allot, hash_record  # noqa: E402
from llamero.data.near import find_near_duplicates  # noqa: E402
from llamero.data.steps import score  # noqa: E402
from llamero.data.steps.rank import scale  # noqa: E402
from llamero.data.steps.record import Record, StepContext  # noqa: E402
from llamero.spec.profiles import PROFILES  # noqa: E402
from llamero.spec.records import Message  # noqa: E402
from llamero.spec.steps import ScoreStep  # noqa: E402

SAMPLE = 20_000
DIMENSIONS = 256
CLUSTERS = 64
FOLDS = 5

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """A line of the table: an order of records, over all of them or over those that a model read."""

    name: str
    over: str
    found: float
    expected: float
    auc: float


@dataclass(frozen=True)
class Choice:
    """A set of as many records as the selection has. Distances are to the nearest chosen record: the greatest, and the mean of all records."""

    name: str
    found: float
    median_answer_words: float
    covering_radius: float
    mean_distance: float


def main() -> int:
    options = parse_options()
    started = time.monotonic()
    data = Path(os.environ.get("LLAMERO_DATA", REPOSITORY.parent / "shared" / "data"))
    alpaca, published = (read_rows(data / name) for name in ("alpaca_data.json", "alpagasus_claude_t45.json"))
    chosen, matches = match(alpaca, published)
    has_answer = np.array([bool(row["output"].strip()) for row in alpaca])
    records = [build_record(i, row) for i, row in enumerate(alpaca) if has_answer[i]]
    labels = chosen[has_answer]
    note(f"{len(records):,} records with an answer, {labels.sum():,} of them in the published selection")
    scores, vectors = measure_all(records)
    read = choose_read(records, options.scored)
    model_scores = measure_by_model(records, read, options.base) if len(read) else {}
    rows = compare(scores, model_scores, labels, read, options.seed)
    sets = choose_all(scores, vectors, labels, options.seed)
    choices = [describe_choice(name, chosen, scores, vectors, labels) for name, chosen in sets.items()]
    print(write_head(options, records, labels, matches, read))
    print(write_table(rows))
    print(write_choices(choices))
    figures = {f"{r.name} ({r.over})": {"found": r.found, "expected": r.expected, "auc": r.auc} for r in rows}
    result = {"benchmark": "labels", "records": len(records), "selected": int(labels.sum()), "matches": matches}
    result |= {"seconds": round(time.monotonic() - started, 1), "marks": {}, "figures": figures}
    result["choices"] = {c.name: {k: v for k, v in vars(c).items() if k != "name"} for c in choices}
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scored", type=int, default=6000, help="records that the model reads (default 6000; 0: none)")
    parser.add_argument("--base", type=Path, default=REPOSITORY / "examples" / "tiny-base", help="the model's folder")
    parser.add_argument("--seed", type=int, default=0, help="for ties and the random order")
    parser.add_argument("--output", type=Path, help="a file for all figures, as JSON")
    return parser.parse_args()


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        sys.exit(f"{path} is not there: set LLAMERO_DATA to the folder that holds it.")
    rows: list[dict[str, str]] = json.loads(path.read_text())
    return rows


def build_record(number: int, row: dict[str, str]) -> Record:
    messages = (Message("user", row["instruction"]), Message("assistant", row["output"]))
    return Record(number, "alpaca", "alpaca_data.json", number + 1, messages, row["input"])


# -- labels ----------------------------------------------------------------------------------------------------------------------


def match(alpaca: Sequence[dict[str, str]], published: Sequence[dict[str, str]]) -> tuple[Mask, dict[str, int]]:
    """Which of Alpaca's records are in the published selection, and by what they were found.

    Each published record takes the first free one that is equal in all fields; else equal but for case, blanks and marks; else the only free
    one with the same instruction and input.
    """
    chosen = np.zeros(len(alpaca), bool)
    found: Counter[str] = Counter()
    left = list(published)
    for name, make_key in (("exact", key_exactly), ("folded", key_folded), ("by prompt", key_prompt)):
        places: dict[Any, list[int]] = {}
        for i, row in enumerate(alpaca):
            if not chosen[i]:
                places.setdefault(make_key(row), []).append(i)
        rest = []
        for row in left:
            free = places.get(make_key(row), [])
            if free and (name != "by prompt" or len(free) == 1):
                chosen[free.pop(0)] = True
                found[name] += 1
            else:
                rest.append(row)
        left = rest
    return chosen, {"published": len(published), **found, "unmatched": len(left)}


def key_exactly(row: dict[str, str]) -> tuple[str, ...]:
    return row["instruction"], row["input"], row["output"]


def key_folded(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(re.sub(r"\W+", " ", part).casefold().strip() for part in key_exactly(row))


def key_prompt(row: dict[str, str]) -> tuple[str, ...]:
    return key_folded(row)[:2]


# -- scores ----------------------------------------------------------------------------------------------------------------------


def measure_all(records: Sequence[Record]) -> tuple[dict[str, Scores], NDArray[np.float32]]:
    """What needs no model, for all records; and their vectors."""
    vectors = embed(records)
    note("embedded")
    near = find_near_duplicates([r.text for r in records])
    is_member = np.zeros(len(records))
    is_member[np.unique(near.pairs)] = 1
    note(f"{int(is_member.sum()):,} records have a near duplicate")
    sample = choose_read(records, SAMPLE)
    _, rarity = assign(vectors, find_k_means(vectors[sample], CLUSTERS))
    neighbours = measure_neighbours(vectors, np.arange(len(vectors)))
    note("neighbours measured")
    return {
        "answerWords": np.array([len(r.answer.split()) for r in records], float),
        "promptWords": np.array([len(r.prompt.split()) for r in records], float),
        "nearDuplicate": is_member,
        "neighbourDistance": neighbours.astype(float),
        "rarity": rarity.astype(float),
    }, vectors


def embed(records: Sequence[Record]) -> NDArray[np.float32]:
    counter = hashed.WordCounter()
    counts = hashed.Counts.join(
        [counter.count([r.text for r in records[i : i + 2048]]) for i in range(0, len(records), 2048)]
    )
    sample = counts.take(choose_read(records, SAMPLE))
    projection = hashed.fit_projection(len(counts), hashed.count_documents(counts), sample, DIMENSIONS)
    return projection.apply(counts).astype(np.float16).astype(np.float32)


def choose_read(records: Sequence[Record], count: int) -> NDArray[np.int64]:
    """The records that come first by content hash, in that order."""
    return np.argsort(np.array([hash_record(r) for r in records], np.uint64), kind="stable")[:count]


def measure_by_model(records: Sequence[Record], read: NDArray[np.int64], base: Path) -> dict[str, Scores]:
    """Perplexity and IFD of the records read, by the `score` step itself; NaN where it gives none."""
    context = StepContext(seed=0, base=base, answers="", workers=1, fetch=lambda uri: Path(uri))
    step = score.build(ScoreStep(indicators=["perplexity", "ifd"]), context)
    found: dict[str, list[float]] = {"perplexity": [], "ifd": []}
    for start in range(0, len(read), 500):
        for scored in step.apply([records[i] for i in read[start : start + 500]]):
            for name, values in found.items():
                values.append(scored.scores.get(name, np.nan) if isinstance(scored, Record) else np.nan)
        note(f"{start + 500:,} records read by the model")
    return {name: np.array(values) for name, values in found.items()}


# -- comparison ------------------------------------------------------------------------------------------------------------------


def compare(
    scores: dict[str, Scores],
    model_scores: dict[str, Scores],
    labels: Mask,
    read: NDArray[np.int64],
    seed: int,
) -> list[Row]:
    random = np.random.default_rng(seed).random(len(labels))
    everywhere = {
        "random": random,
        "answer length, longest first": scores["answerWords"],
        "answer length, shortest first": -scores["answerWords"],
        "prompt length, longest first": scores["promptWords"],
        "prompt length, shortest first": -scores["promptWords"],
        "no near duplicate": -scores["nearDuplicate"],
        "neighbour distance, farthest first": scores["neighbourDistance"],
        "rarity, rarest first": scores["rarity"],
        "Instruction Mining's rule without reward": mine(scores),
        f"linear fit to the labels, {FOLDS}-fold": fit(list(scores.values()), labels, seed),
    }
    rows = [judge(name, "all", values, labels, seed) for name, values in everywhere.items()]
    if len(read):
        own = labels[read]
        filled = {name: np.where(np.isnan(v), np.nanmedian(v), v) for name, v in model_scores.items()}
        by_model = {
            "random": random[read],
            "answer length, shortest first": -scores["answerWords"][read],
            "perplexity, lowest first": -filled["perplexity"],
            "perplexity, highest first": filled["perplexity"],
            "IFD, highest first": filled["ifd"],
            "IFD, lowest first": -filled["ifd"],
            "IFD, highest first, only below 1": np.where(filled["ifd"] < 1, filled["ifd"], -1),
            f"linear fit with perplexity and IFD, {FOLDS}-fold": fit(
                [*(v[read] for v in scores.values()), np.log(filled["perplexity"]), filled["ifd"]], own, seed
            ),
        }
        rows += [judge(name, f"{len(read):,} read", values, own, seed) for name, values in by_model.items()]
    return rows


def judge(name: str, over: str, values: Scores, labels: Mask, seed: int) -> Row:
    """The share of the selection among as many first records as it has, ties drawn at random; and the AUC, ties counted half."""
    order = np.lexsort((np.random.default_rng(seed + 1).random(len(values)), -values))
    count = int(labels.sum())
    return Row(
        name,
        over,
        round(float(labels[order[:count]].mean()), 4),
        round(float(labels.mean()), 4),
        measure_auc(values, labels),
    )


def choose_all(
    scores: dict[str, Scores], vectors: NDArray[np.float32], labels: Mask, seed: int
) -> dict[str, NDArray[np.int64]]:
    """As many records as the published selection has, by each way of choosing that works without a judge."""
    count = int(labels.sum())
    centres = find_k_means(vectors[np.random.default_rng(seed).permutation(len(vectors))[:SAMPLE]], CLUSTERS)
    clusters, _ = assign(vectors, centres)
    longest = np.argsort(-scores["answerWords"], kind="stable")
    different, _, _ = keep_dissimilar(vectors[longest], 0.9, count)
    weighted = scale(scores["answerWords"]) + scale(scores["rarity"])
    shares = allot(np.bincount(clusters, minlength=len(centres)), count)
    best = [np.flatnonzero(clusters == c) for c in range(len(centres))]
    ranked = [own[np.argsort(-weighted[own], kind="stable")[:share]] for own, share in zip(best, shares, strict=True)]
    return {
        "random": np.random.default_rng(seed).permutation(len(labels))[:count],
        "kCenter": k_center(vectors, centres, count),
        "diversity by answerWords": longest[different],
        "rank by answerWords and rarity": np.concatenate(ranked),
        "mining by the published rule": np.argsort(-mine(scores), kind="stable")[:count],
        "published selection (a judge's)": np.flatnonzero(labels),
    }


def describe_choice(
    name: str, chosen: NDArray[np.int64], scores: dict[str, Scores], vectors: NDArray[np.float32], labels: Mask
) -> Choice:
    _, distances = find_nearest(vectors, chosen)
    return Choice(
        name,
        round(float(labels[chosen].mean()), 4),
        float(np.median(scores["answerWords"][chosen])),
        round(float(distances.max()), 3),
        round(float(distances.mean()), 3),
    )


def mine(scores: dict[str, Scores]) -> Scores:
    """Instruction Mining's rule, greatest first."""
    rule: dict[str, float] = PROFILES["instruction-mining"][0]["mining"]["coefficients"]
    return -np.sum([weight * scores[name] for name, weight in rule.items()], axis=0)


def measure_auc(values: Scores, labels: Mask) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(values)
    positive, negative = int(labels.sum()), int((~labels).sum())
    return round(float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative)), 4)


def fit(columns: Sequence[Scores], labels: Mask, seed: int) -> Scores:
    """Each record's log-odds by a logistic regression on the other folds: what these scores together could know, had one the labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table = np.stack([np.log1p(c) if c.min() >= 0 else c for c in columns], axis=1)
    folds = np.random.default_rng(seed + 2).integers(FOLDS, size=len(labels))
    odds = np.zeros(len(labels))
    for fold in range(FOLDS):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(table[folds != fold], labels[folds != fold])
        odds[folds == fold] = model.decision_function(table[folds == fold])
    return odds


# -- words -----------------------------------------------------------------------------------------------------------------------


def write_head(
    options: argparse.Namespace,
    records: Sequence[Record],
    labels: Mask,
    matches: dict[str, int],
    read: NDArray[np.int64],
) -> str:
    found = ", ".join(f"{count:,} {name}" for name, count in matches.items())
    return (
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {len(records):,} records with an answer, {labels.sum():,} of them published. "
        f"Labels: {found}. Model: {options.base.name}, {len(read):,} records.\n"
    )


def write_table(rows: Sequence[Row]) -> str:
    lines = ["| order | over | of the selection found | by chance | times chance | AUC |", "|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(
            f"| {r.name} | {r.over} | {r.found:.1%} | {r.expected:.1%} | {r.found / r.expected:.2f} | {r.auc:.3f} |"
        )
    return "\n".join(lines)


def write_choices(choices: Sequence[Choice]) -> str:
    lines = [
        "",
        "| chosen by | of the selection found | median words of an answer | covering radius | mean distance |",
        "|---|---|---|---|---|",
    ]
    for c in choices:
        lines.append(
            f"| {c.name} | {c.found:.1%} | {c.median_answer_words:g} | {c.covering_radius:.3f} | {c.mean_distance:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
