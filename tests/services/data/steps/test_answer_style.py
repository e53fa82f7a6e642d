"""LIMA's rules: both sides of the lengths, voices and references, what is stripped and what stays, and which text is the prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.data.steps.text_records import apply_step, find_rule, make_record

from llamero.data.errors import DataError
from llamero.data.readers.draft import RowError
from llamero.data.readers.stackexchange import parse_question
from llamero.data.steps.answer_style import find_first_person, find_references, strip_markup
from llamero.data.steps.record import Drop, Record
from llamero.spec.steps import AnswerStyleStep

ANY = {"minCharacters": 0}


def test_the_lengths_of_lima_let_their_own_values_through():
    assert (AnswerStyleStep().min_characters, AnswerStyleStep().max_characters) == (1200, 4096)
    for length, rule in ((1199, "minCharacters"), (1200, None), (4096, None), (4097, "maxCharacters")):
        assert find_rule("answerStyle", make_record(answer="x" * length)) == rule


def test_the_length_is_that_of_what_is_left_when_links_are_gone():
    answer = "[word](https://host.org/a/very/long/path) " + "x" * 10
    assert find_rule("answerStyle", make_record(answer=answer), minCharacters=15) is None
    assert find_rule("answerStyle", make_record(answer=answer), minCharacters=16) == "minCharacters"
    assert find_rule("answerStyle", make_record(answer=answer), minCharacters=16, stripLinks=False) is None


@pytest.mark.parametrize(
    "text",
    [
        "I think so.",
        "I'm sure.",
        "It is my view.",
        "Ask me.",
        "I’ve seen it.",
        "So, I, for one, agree",
        "And I would not",
        "By myself",
    ],
)
def test_answers_in_the_first_person_are_dropped(text):
    assert find_rule("answerStyle", make_record(answer=text), **ANY) == "allowFirstPerson"
    assert find_rule("answerStyle", make_record(answer=text), allowFirstPerson=True, **ANY) is None


@pytest.mark.parametrize(
    "text",
    [
        "World War I was long.",
        "A Type I error",
        "Parts I and II",
        "I/O is slow",
        "I. First",
        "for (i = 0)",
        "`I = my(me)`",
        "$I = 3$",
        "MySQL and my.cnf",
        "He said “I think so”.",
        'She wrote "my view" there.',
        "> I asked this\n\nHere it is.",
        "me-too drugs",
        "Let us go",
        "```\nI am code\n```",
        "Henry VIII and Charles I",
    ],
)
def test_what_only_looks_like_the_first_person_stays(text):
    assert find_first_person(text) == []
    assert find_rule("answerStyle", make_record(answer=text), **ANY) is None


@pytest.mark.parametrize(
    "text",
    [
        "As mentioned, it is so.",
        "As others have already said, no.",
        "As @anna pointed out",
        "See the answer above.",
        "The accepted answer is wrong.",
        "As stated in the comments",
        "Bob's answer is right",
        "Somebody else's answer",
        "This is on Stack Overflow.",
        "upvoted",
        "The OP is right",
        "@someone is right",
        "the comment below",
        "other answers have it",
    ],
)
def test_answers_that_refer_to_others_are_dropped(text):
    assert find_rule("answerStyle", make_record(answer=text), **ANY) == "allowReferences"
    assert find_rule("answerStyle", make_record(answer=text), allowReferences=True, **ANY) is None


@pytest.mark.parametrize(
    "text",
    [
        "As a rule it is so.",
        "The answer is 42.",
        "Comment your code.",
        "A post office",
        "the second question",
        "an above average result",
        "name@host.org",
        "`@property`",
        "As is known",
        "It was stated clearly.",
        "a stack of plates",
        "respond below the line",
    ],
)
def test_what_only_looks_like_a_reference_stays(text):
    assert find_references(text) == []
    assert find_rule("answerStyle", make_record(answer=text), **ANY) is None


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("See [the paper](https://a.org/x_(y)) now", "See the paper now"),
        ('See [it](<a b> "title") and [that][1].\n\n[1]: https://a.org "T"', "See it and that."),
        ("A ![picture](a.png) here", "A  here"),
        ("[![alt](a.png)](b.png) text", " text"),
        ("Go to https://a.org/b?c=d. Then <https://e.org>", "Go to . Then"),
        ("# Title #\n\n> quoted\n\n---\n\nText", "Title\n\nquoted\n\nText"),
        ("**bold** and *it* and ~~no~~ and _so_", "bold and it and no and so"),
        ("snake_case_name and 2 * 3 * 4", "snake_case_name and 2 * 3 * 4"),
        ("- **one**\n- two\n  1. three", "- one\n- two\n  1. three"),
        ("<p>One</p><ul><li>two</li></ul>", "One\n\n- two"),
        ("| a | b |\n| --- | --- |\n| 1 | 2 |", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("a[0](x) stays as it was: `[a](b)`", "a0 stays as it was: `[a](b)`"),
    ],
)
def test_links_images_and_marks_go_and_their_text_stays(text, stripped):
    assert strip_markup(text) == stripped.rstrip()


@pytest.mark.parametrize(
    "text",
    [
        "```md\n[a](b) **c**\n# d\n\n\n\n> e\n```",
        "`[a](b)` and `**c**`",
        "$a_1 * b_2 * c$ and \\(x_{i}\\)",
        "x <- lm(y ~ .)",
        "~~~\n![a](b)\n~~~",
        "Just text.  \nTwo lines.",
    ],
)
def test_code_maths_and_plain_text_stay_to_the_character(text):
    assert strip_markup(text) == text


@given(st.text("ab *_#>[]()!`~-\n<", max_size=60))
def test_no_word_is_lost_and_nothing_raises(text):
    stripped = strip_markup(text)
    if not any(mark in text for mark in "[<"):
        assert [c for c in stripped if c in "ab"] == [c for c in text if c in "ab"]


def make_question(
    title: str = "Why is the sky blue?", body: str = "It was grey before.", answer: str = "Light is scattered."
) -> Record:
    draft = parse_question(
        {"title": title, "body": body, "answer": answer, "answerId": 7, "score": 12, "answerScore": 30, "tags": "<a>"}
    )
    return Record(0, "se", "Posts.xml", 1, draft.messages, draft.input, draft.tags, draft.meta)


@pytest.mark.parametrize(
    ("prompt", "text", "given"),
    [
        ("title", "Why is the sky blue?", ""),
        ("body", "It was grey before.", ""),
        ("both", "Why is the sky blue?", "It was grey before."),
    ],
)
def test_title_or_body_or_both_become_the_prompt(prompt, text, given):
    (record,) = apply_step("answerStyle", [make_question()], prompt=prompt, **ANY)
    assert isinstance(record, Record)
    assert (record.messages[0].content, record.input) == (text, given)
    assert record.meta.get("prompt") == (None if prompt == "both" else prompt)
    assert record.answer == "Light is scattered."


def test_the_random_choice_depends_on_content_and_seed_alone():
    records = [make_question(title=f"Question number {i}?") for i in range(400)]
    first = apply_step("answerStyle", records, **ANY)
    assert first[::-1] == apply_step("answerStyle", records[::-1], **ANY)
    bodies = sum(r.meta["prompt"] == "body" for r in first if isinstance(r, Record))
    assert 150 < bodies < 250
    assert first != apply_step("answerStyle", records, seed=1, **ANY)


def test_a_question_without_a_body_keeps_its_title_and_other_records_their_input():
    plain = make_question(body="")
    assert apply_step("answerStyle", [plain], prompt="body", **ANY) == [plain]
    exchange = make_record("Add them.", "7", input="3 and 4")
    assert apply_step("answerStyle", [exchange], prompt="body", **ANY) == [exchange]


def test_a_question_carries_its_votes_as_scores():
    assert make_question().meta["scores"] == {"questionScore": 12.0, "sourceScore": 30.0}
    draft = parse_question({"title": "t", "body": "b", "answer": "a", "answerId": 7, "score": None, "tags": ""})
    assert "scores" not in draft.meta
    with pytest.raises(RowError) as error:
        parse_question({"title": "t", "body": "b", "answer": None, "answerId": None, "score": 3, "tags": ""})
    assert error.value.draft is not None and error.value.draft.meta["scores"] == {"questionScore": 3.0}


def test_lengths_that_no_answer_has_are_refused():
    with pytest.raises(DataError, match=r"minCharacters \(9\) is greater than its maxCharacters \(8\)"):
        apply_step("answerStyle", [], minCharacters=9, maxCharacters=8)


def test_of_real_answers_those_that_stay_hold_to_the_rules(real_data, tmp_path):
    import orjson

    from llamero.data.normalise import normalise_draft
    from llamero.data.readers.stackexchange import read_questions

    records: list[Record] = []
    with (real_data / "se_ai_Posts.xml").open("rb") as stream:
        for row in read_questions(stream, "Posts.xml", tmp_path):
            try:
                draft = normalise_draft(parse_question(orjson.loads(row.json)), "always")
            except RowError:
                continue
            records.append(
                Record(len(records), "se", "Posts.xml", row.line, draft.messages, draft.input, draft.tags, draft.meta)
            )
    results = apply_step("answerStyle", records)
    kept = [r for r in results if isinstance(r, Record)]
    rules = {r.rule for r in results if isinstance(r, Drop)}
    assert rules == {"minCharacters", "maxCharacters", "allowFirstPerson", "allowReferences"}
    assert 20 < len(kept) < len(records) / 2
    for record in kept:
        assert 1200 <= len(record.answer) <= 4096
        assert "](http" not in record.answer
        assert record.meta["prompt"] in ("title", "body") and record.input == ""
