"""The training benchmark: its short run end to end, its marks line, its ratios, and how packed sides share out their steps."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bench(repository: Path) -> Path:
    return repository / "benchmarks" / "training"


@pytest.fixture(scope="session")
def report(bench: Path) -> ModuleType:
    return load_module(bench / "report.py")


def build_figures(tokens: int, cpu_seconds: float, **changes: Any) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "target_tokens": tokens // 2,
        "cpu_seconds": cpu_seconds,
        "wall_seconds": cpu_seconds * 2,
        "steps": 1,
        "losses": [2.0, 1.0],
        "peak_rss_bytes": 2**30,
        "peak_device_bytes": None,
        "notes": [],
        **changes,
    }


@pytest.mark.timeout(180)
def test_the_quick_run_measures_llamero_beside_the_padded_trainer(
    bench: Path, report: ModuleType, tmp_path: Path
) -> None:
    output = tmp_path / "figures.json"
    command = [sys.executable, str(bench / "run.py"), "--quick", "--folder", str(tmp_path), "--output", str(output)]
    # A plain environment: the test must not depend on what the caller set for threads or caches.
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=170
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert report.parse_marks(ended.stdout) == {}, "a quick run quotes no marks"

    figures = json.loads(output.read_text())["measured"][0]["figures"]
    assert set(figures) == {"llamero_flattened", "trainer_padded"}
    for side, rows in figures.items():
        assert len(rows) == 1, side
        assert rows[0]["steps"] >= 1 and rows[0]["tokens"] > rows[0]["target_tokens"] > 0, side
        assert rows[0]["cpu_seconds"] > 0 and rows[0]["wall_seconds"] > 0, side
        assert rows[0]["peak_rss_bytes"] > 50 * 2**20, side
        assert len(rows[0]["losses"]) == 3 and all(0 < loss < 20 for loss in rows[0]["losses"]), side
    for side in figures:
        assert f"| {side} |" in ended.stdout


def test_the_marks_line_comes_back_as_it_was_written(report: ModuleType) -> None:
    marks = {"llamero_over_trainer_padded": {"value": 3.2, "mark": 3.0, "met": True}}
    assert report.parse_marks("a table\n" + report.marks_line(marks) + "\n\n") == marks


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "empty"),
        ("a table and no more", "not JSON"),
        ('{"benchmark": "other", "marks": {}}', "no marks of the benchmark"),
        ('{"benchmark": "training"}', "no marks of the benchmark"),
        ('{"benchmark": "training", "marks": {}}\nTraceback', "not JSON"),
    ],
)
def test_an_output_without_marks_is_refused_with_the_reason(report: ModuleType, output: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        report.parse_marks(output)


def test_a_ratio_is_the_median_of_rounds_measured_one_after_the_other(report: ModuleType) -> None:
    """A slow round slows both sides, so each round's ratio is taken before the median."""
    own = [build_figures(1000, 1.0), build_figures(1000, 4.0), build_figures(1000, 1.0)]
    peer = [build_figures(1000, 3.0), build_figures(1000, 12.0), build_figures(1000, 2.0)]
    by_side = {row.side: row for row in report.summarise_sides({"llamero_flattened": own, "trainer_padded": peer})}
    assert by_side["trainer_padded"].cpu_ratio == pytest.approx(3.0)
    assert by_side["trainer_padded"].wall_ratio == pytest.approx(3.0)
    assert by_side["llamero_flattened"].cpu_ratio == pytest.approx(1.0)
    assert by_side["trainer_padded"].tokens_per_cpu_second == pytest.approx(1000 / 3)


def test_a_mark_is_met_at_its_value_and_not_below(report: ModuleType) -> None:
    own = [build_figures(1000, 1.0)]
    sides = ("llamero_flattened", "trainer_padded", "trainer_grouped", "trl_packed")
    summaries = report.summarise_sides(
        {
            "llamero_flattened": own,
            "trainer_padded": [build_figures(1000, 3.0)],
            "trainer_grouped": [build_figures(1000, 1.69)],
        }
    )
    marks = report.judge(summaries, sides)
    assert marks["llamero_over_trainer_padded"] == {"value": 3.0, "mark": 3.0, "met": True}
    assert marks["llamero_over_trainer_grouped"] == {"value": 1.69, "mark": 1.7, "met": False}
    assert marks["llamero_over_trl_packed"] == {"value": None, "mark": 2.5, "met": False}, (
        "a side that failed is not met"
    )
    assert "llamero_over_llamafactory_packed" not in marks, "nobody asked for it"


def test_a_gpu_run_shows_its_peak_memory(report: ModuleType) -> None:
    rows = [build_figures(10, 1.0, peak_device_bytes=3 * 2**20), build_figures(10, 1.0, peak_device_bytes=5 * 2**20)]
    table = report.render_table(report.summarise_sides({"llamero_flattened": rows}))
    assert table.splitlines()[-1].split("|")[7].strip() == "5"


def test_packed_sides_warm_up_for_the_same_share_of_the_data(bench: Path) -> None:
    measurement = load_module(bench / "sides" / "measurement.py")
    fields = dict.fromkeys(("side", "device", "model", "data", "output"), "")
    job = measurement.Job(
        **fields, batch_size=8, steps=50, warmup_steps=6, sequence_length=1024, rank=16, alpha=32, learning_rate=1e-4,
        seed=0, threads=1, gradient_checkpointing=False, pad_token_id=3,
    )  # fmt: skip
    assert measurement.packed_steps(job, bins=56, bins_per_step=1) == (56, 6)
    assert measurement.packed_steps(job, bins=57, bins_per_step=2) == (28, 3)
    assert measurement.packed_steps(job, bins=1, bins_per_step=1) == (2, 1), "there is always a step to measure"
    examples = [measurement.Example([1] * 250, [1] * 250)] * 4
    assert measurement.bins_per_step(job, examples) == 2


def test_the_curve_measures_other_sizes_once_over_as_many_examples(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(bench))
    run = load_module(bench / "run.py")
    plans = run.build_plans(run.parse_arguments(["--curve"]))
    assert [(p.batch_size, p.sequence_length, p.repeats) for p in plans] == [
        (8, 1024, 3), (2, 1024, 1), (32, 1024, 1), (8, 512, 1), (8, 2048, 1)
    ]  # fmt: skip
    assert all(abs(p.examples - plans[0].examples) <= 64 for p in plans)
    assert len(run.build_plans(run.parse_arguments([]))) == 1


def test_each_side_of_the_table_has_its_file_and_each_peer_its_requirements(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(bench))
    run = load_module(bench / "run.py")
    for side, environment in run.SIDES.items():
        assert (bench / "sides" / f"{side}.py").is_file(), side
        assert environment == "main" or (bench / f"requirements-{environment}.txt").is_file(), side
    assert set(run.QUICK_SIDES) <= set(run.SIDES)


def test_every_requirement_is_pinned_and_other_requirements_make_another_environment(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = load_module(bench / "environments.py")
    monkeypatch.setenv("LLAMERO_CACHE", str(tmp_path))
    for name in ("trl", "llamafactory"):
        first, second = environments.split_requirements(environments.requirements_file(name).read_text())
        assert "torch==2.13.0" in first
        assert all("==" in line for line in first + second)
    before = environments.environment_folder("trl")
    assert before.parent == tmp_path and before.name.startswith("bench-trl-")
    changed = tmp_path / "requirements-trl.txt"
    changed.write_text("trl==0.0.1\n")
    monkeypatch.setattr(environments, "requirements_file", lambda name: changed)
    assert environments.environment_folder("trl") != before
