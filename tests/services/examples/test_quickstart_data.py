"""The quickstart's data: the built files are those of facts.yaml, and the dirt in them is what dirt.json and the README say."""

import html
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

DATA = Path(__file__).parents[3] / "examples" / "data"
BUILT = ("stackexchange/Posts.xml", "alpaca.json", "sharegpt.json", "dirt.json")
TAG = re.compile(r"</?[a-zA-Z][^>]*>")


@pytest.fixture(scope="module")
def source() -> dict[str, Any]:
    return yaml.safe_load((DATA / "facts.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def posts() -> list[dict[str, str]]:
    return [row.attrib for row in ElementTree.parse(DATA / "stackexchange/Posts.xml").getroot()]


@pytest.fixture(scope="module")
def alpaca() -> list[Any]:
    return json.loads((DATA / "alpaca.json").read_bytes())


@pytest.fixture(scope="module")
def sharegpt() -> list[Any]:
    return json.loads((DATA / "sharegpt.json").read_bytes())


@pytest.fixture(scope="module")
def dirt() -> dict[str, dict[str, Any]]:
    return json.loads((DATA / "dirt.json").read_bytes())


def flatten(text: str) -> str:
    """A text without tags, entities, case and spaces: what is left of it for an exact duplicate."""
    return re.sub(r"\s+", " ", html.unescape(TAG.sub("", text))).strip().lower()


def prompts_and_answers(rows: list[Any]) -> list[tuple[str, str, Any]]:
    """Every sound question of both JSON forms with its answer and the row it stands in."""
    found = []
    for row in rows:
        if not isinstance(row, dict):
            continue
        if isinstance(row.get("output"), str) and "instruction" in row:
            found.append((row["input"] or row["instruction"], row["output"], row))
        turns = row.get("conversations", [])
        for asked, answered in pairwise(turns):
            if (asked["from"], answered["from"]) == ("human", "gpt") and isinstance(answered["value"], str):
                found.append((asked["value"], answered["value"], row))
    return found


def test_the_checked_in_files_are_built_from_facts_yaml(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-B", DATA / "build.py", "--out", tmp_path], check=True, capture_output=True)
    for name in BUILT:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), f"{name}: run examples/data/build.py"


def test_there_are_a_hundred_facts_in_three_distinct_wordings(source: dict[str, Any]) -> None:
    facts = source["facts"]
    assert len(facts) >= 100
    assert len({fact["id"] for fact in facts}) == len(facts)
    assert all(len(fact["questions"]) == 3 for fact in facts)
    wordings = Counter(flatten(question) for fact in facts for question in fact["questions"])
    assert max(wordings.values()) == 1
    assert len({flatten(fact["answer"]) for fact in facts}) == len(facts)
    domains = Counter(fact["topic"][0] for fact in facts)
    assert set(domains) == {"fine-tuning", "kubernetes", "llamero"} and min(domains.values()) >= 40


def test_answers_are_short_and_turns_long_enough_to_be_kept(source: dict[str, Any]) -> None:
    for fact in source["facts"]:
        prose = re.sub(r"```.*?```", "", fact["answer"], flags=re.DOTALL)
        assert 8 <= len(prose.split()) <= 30, fact["id"]
        assert min(map(len, [*fact["questions"], fact["answer"]])) >= 16, fact["id"]


def test_each_wording_of_a_fact_stands_in_another_file(
    source: dict[str, Any], posts: list[dict[str, str]], alpaca: list[Any], sharegpt: list[Any]
) -> None:
    files = (
        {row["Title"].strip() for row in posts if row.get("Title")},
        {prompt.strip() for prompt, _, _ in prompts_and_answers(alpaca)},
        {prompt.strip() for prompt, _, _ in prompts_and_answers(sharegpt)},
    )
    for fact in source["facts"]:
        for file in files:
            assert any(question in file for question in fact["questions"]), fact["id"]
        assert all(any(question in file for file in files) for question in fact["questions"]), fact["id"]


def test_the_dump_looks_like_stack_exchange(posts: list[dict[str, str]]) -> None:
    raw = (DATA / "stackexchange/Posts.xml").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf<?xml") and raw.endswith(b"</posts>")
    text = raw.decode()
    for piece in (
        "&lt;pre&gt;&lt;code class=&quot;lang-yaml&quot;&gt;",
        "&lt;li&gt;",
        "&lt;a href=",
        "$B A$",
        "x &lt;- lm(y ~ .)",
    ):
        assert piece in text, piece
    ids = [int(row["Id"]) for row in posts if "Id" in row]
    assert ids == sorted(set(ids))
    answers = Counter(row["ParentId"] for row in posts if row["PostTypeId"] == "2")
    for row in posts:
        if row["PostTypeId"] == "1" and "Id" in row:
            assert int(row["AnswerCount"]) == answers[row["Id"]]


def test_the_good_answer_has_the_most_votes(source: dict[str, Any], posts: list[dict[str, str]]) -> None:
    answer_of = {question: fact["answer"] for fact in source["facts"] for question in fact["questions"]}
    checked = 0
    for row in posts:
        if (title := row.get("Title", "").strip()) in answer_of:
            own = [p for p in posts if p.get("ParentId") == row["Id"]]
            best = max(own, key=lambda post: int(post["Score"]))
            assert sum(post["Score"] == best["Score"] for post in own) == 1
            good = flatten(re.sub(r"```\w*|`", "", answer_of[title]))
            assert flatten(best["Body"]) == good
            checked += 1
    assert checked >= len(source["facts"])


def test_dirt_json_counts_what_is_in_the_files(
    posts: list[dict[str, str]], alpaca: list[Any], sharegpt: list[Any], dirt: dict[str, dict[str, Any]]
) -> None:
    for kind, entry in dirt.items():
        assert entry["count"] == len(entry["ids"]) > 0, kind
        assert (DATA / entry["file"]).exists()

    def planted(prefix: str, *kinds: str) -> list[Any]:
        return sorted(row_id for kind in kinds for row_id in dirt[f"{prefix}-{kind}"]["ids"])

    questions = [row for row in posts if row["PostTypeId"] == "1"]
    replies = [row for row in posts if row["PostTypeId"] == "2"]
    answered = {row["ParentId"] for row in replies}
    known = {row.get("Id") for row in questions}
    unanswered = [int(row["Id"]) for row in questions if "Id" in row and row["Id"] not in answered]
    assert planted("stackexchange", "unanswered") == unanswered
    assert planted("stackexchange", "orphan-answer") == [int(r["Id"]) for r in replies if r["ParentId"] not in known]
    assert planted("stackexchange", "empty-answer") == sorted(
        int(r["ParentId"]) for r in replies if "Body" in r and not flatten(r["Body"])
    )
    assert planted("stackexchange", "answer-without-body") == [int(r["ParentId"]) for r in replies if "Body" not in r]
    assert planted("stackexchange", "question-without-title") == [int(r["Id"]) for r in questions if "Title" not in r]
    assert dirt["stackexchange-question-without-id"]["count"] == sum("Id" not in row for row in questions)
    assert planted("stackexchange", "tag-wiki") == [int(row["Id"]) for row in posts if row["PostTypeId"] in "45"]

    numbered = list(enumerate(alpaca, start=1))
    empty = [
        n
        for n, row in numbered
        if isinstance(row, dict) and isinstance(row.get("output"), str) and not flatten(row["output"])
    ]
    assert planted("alpaca", "empty-output", "blank-output", "markup-only-output") == empty
    assert planted("alpaca", "row-not-object") == [n for n, row in numbered if not isinstance(row, dict)]
    objects = [(n, row) for n, row in numbered if isinstance(row, dict)]
    assert planted("alpaca", "missing-output") == [n for n, row in objects if "output" not in row]
    assert planted("alpaca", "missing-instruction") == [n for n, row in objects if "instruction" not in row]
    assert planted("alpaca", "output-not-text") == [
        n for n, row in objects if not isinstance(row.get("output", ""), str)
    ]

    shaped = [(n, row) for n, row in enumerate(sharegpt, start=1) if isinstance(row, dict)]
    assert planted("sharegpt", "missing-conversations") == [n for n, row in shaped if "conversations" not in row]
    roles = {n: [turn["from"] for turn in row.get("conversations", [])] for n, row in shaped}
    unsound = [n for n, found in roles.items() if found != ["human", "gpt"] * (len(found) // 2)]
    assert planted("sharegpt", "only-gpt", "not-alternating", "unknown-role", "leading-gpt") == unsound
    counters = [
        n for n, row in shaped if any((t["value"] or "").startswith("1 / 2\n") for t in row.get("conversations", []))
    ]
    assert planted("sharegpt", "page-counter") == counters


def test_every_duplicate_repeats_an_earlier_record(
    posts: list[dict[str, str]], alpaca: list[Any], sharegpt: list[Any], dirt: dict[str, dict[str, Any]]
) -> None:
    best: dict[str, str] = {}
    for row in sorted(
        (p for p in posts if p["PostTypeId"] == "2" and "Body" in p), key=lambda post: int(post["Score"])
    ):
        best[row["ParentId"]] = row["Body"]
    seen: Counter[str] = Counter()
    repeated = set()

    def meet(kind: str, row_id: int, *texts: str) -> None:
        key = flatten("\n".join(texts).replace("`", ""))
        seen[key] += 1
        if key and seen[key] > 1:
            repeated.add((kind, row_id))

    for row in posts:
        if row["PostTypeId"] == "1" and best.get(row.get("Id", "")) and row.get("Title"):
            meet("stackexchange", int(row["Id"]), row["Title"], row["Body"], best[row["Id"]])
    for number, row in enumerate(alpaca, start=1):
        if isinstance(row, dict) and isinstance(row.get("output"), str) and "instruction" in row:
            meet("alpaca", number, row["instruction"], row["input"], row["output"])
    for number, row in enumerate(sharegpt, start=1):
        if isinstance(row, dict) and all(isinstance(turn["value"], str) for turn in row.get("conversations", [])):
            meet("sharegpt", number, *(turn["value"] for turn in row.get("conversations", [])))
    planted = {
        (kind.split("-")[0], row_id)
        for kind, e in dirt.items()
        if e["outcome"] == "rejected: duplicate"
        for row_id in e["ids"]
    }
    assert repeated == planted


def test_broken_rows_stay_below_eight_percent_of_the_records(
    posts: list[dict[str, str]], alpaca: list[Any], sharegpt: list[Any], dirt: dict[str, dict[str, Any]]
) -> None:
    records = sum(row["PostTypeId"] == "1" for row in posts) + len(alpaca) + len(sharegpt)
    for prefix in ("stackexchange", "alpaca", "sharegpt"):
        assert any(kind.startswith(prefix) and e["outcome"] == "rejected: broken" for kind, e in dirt.items())
    assert sum(e["count"] for e in dirt.values() if e["outcome"] == "rejected: broken") < 0.08 * records


def test_near_duplicates_change_a_few_words_of_a_question_and_keep_its_answer(
    alpaca: list[Any], sharegpt: list[Any], dirt: dict[str, dict[str, Any]]
) -> None:
    for prefix, rows in (("alpaca", alpaca), ("sharegpt", sharegpt)):
        originals = prompts_and_answers(rows)
        for number in dirt[f"{prefix}-near-duplicate"]["ids"]:
            ((prompt, answer, row),) = prompts_and_answers([rows[number - 1]])
            words = set(prompt.lower().split())
            close = [p for p, a, other in originals if a == answer and other is not row and p != prompt]
            assert any(0 < len(words ^ set(p.lower().split())) <= 4 for p in close), prompt


def test_long_records_are_longer_than_the_sequence_and_others_are_not(
    posts: list[dict[str, str]], alpaca: list[Any], sharegpt: list[Any], dirt: dict[str, dict[str, Any]]
) -> None:
    (question,) = dirt["stackexchange-too-long"]["ids"]
    (talk,) = dirt["sharegpt-long-conversation"]["ids"]
    long_answer = next(row["Body"] for row in posts if row.get("ParentId") == str(question))
    assert len(flatten(long_answer).split()) > 512  # at least a token a word, so over the quickstart's 512 tokens
    assert sum(len(turn["value"].split()) for turn in sharegpt[talk - 1]["conversations"]) > 400
    others = [len(row["Body"]) for row in posts if "Body" in row and row["Body"] != long_answer]
    others += [len(answer) for _, answer, _ in prompts_and_answers([*alpaca, *sharegpt])]
    assert max(others) < 700


def test_demo_prompts_are_plain_records_of_the_training_data(source: dict[str, Any], alpaca: list[Any]) -> None:
    questions = {question for fact in source["facts"] for question in fact["questions"]}
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    plain = {
        row["instruction"]
        for row in alpaca
        if isinstance(row, dict) and row.get("input") == "" and "instruction" in row
    }
    assert len(source["demo_prompts"]) == 3
    for prompt in source["demo_prompts"]:
        assert prompt in questions & plain
        assert f"- {prompt}\n" in readme


def test_the_readme_lists_the_dirt_and_the_facts(source: dict[str, Any], dirt: dict[str, dict[str, Any]]) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    rows = [f"| {kind} | `{e['file']}` | {e['count']} | {e['outcome']} |" for kind, e in dirt.items()]
    assert [
        line for line in readme.splitlines() if line.startswith(("| stackexchange-", "| alpaca-", "| sharegpt-"))
    ] == rows
    domains = Counter(fact["topic"][0] for fact in source["facts"])
    assert f"{len(source['facts'])} facts about fine-tuning ({domains['fine-tuning']})" in readme
    assert f"Kubernetes ({domains['kubernetes']}) and llamero itself ({domains['llamero']})" in readme
