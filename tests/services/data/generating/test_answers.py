import json

import pytest

from llamero.data.generating.answers import Instance, NewTask, read_blocks, read_class, read_instances, read_list

ITEMS = ["Name two colours of the sky.", "Count to seven."]

LISTS = {
    "numbered from where the prompt ended": "9. Name two colours of the sky.\n10. Count to seven.",
    "numbered anew, with brackets": "1) Name two colours of the sky.\n2) Count to seven.",
    "a headline and blank lines": "Here they are:\n\n9. Name two colours of the sky.\n\n10. Count to seven.\n",
    "wrapped lines": "9. Name two colours\n   of the sky.\n10. Count to seven.",
    "JSON": json.dumps(ITEMS),
    "JSON in a fence": f"```json\n{json.dumps(ITEMS)}\n```",
    "thoughts before it": "<think>9. hm</think>\n9. Name two colours of the sky.\n10. Count to seven.",
}

NO_LISTS = {
    "prose": "I would be happy to help!",
    "prose before the list": "I thought of these.\nThey differ:\n9. Count to seven.",
    "prose after the list": "9. Count to seven.\n\nLet me know if you want more!",
    "a number left out": "9. Count to seven.\n11. Count to eight.",
    "a number twice": "9. Count to seven.\n9. Count to eight.",
    "JSON that is cut off": '["Count to seven.", "Cou',
    "JSON of other things": '[{"task": "Count to seven."}]',
    "an empty JSON list": "[]",
    "nothing": "",
}


@pytest.mark.parametrize("answer", LISTS.values(), ids=LISTS.keys())
def test_a_list_of_tasks_is_read_in_its_forms(answer: str) -> None:
    assert read_list(8)(answer) == [NewTask(item) for item in ITEMS]


@pytest.mark.parametrize("answer", NO_LISTS.values(), ids=NO_LISTS.keys())
def test_what_is_no_list_of_tasks_is_not_guessed_at(answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_list(8)(answer)


def test_more_tasks_than_were_asked_for_are_not_taken() -> None:
    assert len(read_list(2)("1. a b c d\n2. a b c e\n3. a b c f")) == 2


BLOCK = "### 4\nInstruction: Add the figures.\nInput: 2\n3\nOutput: 5"
TASK = NewTask("Add the figures.", Instance("2\n3", "5"))


@pytest.mark.parametrize(
    "answer",
    [
        BLOCK,
        f"Sure, here it is:\n{BLOCK}\n",
        json.dumps([{"instruction": "Add the figures.", "input": "2\n3", "output": "5"}]),
    ],
)
def test_a_block_is_a_task_with_its_instance(answer: str) -> None:
    assert read_blocks(20)(answer) == [TASK]


@pytest.mark.parametrize("nothing", ["<noinput>", "<noInput>", "", "None", "N/A", "<noinput>."])
def test_an_input_may_be_none(nothing: str) -> None:
    (task,) = read_blocks(20)(f"### 4\nInstruction: Sing a song.\nInput: {nothing}\nOutput: La.")
    assert task == NewTask("Sing a song.", Instance("", "La."))


@pytest.mark.parametrize(
    "answer",
    [
        "### 4\nInstruction: Sing.\nOutput: La.",
        "### 4\nInstruction: Sing.\nInput: a\nOutput: La.\nOutput: Le.",
        "### 4\nInput: a\nOutput: La.",
        '[{"instruction": "Sing.", "input": ""}]',
        '[{"instruction": "Sing.", "input": 3, "output": "La"}]',
        "Instruction: Sing.\nInput: a\nOutput: La.",
    ],
)
def test_a_block_that_lacks_something_is_no_task(answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_blocks(20)(answer)


def test_of_blocks_that_were_cut_off_the_last_is_left_out_whatever_it_lacks() -> None:
    cut = f"{BLOCK}\n\n### 5\nInstruction: Subtract the"
    with pytest.raises(ValueError, match="not one instruction"):
        read_blocks(20)(cut)
    assert read_blocks(20, is_cut=True)(cut) == [TASK]


@pytest.mark.parametrize(("answer", "said"), [("yes", True), ("No.", False), (" YES \n", True)])
def test_a_class_is_yes_or_no(answer: str, said: bool) -> None:
    assert read_class(answer) is said


@pytest.mark.parametrize("answer", ["maybe", "yes, because", "", "yes no"])
def test_anything_else_is_no_class(answer: str) -> None:
    with pytest.raises(ValueError, match="neither yes nor no"):
        read_class(answer)


EXAMPLES = {
    "two with inputs": (
        "Example 1\nInput: a\nOutput: b\n\nExample 2\nInput: c\nOutput: d\ne",
        [("a", "b"), ("c", "d\ne")],
    ),
    "one without": ("Output: b", [("", "b")]),
    "one with a headline": ("Example 1\nOutput: b", [("", "b")]),
    "an input that says there is none": ("Example\nInput: <noinput>\nOutput: b", [("", "b")]),
}


@pytest.mark.parametrize(("answer", "pairs"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_examples_are_inputs_and_outputs(answer: str, pairs: list[tuple[str, str]]) -> None:
    assert read_instances(False, 5)(answer) == [Instance(*pair) for pair in pairs]
    assert len(read_instances(False, 1)(answer)) == 1


@pytest.mark.parametrize(
    "answer",
    ["", "b", "Input: a", "Sure!\nExample 1\nOutput: b", "Output: b\nOutput: c", "Output: a\nInput: b\nOutput: c"],
)
def test_examples_that_lack_something_are_none(answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_instances(False, 5)(answer)


def test_labels_come_before_their_inputs() -> None:
    answer = "Label: good\nInput: A fine\nday.\n\nLabel: bad\nInput: Rain."
    assert read_instances(True, 5)(answer) == [Instance("A fine\nday.", "good"), Instance("Rain.", "bad")]
    assert read_instances(True, 5)("Label: yes") == [Instance("", "yes")]


@pytest.mark.parametrize(
    "answer",
    ["", "good", "Well:\nLabel: good\nInput: a", "Label: good\nor so\nInput: a", "Label: a\nInput: b\nInput: c"],
)
def test_labels_that_are_not_in_form_are_none(answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_instances(True, 5)(answer)
