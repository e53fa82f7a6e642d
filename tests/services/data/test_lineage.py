"""What became of a record, by id and by place; and that what can't be found is told."""

import pytest

from llamero.data import lineage
from llamero.data.errors import DataError
from llamero.data.lineage import explain

ROWS = [
    ("Name a river of France", "The Rhone runs through Lyon to the sea"),
    ("Name a river of Italy", "No"),
    ("Who wrote this?", "Ask me at someone@example.org about all of that"),
    ("Name a river of France", "The **Rhone** runs through Lyon to the sea"),
    ("Nothing follows", ""),
    ("Tell a long story", "A story of many words that goes on"),
]
STEPS = [
    {"length": {"unit": "words", "min": 3}},
    {"threshold": {"score": "answerWords", "max": 9}},
    {"personalData": {}},
]


@pytest.fixture
def folder(prepare, write_alpaca):
    source = {"uri": str(write_alpaca(ROWS)), "format": "alpaca", "name": "facts"}
    return prepare([source], steps=STEPS, evaluation_fraction=0).folder


def find(folder, name: str) -> lineage.Explained:
    (found,) = explain(folder, name).found
    return found


def test_a_kept_record_is_found_by_its_place_and_by_its_id(folder):
    found = find(folder, "facts:1")
    assert (found.outcome, found.side, found.part, found.examples) == (
        "kept",
        "train",
        "train/part-00000.jsonl",
        (found.id,),
    )
    assert found.steps == ("length", "threshold", "personalData")
    assert "Rhone" in found.text
    story = find(folder, "facts:6")
    assert find(folder, "alpaca.json:6") == find(folder, story.id) == find(folder, story.id[:12]) == story


def test_what_changed_a_record_is_told(folder):
    found = find(folder, "facts:3")
    assert found.changed_by == ("personalData",)
    assert "changed by `personalData`" in found.detail
    assert "example.org" not in found.text


def test_a_rejected_record_names_step_rule_value_and_threshold(folder):
    found = find(folder, "facts:2")
    assert (found.outcome, found.reason, found.rule, found.value, found.threshold) == (
        "rejected",
        "length",
        "min",
        1,
        3,
    )
    assert found.step is not None
    assert (found.step.number, found.step.kind, found.steps) == (1, "length", ())
    assert "step 1, `length`" in found.detail
    assert find(folder, found.id) == found


def test_a_repeated_record_names_the_one_that_it_repeats(folder):
    (kept, repeat) = explain(folder, find(folder, "facts:4").id).found
    assert repeat.repeats is not None
    assert (kept.line, repeat.line, repeat.repeats["line"], repeat.repeats["id"]) == (1, 4, 1, kept.id)
    assert (repeat.reason, repeat.step) == ("duplicate", None)


def test_chunks_of_a_record_are_one(prepare, tmp_path):
    import json

    turns = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " + "word " * 20} for i in range(20)]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns}))
    source = {"uri": str(path), "format": "messages", "name": "chat"}
    folder = prepare([source], "chunked", sequence_length=512, evaluation_fraction=0).folder
    found = find(folder, "chat:1")
    assert len(found.examples) > 1 and all(name.startswith(found.id) for name in found.examples)
    assert f"as {len(found.examples)} chunks" in found.detail
    assert find(folder, found.examples[-1]) == found


@pytest.mark.parametrize(
    "name, words",
    [
        ("facts:77", "has no record at line 77"),
        ("elsewhere:1", "Nothing stands at elsewhere:1. The sources are facts"),
        ("ffffffffffff", "No record of this data has an id that begins with ffffffffffff"),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(folder, name, words):
    explanation = explain(folder, name)
    assert explanation.found == ()
    assert words in explanation.sentence


@pytest.mark.parametrize("name", ["", "abc", "no such thing", ":4", "facts:x"])
def test_what_names_no_record_is_refused(folder, name):
    with pytest.raises(DataError, match="names no record"):
        explain(folder, name)


def test_a_folder_without_finished_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no finished data"):
        explain(tmp_path, "facts:1")


def test_of_many_that_fit_the_first_are_told(folder, monkeypatch):
    monkeypatch.setattr(lineage, "MOST_FOUND", 1)
    explanation = explain(folder, find_repeat(folder))
    assert len(explanation.found) == 1
    assert "More than 1 records" in explanation.sentence


def find_repeat(folder) -> str:
    return explain(folder, "facts:4").found[0].id
