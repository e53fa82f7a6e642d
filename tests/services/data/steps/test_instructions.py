"""Self-Instruct's rules: both sides of each, on instructions and on instances."""

import json

import pytest
from services.data.steps.text_records import apply_step, find_rule, make_record, make_talk

from llamero.data.steps.record import Drop
from llamero.data.steps.word_list import WordList
from llamero.spec.profiles import PROFILES
from llamero.spec.steps import ALPACA_BLOCKED_WORDS, SELF_INSTRUCT_BLOCKED_WORDS


def test_four_words_are_enough_and_three_are_not():
    assert find_rule("instructions", make_record("Name four red fruits")) is None
    assert apply_step("instructions", [make_record("Name red fruits")]) == [
        Drop("minWords", "The instruction has 3 words, where at least 4 are wanted.", 3, 4)
    ]


def test_a_hundred_and_fifty_words_are_not_too_many_and_one_more_is():
    assert find_rule("instructions", make_record("word " * 150)) is None
    assert find_rule("instructions", make_record("word " * 151)) == "maxWords"


def test_the_input_is_no_part_of_the_instruction():
    assert find_rule("instructions", make_record("Name red fruits", input="that grow here")) == "minWords"
    assert find_rule("instructions", make_record("Describe what is given.", input="An image.")) is None


@pytest.mark.parametrize("word", SELF_INSTRUCT_BLOCKED_WORDS)
def test_a_blocked_word_counts_whole_and_whatever_its_case(word):
    assert find_rule("instructions", make_record(f"Please look at, or {word.upper()}, this thing")) == "blockedWords"
    assert find_rule("instructions", make_record(f"Please look at or {word}ing this thing")) is None


def test_the_alpaca_profile_adds_its_words():
    (options,) = [step["instructions"] for step in PROFILES["alpaca"] if "instructions" in step]
    for word in ALPACA_BLOCKED_WORDS:
        record = make_record(f"Explain how this {word} came about")
        assert find_rule("instructions", record) is None
        assert find_rule("instructions", record, **options) == "blockedWords"


def test_programs_are_asked_for_only_where_they_are_allowed():
    record = make_record("write  a\nprogram that adds two numbers")
    assert find_rule("instructions", record) == "allowPrograms"
    assert find_rule("instructions", record, allowPrograms=True) is None
    assert find_rule("instructions", make_record("Please write a program that adds two numbers")) is None


@pytest.mark.parametrize("start", ["-", "“", '"', "(", "Ä", "数"])
def test_an_instruction_starts_with_an_ascii_letter_or_digit(start):
    record = make_record(f"{start}Tell me what this means")
    assert find_rule("instructions", record) == "requireAsciiStart"
    assert find_rule("instructions", record, requireAsciiStart=False) is None
    assert find_rule("instructions", make_record("3 Tell me what this means")) is None


@pytest.mark.parametrize(
    ("answer", "given", "is_kept"),
    [
        ("An apple.", "", True),
        (" ", "", False),
        ("It is so", "It is so", False),
        ("It is so", "It is so!", True),
        ("These are they:", "", False),
        ("These: they", "", True),
        ("An apple.", "Fruits:", False),
        ("An apple.", "Fruits: red", True),
        ("Name four red fruits", "", False),
    ],
)
def test_instances_that_say_nothing_or_break_off_are_dropped(answer, given, is_kept):
    record = make_record("Name four red fruits", answer, input=given)
    assert (find_rule("instructions", record) is None) == is_kept
    assert find_rule("instructions", record, checkInstances=False) is None


def test_each_answer_of_a_conversation_is_an_instance():
    assert (
        find_rule("instructions", make_talk("Name four red fruits", "These are they:", "Go on", "Apples."))
        == "checkInstances"
    )


def test_words_of_a_list_are_found_whole_in_any_script_and_with_signs():
    words = WordList(["c++", "go to", "Straße", "don't", "", "  "])
    assert words.find_all("C++ or C; GO\n TO the strasse. I don't go-to it") == [
        "go to",
        "strasse",
        "go to",
        "c++",
        "don't",
    ]
    assert words.find_all("c++11, ergo to, the straßen, dont") == []
    assert not WordList(["", " "])


def test_of_alpaca_only_instances_are_at_fault(real_data):
    """Alpaca was made with these rules for instructions; it was not with those for instances."""
    rows = json.loads((real_data / "alpaca_data.json").read_text())[:20_000]
    records = [make_record(r["instruction"], r["output"], input=r["input"], row=i) for i, r in enumerate(rows)]
    results = apply_step("instructions", records, **PROFILES["alpaca"][0]["instructions"])
    rules = [r.rule for r in results if isinstance(r, Drop)]
    assert set(rules) == {"checkInstances"}
    empty = sum(not r["output"].strip() for r in rows)
    assert empty < len(rules) < 100
