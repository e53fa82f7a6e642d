"""A pool grown by a scripted model behind the real, misbehaving HTTP server."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from services.data.generating import scripted
from services.data.model_server import ModelServer

from llamero.data.asking.cache import close_caches
from llamero.data.asking.client import Backoff
from llamero.data.asking.ledger import BudgetSpent
from llamero.data.errors import DataError
from llamero.data.generating import GeneratedRows, generate_rows
from llamero.data.readers import READERS, RowError
from llamero.data.rouge import RougePool
from llamero.data.steps.record import StepContext
from llamero.spec.job import DataSource

QUICK = Backoff(first_seconds=0.01)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(scripted.babble_sometimes) as running:
        yield running


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Twelve seed tasks, five of them classifications."""
    path = tmp_path / "seeds.jsonl"
    rows = [
        {
            "id": f"seed_{n}",
            "instruction": scripted.invent_task(("seed", n)),
            "instances": [{"input": f"Input {n}" if n % 2 else "", "output": f"Output {n}"}],
            "is_classification": n < 5,
        }
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def build_source(server: ModelServer, seeds: Path, model: dict[str, Any] | None = None, **generate: Any) -> DataSource:
    asked = {"url": server.url, "model": "writer", "concurrency": 4, **(model or {})}
    return DataSource.model_validate(
        {"uri": str(seeds), "format": "seed-tasks", "name": "made", "generate": {"model": asked, **generate}}
    )


def grow(source: DataSource, answers: Path, seed: int = 0) -> tuple[list[dict[str, Any]], GeneratedRows]:
    context = StepContext(seed, None, str(answers), 3, Path)
    rows = generate_rows(source, context, QUICK)
    made = [orjson.loads(row.json) | {"line": row.line} for row in rows]  # type: ignore[union-attr]
    return made, rows


def split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [r for r in rows if "rejected" not in r], [r for r in rows if "rejected" in r]


def count_rules(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["rejected"]["rule"] for row in split(rows)[1])


def test_a_pool_grows_to_the_number_of_instructions_and_nothing_that_came_is_lost(
    server: ModelServer, seeds: Path, tmp_path: Path
) -> None:
    rows, made = grow(build_source(server, seeds, records=25), tmp_path / "answers")
    kept, refused = split(rows)
    growth = made.growth
    assert growth is not None
    assert (growth.ended, growth.made, growth.records, growth.refused) == ("records", 25, len(kept), len(refused))
    assert len({row["instruction"] for row in kept}) == 25
    assert [row["line"] for row in rows] == list(range(1, len(rows) + 1))
    # Each call's 8 tasks are made, refused, or lost their instances: every task that the model wrote is in some row.
    calls = {row["origin"]["call"] for row in rows}
    assert calls == set(range(1, max(calls) + 1))
    written = {(row["origin"]["call"], row.get("instruction")) for row in rows}
    assert len(written) == 8 * len(calls)
    assert growth.describe().startswith("25 of 25 instructions made in ")


def test_what_the_rules_refuse_is_a_row_with_rule_value_and_threshold(
    server: ModelServer, seeds: Path, tmp_path: Path
) -> None:
    rows, _ = grow(build_source(server, seeds, records=25), tmp_path / "answers")
    rules = count_rules(rows)
    assert rules["maxRouge"] >= 4
    assert rules["blockedWords"] >= 4
    assert rules["checkInstances"] >= 1
    alike = next(row["rejected"] for row in rows if row.get("rejected", {}).get("rule") == "maxRouge")
    assert (alike["value"], alike["threshold"]) == (1.0, 0.7)
    assert "ROUGE-L F with “" in alike["detail"]
    source = build_source(server, seeds, records=25)
    for row in rows:
        if "rejected" in row:
            with pytest.raises(RowError) as refusal:
                READERS[source.format].parse(row, source)
            assert (refusal.value.reason, refusal.value.rule) == ("generate", row["rejected"]["rule"])
            assert refusal.value.value == row["rejected"].get("value")


def test_a_made_record_knows_the_call_the_examples_and_the_model(
    server: ModelServer, seeds: Path, tmp_path: Path
) -> None:
    source = build_source(server, seeds, records=40)
    rows, _ = grow(source, tmp_path / "answers")
    kept, _ = split(rows)
    first_call = [row for row in kept if row["origin"]["call"] == 1]
    assert first_call
    assert all(name.startswith("seed_") for name in first_call[0]["origin"]["shown"])
    assert len(first_call[0]["origin"]["shown"]) == 8
    last = kept[-1]["origin"]
    kinds = Counter("made" if name.startswith("made-") else "seed" for name in last["shown"])
    assert kinds == {"seed": 6, "made": 2}
    draft = READERS[source.format].parse(kept[-1], source)
    assert draft.meta["origin"] == [last]
    assert (last["operation"], last["by"]) == ("generate.self-instruct", "writer")
    assert {row["origin"]["task"] for row in kept} == {f"made-{n}" for n in range(1, 41)}
    shown = {prompt for prompt in server.prompts if "numbered" in prompt}
    by_name = {row["origin"]["task"]: row["instruction"] for row in kept}
    assert any(all(by_name[n] in p for n in last["shown"] if n in by_name) for p in shown)


def test_classification_tasks_get_labels_first_and_others_inputs_first(
    server: ModelServer, seeds: Path, tmp_path: Path
) -> None:
    rows, _ = grow(build_source(server, seeds, records=25), tmp_path / "answers")
    kept, _ = split(rows)
    for row in kept:
        is_class = row["origin"]["classification"]
        assert is_class == (row["output"] in ("good", "bad"))
    asked = Counter(scripted.find_kind(seen.body) for seen in server.requests)
    assert set(asked) == {"tasks", "class", "labels", "examples"}
    class_prompt = next(s.body for s in server.requests if scripted.find_kind(s.body) == "class")
    said = [m["content"] for m in class_prompt["messages"] if m["role"] == "assistant"]
    assert Counter(said) == {"yes": 4, "no": 4}


def test_the_same_pool_grows_again_whatever_the_concurrency_and_the_troubles(
    server: ModelServer, seeds: Path, tmp_path: Path
) -> None:
    calm, _ = grow(build_source(server, seeds, records=12), tmp_path / "a")
    server.misbehave("429:0.01", "500", "ok", "cut", "nonsense", "ok", "html", "drop", "truncated", "ok", "503")
    source = build_source(server, seeds, {"concurrency": 1}, records=12)
    troubled, _ = grow(source, tmp_path / "b")
    assert troubled == calm
    other, _ = grow(build_source(server, seeds, records=12), tmp_path / "c", seed=1)
    assert other != calm


def test_a_second_growth_asks_nothing(server: ModelServer, seeds: Path, tmp_path: Path) -> None:
    source = build_source(server, seeds, records=12)
    first, _ = grow(source, tmp_path / "answers")
    asked = len(server.requests)
    close_caches()
    second, rows = grow(source, tmp_path / "answers")
    assert second == first
    assert len(server.requests) == asked
    assert rows.accounts[0].requests == 0
    assert rows.accounts[0].cached > 0


KILLED = """
    import sys
    from pathlib import Path
    from llamero.data.generating import generate_rows
    from llamero.data.steps.record import StepContext
    from llamero.spec.job import DataSource
    source = DataSource.model_validate_json(sys.argv[1])
    for row in generate_rows(source, StepContext(0, None, sys.argv[2], 3, Path)):
        pass
"""


def test_a_killed_growth_goes_on_without_asking_again(server: ModelServer, seeds: Path, tmp_path: Path) -> None:
    source = build_source(server, seeds, records=20)
    whole, _ = grow(source, tmp_path / "whole")
    needed = len(server.requests)
    server.requests.clear()
    server.latency = 0.02
    arguments = [
        sys.executable,
        "-c",
        textwrap.dedent(KILLED),
        source.model_dump_json(by_alias=True),
        str(tmp_path / "a"),
    ]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    wait_for(lambda: len(server.requests) >= needed // 2 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    server.latency = 0.0
    rows, _ = grow(source, tmp_path / "a")
    assert rows == whole
    # What was on its way to the killed process is all that is asked again.
    assert needed <= len(server.requests) <= needed + 4


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_spent_budget_stops_the_growth_and_a_greater_one_goes_on(
    server: ModelServer, seeds: Path, tmp_path: Path
) -> None:
    whole, _ = grow(build_source(server, seeds, records=12), tmp_path / "whole")
    needed = len(server.requests)
    server.requests.clear()
    with pytest.raises(BudgetSpent, match="maxTotalTokens"):
        grow(build_source(server, seeds, {"maxTotalTokens": 4000}, records=12), tmp_path / "a")
    assert 0 < len(server.requests) < needed
    rows, made = grow(build_source(server, seeds, {"maxTotalTokens": 400_000}, records=12), tmp_path / "a")
    assert rows == whole
    assert len(server.requests) == needed
    account = made.accounts[0]
    assert account.cached_input_tokens > 0
    assert account.answered < needed


def test_an_end_by_max_calls_says_so(server: ModelServer, seeds: Path, tmp_path: Path) -> None:
    rows, made = grow(build_source(server, seeds, records=100, maxCalls=9), tmp_path / "answers")
    growth = made.growth
    assert growth is not None
    assert growth.ended == "calls"
    assert growth.calls <= 9
    assert "`maxCalls` is reached" in growth.describe()
    assert 0 < growth.made < 100
    assert growth.calls == len({json.dumps(seen.body["messages"]) for seen in server.requests})
    _, enough = grow(build_source(server, seeds, records=1, maxCalls=3), tmp_path / "answers")
    assert enough.growth is not None
    assert (enough.growth.ended, enough.growth.calls) == ("records", 3)
    # One call for tasks, 8 of which 2 break a rule, and twice 4 questions: two tasks are left over.
    assert count_rules(rows)["maxCalls"] == 2


def test_tasks_after_the_last_wanted_one_are_told(server: ModelServer, seeds: Path, tmp_path: Path) -> None:
    rows, _ = grow(build_source(server, seeds, records=1), tmp_path / "answers")
    assert count_rules(rows)["records"] == 5  # of 8, two are refused by their rules and one is made


def test_a_model_that_has_nothing_new_to_say_ends_the_growth(seeds: Path, tmp_path: Path) -> None:
    with ModelServer(lambda body: "9. Draw a picture of a house.\n10. Too short.") as server:
        rows, made = grow(build_source(server, seeds, records=50), tmp_path / "answers")
    assert made.growth is not None
    assert (made.growth.ended, made.growth.made) == ("barren", 0)
    assert "gave none that is new and usable" in made.growth.describe()
    assert count_rules(rows) == {"blockedWords": 64, "minWords": 64}


def test_a_model_that_only_babbles_leaves_a_row_for_each_call(seeds: Path, tmp_path: Path) -> None:
    with ModelServer(lambda body: "Sure!") as server:
        rows, made = grow(build_source(server, seeds, records=50), tmp_path / "answers")
    assert count_rules(rows) == {"unanswered": 64}
    assert len(server.requests) == 3 * 64
    assert made.growth is not None
    assert made.growth.ended == "barren"


def test_alpacas_variant_shows_three_seeds_and_takes_twenty_whole_tasks_a_call(
    server: ModelServer, seeds: Path, tmp_path: Path
) -> None:
    rows, made = grow(build_source(server, seeds, variant="alpaca", records=50), tmp_path / "answers")
    kept, _ = split(rows)
    assert made.growth is not None
    assert (made.growth.made, len(kept)) == (50, 50)
    assert {scripted.find_kind(seen.body) for seen in server.requests} == {"blocks"}
    # What was babbled is asked again, warmer, and once.
    asked = [(json.dumps(seen.body["messages"]), seen.body["temperature"]) for seen in server.requests]
    assert len(set(asked)) == len(asked)
    assert "### 3\n" in server.prompts[0]
    assert "from ### 4 to ### 23" in server.prompts[0]
    assert all(len(row["origin"]["shown"]) == 3 and row["origin"]["call"] <= 3 for row in rows)
    assert all(name.startswith("seed_") for row in rows for name in row["origin"]["shown"])
    assert {row["input"] == "" for row in kept} == {True, False}
    assert any("\nA second line." in row["input"] for row in kept)


def test_whole_tasks_that_can_not_be_read_are_asked_for_again(seeds: Path, tmp_path: Path) -> None:
    with ModelServer(lambda body: scripted.answer(body) if body["temperature"] > 0 else "Certainly!") as server:
        _, made = grow(build_source(server, seeds, variant="alpaca", records=20), tmp_path / "answers")
        assert made.growth is not None
        assert (made.growth.made, made.growth.calls, len(server.requests)) == (20, 1, 2)


def test_an_answer_that_was_cut_off_loses_its_last_task_alone(seeds: Path, tmp_path: Path) -> None:
    with ModelServer(scripted.answer, trouble=lambda body: "length") as server:
        _, made = grow(build_source(server, seeds, variant="alpaca", records=19), tmp_path / "answers")
        assert made.growth is not None
        assert (made.growth.made, made.growth.calls) == (19, 1)
        _, listed = grow(build_source(server, seeds, records=5, maxCalls=3), tmp_path / "answers")
    # Of a list of bare instructions a cut answer is no answer, as in Self-Instruct's code.
    assert listed.growth is not None
    assert listed.growth.made == 0


def test_alpaca_blocks_further_words(seeds: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str:
        words = ["Describe the music of the baroque in short.", "Describe the paint of the baroque in short."]
        if scripted.find_kind(body) == "blocks":
            return "\n".join(
                f"### {n}\nInstruction: {w}\nInput: <noinput>\nOutput: It is so." for n, w in enumerate(words, 4)
            )
        return scripted.answer(body) if scripted.find_kind(body) != "tasks" else f"9. {words[0]}"

    with ModelServer(answer) as server:
        blocked, _ = grow(build_source(server, seeds, variant="alpaca", records=1), tmp_path / "a")
        plain, _ = grow(build_source(server, seeds, records=1), tmp_path / "a")
        own, _ = grow(build_source(server, seeds, records=1, blockedWords=["paint"], variant="alpaca"), tmp_path / "a")
    assert count_rules(blocked) == {"blockedWords": 1}
    assert split(plain)[0]
    assert [row["instruction"] for row in split(own)[0]] == ["Describe the music of the baroque in short."]


def test_the_pool_is_compared_with_all_of_it(server: ModelServer, seeds: Path, tmp_path: Path) -> None:
    rows, _ = grow(build_source(server, seeds, records=25), tmp_path / "answers")
    pool = RougePool(0.0, [json.loads(line)["instruction"] for line in seeds.read_text().splitlines()])
    for instruction in dict.fromkeys(row["instruction"] for row in split(rows)[0]):
        assert pool.best(instruction) <= 0.7
        pool.add(instruction)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no seed tasks to grow a pool from"),
        ('{"instruction": "Say something nice."}\n', r"seeds\.jsonl, row 1 of the seeds is no task"),
        ("{broken\n", "row 1 of the seeds can't be read"),
        ('{"instruction": "Say it.", "instances": [{"input": "", "output": ""}]}\n', "no instruction or no answer"),
        ('{"instruction": "Say it.", "instances": [{"input": "", "output": "It."}]}\n', "a prompt shows 6"),
    ],
)
def test_seeds_that_won_t_do_are_told_before_anything_is_asked(
    server: ModelServer, tmp_path: Path, content: str, said: str
) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        grow(build_source(server, seeds, records=3), tmp_path / "answers")
    assert not server.requests


def test_any_records_can_be_seeds(server: ModelServer, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    rows = [{"q": scripted.invent_task(n), "a": f"Answer {n}"} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = build_source(server, path, records=3).model_dump(mode="json", by_alias=True)
    source = DataSource.model_validate({**given, "format": "records", "columns": {"instruction": "q", "output": "a"}})
    kept, _ = split(grow(source, tmp_path / "answers")[0])
    assert kept[0]["origin"]["shown"][0].startswith("records.jsonl:")
    assert {s.body["messages"][1]["role"] for s in server.requests if scripted.find_kind(s.body) == "class"} == {"user"}
