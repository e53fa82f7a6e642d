"""Lines of rejected.jsonl: what is told of a record that was not kept, and the tally of what each step did.

Built-in steps go by their names (BUILT_IN), those of `data.steps` by their numbers.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from llamero.data.content import hash_content, show_turns
from llamero.data.steps.record import Drop, Record
from llamero.spec.profiles import PlannedStep
from llamero.spec.records import MAX_REJECTED_TEXT, RejectionReason

PARSE, EQUAL, CAPS, CUT = "parse", "equal", "caps", "cut"
BUILT_IN: Final = (PARSE, EQUAL, CAPS, CUT)


@dataclass(frozen=True, slots=True)
class StepName:
    """A step as rejections and tallies call it: `key` is its number, or a name of BUILT_IN."""

    key: str
    kind: str

    @classmethod
    def of(cls, step: PlannedStep) -> "StepName":
        return cls(str(step.number), step.kind)

    def to_json(self) -> dict[str, str]:
        return {"key": self.key, "kind": self.kind}

    @property
    def reference(self) -> dict[str, Any] | None:
        """`{number, kind}`; None for a built-in one."""
        return {"number": int(self.key), "kind": self.kind} if self.key.isdecimal() else None


EQUAL_STEP, CAPS_STEP = StepName(EQUAL, RejectionReason.DUPLICATE), StepName(CAPS, RejectionReason.CAPPED)


@dataclass
class Tally:
    """What steps did to the records of a shard: how many they dropped by which rule, and how many they changed."""

    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)

    def drop(self, step: str, rule: str) -> None:
        self.dropped.setdefault(step, Counter())[rule] += 1

    def change(self, step: str) -> None:
        self.changed[step] += 1

    def to_json(self) -> dict[str, Any]:
        return {
            "dropped": {step: dict(sorted(rules.items())) for step, rules in sorted(self.dropped.items())},
            "changed": dict(sorted(self.changed.items())),
        }


def describe_rejected(
    record: Record, reason: str, detail: str, step: StepName | None = None, drop: Drop | None = None, **more: Any
) -> dict[str, Any]:
    """The line of a record that was parsed; with its place in the raw shard, by which lines are put in order."""
    line: dict[str, Any] = {
        "source": record.source,
        "file": record.file,
        "line": record.line,
        "reason": reason,
        "detail": detail,
        "text": show_turns(record.messages, record.input)[:MAX_REJECTED_TEXT],
        "id": record.id or hash_content(record.messages, record.input).hex(),
        "row": record.row,
    }
    if step is not None and step.reference is not None:
        line["step"] = step.reference
    if drop is not None:
        line["rule"] = drop.rule
        line |= {k: v for k, v in (("value", drop.value), ("threshold", drop.threshold)) if v is not None}
        if drop.text is not None:
            line["text"] = drop.text[:MAX_REJECTED_TEXT]
    if record.scores:
        line["scores"] = record.scores
    return line | more


def describe_set_drop(kind: str, drop: Drop, repeats: dict[str, Any] | None) -> str:
    """A sentence on a record that a step across records dropped."""
    measured = _show_measure(drop)
    if repeats is None:
        return f"Dropped by `{kind}`: {drop.rule}{measured}."
    same = f"record {repeats['line']} of {repeats['file']} (source {repeats['source']})"
    if kind in (RejectionReason.DUPLICATE, "duplicates"):
        return f"The same as {same}." if kind == RejectionReason.DUPLICATE else f"The same {drop.rule} as {same}."
    if kind == "nearDuplicates" and drop.value is not None and drop.threshold is not None:
        return f"Too like {same}: similarity {drop.value:.3g}, where {drop.threshold:g} is enough."
    return f"Too like {same}: {drop.rule}{measured}."


def _show_measure(drop: Drop) -> str:
    if drop.value is None:
        return "" if drop.threshold is None else f" (limit {drop.threshold:g})"
    return f" {drop.value:g}" + ("" if drop.threshold is None else f", where the limit is {drop.threshold:g}")


def merge_rejections(files: Iterable[Iterable[dict[str, Any]]]) -> Iterable[dict[str, Any]]:
    """The lines of several files, each in the rows' order, as one; the place in the raw shard is left out."""
    from heapq import merge

    for line in merge(*files, key=lambda row: row["row"]):
        del line["row"]
        yield line
