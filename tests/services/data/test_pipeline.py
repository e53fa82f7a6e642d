"""The steps of a recipe as the pipeline does them: what adds up, what is told of each record, and bytes that hang on the recipe alone."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llamero.data import applying, pool
from llamero.data import prepare as prepare_module
from llamero.data.errors import DataError
from llamero.data.pool import InlineRunner
from llamero.data.prepare import plan_data, prepare_data
from llamero.data.steps import registry
from llamero.data.steps.record import Drop
from llamero.spec.profiles import COSTLY_KINDS, SET_KINDS

WORDS = (
    "river",
    "stone",
    "cloud",
    "engine",
    "garden",
    "letter",
    "winter",
    "market",
    "bridge",
    "candle",
    "forest",
    "mirror",
)

STEPS: list[dict[str, Any]] = [
    {"length": {"field": "answer", "unit": "words", "min": 3}},
    {"nearDuplicates": {"threshold": 0.7}},
    {"personalData": {}},
    {"threshold": {"score": "answerWords", "min": 8}},
    {"random": {"fraction": 0.9}},
]
"""A step of each kind of place: one that `clean` does, steps across records, and one on what they leave."""


def build_rows(count: int) -> list[dict[str, str]]:
    """Rows of which some are equal, some nearly so, some short, some with an address, some broken."""
    rows: list[dict[str, str]] = []
    for i in range(count):
        words = [WORDS[(i * k + k * k) % len(WORDS)] + str((i * 7 + k) % 90) for k in range(1, 26)]
        match i % 10:
            case 0:
                answer = "Too short."
            case 1:
                answer = " ".join(words[:6])
            case 2:
                answer = " ".join(words) + f" write to person{i}@example.org"
            case _:
                answer = " ".join(words)
        rows.append({"instruction": f"Say what number {i} is like", "output": answer})
        if i % 10 == 5:
            rows.append({"instruction": f"Say what number {i} is like", "output": answer + " indeed"})
        if i % 10 == 7:
            rows.append(rows[-1] | {"output": answer.upper()})
    rows.append({"instruction": "Nothing follows", "output": ""})
    return rows


@pytest.fixture
def source(write_alpaca) -> dict[str, Any]:
    return {"uri": str(write_alpaca(build_rows(300))), "format": "alpaca", "name": "numbers"}


class Outcome:
    """A finished preparation, its files and what it tells."""

    def __init__(self, folder: Path, result) -> None:
        self.folder, self.result = folder, result
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
        self.files = {str(p.relative_to(folder)): p.read_bytes() for p in paths}
        self.told = result.model_dump(exclude={"seconds", "reused_shards", "shards", "digest"})

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[name].decode().splitlines()]

    def rejected(self) -> list[dict[str, Any]]:
        return self.lines("rejected.jsonl")

    def records(self, side: str = "train") -> list[dict[str, Any]]:
        return [row for name in self.files if name.startswith(f"{side}/") for row in self.lines(name)]


@pytest.fixture
def do(make_spec, tmp_path):
    """do(source, name, runner=None, workers=1, **data): prepares without a base, in folders of its own by name."""

    def run(source: dict[str, Any], name: str = "out", runner=None, workers: int = 1, **data: Any) -> Outcome:
        spec = make_spec([source], **{"evaluation_fraction": 0.1, "steps": STEPS, "shard_records": 60, **data})
        output, cache = tmp_path / name / "data", tmp_path / name / "shards"
        plan = plan_data(spec)
        return Outcome(output, prepare_data(spec, plan, None, output, cache, lambda p: None, workers, runner=runner))

    return run


def check_funnel(outcome: Outcome) -> None:
    result = outcome.result
    assert result.funnel[0].kind == "read"
    assert result.funnel[0].before == result.read
    for before, after in pairwise(result.funnel):
        assert before.before - before.dropped == after.before
    assert result.funnel[-1].before - result.funnel[-1].dropped == result.kept
    assert all(sum(step.reasons.values()) == step.dropped for step in result.funnel)
    assert result.read == result.kept + sum(result.rejected.values())
    rejected = outcome.rejected()
    assert Counter(row["reason"] for row in rejected) == Counter(result.rejected)
    by_step = Counter(row["step"]["number"] for row in rejected if "step" in row)
    assert by_step == Counter({s.number: s.dropped for s in result.funnel if s.number is not None and s.dropped})


def test_every_record_is_kept_or_rejected_by_a_step_that_says_why(do, source):
    outcome = do(source)
    check_funnel(outcome)
    kinds = [step.kind for step in outcome.result.funnel]
    assert kinds == ["read", "parse", "length", "equal", "nearDuplicates", "personalData", "threshold", "random"]
    rejected = {row["reason"]: row for row in outcome.rejected()}
    assert set(rejected) == {"empty-answer", "length", "duplicate", "nearDuplicates", "threshold", "random"}
    short = rejected["length"]
    assert (short["rule"], short["value"], short["threshold"], short["step"]) == (
        "min",
        2,
        3,
        {"number": 1, "kind": "length"},
    )
    poor = rejected["threshold"]
    assert (poor["rule"], poor["value"], poor["threshold"], poor["step"]["number"]) == ("min", 6, 8, 4)
    near, ids = (
        rejected["nearDuplicates"],
        {row["id"] for row in outcome.records()} | {r["id"] for r in outcome.rejected()},
    )
    assert near["value"] >= near["threshold"] == 0.7
    assert near["repeats"]["source"] == "numbers" and near["repeats"]["id"] in ids
    assert f"record {near['repeats']['line']} of alpaca.json" in near["detail"]
    assert rejected["duplicate"]["repeats"]["line"] == rejected["duplicate"]["line"] - 1
    assert "step" not in rejected["duplicate"] and "step" not in rejected["empty-answer"]
    assert all(row["id"] for row in outcome.rejected())


def test_a_kept_record_tells_its_place_and_what_changed_it(do, source):
    outcome = do(source)
    changed = [row for row in outcome.records() if "changedBy" in row.get("meta", {})]
    assert changed and all(row["meta"]["changedBy"] == ["personalData"] for row in changed)
    assert all("@example.org" not in row["messages"][1]["content"] for row in outcome.records())
    counts = next(step for step in outcome.result.funnel if step.kind == "personalData")
    assert counts.changed >= len(changed)
    rows = json.loads(Path(source["uri"]).read_text())
    for row in outcome.records():
        assert rows[row["line"] - 1]["instruction"] == row["messages"][0]["content"]
        assert row["source"] == "numbers" and row["file"] == "alpaca.json"


def test_without_a_base_lengths_are_words_and_nothing_is_cut(do, source, write_alpaca):
    rows = [{"instruction": "One two three", "output": "word " * 3000}]
    outcome = do(source | {"uri": str(write_alpaca(rows, "long.json"))}, steps=[], evaluation_fraction=0)
    result = outcome.result
    assert (result.unit, result.recommended_sequence_length, result.length_choices) == ("words", 0, [])
    assert (result.train.tokens, result.train.target_tokens, result.train.examples) == (3003, 3000, 1)
    overall = next(row for row in result.statistics if (row.stage, row.domain) == ("kept", "overall"))
    assert (overall.input.mean, overall.output.max) == (3, 3000)
    assert sorted(outcome.files) == ["rejected.jsonl", "train/part-00000.jsonl"]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_no_byte(do, source, monkeypatch, workers):
    alone = do(source, "alone")
    monkeypatch.setattr(prepare_module, "INLINE_BYTES", 0)
    shared = do(source, "shared", workers=workers)
    assert shared.files == alone.files
    assert shared.told == alone.told


def test_the_records_that_are_kept_do_not_hang_on_the_size_of_shards(do, source):
    small, large = do(source, "small", shard_records=17), do(source, "large", shard_records=5000)
    assert (small.result.shards, large.result.shards) == (22, 1)
    for side in ("train", "evaluation"):
        assert small.records(side) == large.records(side)
    assert small.rejected() == large.rejected()
    assert small.result.funnel == large.result.funnel
    assert small.result.scores == large.result.scores


def test_tasks_done_twice_change_no_byte(do, source):
    class Twice(InlineRunner):
        def run(self, tasks, on_rows, on_done):
            super().run(tasks[::-1], lambda number, rows: None, lambda number, shard: None)
            return super().run(tasks, on_rows, on_done)

    assert do(source, "twice", Twice()).files == do(source, "once").files


class Killed(Exception):
    """Stands for the end of the process."""


class DiesAfter(InlineRunner):
    """Ends the preparation after so many tasks."""

    def __init__(self, tasks: int) -> None:
        self.left = tasks

    def run(self, tasks, on_rows, on_done):
        def count(number, shard):
            self.left -= 1
            if self.left < 0:
                raise Killed
            on_done(number, shard)

        return super().run(tasks, on_rows, count)


def test_what_was_broken_off_at_any_task_adds_up_when_it_is_taken_up_again(do, source):
    counting = DiesAfter(10**6)
    whole = do(source, "whole", counting)
    for tasks in range(1, 10**6 - counting.left, 5):
        with pytest.raises(Killed):
            do(source, "again", DiesAfter(tasks))
        assert not (whole.folder.parents[1] / "again" / "data" / "manifest.json").exists()
    outcome = do(source, "again")
    check_funnel(outcome)
    assert outcome.files == whole.files
    assert outcome.result.reused_shards == outcome.result.shards


def test_a_record_of_many_small_files_tells_which_file_it_repeats(make_spec, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(80):
        row = {"instruction": f"Question {i % 70}", "output": "An answer"}
        (folder / f"f{i:02}.jsonl").write_text(json.dumps(row))
    spec = make_spec([{"uri": str(folder), "format": "alpaca"}], evaluation_fraction=0)
    outcome = Outcome(
        tmp_path / "o", prepare_data(spec, plan_data(spec), None, tmp_path / "o", tmp_path / "c", lambda p: None)
    )
    assert [(r["file"], r["repeats"]["file"]) for r in outcome.rejected()] == [
        (f"f{70 + i}.jsonl", f"f0{i}.jsonl") for i in range(10)
    ]
    assert "of f03.jsonl" in outcome.rejected()[3]["detail"]


# -- what steps see ------------------------------------------------------------------------------------------------------------


class Watching:
    """A step that notes whom it sees, and does what a function says."""

    def __init__(self, act) -> None:
        self.seen: list[str] = []
        self.act = act

    def apply(self, records):
        self.seen += [record.prompt for record in records]
        return [self.act(record) for record in records]


@pytest.fixture
def watch(monkeypatch):
    """watch(kind, act): what every step of a kind does from now on."""
    steps: dict[str, Watching] = {}
    original = registry.build_record_step

    def build(step, context):
        return steps.get(step.kind) or original(step, context)

    def register(kind: str, act=lambda record: record) -> Watching:
        steps[kind] = Watching(act)
        applying._open.cache_clear()
        return steps[kind]

    monkeypatch.setattr(applying, "build_record_step", build)
    yield register
    applying._open.cache_clear()


def test_a_judge_never_sees_a_held_out_record_and_is_asked_of_none_that_was_dropped(do, source, watch):
    judge = watch("judge", lambda record: record.with_scores(judge=float(int(record.prompt.split()[3]) % 6)))
    model = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    steps = [STEPS[0], {"nearDuplicates": {"threshold": 0.7}}, {"judge": {"models": [model], "minScore": 4}}]
    outcome = do(source, steps=steps, allowHttp=True)
    check_funnel(outcome)
    held_out = {row["messages"][0]["content"] for row in outcome.records("evaluation")}
    assert held_out and held_out.isdisjoint(judge.seen)
    judged = next(step for step in outcome.result.funnel if step.kind == "judge")
    assert len(judge.seen) == judged.before - len(outcome.records("evaluation"))
    assert all(row["meta"]["scores"]["judge"] >= 4 for row in outcome.records())
    (scores,) = outcome.result.scores
    assert (scores.name, sum(scores.counts), scores.min, len(scores.counts)) == ("judge", len(judge.seen), 4, 20)
    kinds = {row["reason"]: row for row in outcome.rejected()}
    assert kinds["threshold"]["scores"]["judge"] == kinds["threshold"]["value"] < 4


def test_steps_of_other_sources_leave_a_source_alone(do, make_spec, write_alpaca, watch, tmp_path):
    step = watch("length", lambda record: Drop("min", "No.", 0, 1))
    sources = [
        {"uri": str(write_alpaca([(f"{name} {i}", "An answer") for i in range(5)], f"{name}.json")), "format": "alpaca", "name": name}
        for name in ("one", "two")
    ]  # fmt: skip
    given = [
        {"length": {}, "sources": ["two"]},
        {"random": {"fraction": 1.0}},
        {"length": {"max": 9}, "sources": ["two"]},
    ]
    spec = make_spec(sources, steps=given, evaluation_fraction=0)
    result = prepare_data(spec, plan_data(spec), None, tmp_path / "o", tmp_path / "c", lambda p: None)
    assert {s.name: s.kept for s in result.sources} == {"one": 5, "two": 0}
    assert sorted(step.seen) == [f"two {i}" for i in range(5)]


def test_a_step_that_empties_a_record_has_it_rejected_as_empty(do, source, watch):
    watch("length", lambda record: record.with_answer(""))
    with pytest.raises(DataError, match=r"No record is left to train on \(301 empty-answer|No record is left"):
        do(source, steps=[{"length": {}}])


def test_a_changed_prompt_decides_the_side_anew_so_that_no_prompt_is_on_both(do, source, watch):
    def rename(record):
        turns = tuple(replace(m, content="The same for all") if m.role == "user" else m for m in record.messages)
        return replace(record, messages=turns)

    watch("length", rename)
    outcome = do(source, steps=[{"random": {"fraction": 1.0}}, {"length": {}}], evaluation_fraction=0.3, seed=1)
    assert min(len(outcome.records("train")), len(outcome.records("evaluation"))) == 0


def test_a_step_whose_module_is_missing_is_refused_with_a_sentence_before_anything_is_read(
    do, source, monkeypatch, tmp_path
):
    monkeypatch.setitem(registry.SET_STEPS, "random", "not_there")
    with pytest.raises(DataError, match=r"spec.data.steps\[4\] \(`random`\) can't be done here"):
        do(source)
    assert not (tmp_path / "out" / "data" / "rejected.jsonl").exists()


def test_every_kind_of_step_has_a_module_or_is_refused():
    assert set(registry.SET_STEPS) == SET_KINDS
    assert set(registry.RECORD_STEPS) > COSTLY_KINDS


# -- files that steps name -----------------------------------------------------------------------------------------------------


def test_a_word_list_that_changes_makes_the_data_anew_and_one_that_is_missing_is_told(make_spec, source, tmp_path):
    words = tmp_path / "words.txt"
    spec = make_spec([source], steps=[{"content": {"wordsUri": str(words)}}])
    with pytest.raises(DataError, match=r"spec.data.steps\[0\] names .*words.txt, which can't be read"):
        plan_data(spec)
    words.write_text("river1\n")
    before = plan_data(spec).digest
    assert plan_data(spec).digest == before
    words.write_text("stone2\n")
    assert plan_data(spec).digest != before


def test_a_word_list_reaches_the_workers(do, source, tmp_path, monkeypatch):
    words = tmp_path / "words.txt"
    words.write_text("person32\n")
    monkeypatch.setattr(prepare_module, "INLINE_BYTES", 0)
    outcome = do(source, steps=[{"content": {"wordsUri": str(words)}}])
    assert outcome.result.rejected["content"] == 1


# -- arms ------------------------------------------------------------------------------------------------------------------


def test_arms_are_other_choices_of_the_same_records_with_the_held_out_ones_shared(do, source):
    steps = [*STEPS[:4], {"personalData": {"action": "drop"}}]
    outcome = do(source, steps=steps, controls={"random": True, "thresholds": [4, 30]})
    check_funnel(outcome)
    arms = {arm.name: arm for arm in outcome.result.arms}
    assert [(a.name, a.kind, a.threshold) for a in outcome.result.arms] == [
        ("random", "random", None), ("at-4", "threshold", 4), ("at-30", "threshold", 30)
    ]  # fmt: skip
    chosen = {row["id"] for row in outcome.records()}
    drawn = {row["id"] for row in outcome.records("arms/random")}
    low = {row["id"] for row in outcome.records("arms/at-4")}
    assert arms["random"].counts.records == len(drawn) == outcome.result.train.records
    assert chosen < low and drawn < low and drawn != chosen
    assert not outcome.records("arms/at-30") and arms["at-30"].counts.records == 0
    held_out = {row["id"] for row in outcome.records("evaluation")}
    assert held_out.isdisjoint(low | drawn)
    assert {f.name for f in outcome.result.files} == set(outcome.files)


def test_an_arms_tokens_lie_beside_the_chosen_ones(prepare, source):
    from llamero.model.tokens import TokenSet

    prepared = prepare([source], steps=[STEPS[3]], controls={"thresholds": [4]}, shard_records=100)
    parts = sorted((prepared.folder / "tokens" / "arms" / "at-4").iterdir())
    tokens, (arm,) = TokenSet.open(parts), prepared.result.arms
    assert (len(tokens), tokens.tokens, tokens.target_tokens) == (
        arm.counts.examples,
        arm.counts.tokens,
        arm.counts.target_tokens,
    )
    assert [tokens.record_id(i) for i in range(len(tokens))] == [row["id"] for row in prepared.records("arms/at-4")]


def test_a_threshold_that_a_step_can_not_take_is_told(do, source):
    with pytest.raises(DataError, match=r"data.controls.thresholds: -2 is no threshold of `random`"):
        do(source, controls={"thresholds": [-2]})


# -- memory --------------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_shards(do, write_alpaca):
    import tracemalloc

    peaks: list[int] = []
    steps = [STEPS[0], STEPS[3], STEPS[2]]
    for count in (200, 1400):
        rows = [(f"Question {i}", f"{'word ' * (i % 40)}{i}") for i in range(count)]
        source = {"uri": str(write_alpaca(rows, f"{count}.json")), "format": "alpaca"}
        if not peaks:
            do(source, "warm", steps=steps, shard_records=100)
        tracemalloc.start()
        do(source, f"measured-{count}", steps=steps, shard_records=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0], peaks


def test_a_workers_process_holds_neither_torch_nor_sklearn_where_no_step_needs_them(do, source, monkeypatch):
    monkeypatch.setattr(prepare_module, "INLINE_BYTES", 0)
    seen: list[str] = []

    class Looking(pool.WorkerPool):
        def run(self, tasks, on_rows, on_done):
            shards = super().run(tasks, on_rows, on_done)
            for process in self.process_ids:
                seen.append(Path(f"/proc/{process}/maps").read_text())
            return shards

    monkeypatch.setattr(prepare_module, "WorkerPool", Looking)
    do(source, steps=[STEPS[0], STEPS[2], STEPS[3]])
    assert seen
    assert not [maps for maps in seen if "/torch/" in maps or "/sklearn/" in maps or "/tokenizers/" in maps]
