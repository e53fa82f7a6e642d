"""Vicuna's rules: turns on both sides of the length, and answers that are the page's."""

import json

import pytest
from services.data.steps.text_records import apply_step, find_rule, make_record, make_talk

from llamero.data.readers.sharegpt import parse_sharegpt
from llamero.data.steps.conversations import REFUSALS
from llamero.data.steps.record import Drop
from llamero.spec.profiles import PROFILES

LONG = "This is a turn that is long enough."


@pytest.mark.parametrize("place", range(4))
def test_a_turn_of_sixteen_characters_stays_and_one_of_fifteen_drops_the_conversation(place):
    turns = [LONG] * 4
    turns[place] = "a" * 16
    assert find_rule("conversations", make_talk(*turns)) is None
    turns[place] = "a" * 15
    (drop,) = apply_step("conversations", [make_talk(*turns)])
    assert drop == Drop(
        "minTurnCharacters", f"Turn {place + 1} has 15 characters, where at least 16 are wanted.", 15, 16
    )


def test_blanks_are_no_characters_and_an_empty_turn_is_never_kept():
    assert find_rule("conversations", make_talk(LONG, " " * 40)) == "minTurnCharacters"
    assert find_rule("conversations", make_talk(LONG, ""), minTurnCharacters=0) == "minTurnCharacters"
    assert find_rule("conversations", make_talk(LONG, "y"), minTurnCharacters=0) is None


def test_the_input_belongs_to_the_turn_of_its_exchange():
    assert find_rule("conversations", make_record("Add them.", LONG, input="3 and 4 and 5")) is None
    assert find_rule("conversations", make_record("Add them.", LONG, input="3, 4")) == "minTurnCharacters"


@pytest.mark.parametrize("phrase", REFUSALS)
def test_an_answer_that_is_the_page_s_drops_the_conversation(phrase):
    assert (
        find_rule("conversations", make_talk(LONG, LONG, LONG, f"{phrase.capitalize()} (please retry)."))
        == "dropRefusals"
    )
    assert find_rule("conversations", make_talk(f"What does “{phrase}” mean, and why?", LONG)) is None
    assert find_rule("conversations", make_talk(LONG, f"{phrase} (please retry)"), dropRefusals=False) is None


def test_an_answer_that_breaks_off_with_an_error_is_found_and_one_that_speaks_of_it_is_not():
    essay = "The router forwards packets between the networks that it knows. " * 10
    assert find_rule("conversations", make_talk(LONG, f"{essay}\n\nnetwork error")) == "dropRefusals"
    assert find_rule("conversations", make_talk(LONG, f"{essay}A network error is one of them. {essay}")) is None


def test_phrases_of_one_s_own_count_wherever_they_stand_in_an_answer():
    filler = "word " * 200
    told = make_talk(LONG, f"{filler} my  Training\ncut-off {filler}")
    assert find_rule("conversations", told, refusalPhrases=["my training cut-off"]) == "refusalPhrases"
    assert find_rule("conversations", told, refusalPhrases=["my training cut-on"]) is None
    assert find_rule("conversations", told, refusalPhrases=["  "]) is None


def test_the_vicuna_profile_finds_the_same_conversations_by_id_and_by_first_turns():
    kinds = [next(iter(step.items())) for step in PROFILES["vicuna"]]
    assert [kind for kind, _ in kinds] == ["conversations", "language", "duplicates", "duplicates", "decontaminate"]
    assert [options["by"] for kind, options in kinds if kind == "duplicates"] == ["id", "first-turns"]


def test_of_the_dummy_conversations_those_with_short_turns_go(real_data):
    rows = json.loads((real_data / "fastchat_dummy_conversation.json").read_text())
    records = [make_talk(*(m.content for m in parse_sharegpt(row).messages)) for row in rows]
    dropped = [r for r in apply_step("conversations", records) if isinstance(r, Drop)]
    expected = sum(1 for row in rows if min(len(turn["value"].strip()) for turn in row["conversations"]) < 16)
    assert 0 < len(dropped) == expected
