"""A whole preparation with judges: a cap that ends it, a raised one that goes on, and other shards that ask nothing."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from services.data.model_server import Body, ModelServer

from llamero.data.prepare import DataError

QUESTION = re.compile(r"Number (\d+)\?")
RECORDS = 90


def read_number(text: str) -> int:
    found = QUESTION.search(text)
    assert found is not None
    return int(found[1])


def answer(body: Body) -> str:
    """Record n is worth n modulo 6; every ninth can't be scored; the second judge is milder."""
    number = read_number(body["messages"][-1]["content"])
    if number % 9 == 0:
        return "I would rather not say."
    return json.dumps({"score": min(5, number % 6 + (body["model"] == "mild")), "reason": "so it is"})


def judge(server: ModelServer, **fields: Any) -> dict[str, Any]:
    models = [{"url": server.url, "model": name, "concurrency": 4} | fields for name in ("strict", "mild")]
    return {"judge": {"models": models, "minScore": 4}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"secretRef": {"name": "judge", "key": "NO_SUCH_KEY"}}, "set the environment variable NO_SUCH_KEY"),
        ({"url": "http://models.example.com/v1"}, r"set data\.allowHttp"),
        ({"maxCost": 5}, "a maxCost, but no price"),
    ],
)
def test_a_judge_that_can_not_be_asked_is_told_before_a_record_is_read(
    server: ModelServer,
    prepare: Callable[..., Any],
    write_alpaca: Callable[..., Path],
    fields: dict[str, Any],
    said: str,
) -> None:
    sources = [{"uri": str(write_alpaca([("a", "b")])), "format": "alpaca"}]
    with pytest.raises(DataError, match=said) as caught:
        prepare(sources, steps=[{"quality": {}}, judge(server, **fields)])
    assert str(caught.value).startswith("spec.data.steps[1].judge.models[0]: ")
    assert not server.requests


def test_judges_score_each_training_record_once_over_caps_shards_and_runs(
    server: ModelServer, prepare: Callable[..., Any], write_alpaca: Callable[..., Path]
) -> None:
    rows = [(f"Number {n}?", f"It is {n}, as far as one can tell.") for n in range(RECORDS)]
    sources = [{"uri": str(write_alpaca(rows)), "format": "alpaca"}]
    server.answer = answer
    server.trouble = lambda body: "500" if server.requests[-1].at % 1 < 0.05 else None

    def run(name: str = "out", shard_records: int = 15, **fields: Any) -> Any:
        return prepare(
            sources,
            name=name,
            workers=2,
            shardRecords=shard_records,
            evaluationFraction=0.2,
            steps=[judge(server, **fields)],
        )

    with pytest.raises(DataError, match="maxTotalTokens is 2,000"):
        run(maxTotalTokens=2000)
    before = len(server.requests)
    assert before > 0
    prepared = run(maxTotalTokens=10_000_000)
    result = prepared.result
    asked = Counter((seen.body["model"], seen.prompt, seen.body["temperature"]) for seen in server.requests)
    held_out = {read_number(r["messages"][0]["content"]) for r in prepared.records("evaluation")}
    judged = {read_number(prompt) for _, prompt, _ in asked}
    assert held_out and judged == set(range(RECORDS)) - held_out

    retried = sum(account.retries for account in result.asked)
    repeated = sum(count - 1 for count in asked.values())
    # What is asked twice failed, or was under way when the cap was reached (four of each of two judges).
    assert repeated <= retried + before / 10 + 8
    assert [account.model for account in result.asked] == ["mild", "strict"]
    for account in result.asked:
        assert account.asked == len(judged)
        assert account.unanswered == len([n for n in judged if n % 9 == 0])

    kept = {read_number(r["messages"][0]["content"]) for r in prepared.records("train")}
    assert kept == {n for n in judged if n % 9 and (n % 6 + min(5, n % 6 + 1)) / 2 >= 4}
    assert all(r["rule"] in ("min", "unscored") for r in prepared.rejected())
    unscored = {read_number(r["text"]) for r in prepared.rejected() if r["rule"] == "unscored"}
    assert unscored == {n for n in judged if n % 9 == 0}

    done = len(server.requests)
    again = run("again", shard_records=40)  # other shards: all is done anew, but for what was answered
    assert len(server.requests) == done
    assert {r["id"] for r in again.records("train")} == {r["id"] for r in prepared.records("train")}
    assert sum(account.answered for account in again.result.asked) == 0
