"""What is wrong with a manifest: where, what, and what to do, in one sentence."""

from dataclasses import dataclass
from enum import StrEnum

Path = tuple[str | int, ...]


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Problem:
    """A mistake: where in the manifest, what, and what to do, in one sentence."""

    path: Path
    message: str
    severity: Severity = Severity.ERROR
