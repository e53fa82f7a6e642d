"""Plain lines and bars."""

import io

import pytest
from rich.console import Console

from llamero.cli.display import BarDisplay, PlainDisplay, format_number, format_seconds, make_display
from llamero.spec.progress import Progress


def test_plain_lines_tell_share_rate_and_remaining_time() -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), width=200)
    with PlainDisplay(console, clock=lambda: now[0]) as display:
        for done in range(0, 101):
            now[0] = done / 5
            display.show(
                Progress("Training", "training", done, 100, "steps", values={"loss": 1.5, "tokensPerSecond": 900})
            )
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[1] == "Training: training  25% (25/100 steps)  5 steps/s  ETA 15s  loss 1.500  900 tokens/s"
    assert lines[-1].startswith("Training: training  100%")
    assert len(lines) <= 6
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_activity_of_unknown_length_is_named_once() -> None:
    console = Console(file=io.StringIO(), width=200)
    with PlainDisplay(console) as display:
        display.show(Progress("Training", "loading base"))
        display.show(Progress("Training", "loading base", message="a note [1]"))
    assert console.file.getvalue().splitlines() == ["Training: loading base ...", "a note [1]"]  # type: ignore[attr-defined]


def test_a_terminal_gets_bars_that_end_full() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    display = make_display(console)
    assert isinstance(display, BarDisplay)
    with display:
        display.show(Progress("Preparing", "records", 10, 40, "records"))
        display.show(Progress("Training", "training", 4, 4, "steps", values={"loss": 0.5}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Preparing" in text
    assert "100%" in text
    assert "loss 0.500" in text


def test_without_a_terminal_there_are_plain_lines() -> None:
    assert isinstance(make_display(Console(file=io.StringIO())), PlainDisplay)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2s"), (9.96, "10.0s"), (59, "59s"), (75, "1m15s"), (3600, "1h00m"), (3725, "1h02m")]
)
def test_seconds_read_well(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.1234, "0.123"), (99.5, "99.5"), (1234.5, "1,234")])
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize("line", ["", "text", "{", "[1]", '{"a": 1}', '{"llamero": "other"}', "{]"])
def test_a_line_that_is_no_progress_is_none(line: str) -> None:
    assert Progress.from_line(line) is None


def test_progress_goes_through_a_line_unchanged() -> None:
    event = Progress("Training", "training", 3, 10, "steps", values={"loss": 1.25})
    assert Progress.from_line(event.to_line()) == event
