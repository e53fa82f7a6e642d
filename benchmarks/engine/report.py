"""From rounds to tables and the line of marks. Pure: no process, no clock, no file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

BENCHMARK = "engine"
MARKED = "tiny"
MARKED_CHATS = 16
SPEEDUP_MARK = 3.0


@dataclass(frozen=True)
class Round:
    """One measurement: so many tokens in so many seconds."""

    tokens: int
    seconds: float
    cpu_seconds: float
    first_token_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def cpu_rate(self) -> float:
        return self.tokens / self.cpu_seconds


@dataclass(frozen=True)
class Cell:
    """The rounds of one row of the table: chats at a time (0: the peer one at a time, -1: the peer in static batches) and adapters."""

    chats: int
    adapters: int


Rounds = Mapping[Cell, Sequence[Round]]
ALONE, TOGETHER = 0, -1


@dataclass(frozen=True)
class Adapters:
    """What an adapter costs: resident bytes of each, the size of its file, seconds to load it (median and worst)."""

    bytes_each: int
    file_bytes: int
    load_seconds: float
    worst_load_seconds: float
    loaded: int


def speedup(rounds: Rounds, cell: Cell, by_cpu: bool = False) -> float:
    """The median over rounds of a cell's tokens a second (of CPU time) over those of the peer, one at a time, in the same round."""
    alone = rounds[Cell(ALONE, cell.adapters)]
    pairs = list(zip(rounds[cell], alone, strict=True))
    return median(a.cpu_rate / b.cpu_rate if by_cpu else a.rate / b.rate for a, b in pairs)


def render_rates(rounds: Rounds) -> str:
    """A table: who, how many chats over how many adapters, tokens a second, of CPU time, and against one at a time."""
    lines = [
        "| side | chats at a time | adapters | tokens / s | tokens / CPU-s | first token, ms | against one at a time | by CPU time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell, found in sorted(
        rounds.items(), key=lambda item: (item[0].adapters, item[0].chats > 0, abs(item[0].chats))
    ):
        side = {ALONE: "generate(), one at a time", TOGETHER: "generate(), static batches of 16"}.get(
            cell.chats, "engine"
        )
        chats = {ALONE: "1", TOGETHER: "16"}.get(cell.chats, str(cell.chats))
        first = f"{1000 * median(r.first_token_seconds for r in found):,.0f}" if cell.chats > 0 else ""
        lines.append(
            f"| {side} | {chats} | {cell.adapters} | {median(r.rate for r in found):,.0f} "
            f"| {median(r.cpu_rate for r in found):,.0f} | {first} | {speedup(rounds, cell):.2f}× | {speedup(rounds, cell, by_cpu=True):.2f}× |"
        )
    return "\n".join(lines)


def render_curve(rates: Mapping[int, float], alone: float) -> str:
    """Tokens a second over chats at a time."""
    lines = ["| chats at a time | tokens / s | against one at a time |", "|---|---|---|"]
    lines += [f"| {chats} | {rate:,.0f} | {rate / alone:.2f}× |" for chats, rate in sorted(rates.items())]
    return "\n".join(lines)


def render_adapters(found: Adapters) -> str:
    return (
        f"{found.loaded} further adapters: {found.bytes_each / 1e6:.2f} MB resident each (file {found.file_bytes / 1e6:.2f} MB), loaded in "
        f"{1000 * found.load_seconds:.0f} ms (median; worst {1000 * found.worst_load_seconds:.0f} ms)"
    )


def judge(rounds: Rounds, equal: int, answers: int) -> dict[str, dict[str, object]]:
    """The marks: ≥ 3 times the tokens a second at 16 chats, over 1 and 8 adapters, and every answer as it is by itself."""
    marks: dict[str, dict[str, object]] = {}
    for cell in sorted((c for c in rounds if c.chats == MARKED_CHATS), key=lambda c: c.adapters):
        value = round(speedup(rounds, cell), 2)
        name = f"speedup_{cell.chats}_chats_{cell.adapters}_adapters"
        marks[name] = {"value": value, "mark": SPEEDUP_MARK, "met": value >= SPEEDUP_MARK}
    marks["equal_answers"] = {"value": equal, "mark": answers, "met": equal == answers}
    return marks


def marks_line(marks: Mapping[str, Mapping[str, object]]) -> str:
    return json.dumps({"benchmark": BENCHMARK, "marks": marks})
