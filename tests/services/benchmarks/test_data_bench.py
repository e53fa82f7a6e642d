"""The data benchmark: its short run end to end, its marks, how it extrapolates, and that its inputs are what they are said to be."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODULES = ("parts", "report", "inputs", "plot", "peers", "measurement")


@pytest.fixture(scope="session")
def bench(repository: Path) -> Path:
    return repository / "benchmarks" / "data"


@pytest.fixture
def modules(bench: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The benchmark's modules by name, imported as its own run imports them."""
    for folder in (bench / "sides", bench):
        monkeypatch.syspath_prepend(str(folder))
    for name in (*MODULES, "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    loaded = {name: load(bench, name, monkeypatch) for name in MODULES}
    return {**loaded, "run": load(bench, "run", monkeypatch)}


def load(bench: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = bench / f"{name}.py" if name != "measurement" else bench / "sides" / "measurement.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def summarise(modules: dict[str, ModuleType], name: str, runs: list[tuple[int, str, dict[str, Any]]]) -> Any:
    part = next(part for part in modules["parts"].PARTS if part.name == name)
    rows = [{"size": size, "side": side, "figures": figures} for size, side, figures in runs]
    return part, modules["report"].summarise(part, rows)


def build_figures(documents: int, seconds: float, **found: Any) -> dict[str, Any]:
    return {
        "documents": documents, "wall_seconds": seconds * 2, "cpu_seconds": seconds,
        "peak_rss_bytes": 100 * 2**20, "found": found,
    }  # fmt: skip


@pytest.mark.timeout(120)
def test_the_quick_run_measures_both_sides_and_quotes_no_marks(
    bench: Path, repository: Path, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    if modules["inputs"].find_data(os.environ.get("LLAMERO_DATA"), repository) is None:
        pytest.skip("the real data is not there (LLAMERO_DATA)")
    if modules["peers"].find_peers() is None:
        pytest.skip("the peers' environment was not made here: make bench-data makes it")
    output, plot = tmp_path / "figures.json", tmp_path / "curves.svg"
    command = [sys.executable, str(bench / "run.py"), "--quick", "--only", "html,gopher"]
    command += ["--folder", str(tmp_path), "--output", str(output), "--plot", str(plot)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert modules["report"].parse_marks(ended.stdout) == {}
    measured = {
        row["part"]: {side["side"]: side for side in row["summaries"]} for row in json.loads(output.read_text())
    }
    assert set(measured) == {"html", "gopher"}
    for sides in measured.values():
        assert len(sides) == 2
        assert all(side["wall_seconds"] > 0 and side["peak_rss_bytes"] > 2**20 for side in sides.values())
    assert measured["gopher"]["gopher_llamero"]["found"]["parity"] >= 0.995
    assert measured["html"]["html_llamero"]["found"]["equal"] >= 0.98
    assert plot.read_text().startswith("<svg")


def test_a_mark_is_met_at_its_value_and_not_past_it(modules: dict[str, ModuleType]) -> None:
    report = modules["report"]
    for seconds, met in ((1.0, True), (1.01, False)):
        part, summaries = summarise(
            modules, "gopher",
            [(100, "gopher_llamero", build_figures(100, seconds, parity=0.995)), (100, "gopher_datatrove", build_figures(100, 20.0))],
        )  # fmt: skip
        marks = report.judge(part, summaries)
        assert marks["gopher_over_datatrove"]["met"] is met
        assert marks["gopher_parity_on_given_tokens"] == {"value": 0.995, "mark": 0.995, "met": True}
    part, summaries = summarise(modules, "kcenter", [(100, "kcenter_llamero", build_figures(100, 2.5))])
    assert report.judge(part, summaries)["kcenter_seconds"] == {"value": 5.0, "mark": 5, "met": True}


def test_a_side_that_failed_meets_no_mark(modules: dict[str, ModuleType]) -> None:
    part, summaries = summarise(modules, "recipe", [(100, "recipe_llamero", build_figures(100, 1.0))])
    marks = modules["report"].judge(part, summaries)
    assert marks["recipe_over_datatrove"] == {"value": None, "mark": 20, "met": False}


def test_medians_are_taken_over_rounds_and_marks_at_the_largest_size(modules: dict[str, ModuleType]) -> None:
    runs = [(10, "stats_llamero", build_figures(10, 9.0))]
    runs += [(20, "stats_llamero", build_figures(20, seconds)) for seconds in (1.0, 8.0, 1.4)]
    part, summaries = summarise(modules, "stats", runs)
    assert [(row["size"], row["rounds"]) for row in summaries] == [(10, 1), (20, 3)]
    assert modules["report"].judge(part, summaries)["stats_seconds"]["value"] == pytest.approx(2.8)


def test_memory_at_ten_million_lies_on_the_line_through_what_was_measured(modules: dict[str, ModuleType]) -> None:
    extrapolate = modules["report"].extrapolate
    assert extrapolate([1, 2, 4], [110, 120, 140], 90) == pytest.approx(1000)
    assert extrapolate([1, 2, 4], [100, 100, 100], 10**7) == pytest.approx(100)
    assert extrapolate([1, 2, 4], [130, 120, 100], 10**7) == 130, "less than was seen is not believed"


@pytest.mark.parametrize(
    ("output", "words"),
    [("", "empty"), ("a table", "not JSON"), ('{"benchmark": "training", "marks": {}}', "no marks of the benchmark")],
)
def test_an_output_without_marks_is_refused_with_the_reason(
    modules: dict[str, ModuleType], output: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        modules["report"].parse_marks(output)


def test_markdown_and_plain_text_are_the_same_but_for_marks(modules: dict[str, ModuleType]) -> None:
    is_same = modules["report"].is_same_text
    markdown = "# A *title*\n\n1. see [this](https://x.org/a_(b)) ![image](y.png)\n\n```python\nx = 1\n```\n"
    assert is_same(markdown, "A title\nsee this \n\nx = 1\n")
    assert not is_same(markdown, "A title\nsee that \n\nx = 1\n")
    assert not is_same("x", "x y")


def test_shifted_copies_differ_from_each_other_and_keep_their_stop_words(modules: dict[str, ModuleType]) -> None:
    inputs = modules["inputs"]
    rows = [
        {"instruction": "Describe the house", "input": "", "output": "It is old and Made of stone, with 2 doors."},
        {"instruction": "2 + 2?", "input": "", "output": "4"},
    ]
    copies = [json.dumps(inputs.shift_letters(row, shift)) for row in rows for shift in range(1, 20)]
    assert len({*copies, *(json.dumps(row) for row in rows)}) == 2 * 20
    moved = inputs.shift_letters(rows[0], 1)
    assert moved["output"] == "It is pme and Nbef of tupof, with 2 eppst."
    assert moved["text"] == inputs.join(moved)


def test_planted_copies_differ_in_one_word_of_ten_and_in_no_number(modules: dict[str, ModuleType]) -> None:
    words = [f"{chr(97 + n % 26)}{chr(97 + n // 26)}x" for n in range(60)]
    rows = [
        {"instruction": f"Task {n}", "input": "", "output": " ".join([*words[n % 20 :], "42", "17"])} for n in range(40)
    ]
    planted = list(modules["inputs"].plant_edits(rows, count=30))
    copies = [row for row in planted if "of" in row]
    assert len(planted) == 70 and len(copies) == 30
    for copy in copies:
        before, after = planted[copy["of"]]["text"].split(), copy["text"].split()
        differing = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert 0 < len(differing) <= round(len(before) / 10)
        assert not any(re.search(r"\d", word) for pair in differing for word in pair)


def test_each_side_has_its_file_and_every_requirement_is_pinned(bench: Path, modules: dict[str, ModuleType]) -> None:
    parts = modules["parts"].PARTS
    assert len({part.name for part in parts}) == len(parts)
    names = [mark.name for part in parts for mark in part.marks]
    assert len(set(names)) == len(names)
    for part in parts:
        assert all((bench / "sides" / f"{side.file}.py").is_file() for side in part.sides)
        assert list(part.sizes) == sorted(part.sizes)
    lines = [line.split("#")[0].strip() for line in modules["peers"].REQUIREMENTS.read_text().splitlines()]
    pins = [line for line in lines if line]
    assert pins[0].startswith("torch==") and all("==" in pin for pin in pins)


def test_a_plot_has_a_line_for_each_side_that_was_measured_at_two_sizes(modules: dict[str, ModuleType]) -> None:
    parts = [part for part in modules["parts"].PARTS if part.name in ("gopher", "stats")]
    _, gopher = summarise(
        modules, "gopher",
        [(size, side.file, build_figures(size, size / 100)) for size in (10, 20) for side in parts[0].sides],
    )  # fmt: skip
    _, stats = summarise(modules, "stats", [(10, "stats_llamero", build_figures(10, 1.0))])
    drawn = modules["plot"].draw_curves(
        parts, [{"part": "gopher", "summaries": gopher}, {"part": "stats", "summaries": stats}]
    )
    assert drawn.count("<polyline") == 2 and "datatrove" in drawn and parts[1].title not in drawn
