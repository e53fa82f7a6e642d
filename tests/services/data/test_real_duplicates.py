"""Duplicates and overlaps in the real data sets: what the docs tell of them."""

import json
import unicodedata
from pathlib import Path

import numpy as np
from services.data.set_runner import SetRunner, make_record

from llamero.data.near import find_near_duplicates
from llamero.data.steps import decontaminate
from llamero.spec.steps import DecontaminateStep


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_alpacas_near_duplicates_are_few_and_none_differs_in_a_number(real_data):
    rows = json.loads((real_data / "alpaca_data.json").read_text())
    texts = ["\n\n".join(t for t in (r["instruction"], r["input"], r["output"]) if t) for r in rows]
    found = find_near_duplicates(texts)
    assert len(found.pairs) == 41 and len(texts) - len(found.kept) == 34
    assert (found.similarities >= 0.75).all()

    def read_digits(text: str) -> str:
        return "".join(c for c in unicodedata.normalize("NFKC", text) if c.isdigit())

    for left, right in found.pairs.tolist():
        assert read_digits(texts[left]) == read_digits(texts[right])
    assert np.isin(found.favoured[found.favoured >= 0], found.kept).all()


def test_few_training_problems_of_gsm8k_overlap_its_test_set(real_data, tmp_path):
    rows = read_lines(real_data / "gsm8k_train.jsonl")
    records = [make_record(i, row["question"], row["answer"]) for i, row in enumerate(rows)]
    options = DecontaminateStep.model_validate({"against": [{"uri": str(real_data / "gsm8k_test.jsonl")}]})
    found = SetRunner(tmp_path).run(decontaminate.build(options), records, 2)
    assert len(found.drops) == 14
    assert set(found.dropped_lines.values()) == {"ngram in gsm8k_test.jsonl"}
    questions = [row["question"] for row in read_lines(real_data / "gsm8k_test.jsonl")]
    assert not set(questions) & {r.messages[0].content for r in found.kept}
