"""Builds the quickstart's three data files from facts.yaml, and plants the dirt of real data in them.

It knows the three formats and the kinds of dirt; what the cleaning makes of them is left to llamero. The same facts.yaml gives the same bytes.

    python examples/data/build.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import html
import json
import random
import re
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
STACKEXCHANGE, ALPACA, SHAREGPT, DIRT = "stackexchange/Posts.xml", "alpaca.json", "sharegpt.json", "dirt.json"
FIRST_POST = datetime(2026, 1, 5, 8, 0)

# What becomes of each kind of dirt: the first word is the verdict.
OUTCOMES = {
    "stackexchange-duplicate-exact": "rejected: duplicate",
    "stackexchange-duplicate-whitespace": "rejected: duplicate",
    "stackexchange-empty-answer": "rejected: empty",
    "stackexchange-unanswered": "rejected: unanswered",
    "stackexchange-question-without-id": "rejected: broken",
    "stackexchange-question-without-title": "rejected: broken",
    "stackexchange-answer-without-body": "rejected: broken",
    "stackexchange-orphan-answer": "rejected: broken",
    "stackexchange-too-long": "rejected: too long",
    "stackexchange-tag-wiki": "ignored: neither question nor answer",
    "stackexchange-accepted-not-best": "kept: with the answer of most votes",
    "alpaca-duplicate-exact": "rejected: duplicate",
    "alpaca-duplicate-whitespace": "rejected: duplicate",
    "alpaca-duplicate-case": "rejected: duplicate",
    "alpaca-duplicate-markup": "rejected: duplicate",
    "alpaca-duplicate-of-stackexchange": "rejected: duplicate",
    "alpaca-empty-output": "rejected: empty",
    "alpaca-blank-output": "rejected: empty",
    "alpaca-markup-only-output": "rejected: empty",
    "alpaca-missing-output": "rejected: broken",
    "alpaca-missing-instruction": "rejected: broken",
    "alpaca-row-not-object": "rejected: broken",
    "alpaca-output-not-text": "rejected: broken",
    "alpaca-html-output": "kept: as Markdown",
    "alpaca-near-duplicate": "kept: for near-duplicate removal",
    "sharegpt-duplicate-exact": "rejected: duplicate",
    "sharegpt-duplicate-whitespace": "rejected: duplicate",
    "sharegpt-duplicate-markup": "rejected: duplicate",
    "sharegpt-duplicate-of-alpaca": "rejected: duplicate",
    "sharegpt-empty-answer": "rejected: empty",
    "sharegpt-markup-only-answer": "rejected: empty",
    "sharegpt-short-turn": "rejected: a turn of fewer than 16 characters",
    "sharegpt-quota-refusal": "rejected: refusal by quota",
    "sharegpt-missing-conversations": "rejected: broken",
    "sharegpt-empty-conversations": "rejected: broken",
    "sharegpt-only-gpt": "rejected: broken",
    "sharegpt-not-alternating": "rejected: broken",
    "sharegpt-unknown-role": "rejected: broken",
    "sharegpt-value-not-text": "rejected: broken",
    "sharegpt-row-not-object": "rejected: broken",
    "sharegpt-leading-gpt": "kept: without its first turn",
    "sharegpt-html": "kept: as Markdown",
    "sharegpt-copy-code": "kept: without the button's words",
    "sharegpt-page-counter": "kept: without the counter",
    "sharegpt-too-long": "kept: cut into chunks of whole turns",
    "sharegpt-near-duplicate": "kept: for near-duplicate removal",
}

# One or two words changed; the first that matches is used.
NEAR_DUPLICATES = (
    ("What does", "What exactly does"),
    ("What is", "What precisely is"),
    ("How do I", "How can I"),
    ("Which", "Tell me which"),
    ("Why", "Why exactly"),
    ("How", "Please say how"),
)


@dataclass(frozen=True)
class Fact:
    """One fact: three wordings of a question and their answer, all in small Markdown."""

    id: str
    topic: tuple[str, ...]
    questions: tuple[str, str, str]
    answer: str


@dataclass(frozen=True)
class Row:
    """One row of a JSON file, with the kinds of dirt that it stands for."""

    value: Any
    kinds: tuple[str, ...] = ()


@dataclass
class Dirt:
    """Collects which rows are dirt: kind → file and ids."""

    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, kind: str, file: str, row_id: int | str) -> None:
        entry = self.kinds.setdefault(kind, {"file": file, "count": 0, "ids": [], "outcome": OUTCOMES[kind]})
        entry["ids"].append(row_id)
        entry["count"] += 1


def build(source: dict[str, Any]) -> dict[str, bytes]:
    """The files, by path below the data folder. Raises KeyError where facts.yaml lacks a part."""
    facts = [Fact(f["id"], tuple(f["topic"]), tuple(f["questions"]), f["answer"]) for f in source["facts"]]
    dealt = deal_wordings(facts, set(source["demo_prompts"]))
    open_questions = iter(source["open_questions"])
    dirt = Dirt()
    posts, bodiless = build_posts(source, facts, dealt[STACKEXCHANGE], open_questions, dirt)
    alpaca = build_alpaca(facts, dealt[ALPACA], set(source["demo_prompts"]), bodiless, open_questions)
    sharegpt = build_sharegpt(source, facts, dealt[SHAREGPT], alpaca, open_questions)
    for file, rows in ((ALPACA, alpaca), (SHAREGPT, sharegpt)):
        for number, row in enumerate(rows):
            for kind in row.kinds:
                dirt.note(kind, file, number)
    return {
        STACKEXCHANGE: posts,
        ALPACA: as_json([row.value for row in alpaca]),
        SHAREGPT: as_json([row.value for row in sharegpt]),
        DIRT: as_json({kind: dirt.kinds[kind] for kind in OUTCOMES}),
    }


def deal_wordings(facts: list[Fact], demo_prompts: set[str]) -> dict[str, dict[str, str]]:
    """Which wording of each fact goes to which file: each to one, by chance; a demo's prompt to Alpaca, where it stands alone."""
    rng = random.Random("wordings")
    dealt: dict[str, dict[str, str]] = {STACKEXCHANGE: {}, ALPACA: {}, SHAREGPT: {}}
    for fact in facts:
        wordings = rng.sample(fact.questions, 3)
        wordings.sort(key=lambda wording: wording in demo_prompts)
        dealt[SHAREGPT][fact.id], dealt[STACKEXCHANGE][fact.id], dealt[ALPACA][fact.id] = wordings
    return dealt


# ---- Stack Exchange


@dataclass(frozen=True)
class Post:
    """A row of Posts.xml before its Id is known; `parent` is the index of the question's Post in the list of posts."""

    created: datetime
    type_id: int
    score: int
    body: str | None
    title: str | None = None
    tags: tuple[str, ...] = ()
    parent: int | None = None
    accepted: int | None = None
    kinds: tuple[str, ...] = ()


def build_posts(
    source: dict[str, Any], facts: list[Fact], wordings: dict[str, str], open_questions: Iterator[str], dirt: Dirt
) -> tuple[bytes, list[Row]]:
    """Posts.xml, and Alpaca rows of some of its questions without a body, to be planted as duplicates across files."""
    rng = random.Random("stackexchange")
    posts: list[Post] = []
    clock = FIRST_POST

    def ask(title: str | None, body: str, tags: tuple[str, ...], kinds: tuple[str, ...] = ()) -> int:
        nonlocal clock
        clock += timedelta(minutes=rng.randint(20, 900), seconds=rng.randint(0, 59))
        posts.append(Post(clock, 1, rng.randint(0, 25), body, title, tags, kinds=kinds))
        return len(posts) - 1

    def reply(question: int, body: str | None, score: int, kinds: tuple[str, ...] = ()) -> int:
        created = posts[question].created + timedelta(minutes=rng.randint(3, 4000), seconds=rng.randint(0, 59))
        posts.append(Post(created, 2, score, body, parent=question, kinds=kinds))
        return len(posts) - 1

    def accept(question: int, answer: int, kinds: tuple[str, ...] = ()) -> None:
        posts[question] = replace(posts[question], accepted=answer, kinds=posts[question].kinds + kinds)

    bodiless: list[Row] = []
    exact, respaced = set(range(10, 30, 10)), set(range(40, 60, 10))
    ordered = rng.sample(facts, len(facts))
    for number, fact in enumerate(ordered):
        body = ""
        if rng.random() < 0.45:
            body = to_html(rng.choice(source["bodies"]["any"] + source["bodies"][fact.topic[0]]))
        title, answer, best = wordings[fact.id], to_html(fact.answer), rng.randint(4, 40)
        question = ask(title, body, fact.topic)
        poor = [
            reply(question, to_html(text), rng.randint(-2, best - 1))
            for text in rng.sample(source["poor_answers"], rng.choice((0, 0, 1, 1, 2)))
        ]
        good = reply(question, answer, best)
        if poor and rng.random() < 0.15:
            accept(question, poor[0], ("stackexchange-accepted-not-best",))
        elif rng.random() < 0.7:
            accept(question, good)
        if not body and "```" not in fact.answer and len(bodiless) < 3:
            bodiless.append(alpaca_row(title, fact.answer, "alpaca-duplicate-of-stackexchange"))
        if number in exact:
            reply(ask(title, body, fact.topic, ("stackexchange-duplicate-exact",)), answer, best)
        if number in respaced:
            copy = ask(f"  {title} ", body, fact.topic, ("stackexchange-duplicate-whitespace",))
            reply(copy, f"\n{answer.replace(' ', '&nbsp; ', 1)}\n\n", best)
        if number % 15 == 5:
            ask(next(open_questions), "", fact.topic, ("stackexchange-unanswered",))
        if number % 30 == 17:
            blank = ("<p></p>", "<p>&nbsp;</p>\n", " \n", "<hr>\n<p> </p>")[number // 30 % 4]
            reply(ask(next(open_questions), "", fact.topic, ("stackexchange-empty-answer",)), blank, 3)

    plant_broken_posts(ask, reply, open_questions)
    domain = source["long_answer"]["domain"]
    listed = "\n".join(f"- {prose(fact.answer)}" for fact in facts if fact.topic[0] == domain)
    everything = ask(source["long_answer"]["question"], "", (domain,), ("stackexchange-too-long",))
    reply(everything, to_html(f"These are the points that I would start with.\n\n{listed}"), 31)
    wiki = [
        Post(FIRST_POST + timedelta(hours=h), 5 - h % 2, 0, "", kinds=("stackexchange-tag-wiki",)) for h in range(4)
    ]
    return render_posts([*posts, *wiki], dirt), bodiless


def plant_broken_posts(ask: Callable[..., int], reply: Callable[..., int], open_questions: Iterator[str]) -> None:
    """Rows that can't become a record: what they lack is taken away in `render_posts`."""
    ask(next(open_questions), "", ("kubernetes",), ("stackexchange-question-without-id",))
    reply(ask(None, "", ("kubernetes",), ("stackexchange-question-without-title",)), to_html("It is in the manual."), 2)
    reply(ask(next(open_questions), "", ("llamero",), ("stackexchange-answer-without-body",)), None, 4)
    for text in ("That is what I did as well.", "The second way is the better one."):
        reply(0, to_html(text), 1, ("stackexchange-orphan-answer",))


def render_posts(posts: list[Post], dirt: Dirt) -> bytes:
    """The dump: rows in the order of their creation, with a BOM and one row a line, as Stack Exchange writes it."""
    order = sorted(range(len(posts)), key=lambda index: posts[index].created)
    ids = {index: number for number, index in enumerate(order, start=1)}
    answers = [post.parent for post in posts if "stackexchange-orphan-answer" not in post.kinds]
    rng = random.Random("owners")
    lines = []
    for line, index in enumerate(order, start=3):
        post = posts[index]
        stamp = post.created.isoformat(timespec="milliseconds")
        attributes: dict[str, Any] = {"Id": ids[index], "PostTypeId": post.type_id}
        if post.parent is not None:
            attributes["ParentId"] = ids[post.parent]
        if post.accepted is not None:
            attributes["AcceptedAnswerId"] = ids[post.accepted]
        attributes |= {"CreationDate": stamp, "Score": post.score}
        if post.type_id == 1:
            attributes["ViewCount"] = rng.randint(20, 2000)
        if post.body is not None:
            attributes["Body"] = post.body
        attributes |= {"OwnerUserId": rng.randint(1, 90), "LastActivityDate": stamp}
        if post.type_id == 1:
            tags = "".join(f"<{tag}>" for tag in post.tags)
            attributes |= {"Title": post.title or "", "Tags": tags, "AnswerCount": answers.count(index)}
        attributes["CommentCount"] = rng.randint(0, 4)

        row_id: int | str = ids[index]
        if "stackexchange-question-without-id" in post.kinds:
            del attributes["Id"]
            row_id = f"line {line}"
        if "stackexchange-question-without-title" in post.kinds:
            del attributes["Title"]
        if "stackexchange-orphan-answer" in post.kinds:
            attributes["ParentId"] = 90_000 + ids[index]
        for kind in post.kinds:
            dirt.note(kind, STACKEXCHANGE, row_id)
        lines.append(
            "  <row " + " ".join(f'{name}="{escape(str(value))}"' for name, value in attributes.items()) + " />"
        )
    text = '<?xml version="1.0" encoding="utf-8"?>\n<posts>\n' + "\n".join(lines) + "\n</posts>"
    return text.encode("utf-8-sig")


def escape(text: str) -> str:
    """An XML attribute's value, written as in the public dumps."""
    for raw, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\n", "&#xA;")):
        text = text.replace(raw, entity)
    return text


# ---- Alpaca


def build_alpaca(
    facts: list[Fact],
    wordings: dict[str, str],
    demo_prompts: set[str],
    copies: list[Row],
    open_questions: Iterator[str],
) -> list[Row]:
    """alpaca.json: one wording of each fact, some with HTML or an input, and dirt between them."""
    rng = random.Random("alpaca")
    rows = []
    for fact in rng.sample(facts, len(facts)):
        question = wordings[fact.id]
        chance = 1.0 if question in demo_prompts else rng.random()
        if chance < 0.1:
            rows.append(alpaca_row(question, to_html(fact.answer), "alpaca-html-output"))
        elif chance < 0.2:
            rows.append(alpaca_row(f"Answer this question about {fact.topic[0]}.", fact.answer, input=question))
        else:
            rows.append(alpaca_row(question, fact.answer))
    plain = [row.value for row in rows if not row.kinds and not row.value["input"] and "`" not in row.value["output"]]
    picked = iter(rng.sample(plain, 20))

    later = list(copies)
    later += [Row(dict(next(picked)), ("alpaca-duplicate-exact",)) for _ in range(3)]
    for _ in range(2):
        row = next(picked)
        spaced = {
            **row,
            "instruction": f" {row['instruction']}\n",
            "output": row["output"].replace(" ", "  ", 3) + "\t",
        }
        later.append(Row(spaced, ("alpaca-duplicate-whitespace",)))
    for _ in range(2):
        row = next(picked)
        later.append(Row({**row, "instruction": row["instruction"].upper()}, ("alpaca-duplicate-case",)))
    for _ in range(2):
        row = next(picked)
        later.append(Row({**row, "output": to_html(row["output"])}, ("alpaca-duplicate-markup",)))
    for _ in range(6):
        row = next(picked)
        later.append(Row({**row, "instruction": reword(row["instruction"])}, ("alpaca-near-duplicate",)))

    rows += [alpaca_row(next(open_questions), "", "alpaca-empty-output") for _ in range(3)]
    rows += [alpaca_row(next(open_questions), blank, "alpaca-blank-output") for blank in ("  ", "\n\n")]
    rows += [
        alpaca_row(next(open_questions), tags, "alpaca-markup-only-output") for tags in ("<p></p>", "<div><br></div>")
    ]
    rows += [
        Row({"instruction": next(open_questions), "input": ""}, ("alpaca-missing-output",)),
        Row({"instruction": next(open_questions)}, ("alpaca-missing-output",)),
        Row({"input": "", "output": "That is the one to take."}, ("alpaca-missing-instruction",)),
        Row("instruction,input,output", ("alpaca-row-not-object",)),
        Row({"instruction": next(open_questions), "input": "", "output": 42}, ("alpaca-output-not-text",)),
        Row({"instruction": next(open_questions), "input": "", "output": None}, ("alpaca-output-not-text",)),
    ]
    return mix(rows, later, rng)


def alpaca_row(instruction: str, output: str, *kinds: str, input: str = "") -> Row:
    return Row({"instruction": instruction, "input": input, "output": output}, kinds)


# ---- ShareGPT


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
        kinds: list[str] = ["sharegpt-too-long"] if group == source["long_conversation"] else []
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


def to_page(text: str) -> str:
    """HTML as it is copied from a chat page: code blocks stand in a box with a button."""
    box = (
        r'<pre><div class="bg-black rounded-md"><div class="flex items-center"><span>\1</span><button class="flex ml-auto">Copy code</button>'
        r'</div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre hljs language-\1">\2</code></div></div></pre>'
    )
    page = re.sub(r'<pre><code class="lang-(\w+)">(.*?)</code></pre>', box, to_html(text), flags=re.DOTALL)
    return f'<div class="markdown prose w-full break-words">{page.strip()}</div>'


def with_button(text: str) -> str:
    """Markdown in which a code block still carries the words of its button."""
    return re.sub(r"```(\w+)\n(.*?)```", r"```\n\1Copy code\n\2```", text, flags=re.DOTALL)


# ---- shared by the files


def mix(rows: list[Row], later: list[Row], rng: random.Random) -> list[Row]:
    """Rows in random order; each of `later` comes after the half that may hold its original, so that the copy is the one rejected."""
    rows = rng.sample(rows, len(rows))
    for row in later:
        rows.insert(rng.randint(last_original(rows, row) + 1, len(rows)), row)
    return rows


def last_original(rows: list[Row], copy: Row) -> int:
    """Index of the last row with the answer that `copy` repeats, −1 where it is in another file."""
    wanted = gist(copy.value)
    return max((index for index, row in enumerate(rows) if gist(row.value) == wanted), default=-1)


def gist(value: Any) -> str:
    """An answer without spaces, case and tags, to find a copy's original."""
    if not isinstance(value, dict):
        return ""
    turns = value.get("conversations") or [{}]
    answer = value.get("output") or turns[-1].get("value")
    return re.sub(r"<[^>]*>|\s", "", str(answer)).lower()


def reword(question: str) -> str:
    for start, other in NEAR_DUPLICATES:
        if question.startswith(start):
            return other + question.removeprefix(start)
    return f"Tell me: {question}"


def prose(text: str) -> str:
    """The text without its code blocks, in one line."""
    return " ".join(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split())


def to_html(text: str) -> str:
    """Small Markdown as HTML in the way of Stack Exchange: paragraphs, lists, code blocks, and what stands within a line."""
    blocks = re.split(r"\n\n(?=\S)", text)
    return "".join(block_to_html(block) + "\n" for block in blocks)


def block_to_html(block: str) -> str:
    if block.startswith("```"):
        language, code = block.removeprefix("```").removesuffix("```").split("\n", 1)
        return f'<pre><code class="lang-{language}">{html.escape(code, quote=False)}</code></pre>'
    if block.startswith("- "):
        items = "".join(f"  <li>{inline_to_html(item)}</li>\n" for item in block.removeprefix("- ").split("\n- "))
        return f"<ul>\n{items}</ul>"
    return f"<p>{inline_to_html(block)}</p>"


def inline_to_html(text: str) -> str:
    """Code, links and bold; an arrow outside of code stays raw, as careless writers leave it."""
    parts = re.split(r"`([^`]+)`", text)
    for index, part in enumerate(parts):
        part = html.escape(part, quote=False)
        if index % 2:
            parts[index] = f"<code>{part}</code>"
            continue
        part = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r'<a href="\2" rel="nofollow">\1</a>', part.replace("&lt;-", "<-"))
        parts[index] = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", part)
    return "".join(parts)


def as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the quickstart's data from facts.yaml.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    out: Path = parser.parse_args().out
    source = yaml.safe_load((HERE / "facts.yaml").read_text(encoding="utf-8"))
    for name, content in build(source).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"{path}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
