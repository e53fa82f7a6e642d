"""A Stack Exchange dump: joined on disk, in constant memory, whatever its order, and whatever is broken in it."""

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamero.data.readers.stackexchange import read_questions
from llamero.data.rows import BrokenRow, RawRow


def question(number: int, title: str = "", body: str = "<p>b</p>", **more: object) -> str:
    fields = {
        "Id": number,
        "PostTypeId": 1,
        "Title": title or f"Title {number}",
        "Body": body,
        "Tags": "<r><lm>",
        "Score": 3,
    }
    return row({**fields, **more})


def answer(number: int, parent: int, score: int = 0, body: str = "") -> str:
    return row({"Id": number, "PostTypeId": 2, "ParentId": parent, "Score": score, "Body": body or f"answer {number}"})


def row(fields: dict[str, object]) -> str:
    return "<row " + " ".join(f"{k}={quoteattr(str(v), {chr(10): '&#xA;'})}" for k, v in fields.items()) + " />"


def dump(*rows: str) -> bytes:
    inner = "".join(f"  {r}\n" for r in rows)
    return f'\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{inner}</posts>\n'.encode()


def read(data: bytes, tmp_path: Path) -> tuple[dict[int, dict], list[BrokenRow]]:
    found = list(read_questions(io.BytesIO(data), "Posts.xml", tmp_path / "scratch"))
    good = {r.line: orjson.loads(r.json) for r in found if isinstance(r, RawRow)}
    assert list((tmp_path / "scratch").iterdir()) == []
    return good, [r for r in found if isinstance(r, BrokenRow)]


def test_a_question_is_joined_with_its_highest_voted_answer_wherever_that_stands(tmp_path):
    good, broken = read(
        dump(answer(9, 1, 5, "best"), question(2), answer(3, 1, 4), question(1, "What <i>is</i> it?"), answer(10, 2)),
        tmp_path,
    )
    assert broken == []
    assert good[1]["answer"] == "best"
    assert good[1]["title"] == "What <i>is</i> it?"
    assert (good[1]["body"], good[1]["tags"]) == ("<p>b</p>", "<r><lm>")
    assert list(good) == [1, 2]


@pytest.mark.parametrize("accepted, chosen", [(5, 5), (None, 4), (6, 4)])
def test_of_equal_votes_the_accepted_answer_wins_and_then_the_lowest_id(tmp_path, accepted, chosen):
    more = {} if accepted is None else {"AcceptedAnswerId": accepted}
    rows = [question(1, **more), answer(5, 1, 7), answer(4, 1, 7), answer(6, 1, 2)]
    random.Random(1).shuffle(rows)
    good, _ = read(dump(*rows), tmp_path)
    assert good[1]["answerId"] == chosen


def test_a_question_without_an_answer_has_none(tmp_path):
    good, _ = read(dump(question(1)), tmp_path)
    assert good[1]["answer"] is None


def test_other_posts_are_no_records_and_an_orphan_answer_is_a_broken_one(tmp_path):
    good, broken = read(dump(row({"Id": 1, "PostTypeId": 4, "Body": "wiki"}), answer(2, 99), question(3)), tmp_path)
    assert list(good) == [3]
    assert [(b.line, b.detail) for b in broken] == [(2, "The question 99 of this answer is not in the file.")]


def test_a_question_whose_id_stands_twice_is_counted_once_and_rejected_once(tmp_path):
    good, broken = read(dump(question(1, "first"), question(1, "second")), tmp_path)
    assert good[1]["title"] == "first"
    assert "twice" in broken[0].detail


@pytest.mark.parametrize(
    "bad, words",
    [
        (row({"PostTypeId": 1, "Title": "no id"}), "Id is no number"),
        (row({"Id": 5, "Title": "no type"}), "no PostTypeId"),
        (row({"Id": 5, "PostTypeId": 2, "Body": "no parent"}), "ParentId is no number"),
        (row({"Id": "x", "PostTypeId": 1}), "Id is no number"),
        ('<row Id="5" PostTypeId="1" Title="a & b" />', "no XML"),
        ('<row Id="5" PostTypeId="1" Title="a&#x1F;b" />', "no XML"),
        ('<row Id="5" PostTypeId="1" Title="a <b" />', "no XML"),
        ("<row Id=5 />", "no XML"),
    ],
)
def test_a_broken_row_costs_itself_alone(tmp_path, bad, words):
    good, broken = read(dump(question(1), bad, question(2), answer(3, 2)), tmp_path)
    assert list(good) == [1, 2]
    assert good[2]["answerId"] == 3
    assert len(broken) == 1
    assert words in broken[0].detail


def test_a_torn_tail_loses_nothing_that_came_before(tmp_path):
    data = dump(question(1), answer(2, 1), question(3))
    good, broken = read(data[: data.index(b"Title 3")], tmp_path)
    assert list(good) == [1]
    assert good[1]["answerId"] == 2
    assert "cut off" in broken[0].detail


def test_entities_are_refused_before_they_grow(tmp_path):
    bomb = b'<?xml version="1.0"?><!DOCTYPE p [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<posts>\n<row Id="1" PostTypeId="1" Title="&b;"/>\n</posts>'
    good, broken = read(bomb, tmp_path)
    assert good == {}
    assert "entities, which are refused" in broken[0].detail


def test_a_dump_on_one_line_is_read(tmp_path):
    data = dump(*(question(i) for i in range(1, 4001))).replace(b"\n", b"")
    good, broken = read(data, tmp_path)
    assert len(good) == 4000
    assert broken == []


def test_posts_as_jsonl_are_read_as_well(tmp_path):
    posts = [
        {"Id": 1, "PostTypeId": 1, "Title": "t", "Body": "<p>b</p>", "Tags": ["r", "lm"], "Score": 1},
        {"Id": 2, "PostTypeId": 2, "ParentId": 1, "Body": "a", "Score": 0},
    ]
    data = "\n".join([*map(json.dumps, posts), "nonsense"]).encode()
    good, broken = read(data, tmp_path)
    assert (good[1]["answer"], good[1]["tags"]) == ("a", "r,lm")
    assert len(broken) == 1


@settings(max_examples=60)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_no_question_of_any_order_is_lost_or_changed(tmp_path_factory, bodies, randomness):
    rows = [question(i + 1, body=b) for i, b in enumerate(bodies)]
    rows += [answer(1000 + i, i + 1, i % 3, body=b) for i, b in enumerate(bodies)]
    randomness.shuffle(rows)
    good, broken = read(dump(*rows), tmp_path_factory.mktemp("se"))
    assert broken == []
    # U+FFFE and U+FFFF are no XML characters; quoteattr writes the rest so that it comes back.
    assert [good[i + 1]["body"] for i in range(len(bodies))] == bodies
    assert [good[i + 1]["answer"] for i in range(len(bodies))] == bodies


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_raise(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("se")
    for prefix in (b"", b"<posts>\n<row ", b'<posts>\n<row Id="1" PostTypeId="1" Title="'):
        for found in read_questions(io.BytesIO(prefix + data), "Posts.xml", folder / "scratch"):
            assert isinstance(found, (RawRow, BrokenRow))


MEASURE = """
import resource, sys
from pathlib import Path
from llamero.data.readers.stackexchange import read_questions
count = 0
with open(sys.argv[1], "rb") as stream:
    for row in read_questions(stream, "Posts.xml", Path(sys.argv[2])):
        count += 1
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_dump_five_times_as_large_needs_no_more_memory(tmp_path):
    peaks = {}
    for count in (10_000, 50_000):
        path = tmp_path / f"{count}.xml"
        body = "<p>" + "words of a question " * 40 + "</p>"
        with path.open("w", encoding="utf-8") as stream:
            stream.write("<posts>\n")
            for number in range(1, count + 1):
                stream.write(question(number, body=body) + "\n")
                # Answers stand far from their questions, as in a real dump.
                stream.write(answer(10_000_000 + number, (number * 7919) % count + 1, body=body) + "\n")
            stream.write("</posts>\n")
        output = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), str(tmp_path / f"scratch-{count}")],
            capture_output=True, text=True, check=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        ).stdout  # fmt: skip
        found, kibibytes = map(int, output.split())
        assert found == count
        peaks[count] = kibibytes
    assert peaks[50_000] < peaks[10_000] * 1.15 + 4096, peaks
