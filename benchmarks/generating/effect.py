"""What growing a pool, rewriting and wordings do to public data, as far as it can be measured without asking a model.

    LLAMERO_DATA=<folder> python benchmarks/generating/effect.py [--instructions 52002]

Reads Self-Instruct's seed tasks and Alpaca's records; prints the tables of docs/data/generation.md, rewriting.md and templates.md.
"""

import argparse
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llamero.data.content import hash_content
from llamero.data.generating.recipe import settle_recipe
from llamero.data.generating.refusing import Refusals
from llamero.data.generating.seeds import Task, read_seeds
from llamero.data.steps.evolve import choose_operation
from llamero.data.steps.preserved import find_losses
from llamero.data.steps.record import Record
from llamero.model.bases import load_tokenizer
from llamero.model.templates import encode_conversations
from llamero.model.wordings import VARIANTS, choose_variant
from llamero.spec.job import DataSource
from llamero.spec.records import Message
from llamero.spec.steps import EvolveStep, GenerateSpec

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"url": "https://models.example.com/v1", "model": "none"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instructions", type=int, default=52_002, help="Alpaca's instructions that are put to a pool")
    arguments = parser.parse_args()
    folder = Path(os.environ["LLAMERO_DATA"])
    seeds = read_seeds(
        DataSource.model_validate({"uri": str(folder / "seed_tasks_selfinstruct.jsonl"), "format": "seed-tasks"})
    )
    rows = json.loads((folder / "alpaca_data.json").read_bytes())
    judge_seeds(seeds)
    judge_instructions(seeds, [row["instruction"] for row in rows[: arguments.instructions]])
    lose_something([row["output"] for row in rows])
    records = [build_record(row) for row in rows]
    choose_operations(records)
    word_prompts(records)


def build_refusals(variant: str, pool: list[str]) -> Refusals:
    return Refusals(settle_recipe(GenerateSpec.model_validate({"model": MODEL, "variant": variant})), pool)


def put_to(refusals: Refusals, instructions: list[str]) -> Counter[str]:
    """What becomes of instructions that come one after the other."""
    verdicts: Counter[str] = Counter()
    for instruction in instructions:
        drop = refusals.judge_instruction(instruction)
        verdicts[drop.rule if drop else "taken up"] += 1
        if drop is None:
            refusals.admit(instruction)
    return verdicts


def judge_seeds(seeds: list[Task]) -> None:
    kinds = sum(seed.is_classification is True for seed in seeds), sum(bool(seed.input) for seed in seeds)
    print(f"seeds: {len(seeds)}, classifications {kinds[0]}, with an input {kinds[1]}")
    for variant in ("self-instruct", "alpaca"):
        print(
            f"  as candidates of {variant}: {dict(put_to(build_refusals(variant, []), [s.instruction for s in seeds]))}"
        )


def judge_instructions(seeds: list[Task], instructions: list[str]) -> None:
    """Alpaca's instructions as candidates of a pool of the seeds, and the same with an edit of each tenth added."""
    for name, given in (
        ("alpaca", instructions),
        ("alpaca, each tenth again with a word changed", list(add_edits(instructions))),
    ):
        start = time.perf_counter()
        verdicts = put_to(build_refusals("alpaca", [seed.instruction for seed in seeds]), given)
        print(f"{name}: {len(given):,} candidates: {dict(verdicts)} in {time.perf_counter() - start:.1f} s")


def add_edits(instructions: list[str]) -> Iterator[str]:
    for number, instruction in enumerate(instructions):
        yield instruction
        words = instruction.split()
        if number % 10 == 0 and len(words) >= 5:
            words[len(words) // 2] = "something"
            yield " ".join(words)


def lose_something(answers: list[str]) -> None:
    """Answers rewritten by machine: unharmed (a sentence before, case and blanks), and with the last of their numbers, names or code gone."""
    kinds = ("code", "numbers", "names")
    patterns = {
        "code": re.compile(r"```[^\n]*\n.*?```|`[^`\n]+`", re.DOTALL),
        "numbers": re.compile(r"(?<![\w.,\n])\d{2,}(?![\w.,]*\d)(?<!\n..)"),
        "names": re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b"),
    }
    unharmed = sum(
        bool(find_losses(a, f"Of course. {' '.join(a.split(' '))}\nI hope that this is of use.", kinds))
        for a in answers
    )
    print(f"answers: {len(answers)}; rewritten without loss and quarantined: {unharmed}")
    for kind, pattern in patterns.items():
        has = found = 0
        for answer in answers:
            places = list(pattern.finditer(answer))
            if not places or answer.count(places[-1][0]) > 1:
                continue
            last = places[-1]
            has += 1
            found += bool(find_losses(answer, answer[: last.start()] + answer[last.end() :], kinds))
        print(f"  {kind}: {has} answers of which one is taken out, {found} quarantined ({found / max(1, has):.1%})")


def build_record(row: dict[str, str]) -> Record:
    turns = (Message("user", row["instruction"]), Message("assistant", row["output"]))
    return Record(0, "alpaca", "alpaca_data.json", 0, turns, row["input"])


def choose_operations(records: list[Record]) -> None:
    operations = EvolveStep.model_validate({"model": MODEL}).operations
    print(f"operations: {dict(Counter(choose_operation(record, operations, 0) for record in records).most_common())}")


def word_prompts(records: list[Record], sample: int = 5000) -> None:
    tokenizer = load_tokenizer(ROOT / "examples" / "tiny-base", "alpaca")
    rows = [(record.messages, record.input or None) for record in records[:sample]]
    chosen = [choose_variant(hash_content(record.messages, record.input)) for record in records]
    print(f"wordings of {len(records)} records: {dict(sorted(Counter(chosen).items()))}")
    lengths = []
    for variant in range(VARIANTS):
        encoded = encode_conversations(tokenizer, rows, variants=[variant] * len(rows))
        lengths.append(np.mean([len(e.ids) - int(e.mask.sum()) for e in encoded]))
    print(
        f"  mean tokens of a prompt by wording (tiny-base, {sample} records): {[round(float(n), 1) for n in lengths]}"
    )
    mixed = encode_conversations(tokenizer, rows, variants=chosen[:sample])
    whole = {"alpaca": encode_conversations(tokenizer, rows), "mixed": mixed}
    for name, encoded in whole.items():
        tokens, trained = sum(len(e.ids) for e in encoded), sum(int(e.mask.sum()) for e in encoded)
        print(f"  {name}: {tokens} tokens, {trained} of them trained")


if __name__ == "__main__":
    main()
