"""The progress that a phase reports, one JSON object a line, whoever listens: a terminal, Redis or a log."""

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """One event. `done` and `total` count `unit`s (total None: not known yet); `message` is for a person.

    `values` holds figures of the moment, such as loss, learningRate, tokensPerSecond, step.
    """

    phase: str
    activity: str
    done: float = 0
    total: float | None = None
    unit: str = ""
    message: str = ""
    values: dict[str, Any] | None = None

    def to_line(self) -> str:
        """One line of JSON, without its line end, marked as progress so that it can stand among other output."""
        return json.dumps({"llamero": "progress", **{k: v for k, v in asdict(self).items() if v not in (None, "", {})}})

    @classmethod
    def from_line(cls, line: str) -> "Progress | None":
        """The event on a line; None where the line is something else (a library's print)."""
        if not line.startswith("{"):
            return None
        try:
            row = json.loads(line)
        except ValueError:
            return None
        if not isinstance(row, dict) or row.pop("llamero", None) != "progress":
            return None
        return cls(**row)
