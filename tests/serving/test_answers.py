"""How answers under load are judged."""

import pytest

from serving.answers import Answer, Tally, Timeline, is_wrong


def answer(text: str, started: float = 1.0, ended: float = 2.0, fault: str = "") -> Answer:
    return Answer("tutor", started, ended, text, fault)


def test_an_answer_may_come_from_any_adapter_that_the_name_had_while_it_was_given() -> None:
    timeline = Timeline()
    timeline.allow("tutor", "amber", 0.0)
    timeline.allow("tutor", "birch", 5.0)
    timeline.forbid("tutor", "amber", 10.0)
    assert not is_wrong(answer(" amber amber"), timeline)
    assert is_wrong(answer(" birch", 1.0, 4.9), timeline)
    assert not is_wrong(answer(" birch", 4.0, 5.1), timeline)
    assert not is_wrong(answer(" amber", 9.9, 20.0), timeline)
    assert is_wrong(answer(" amber", 10.1, 20.0), timeline)


@pytest.mark.parametrize("text", [" amber birch", " basalt", " ambe"])
def test_an_answer_of_two_adapters_of_the_base_or_of_half_a_word_is_wrong(text: str) -> None:
    timeline = Timeline()
    timeline.allow("tutor", "amber", 0.0)
    timeline.allow("tutor", "birch", 0.0)
    assert is_wrong(answer(text), timeline)


def test_a_tally_counts_failed_and_wrong_answers_apart() -> None:
    timeline = Timeline()
    timeline.allow("tutor", "amber", 0.0)
    answers = [
        answer(" amber"),
        answer(" amber", fault="stream broken"),
        answer("", fault="status 503"),
        answer(" basalt"),
    ]
    tally = Tally.of(answers, timeline)
    assert (tally.requests, tally.failed, tally.wrong) == (4, 2, 1)
    assert tally.answered_by == {"amber": 2, "basalt": 1}


def test_names_have_timelines_of_their_own() -> None:
    timeline = Timeline()
    timeline.allow("other", "amber", 0.0)
    assert is_wrong(answer(" amber"), timeline)
