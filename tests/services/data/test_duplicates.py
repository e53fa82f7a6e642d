"""The duplicates step: one record a key, whichever is wanted, however the records lie in shards."""

import random

import pytest
from services.data.set_runner import SetRunner, make_record

from llamero.data.content import hash_prompt
from llamero.data.errors import DataError
from llamero.data.readers.records import parse_record
from llamero.data.readers.sharegpt import parse_sharegpt
from llamero.data.selection import is_held_out
from llamero.data.steps import duplicates
from llamero.spec.job import ColumnMapping
from llamero.spec.profiles import PROFILES
from llamero.spec.steps import DuplicatesStep


def run(tmp_path, records, shards=1, order="given", doubled=False, fraction=0.0, **options):
    step = duplicates.build(DuplicatesStep.model_validate(options))
    return SetRunner(tmp_path, order, doubled).run(step, records, shards, evaluation_fraction=fraction)


RECORDS = [
    make_record(0, "Name a fruit.", "An apple."),
    make_record(1, "name  a FRUIT.", "A pear, which is sweet.", scores={"judge": 3.0}),
    make_record(2, "Name a fruit!", "A plum."),
    make_record(3, "Name a fruit.", "A fig.", scores={"judge": 5.0}),
    make_record(4, "Name a fruit.", "A quince.", input="It is yellow."),
]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"by": "prompt", "keep": "longest"}, [2, 3, 5]),
        ({"by": "prompt", "keep": "first"}, [1, 3, 5]),
        ({"by": "prompt", "keep": "best", "score": "judge"}, [3, 4, 5]),
        ({"by": "record"}, [1, 2, 3, 4, 5]),
    ],
)
def test_one_record_a_key_stays(tmp_path, options, kept):
    for shards in (1, 2, 5):
        assert run(tmp_path, RECORDS, shards, **options).kept_lines == kept


def test_equal_records_are_the_same_whatever_their_form(tmp_path):
    records = [
        make_record(0, "Say **hi**", "Hi there"),
        make_record(1, "say hi", "hi  there"),
        make_record(2, "say hi", "ho"),
    ]
    assert run(tmp_path, records, by="record", keep="first").dropped_lines == {2: "record"}


def test_ids_count_within_a_source_and_records_without_one_all_stay(tmp_path):
    records = [
        make_record(0, "a", "b", meta={"sourceId": "7"}),
        make_record(1, "c", "d", meta={"sourceId": "7"}),
        make_record(2, "e", "f", meta={"sourceId": "7"}, source="other"),
        make_record(3, "g", "h"),
        make_record(4, "i", "j"),
    ]
    assert run(tmp_path, records, 2, by="id", keep="first").dropped_lines == {2: "id"}


def test_readers_keep_the_id_that_this_needs():
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert parse_sharegpt({"id": "x1", "conversations": turns}).meta["sourceId"] == "x1"
    row = {"q": "a", "a": "b", "key": 5}
    assert parse_record(row, ColumnMapping(instruction="q", output="a", id="key")).meta["sourceId"] == "5"


def test_first_turns_are_the_first_question_and_its_answer(tmp_path):
    records = [
        make_record(0, "hello", "hi", turns=("and now", "this")),
        make_record(1, "Hello", "hi", turns=("and now", "that", "and then", "more of that")),
        make_record(2, "hello", "ho", turns=("and now", "this")),
    ]
    found = run(tmp_path, records, 3, by="first-turns", keep="longest")
    assert found.dropped_lines == {1: "first-turns"}
    (drop,) = found.drops.values()
    assert (drop.place, drop.other, drop.value) == ((0, 0), (1, 0), None)


def test_of_equally_long_answers_content_decides_not_the_place(tmp_path):
    one, two = make_record(0, "p", "abc"), make_record(1, "p", "xyz")
    assert run(tmp_path, [one, two]).kept[0].answer == run(tmp_path, [two, one]).kept[0].answer


def test_a_held_out_record_stays_before_a_longer_one(tmp_path):
    def held_out(record) -> bool:
        return is_held_out(int.from_bytes(hash_prompt(record.messages, record.input), "big"), 0, 0.5)

    records = [make_record(i, f"question {i}", "x" * (i + 1), meta={"sourceId": str(i // 2)}) for i in range(40)]
    kept = run(tmp_path, records, 4, fraction=0.5, by="id").kept
    expected = [max(records[i : i + 2], key=lambda r: (held_out(r), len(r.answer))).line for i in range(0, 40, 2)]
    assert sorted(r.line for r in kept) == expected
    assert any(held_out(a) and not held_out(b) for a, b in zip(records[::2], records[1::2], strict=True))


INSTANCES = [
    make_record(0, "Translate.", "hola", input="hello"),
    make_record(1, "Translate.", "buenas", input="Hello"),
    make_record(2, "Translate.", "adios", input="bye"),
    make_record(3, "Translate.", "Something"),
    make_record(4, "Say it.", "one", input="x"),
    make_record(5, "Say it.", "ONE", input="x"),
    make_record(6, "Write.", "one thing"),
    make_record(7, "Write.", "another thing"),
]


@pytest.mark.parametrize(
    ("conflicting", "dropped"),
    [
        ("keep", {6: "record"}),
        ("drop", {1: "conflicting", 2: "conflicting", 6: "record"}),
        (
            "drop-instruction",
            {1: "conflicting", 2: "conflicting", 3: "conflicting", 4: "conflicting", 6: "record"},
        ),
    ],
)
def test_same_inputs_with_different_answers_conflict(tmp_path, conflicting, dropped):
    # Records 5 and 6 differ in form alone; 7 and 8 have no input.
    for shards in (1, 3):
        found = run(tmp_path, INSTANCES, shards, doubled=True, by="record", keep="first", conflicting=conflicting)
        assert found.dropped_lines == dropped


def test_what_conflicts_is_no_reason_to_drop_another_of_its_key(tmp_path):
    records = [
        make_record(0, "Translate.", "hola", input="hello", meta={"sourceId": "1"}),
        make_record(1, "Translate.", "buenas tardes", input="hello", meta={"sourceId": "2"}),
        make_record(2, "Another.", "x", meta={"sourceId": "2"}),
    ]
    assert run(tmp_path, records, by="id", conflicting="drop").dropped_lines == {1: "conflicting", 2: "conflicting"}


def test_the_self_instruct_profile_drops_conflicting_instances():
    assert {"duplicates": {"by": "record", "conflicting": "drop-instruction"}} in PROFILES["self-instruct"]


@pytest.mark.parametrize("keep", ["first", "longest"])
def test_no_layout_order_or_doubled_task_changes_what_stays(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(duplicates, "PARTITION_RECORDS", 60)
    rng = random.Random(0)
    records = [
        make_record(i, f"q{rng.randrange(90)}", "x" * rng.randrange(1, 9), input=rng.choice("ab")) for i in range(300)
    ]
    options = {"keep": keep, "conflicting": "drop"}
    whole = run(tmp_path, records, 1, **options)
    assert 50 < len(whole.drops) < 300 and len(whole.rounds[1][1]) == 5
    for shards, order in ((3, "reversed"), (30, "shuffled")):
        assert run(tmp_path, records, shards, order, True, **options).dropped_lines == whole.dropped_lines


def test_no_records_leave_no_drops(tmp_path):
    assert run(tmp_path, [], 2, conflicting="drop").uris == []


def test_the_best_needs_a_score():
    with pytest.raises(DataError, match="needs `score`"):
        duplicates.build(DuplicatesStep(keep="best"))
