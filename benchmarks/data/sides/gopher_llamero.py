"""Gopher's quality and repetition rules by llamero's steps of the profile `gopher-strict`, from records to verdicts.

Outside the clock: the verdicts on the very tokens of the other side, where there are some (`options.tokens`), for the parity.
"""

import json
from pathlib import Path

from measurement import Figures, Job, run_side

from llamero.data.steps import quality, repetition
from llamero.data.steps.quality import judge_texts
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.repetition import judge_repetition
from llamero.data.steps.verdicts import find_first_failures
from llamero.data.words import iterate_batches, join_texts, take_words
from llamero.spec.profiles import PROFILES
from llamero.spec.records import Message
from llamero.spec.steps import QualityStep, RepetitionStep

QUALITY = QualityStep.model_validate(PROFILES["gopher-strict"][0]["quality"])
REPETITION = RepetitionStep.model_validate(PROFILES["gopher-strict"][1]["repetition"])


def measure(job: Job, figures: Figures) -> None:
    rows = job.read_rows()
    records = [build_record(number, row) for number, row in enumerate(rows)]
    context = StepContext(seed=0, base=None, answers="", workers=1, fetch=Path)
    with figures.clock():
        steps = [quality.build(QUALITY, context), repetition.build(REPETITION, context)]
        results = [step.apply(records) for step in steps]
    figures.documents = len(records)
    kept = [all(not isinstance(step[number], Drop) for step in results) for number in range(len(records))]
    figures.found["kept"] = sum(kept)
    if tokens := job.options.get("tokens"):
        figures.found |= compare(Path(tokens), [row["text"] for row in rows], kept)


def build_record(number: int, row: dict) -> Record:
    messages = (Message("user", row["instruction"]), Message("assistant", row["output"]))
    return Record(number, "alpaca", "alpaca", number + 1, messages, row["input"])


def compare(path: Path, texts: list[str], kept: list[bool]) -> dict:
    """How often the verdicts are equal: of both filters on given tokens, of each of them, and with llamero's own words."""
    same = {"parity": 0, "parity_quality": 0, "parity_repetition": 0, "parity_own_words": 0}
    others: list[dict] = []
    with path.open() as lines:
        others = [json.loads(line) for line in lines]
    differing = []
    for start, end in iterate_batches(texts):
        joined, words = join_texts(texts[start:end]), take_words([row["tokens"] for row in others[start:end]])
        good = find_first_failures(judge_texts(QUALITY, joined, words)) < 0
        fresh = find_first_failures(judge_repetition(REPETITION, joined, words)) < 0
        for number in range(start, end):
            other = others[number]
            is_good, is_fresh = bool(good[number - start]), bool(fresh[number - start])
            theirs = other["quality"] and other["repetition"]
            same["parity_quality"] += is_good == other["quality"]
            same["parity_repetition"] += is_fresh == other["repetition"]
            same["parity"] += (is_good and is_fresh) == theirs
            same["parity_own_words"] += kept[number] == theirs
            if (is_good and is_fresh) != theirs:
                differing.append(number)
    return {name: count / len(texts) for name, count in same.items()} | {"differing": differing[:20]}


run_side(measure)
