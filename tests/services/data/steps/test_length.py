"""The length step: bounds of each field and unit, both sides."""

import pytest
from services.data.steps.text_records import apply_step, find_rule, make_record, make_talk

from llamero.data.errors import DataError
from llamero.data.steps.record import Drop

RECORD = make_talk("one two", "three", "four", "five six seven", input="eight")


@pytest.mark.parametrize(
    ("field", "unit", "length"),
    [
        ("answer", "characters", len("five six seven")),
        ("answer", "words", 3),
        ("prompt", "characters", len("one two\neight")),
        ("prompt", "words", 3),
        ("record", "words", 8),
        ("record", "characters", len("one two\n\neight\n\nthree\n\nfour\n\nfive six seven")),
    ],
)
def test_each_bound_lets_its_own_value_through_and_nothing_beyond(field, unit, length):
    options = {"field": field, "unit": unit}
    assert find_rule("length", RECORD, **options, min=length, max=length) is None
    assert find_rule("length", RECORD, **options, min=length + 1) == "min"
    assert find_rule("length", RECORD, **options, max=length - 1) == "max"


def test_a_drop_tells_what_was_found_and_what_was_wanted():
    (drop,) = apply_step("length", [make_record(answer="Yes.")], min=16)
    assert drop == Drop("min", "The answer has 4 characters, where at least 16 are wanted.", 4, 16)


def test_without_bounds_every_record_stays():
    records = [make_record(answer=""), RECORD]
    assert apply_step("length", records) == records


def test_bounds_that_no_length_satisfies_are_refused():
    with pytest.raises(DataError, match=r"min \(5\) is greater than its max \(4\)"):
        apply_step("length", [], min=5, max=4)
