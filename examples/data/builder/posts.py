"""stackexchange/Posts.xml: one wording of each fact as a question with answers and votes, and the dirt of such dumps."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from builder.alpaca import alpaca_row
from builder.dirt import Dirt
from builder.facts import STACKEXCHANGE, Fact
from builder.markup import prose, to_html
from builder.rows import Row

FIRST_POST = datetime(2026, 1, 5, 8, 0)


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
