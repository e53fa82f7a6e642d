"""Each format's rows become drafts, or a rejection that says why."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamero.data.content import fold_text, hash_content, hash_prompt
from llamero.data.normalise import normalise_draft, normalise_text, refuse_empty
from llamero.data.readers import READERS, Draft, RowError
from llamero.data.readers.draft import read_tags
from llamero.data.turns import arrange_turns, split_pairs
from llamero.spec.job import ColumnMapping, DataFormat, DataSource
from llamero.spec.records import Message, RejectionReason

MAPPED = DataSource(
    uri="-",
    format=DataFormat.RECORDS,
    columns=ColumnMapping(
        instruction="q", input="context.text", output="answers.0", tags="tags", system="sys", id="id"
    ),
)


def parse(format: str, row: Any, **source: Any) -> Draft:
    return READERS[DataFormat(format)].parse(row, DataSource(uri="-", format=DataFormat(format), **source))


def turns(draft: Draft) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in draft.messages]


def make(roles: str) -> list[Message]:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Message(names[r], f"{r}{i}") for i, r in enumerate(roles)]


def test_alpaca_keeps_the_input_beside_the_instruction():
    draft = parse("alpaca", {"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert turns(draft) == [("user", "Add."), ("assistant", "3")]
    assert draft.input == "1 and 2"


@pytest.mark.parametrize("given", [None, "", "<noinput>"])
def test_alpaca_rows_may_lack_an_input(given):
    row = {"instruction": "Hi", "output": "Hello"} | ({} if given is None else {"input": given})
    assert parse("alpaca", row).input == ""


def test_an_input_without_an_instruction_is_the_prompt():
    draft = parse("alpaca", {"instruction": " ", "input": "What is 2+2?", "output": "4"})
    assert turns(draft) == [("user", "What is 2+2?"), ("assistant", "4")]
    assert draft.input == ""


@pytest.mark.parametrize(
    "format, row, reason, words",
    [
        ("alpaca", ["a"], "malformed", "is a list, where an object"),
        ("alpaca", {"instruction": "a"}, "malformed", "`output` is missing"),
        ("alpaca", {"instruction": "a", "output": 42}, "malformed", "is a number, where text"),
        ("alpaca", {"instruction": "a", "output": None}, "malformed", "is null"),
        ("sharegpt", {"id": "x"}, "malformed", "`conversations` is missing"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "malformed", "lacks `from` or `value`"),
        ("sharegpt", {"conversations": [{"from": "narrator", "value": "x"}]}, "bad-turns", "neither human nor gpt"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": None}]}, "malformed", "is null"),
        ("messages", {"messages": "x"}, "malformed", "no list of turns"),
        ("messages", {"messages": [{"content": "x"}]}, "malformed", "Turn 1 has no role"),
        ("messages", {"messages": [{"role": "wizard", "content": "x"}]}, "bad-turns", "role `wizard`"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "malformed",
            "no text (image_url)",
        ),
        ("dialog", 3, "malformed", "no line of text"),
        ("stackexchange", {"title": "t", "body": "b", "answer": None}, "unanswered", "Nobody answered"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(format, row, reason, words):
    with pytest.raises(RowError) as caught:
        parse(format, row)
    assert caught.value.reason == reason
    assert words in caught.value.detail


def test_sharegpt_speakers_become_roles_and_the_pages_remains_go():
    row = {
        "id": "abc_0",
        "conversations": [
            {"from": "human", "value": "Show code"},
            {"from": "gpt", "value": "2 / 3\nHere:\n```pythonCopy code\nprint(1)\n```\nThe ratio is 1 / 2 here."},
        ],
    }
    draft = parse("sharegpt", row)
    assert turns(draft) == [
        ("user", "Show code"),
        ("assistant", "Here:\n```python\nprint(1)\n```\nThe ratio is 1 / 2 here."),
    ]
    assert draft.meta == {"sourceId": "abc_0"}


def test_messages_with_tools_and_parts_become_text():
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}, {"type": "text", "text": "In Rome."}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "It is sunny."},
        ]
    }
    assert turns(parse("messages", row)) == [
        ("system", "Be brief."),
        ("user", "Weather?\nIn Rome."),
        ("assistant", '[{"function":{"name":"weather"}}]'),
        ("tool", "sunny"),
        ("assistant", "It is sunny."),
    ]


def test_a_dialogue_is_a_conversation_or_its_first_turn_is_the_input():
    line = "Hi Jim . __eou__ Hello . __eou__ How are you ? __eou__ Fine . __eou__"
    whole = parse("dialog", line)
    assert [m.role for m in whole.messages] == ["user", "assistant", "user", "assistant"]
    first = parse("dialog", line, profile="first-turn")
    assert [m.content.strip() for m in first.messages] == ["Continue the daily dialogue.", "Hello ."]
    assert first.input.strip() == "Hi Jim ."
    with pytest.raises(RowError, match="fewer than two turns"):
        parse("dialog", "Alone . __eou__", profile="first-turn")


def test_columns_are_mapped_through_objects_and_lists():
    row = {
        "q": "Why?",
        "context": {"text": "Because."},
        "answers": ["So.", "No."],
        "tags": "A, b",
        "sys": "Be kind.",
        "id": 7,
    }
    draft = READERS[DataFormat.RECORDS].parse(row, MAPPED)
    assert turns(draft) == [("system", "Be kind."), ("user", "Why?"), ("assistant", "So.")]
    assert (draft.input, draft.tags, draft.meta) == ("Because.", ("a", "b"), {"sourceId": "7"})


def test_a_missing_column_of_the_prompt_or_the_answer_is_malformed_and_others_are_not():
    assert READERS[DataFormat.RECORDS].parse({"q": "a", "answers": ["b"]}, MAPPED).input == ""
    for row in ({"answers": ["b"]}, {"q": "a", "answers": []}, {"q": "a", "answers": [["x"]]}):
        with pytest.raises(RowError) as caught:
            READERS[DataFormat.RECORDS].parse(row, MAPPED)
        assert caught.value.reason == "malformed"


def test_numbers_in_columns_are_text():
    draft = READERS[DataFormat.RECORDS].parse({"q": "2 + 2?", "answers": [4]}, MAPPED)
    assert turns(draft)[-1] == ("assistant", "4")


@pytest.mark.parametrize(
    "value, tags",
    [("<r><lm>", ("r", "lm")), ("|r|lm|", ("r", "lm")), ("R, lm", ("r", "lm")), (["R", "lm"], ("r", "lm")), (None, ())],
)
def test_tags_are_read_in_every_form(value, tags):
    assert read_tags(value) == tags


@pytest.mark.parametrize(
    "roles, kept",
    [
        ("ua", "ua"),
        ("sua", "sua"),
        ("aaua", "ua"),
        ("uau", "ua"),
        ("uaut", "ua"),
        ("uatauaut", "uataua"),
        ("ssua", "sua"),
    ],
)
def test_turns_before_the_first_question_and_after_the_last_answer_are_cut(roles, kept):
    arranged = arrange_turns(make(roles))
    assert "".join(m.role[0] for m in arranged) == kept


@pytest.mark.parametrize("roles", ["", "u", "a", "s", "su", "uua", "uaa", "usa", "uas", "asua", "uta"])
def test_roles_that_do_not_alternate_are_bad_turns(roles):
    with pytest.raises(RowError) as caught:
        arrange_turns(make(roles))
    assert caught.value.reason == RejectionReason.BAD_TURNS


def test_a_pair_runs_from_a_user_turn_to_the_next():
    system, pairs = split_pairs(make("suatauaua"))
    assert [m.role for m in system] == ["system"]
    assert ["".join(m.role[0] for m in pair) for pair in pairs] == ["uata", "ua", "ua"]


@given(
    st.sampled_from(list(DataFormat)),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)
    | st.dictionaries(
        st.sampled_from(
            [
                "instruction",
                "input",
                "output",
                "conversations",
                "messages",
                "q",
                "answers",
                "title",
                "body",
                "answer",
                "id",
                "tags",
            ]
        ),
        st.none()
        | st.text()
        | st.integers()
        | st.lists(
            st.dictionaries(
                st.sampled_from(["from", "value", "role", "content"]),
                st.text()
                | st.none()
                | st.integers()
                | st.sampled_from(["user", "human", "gpt", "assistant", "system"]),
            )
        ),
    ),
)
def test_any_row_is_a_draft_or_a_rejection_and_nothing_else(format, row):
    source = DataSource(uri="-", format=format, columns=MAPPED.columns)
    try:
        draft = READERS[format].parse(row, source)
        draft = Draft(arrange_turns(draft.messages), draft.input, draft.tags, draft.meta)
        refuse_empty(normalise_draft(draft, "auto"))
    except RowError as error:
        assert error.detail.endswith(".")
        return
    assert draft.messages[-1].role == "assistant"


@given(st.text())
def test_normalising_keeps_every_visible_character(text):
    clean = normalise_text(text)
    kept = [c for c in text if not c.isspace() and c not in "\0\ufeff"]
    assert [c for c in clean if not c.isspace() and c != "\ufeff"] == kept
    assert normalise_text(clean) == clean


def test_nuls_line_ends_and_halves_of_surrogates_are_cleaned():
    assert normalise_text("\ufeffa\0b\r\nc\rd \ud83d ") == "ab\nc\nd ?"


def test_indented_code_at_the_start_keeps_its_indentation():
    assert normalise_text("\n\n    x = 1\n    y = 2\n") == "    x = 1\n    y = 2"
    assert normalise_text("  Hello\n") == "Hello"


@pytest.mark.parametrize("role, reason", [("user", "empty-prompt"), ("assistant", "empty-answer")])
def test_a_turn_that_says_nothing_is_refused(role, reason):
    messages = tuple(Message(r, "" if r == role else "x") for r in ("user", "assistant"))
    with pytest.raises(RowError) as caught:
        refuse_empty(Draft(messages))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "a, b",
    [
        ("What is LoRA?", "what  is\nlora?"),
        ("Use **bold** words", "use bold words"),
        ("# Head\n- one\n- two", "Head\none\ntwo"),
        ("Run `ls -l` now", "run ls -l now"),
        ("```python\nx = 1\n```", "x = 1"),
    ],
)
def test_case_blanks_and_markup_make_no_difference(a, b):
    assert fold_text(a) == fold_text(b)


@pytest.mark.parametrize(
    "a, b",
    [
        ("What is 8 × 8?", "What is 9 × 7?"),
        ("x + 1", "x - 1"),
        ("2 * 3 * 4", "2 3 4"),
        ("a*b*c", "abc"),
        ("C", "C#"),
        ("-1", "1"),
        ("version 1.10", "version 11.0"),
    ],
)
def test_numbers_and_operators_make_a_difference(a, b):
    assert fold_text(a) != fold_text(b)


def test_content_is_told_apart_by_input_and_by_who_speaks():
    def hashed(*pairs: tuple[str, str], input: str = "") -> bytes:
        return hash_content([Message(r, c) for r, c in pairs], input)

    one = hashed(("user", "a"), ("assistant", "b"))
    assert one == hashed(("user", "A "), ("assistant", "b"))
    assert one != hashed(("user", "a"), ("assistant", "b"), input="c")
    assert one != hashed(("user", "b"), ("assistant", "a"))
    assert hashed(("user", "a b"), ("assistant", "c")) != hashed(("user", "a"), ("assistant", "b c"))


def test_a_prompt_is_the_first_question_with_its_input():
    short = hash_prompt([Message("system", "s"), Message("user", "Hi"), Message("assistant", "x")], "")
    assert short == hash_prompt([Message("user", "hi "), Message("assistant", "y"), Message("user", "z")], "")
    assert short != hash_prompt([Message("user", "hi")], "there")
