"""The engine's benchmark: its short run end to end, its ratios and its marks."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def report(repository: Path) -> ModuleType:
    path = repository / "benchmarks" / "engine" / "report.py"
    spec = importlib.util.spec_from_file_location("engine_bench_report", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def build_rounds(report: ModuleType, rates: list[float]) -> dict[object, object]:
    """The peer at 100, 50 and 200 tokens a second, the engine at the given ones in the same rounds."""
    alone = [report.Round(r, 1.0, 1.0) for r in (100, 50, 200)]
    asked = [report.Round(int(rate), 1.0, 2.0) for rate in rates]
    return {report.Cell(report.ALONE, 1): alone, report.Cell(16, 1): asked}


def test_a_speedup_is_the_median_of_ratios_within_rounds(report: ModuleType) -> None:
    rounds = build_rounds(report, [300, 250, 800])  # 3, 5 and 4 times
    assert report.speedup(rounds, report.Cell(16, 1)) == 4
    assert report.speedup(rounds, report.Cell(16, 1), by_cpu=True) == 2


def test_the_marks_ask_for_three_times_the_rate_and_for_every_answer(report: ModuleType) -> None:
    met = report.judge(build_rounds(report, [300, 250, 800]), equal=96, answers=96)
    assert met["speedup_16_chats_1_adapters"] == {"value": 4, "mark": 3.0, "met": True}
    assert met["equal_answers"]["met"] is True
    missed = report.judge(build_rounds(report, [200, 100, 400]), equal=95, answers=96)
    assert not missed["speedup_16_chats_1_adapters"]["met"] and not missed["equal_answers"]["met"]
    assert json.loads(report.marks_line(met))["benchmark"] == "engine"


def test_the_table_tells_sides_apart(report: ModuleType) -> None:
    text = report.render_rates(build_rounds(report, [300, 250, 800]))
    assert "| generate(), one at a time | 1 | 1 | 100 |" in text
    assert "| engine | 16 | 1 | 300 | 150 | 0 | 4.00× | 2.00× |" in text


def test_the_short_run_ends_with_marks_and_equal_answers(repository: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "benchmarks/engine/run.py", "--quick", "--folder", str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    marks = json.loads(ended.stdout.splitlines()[-1])["marks"]
    assert marks["equal_answers"]["met"] is True and marks["equal_answers"]["value"] == 96
    assert marks["speedup_16_chats_8_adapters"]["value"] > 1
    assert "resident each" in ended.stdout
