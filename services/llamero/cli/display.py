"""Shows progress: bars with rate and ETA in a terminal, plain lines elsewhere. Takes `Progress` events, knows no phase."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)
from rich.text import Text

from llamero.spec.progress import Progress

PLAIN_INTERVAL_SECONDS = 5.0
PERCENT = "%"
"""The unit of an event that counts nothing but percent: neither counts nor rate are shown."""


class Display(Protocol):
    """Where a run's progress goes."""

    def show(self, event: Progress) -> None: ...

    def say(self, text: str) -> None: ...

    def __enter__(self) -> "Display": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_display(console: Console) -> Display:
    """Bars where the console is a terminal, plain lines where it is not."""
    return BarDisplay(console) if console.is_terminal else PlainDisplay(console)


class RateColumn(ProgressColumn):
    """`1,234 records/s`, or the figures that the event brought."""

    def render(self, task: Task) -> Text:
        note = task.fields.get("note", "")
        unit = task.fields.get("unit", "")
        rate = f"{format_number(task.speed)} {unit}/s" if task.speed and unit != PERCENT else ""
        return Text("  ".join(part for part in (rate, note) if part), style="cyan")


class BarDisplay:
    """A bar an activity; finished ones stay with their time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._started: dict[TaskID, float] = {}
        self._bars = RichProgress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("[bold]{task.fields[phase]:<11}[/]{task.description:<22}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>4.0f}%"),
            RateColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
        )

    def show(self, event: Progress) -> None:
        key = (event.phase, event.activity)
        if key not in self._tasks:
            self._finish_open()
            self._tasks[key] = self._bars.add_task(
                event.activity, phase=event.phase, unit=event.unit, note="", total=event.total
            )
        note = format_values(event.values)
        self._bars.update(self._tasks[key], completed=event.done, total=event.total, note=note, unit=event.unit)
        if event.message:
            self.say(event.message)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def _finish_open(self) -> None:
        for task in self._bars.tasks:
            if not task.finished:
                total = task.total if task.total else 1
                self._bars.update(task.id, completed=total, total=total)

    def __enter__(self) -> "BarDisplay":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish_open()
        self._bars.stop()


class PlainDisplay:
    """A line when an activity starts, one every few seconds, and one at its end."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._clock = clock
        self._key: tuple[str, str] | None = None
        self._started = self._last = 0.0
        self._ended = False

    def show(self, event: Progress) -> None:
        now = self._clock()
        key = (event.phase, event.activity)
        if event.message:
            self.say(event.message)
        if key != self._key:
            self._key, self._started, self._last, self._ended = key, now, now, False
            if not event.total:
                self._print(f"{event.phase}: {event.activity} ...")
                return
        is_end = event.total is not None and event.done >= event.total
        if self._ended or not (
            is_end or now - self._last >= PLAIN_INTERVAL_SECONDS or (now == self._started and event.total)
        ):
            return
        self._last, self._ended = now, is_end
        self._print(self._line(event, now - self._started))

    def _line(self, event: Progress, elapsed: float) -> str:
        parts = [f"{event.phase}: {event.activity}"]
        if event.total:
            counts = f" ({format_number(event.done)}/{format_number(event.total)} {event.unit})"
            parts.append(f"{event.done / event.total:.0%}{counts if event.unit != PERCENT else ''}")
        if elapsed > 0 and event.done:
            rate = event.done / elapsed
            if event.unit != PERCENT:
                parts.append(f"{format_number(rate)} {event.unit}/s")
            if event.total and event.done < event.total:
                parts.append(f"ETA {format_seconds((event.total - event.done) / rate)}")
        if note := format_values(event.values):
            parts.append(note)
        return "  ".join(parts)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def format_number(value: float | None) -> str:
    """1234.5 → `1,234`; 0.123 → `0.123`."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """75 → `1m15s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_values(values: dict[str, object] | None) -> str:
    """The figures of the moment that a person wants beside the bar."""
    if not values:
        return ""
    parts = []
    if isinstance(loss := values.get("loss"), (int, float)):
        parts.append(f"loss {loss:.3f}")
    if isinstance(rate := values.get("tokensPerSecond"), (int, float)):
        parts.append(f"{format_number(rate)} tokens/s")
    return "  ".join(parts)
