"""Several processes that ask: one cache, one budget, and what a killed one leaves."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services.data.model_server import ModelServer

import llamero
from llamero.data.asking.asker import BudgetSpent

from .asking import read_texts, say
from .conftest import MakeAsker

Worker = subprocess.Popen[str]
StartWorker = Callable[..., Worker]


@pytest.fixture
def start_worker(server: ModelServer, answers: str) -> Iterator[StartWorker]:
    """`start_worker(questions, workers=1, batch=None, **fields of the model)`."""
    started: list[Worker] = []
    root = str(Path(llamero.__file__).parents[1])

    def start(questions: list[str], workers: int = 1, batch: int | None = None, **fields: Any) -> Worker:
        orders = {
            "model": {"url": server.url, "model": "m", "concurrency": 4} | fields,
            "purpose": "judge",
            "answers": answers,
            "workers": workers,
            "questions": questions,
            "batch": batch,
        }
        command = [sys.executable, str(Path(__file__).with_name("ask_worker.py"))]
        pipe = subprocess.PIPE
        worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={"PYTHONPATH": root})
        started.append(worker)
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(orders))
        worker.stdin.close()
        worker.stdin = None
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.wait()


def read_outcome(worker: Worker) -> dict[str, Any]:
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    return dict(json.loads(output))


def wait_for_requests(server: ModelServer, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.requests) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_after_kill_9_in_the_middle_nothing_that_was_answered_is_asked_again(
    server: ModelServer, start_worker: StartWorker, make_asker: MakeAsker
) -> None:
    texts = [f"question {n}" for n in range(120)]
    server.latency = 0.01
    worker = start_worker(texts)
    wait_for_requests(server, 60)
    worker.kill()
    worker.wait()
    before = len(server.requests)
    assert 60 <= before < 120
    with make_asker() as asker:
        assert read_texts(asker.ask(say(*texts))) == [f"echo {text}" for text in texts]
        account = asker.account
    # Only what was under way when it died (four at most) is asked twice.
    assert account.cached + account.answered == 120
    assert before - 4 <= account.cached <= before
    repeated = [text for text, count in Counter(server.prompts).items() if count > 1]
    assert len(repeated) <= 4
    asked = len(server.requests)
    read_outcome(start_worker(texts))
    assert len(server.requests) == asked


def test_two_workers_share_answers_while_both_are_at_work(
    server: ModelServer, start_worker: StartWorker, make_asker: MakeAsker
) -> None:
    with make_asker() as asker:
        asker.ask(say("a", "b"))
        other = read_outcome(start_worker(["b", "c"]))
        assert (other["account"]["cached"], other["account"]["answered"]) == (1, 1)
        read_texts(asker.ask(say("c", "d")))
        assert (asker.account.cached, asker.account.answered) == (1, 3)
    assert Counter(server.prompts) == Counter("abcd")


def test_a_budget_holds_over_two_workers(server: ModelServer, start_worker: StartWorker) -> None:
    # Five tokens an answer (2 asked, 3 answered); each alone would use 900.
    server.latency = 0.03
    prices = {"pricePerMillionInputTokens": 1000, "pricePerMillionOutputTokens": 2000}
    first, second = (
        start_worker([f"{name} {n}" for n in range(400)], workers=2, maxTotalTokens=900, **prices) for name in "ab"
    )
    outcomes = [read_outcome(worker) for worker in (first, second)]
    used = [o["account"]["inputTokens"] + o["account"]["outputTokens"] for o in outcomes]
    assert sum(used) == 5 * len(server.requests)
    for outcome in outcomes:
        assert "judge: asking `m` has used" in outcome["spent"] and "maxTotalTokens is 900" in outcome["spent"]
        account = outcome["account"]
        assert account["cost"] == pytest.approx((account["inputTokens"] + 2 * account["outputTokens"]) / 1000)
    # Each hears of the other within half a second, in which its two connections make some 30 requests.
    assert 900 <= sum(used) < 1400


def test_a_spent_budget_still_gives_what_is_cached_and_a_raised_one_goes_on(
    server: ModelServer, make_asker: MakeAsker
) -> None:
    prices = {"price_per_million_input_tokens": 100_000, "price_per_million_output_tokens": 100_000}
    texts = [f"number {n}" for n in range(40)]  # half a unit of money each
    with make_asker(max_cost=5, **prices) as asker, pytest.raises(BudgetSpent) as caught:
        asker.ask(say(*texts))
    said = re.match(r"judge: asking `m` has cost ([\d.]+) .* and maxCost is 5\. Raise it to go on", str(caught.value))
    assert said is not None and 5 <= float(said[1]) <= 6.5
    done = len(server.requests)
    assert 10 <= done <= 13  # four were under way at once
    with make_asker(max_cost=5, **prices) as asker:
        assert len(read_texts(asker.ask(say(*server.prompts)))) == done
        with pytest.raises(BudgetSpent):
            asker.ask(say("another"))
        assert asker.account.cost == 0
    assert len(server.requests) == done
    with make_asker(max_cost=50, **prices) as asker:
        assert len(read_texts(asker.ask(say(*texts)))) == 40
        assert (asker.account.cached, asker.account.answered) == (done, 40 - done)
    assert len(server.requests) == 40


def test_budgets_of_other_steps_and_preparations_are_others(server: ModelServer, make_asker: MakeAsker) -> None:
    cap = {"max_total_tokens": 5, "concurrency": 1}
    with make_asker(**cap) as asker, pytest.raises(BudgetSpent):
        asker.ask(say("one a", "one b"))
    for number, other in enumerate(({"purpose": "rewrite"}, {"preparation": "digest"})):
        with make_asker(**cap, **other) as asker:
            read_texts(asker.ask(say(f"other {number}")))
