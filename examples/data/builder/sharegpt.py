"""sharegpt.json: one wording of each fact in conversations, and the dirt of such files."""

import random
import string
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from builder.facts import Fact
from builder.markup import to_html, to_page, with_button
from builder.rows import Row, mix, reword


def build_sharegpt(
    source: dict[str, Any],
    facts: list[Fact],
    wordings: dict[str, str],
    alpaca: list[Row],
    open_questions: Iterator[str],
) -> list[Row]:
    """sharegpt.json: one wording of each fact, alone, as two related ones, or in one long conversation, and dirt between them."""
    rng = random.Random("sharegpt")
    by_id = {fact.id: fact for fact in facts}
    together = [*source["pairs"], source["long_conversation"]]
    taken = {fact_id for group in together for fact_id in group}
    groups = [*together, *([fact.id] for fact in facts if fact.id not in taken)]

    rows = []
    for group in rng.sample(groups, len(groups)):
        kinds: list[str] = ["sharegpt-long-conversation"] if group == source["long_conversation"] else []
        as_page = rng.random() < 0.3
        turns: list[tuple[str, Any]] = []
        for fact_id in group:
            answer = by_id[fact_id].answer
            if "```" in answer:
                kinds.append("sharegpt-copy-code")
            turns += [("human", wordings[fact_id]), ("gpt", to_page(answer) if as_page else with_button(answer))]
        if as_page:
            kinds.append("sharegpt-html")
        elif len(group) == 1 and rng.random() < 0.08:
            kinds.append("sharegpt-page-counter")
            turns[1] = ("gpt", f"1 / 2\n\n{turns[1][1]}")
        elif len(group) == 1 and not kinds and rng.random() < 0.03:
            kinds.append("sharegpt-leading-gpt")
            turns.insert(0, ("gpt", "Hello! How can I help you today?"))
        rows.append(conversation(rng, turns, *dict.fromkeys(kinds)))
    plain = [row.value for row in rows if not row.kinds and len(row.value["conversations"]) == 2]
    picked = iter(rng.sample(plain, 12))

    later = [Row(next(picked), ("sharegpt-duplicate-exact",)) for _ in range(2)]
    later.append(
        same_again(rng, next(picked), "sharegpt-duplicate-whitespace", lambda text: f"\n{text.replace(' ', '   ', 2)} ")
    )
    later.append(same_again(rng, next(picked), "sharegpt-duplicate-markup", to_html))
    later += [
        conversation(rng, [("human", row["instruction"]), ("gpt", row["output"])], "sharegpt-duplicate-of-alpaca")
        for row in [row.value for row in alpaca if not row.kinds and not row.value["input"]][5:8]
    ]
    for _ in range(6):
        question, answer = (turn["value"] for turn in next(picked)["conversations"])
        later.append(conversation(rng, [("human", reword(question)), ("gpt", answer)], "sharegpt-near-duplicate"))

    fate = "You can find more about this on the pages of the project."
    for kind, turns in (
        ("sharegpt-empty-answer", [("human", next(open_questions)), ("gpt", "")]),
        ("sharegpt-empty-answer", [("human", next(open_questions)), ("gpt", " \n")]),
        (
            "sharegpt-markup-only-answer",
            [("human", next(open_questions)), ("gpt", '<div class="markdown prose"></div>')],
        ),
        ("sharegpt-short-turn", [("human", next(open_questions)), ("gpt", "I see.")]),
        ("sharegpt-short-turn", [("human", "hello"), ("gpt", "Hello! How can I help you today?")]),
        (
            "sharegpt-quota-refusal",
            [("human", next(open_questions)), ("gpt", "Too many requests in 1 hour. Try again later.")],
        ),
        (
            "sharegpt-quota-refusal",
            [("human", next(open_questions)), ("gpt", "!Too many requests in 1 hour. Try again later.")],
        ),
        ("sharegpt-empty-conversations", []),
        ("sharegpt-only-gpt", [("gpt", fate)]),
        (
            "sharegpt-not-alternating",
            [("human", next(open_questions)), ("human", "Please answer soon."), ("gpt", fate)],
        ),
        ("sharegpt-unknown-role", [("human", next(open_questions)), ("narrator", fate)]),
        ("sharegpt-value-not-text", [("human", next(open_questions)), ("gpt", None)]),
    ):
        rows.append(conversation(rng, turns, kind))
    rows.append(Row({"id": page_id(rng)}, ("sharegpt-missing-conversations",)))
    rows.append(Row([next(open_questions), fate], ("sharegpt-row-not-object",)))
    return mix(rows, later, rng)


def conversation(rng: random.Random, turns: Iterable[tuple[str, Any]], *kinds: str) -> Row:
    return Row({"id": page_id(rng), "conversations": [{"from": who, "value": value} for who, value in turns]}, kinds)


def page_id(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=7)) + "_0"


def same_again(rng: random.Random, row: dict[str, Any], kind: str, change: Callable[[str], str]) -> Row:
    """The same conversation under another id, each answer changed in its form only."""
    return conversation(
        rng, [(t["from"], change(t["value"]) if t["from"] == "gpt" else t["value"]) for t in row["conversations"]], kind
    )
