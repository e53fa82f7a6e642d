"""The steps that rewrite, evolve, label and answer anew, through the real, misbehaving HTTP server."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services.data.model_server import ModelServer

from llamero.data.asking.cache import close_caches
from llamero.data.asking.client import Backoff
from llamero.data.errors import DataError
from llamero.data.steps import back_translate, evolve, principles, rewrite
from llamero.data.steps.evolve import choose_operation, find_scaffold, measure_likeness
from llamero.data.steps.record import Drop, Record, RecordStep, StepContext
from llamero.spec.profiles import plan_steps
from llamero.spec.records import Message
from llamero.spec.steps import DataStep

Body = dict[str, Any]
STEPS = {
    "rewrite": rewrite.Rewrite,
    "evolve": evolve.Evolve,
    "backTranslate": back_translate.BackTranslate,
    "principles": principles.Principles,
}


@pytest.fixture(scope="module")
def running() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def server(running: ModelServer) -> ModelServer:
    running.requests.clear()
    return running


@pytest.fixture
def make_step(server: ModelServer, tmp_path: Path) -> Callable[..., Any]:
    """`make_step(kind, answer, **options)`: the step, asking a model that answers by `answer(body)`."""

    def make(kind: str, answer: Callable[[Body], str], **options: Any) -> Any:
        server.answer = answer
        model = {"url": server.url, "model": "writer", "concurrency": 4}
        (planned,) = plan_steps([DataStep.model_validate({kind: {"model": model, **options}})])
        context = StepContext(0, None, str(tmp_path / "answers"), 1, Path)
        return STEPS[kind](planned.options, context, Backoff(first_seconds=0.01))

    return make


def make_record(prompt: str, answer: str, given: str = "", row: int = 0, **meta: Any) -> Record:
    turns = (Message("user", prompt), Message("assistant", answer))
    return Record(row, "s", "f", row + 1, turns, given, meta=meta)


def apply(step: RecordStep, *records: Record) -> list[Record]:
    outcome = step.apply(records)
    assert all(isinstance(o, Record) for o in outcome), outcome
    return [o for o in outcome if isinstance(o, Record)]


def find_tagged(body: Body, name: str) -> str:
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", body["messages"][-1]["content"], re.DOTALL)
    assert found, body
    return found[1]


# -- rewrite ---------------------------------------------------------------------------------------------------------------------


def polish(body: Body) -> str:
    return f"<answer>Gladly: {find_tagged(body, 'text')}</answer>"


def test_a_rewrite_takes_the_answers_place_and_the_original_stays_in_the_lineage(make_step: Callable[..., Any]) -> None:
    step = make_step("rewrite", polish)
    (record,) = apply(step, make_record("How high is K2?", "8,611 m.", origin=[{"operation": "x", "by": "y"}]))
    assert record.answer == "Gladly: 8,611 m."
    assert record.meta["original"] == {"answer": "8,611 m."}
    assert record.meta["origin"] == [{"operation": "x", "by": "y"}, {"operation": "rewrite.style", "by": "writer"}]
    assert step.accounts[0].answered == 1


def test_the_style_the_question_and_its_input_are_told(make_step: Callable[..., Any], server: ModelServer) -> None:
    apply(make_step("rewrite", polish, style="Like a pirate."), make_record("Add them.", "5", given="2 and 3"))
    assert "Style: Like a pirate." in server.prompts[0]
    assert find_tagged(server.requests[0].body, "question") == "Add them.\n\n2 and 3"


@pytest.mark.parametrize(
    ("original", "rewritten", "why"),
    [
        ("It is 42 high.", "It is high.", "numbers: “42”"),
        ("Ask Marie.", "Ask her.", "names: “Marie”"),
        ("Call `f(x)`.", "Call it.", "code: “f(x)”"),
    ],
)
def test_a_rewrite_that_loses_something_is_quarantined(
    make_step: Callable[..., Any], original: str, rewritten: str, why: str
) -> None:
    (record,) = apply(make_step("rewrite", lambda _: f"<answer>{rewritten}</answer>"), make_record("How?", original))
    assert record.answer == original
    assert record.meta["quarantined"] == {"rewrite": f"keep: The rewrite lost {why}."}
    assert "original" not in record.meta
    kinds = {"code", "numbers", "names"} - {why.split(":")[0]}
    loose = make_step("rewrite", lambda _: f"<answer>{rewritten}</answer>", keep=sorted(kinds))
    assert apply(loose, make_record("How?", original))[0].answer == rewritten


@pytest.mark.parametrize(
    "nonsense", ["", "Gladly!", "<answer></answer>", "<answer>a</answer> Bye!", "<answer>a<answer>b</answer>"]
)
def test_nonsense_is_asked_again_and_at_last_quarantined(
    make_step: Callable[..., Any], server: ModelServer, nonsense: str
) -> None:
    (record,) = apply(make_step("rewrite", lambda _: nonsense), make_record("How?", "So."))
    assert record.answer == "So."
    assert record.meta["quarantined"]["rewrite"].startswith("unanswered: ")
    assert len(server.requests) == 3
    close_caches()
    again = make_step("rewrite", lambda body: nonsense if body["temperature"] == 0 else polish(body))
    assert apply(again, make_record("How else?", "So."))[0].answer == "Gladly: So."


def test_all_answers_of_a_conversation_are_rewritten_or_none(make_step: Callable[..., Any]) -> None:
    turns = [("system", "Be brief."), ("user", "a?"), ("assistant", "It is 42."), ("user", "b?"), ("assistant", "Yes.")]
    record = Record(0, "s", "f", 1, tuple(Message(*t) for t in turns))
    (changed,) = apply(make_step("rewrite", polish), record)
    assert [m.content for m in changed.messages if m.role == "assistant"] == ["Gladly: It is 42.", "Gladly: Yes."]
    assert changed.meta["original"] == {"answers": ["It is 42.", "Yes."]}
    assert changed.messages[0] == record.messages[0]

    def forget(body: Body) -> str:
        return polish(body).replace("42", "forty-two")

    record = Record(0, "s", "f", 1, (*record.messages[:-1], Message("assistant", "Yes!")))
    (kept,) = apply(make_step("rewrite", forget, style="Other."), record)
    assert kept.messages == record.messages
    assert "“42”" in kept.meta["quarantined"]["rewrite"]


LESSON = (
    "<lesson>\n# Rain\n\nRain falls 3 times.\n</lesson>\n"
    "<exercise>How often?</exercise>\n<solution>3 times.</solution>\n"
    "<exercise>What falls?</exercise><solution>Rain.</solution>"
)


def test_a_textbook_lesson_ends_with_exercises_and_solutions(make_step: Callable[..., Any]) -> None:
    (record,) = apply(
        make_step("rewrite", lambda _: LESSON, mode="textbook"), make_record("Rain?", "It rains 3 times.")
    )
    assert record.answer == (
        "# Rain\n\nRain falls 3 times.\n\n## Exercises\n\n1. How often?\n2. What falls?\n\n## Solutions\n\n1. 3 times.\n2. Rain."
    )
    assert record.meta["origin"][0]["operation"] == "rewrite.textbook"


@pytest.mark.parametrize(
    "answer",
    [
        "<lesson>Only a lesson.</lesson>",
        "<lesson>A</lesson><exercise>B</exercise>",
        "<lesson></lesson><exercise>B</exercise><solution>C</solution>",
        "<lesson>A</lesson><exercise>B</exercise><solution>C</solution> Good luck!",
        "<lesson>A</lesson><exercise></exercise><solution>C</solution>",
        "A lesson: <lesson>A</lesson><exercise>B</exercise><solution>C</solution>",
    ],
)
def test_a_lesson_without_exercises_is_none(answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        rewrite.read_lesson(answer)


# -- principles ------------------------------------------------------------------------------------------------------------------


def test_an_answer_by_principles_replaces_the_last_one(make_step: Callable[..., Any], server: ModelServer) -> None:
    turns = [("system", "Be brief."), ("user", "a?"), ("assistant", "A."), ("user", "b?"), ("assistant", "B.")]
    record = Record(0, "s", "f", 1, tuple(Message(*t) for t in turns))
    step = make_step("principles", lambda _: "<answer>Better B.</answer>", principles=["Be honest.", "Be kind."])
    (changed,) = apply(step, record)
    assert (changed.answer, changed.messages[:-1]) == ("Better B.", record.messages[:-1])
    assert changed.meta["original"] == {"answer": "B."}
    asked = server.requests[0].body["messages"]
    assert "1. Be honest.\n2. Be kind." in asked[0]["content"]
    assert [m["content"] for m in asked[1:]] == ["Be brief.", "a?", "A.", "b?"]


@pytest.mark.parametrize(
    ("prompt", "answer", "is_taken"),
    [
        ("How?", "By principle 3, so.", False),
        ("How?", "According to my principles, so.", False),
        ("How?", "These principles of physics hold.", False),
        ("How?", "On principle, so.", True),
        ("How?", "The principles of physics hold.", True),
        ("Explain principle 3 of Kant.", "In principle 3 he says so.", True),
    ],
)
def test_an_answer_that_speaks_of_its_principles_is_quarantined(
    make_step: Callable[..., Any], prompt: str, answer: str, is_taken: bool
) -> None:
    step = make_step("principles", lambda _: f"<answer>{answer}</answer>", principles=["Be honest."])
    (record,) = apply(step, make_record(prompt, "So."))
    assert record.answer == (answer if is_taken else "So.")
    assert ("quarantined" in record.meta) is not is_taken


# -- back-translation ------------------------------------------------------------------------------------------------------------

TEXT = make_record("", "Rain falls since clouds cool.", unlabelled=True)


def label(score: int) -> Callable[[Body], str]:
    def answer(body: Body) -> str:
        if "<request>" in body["messages"][-1]["content"]:
            return f"It answers the request.\nScore: {score}"
        return "<instruction>Why does it rain?</instruction>"

    return answer


@pytest.mark.parametrize(("score", "is_kept"), [(5, True), (4, True), (3, False), (1, False)])
def test_a_pair_is_kept_from_the_least_score_on(make_step: Callable[..., Any], score: int, is_kept: bool) -> None:
    (outcome,) = make_step("backTranslate", label(score)).apply([TEXT])
    if is_kept:
        assert (outcome.prompt, outcome.answer) == ("Why does it rain?", TEXT.answer)
        assert outcome.meta == {
            "original": {"instruction": ""},
            "origin": [{"operation": "backTranslate", "by": "writer", "score": float(score)}],
        }
    else:
        assert (outcome.rule, outcome.value, outcome.threshold) == ("minScore", float(score), 4.0)
        assert "Why does it rain?" in outcome.detail


def test_the_least_score_comes_from_the_manifest(make_step: Callable[..., Any]) -> None:
    assert isinstance(make_step("backTranslate", label(3), minScore=3).apply([TEXT])[0], Record)
    assert isinstance(make_step("backTranslate", label(4), minScore=5).apply([TEXT])[0], Drop)


def test_records_with_an_instruction_pass_and_are_not_paid_for(
    make_step: Callable[..., Any], server: ModelServer
) -> None:
    labelled = make_record("Why?", "So.", row=1)
    outcome = make_step("backTranslate", label(5)).apply([labelled, TEXT, labelled])
    assert outcome[0] == outcome[2] == labelled
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "score"),
    [("Score: 4", "4"), ("Fine.\n\nScore: 5.", "5"), ("<think>Score: 1</think>Good.\nScore:3\n", "3")],
)
def test_a_score_is_the_last_line(answer: str, score: str) -> None:
    assert back_translate.read_score(answer) == score


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "4",
        "Score: 6",
        "Score: 0",
        "Score: 4.5",
        "Score: 4/5",
        "Score: 4\nThat is all.",
        "Score: 2\nScore: 4",
        "Four.",
    ],
)
def test_anything_else_is_no_score(answer: str) -> None:
    with pytest.raises(ValueError, match="Score"):
        back_translate.read_score(answer)


@pytest.mark.parametrize("failing", ["<text>", "<request>"])
def test_a_text_without_an_instruction_or_a_score_is_dropped(make_step: Callable[..., Any], failing: str) -> None:
    def answer(body: Body) -> str:
        return "I can't." if failing in body["messages"][-1]["content"] else label(5)(body)

    (outcome,) = make_step("backTranslate", answer).apply([TEXT])
    assert isinstance(outcome, Drop)
    assert (outcome.rule, outcome.value) == ("unanswered", None)


# -- evolve ----------------------------------------------------------------------------------------------------------------------

NEW = "Explain to a farmer why rain falls mostly in spring and give two measurements"


def change(instruction: str = NEW, answer: str = "Since clouds cool, as 2 measurements show.") -> Callable[[Body], str]:
    def say(body: Body) -> str:
        if "You change instructions" in body["messages"][0]["content"]:
            return f"<instruction>{instruction}</instruction>"
        return answer

    return say


RAIN = make_record("Why does it rain?", "Clouds.", given="In Spain.")


def test_an_instruction_is_evolved_and_answered(make_step: Callable[..., Any], server: ModelServer) -> None:
    (record,) = apply(make_step("evolve", change(), operations=["deepen"]), RAIN)
    assert (record.messages[0].content, record.input) == (NEW, "In Spain.")
    assert record.answer == "Since clouds cool, as 2 measurements show."
    assert record.meta["original"] == {"instruction": "Why does it rain?", "input": "In Spain.", "answer": "Clouds."}
    assert record.meta["origin"] == [{"operation": "evolve.deepen", "by": "writer"}]
    assert server.requests[1].body["messages"] == [{"role": "user", "content": f"{NEW}\n\nIn Spain."}]


def test_a_broadened_instruction_has_no_input_of_the_old_one(make_step: Callable[..., Any]) -> None:
    (record,) = apply(make_step("evolve", change(), operations=["broaden"]), RAIN)
    assert record.input == ""


SORRY_79 = " ".join(["Sorry,", *(f"w{n}" for n in range(78))])
SORRY_80 = f"{SORRY_79} w78"

REFUSED = {
    "the same": (change("Why does it rain?"), "maxRouge"),
    "the same but for case": (change("WHY does it rain"), "maxRouge"),
    "a refusal of 79 words": (change(answer=SORRY_79), "refusalWords"),
    "an answer of stop words": (change(answer="It is the... and!"), "emptyAnswer"),
    "an instruction with the prompt's words": (
        change("The given prompt asks why rain falls in the spring of Spain"),
        "scaffold",
    ),
    "an instruction with marks": (change("#Rewritten Prompt#: say why rain falls in the spring of Spain"), "scaffold"),
    "an answer with the prompt's words": (change(answer="As the rewritten instruction says, clouds cool."), "scaffold"),
    "no instruction": (lambda body: "No.", "unanswered"),
    "an empty answer": (change(answer="  "), "unanswered"),
}


@pytest.mark.parametrize(("answer", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_an_evolution_that_went_wrong_is_refused(
    make_step: Callable[..., Any], answer: Callable[[Body], str], rule: str
) -> None:
    (record,) = apply(make_step("evolve", answer), RAIN)
    assert (record.messages, record.input) == (RAIN.messages, RAIN.input)
    assert record.meta["quarantined"]["evolve"].startswith(f"{rule}: ")


def test_a_long_answer_may_say_sorry(make_step: Callable[..., Any]) -> None:
    assert apply(make_step("evolve", change(answer=SORRY_80)), RAIN)[0].answer == SORRY_80
    short = make_step("evolve", change(f"{NEW} now", "Sorry, clouds."), refusalWords=2)
    assert apply(short, make_record("How is it?", "So."))[0].answer == "Sorry, clouds."


def test_how_like_is_too_like_comes_from_the_manifest(make_step: Callable[..., Any]) -> None:
    # 9 of 10 words stay: F is 0.9, which is not more than 0.9.
    before, after = (
        "one two three four five six seven eight nine ten",
        "one two three four five six seven eight nine else",
    )
    assert measure_likeness(before, after) == 0.9
    assert measure_likeness("为什么下雨", "为什么 下雨") == 0.0
    assert measure_likeness("为什么下雨", " 为什么下雨") == 1.0
    record = make_record(before, "So.")
    assert apply(make_step("evolve", change(after)), record)[0].prompt == after
    assert apply(make_step("evolve", change(after), maxRouge=0.89), record)[0].prompt == before


def test_words_of_the_record_itself_are_no_scaffold() -> None:
    assert find_scaffold("Write the new prompt", "Improve my new prompt for a painter") is None
    assert find_scaffold("Write the new prompt", "Improve it") == "new prompt"


def test_rounds_build_on_each_other_and_end_at_the_first_refusal(
    make_step: Callable[..., Any], server: ModelServer
) -> None:
    def grow(body: Body) -> str:
        if "You change instructions" not in body["messages"][0]["content"]:
            return f"Answer to: {body['messages'][-1]['content']}"
        old = find_tagged(body, "instruction")
        return (
            f"<instruction>{old + ' and more on this and also on that' if old.count('more') < 2 else old}</instruction>"
        )

    (record,) = apply(make_step("evolve", grow, rounds=4), make_record("Why does it rain?", "So."))
    assert record.prompt.count("more") == 2
    assert record.answer == f"Answer to: {record.prompt}"
    assert [set(entry) for entry in record.meta["origin"]] == [{"operation", "by"}, {"operation", "by", "was"}]
    assert record.meta["original"]["instruction"] == "Why does it rain?"
    assert record.meta["origin"][1]["was"]["instruction"].count("more") == 1
    assert record.meta["quarantined"]["evolve"].startswith("maxRouge: ")
    assert len(server.requests) == 5  # two rounds of two, and the instruction of a third


def test_conversations_of_several_exchanges_pass(make_step: Callable[..., Any], server: ModelServer) -> None:
    record = Record(0, "s", "f", 1, (*RAIN.messages, Message("user", "More?"), Message("assistant", "No.")))
    assert apply(make_step("evolve", change()), record) == [record]
    assert not server.requests


def test_operations_spread_over_records_by_content_and_round() -> None:
    operations = ("constraints", "deepen", "broaden")
    chosen = [choose_operation(make_record(f"Question {n}?", "So."), operations, 0) for n in range(300)]
    assert all(70 < chosen.count(op) < 130 for op in operations)  # type: ignore[arg-type]
    again = [choose_operation(make_record(f"Question {n}?", "So.", row=7), operations, 0) for n in range(300)]
    assert again == chosen
    assert [choose_operation(make_record(f"Question {n}?", "So."), operations, 1) for n in range(300)] != chosen


# -- all of them -----------------------------------------------------------------------------------------------------------------

ALL = {
    "rewrite": (polish, {}),
    "principles": (lambda _: "<answer>Yes.</answer>", {"principles": ["Be kind."]}),
    "evolve": (change(), {}),
    "backTranslate": (label(5), {}),
}


@pytest.mark.parametrize("kind", ALL)
def test_a_records_outcome_depends_on_no_other_and_a_second_run_asks_nothing(
    make_step: Callable[..., Any], server: ModelServer, kind: str
) -> None:
    answer, options = ALL[kind]
    records = [make_record("" if kind == "backTranslate" else f"Why {n}?", f"So {n} is it.", row=n) for n in range(12)]
    server.misbehave("500", "ok", "cut", "429:0.01", "ok", "html", "drop")
    together = make_step(kind, answer, **options).apply(records)
    asked = len(server.requests)
    assert asked > 12
    close_caches()
    step = make_step(kind, answer, **options)
    apart = [outcome for record in reversed(records) for outcome in step.apply([record])]
    assert apart[::-1] == together
    assert len(server.requests) == asked
    assert step.apply([]) == []


@pytest.mark.parametrize("kind", ALL)
def test_an_endpoint_that_may_not_be_asked_is_told_when_the_step_is_built(tmp_path: Path, kind: str) -> None:
    model = {"url": "http://models.example.com/v1", "model": "m"}
    (planned,) = plan_steps([DataStep.model_validate({kind: {"model": model, **ALL[kind][1]}})])
    with pytest.raises(DataError, match="https"):
        STEPS[kind](planned.options, StepContext(0, None, str(tmp_path), 1, Path))


def test_changes_of_several_steps_are_all_in_the_lineage(make_step: Callable[..., Any]) -> None:
    (evolved,) = apply(make_step("evolve", change(), operations=["deepen"]), RAIN)
    (record,) = apply(make_step("rewrite", polish), evolved)
    assert record.meta["original"]["answer"] == "Clouds."
    assert record.meta["origin"][1] == {"operation": "rewrite.style", "by": "writer", "was": {"answer": evolved.answer}}
