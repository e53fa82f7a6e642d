"""What a record was before a language model changed it, and why one stayed as it was: written alike by every step that asks.

`meta.original` holds what the first change replaced; `meta.origin` lists the changes, `{"operation", "by", …}`, each later one with what it
replaced in `was`; `meta.quarantined` says by step which rule refused a change, and in a sentence why.
"""

from typing import Any

from llamero.data.steps.judge import QUARANTINED_META
from llamero.data.steps.record import Record


def note_change(changed: Record, operation: str, by: str, was: dict[str, Any], **figures: Any) -> Record:
    """The changed record with its lineage: `was` is what it said before, by `instruction`, `input`, `answer` or `answers`."""
    entry: dict[str, Any] = {"operation": operation, "by": by, **figures}
    if "original" in changed.meta:
        entry["was"] = was
    origin = [*changed.meta.get("origin", ()), entry]
    return changed.with_meta(original=changed.meta.get("original", was), origin=origin)


def quarantine(record: Record, step: str, rule: str, detail: str) -> Record:
    """The record as it was, and why a change of it was refused, by the step's name as for judges."""
    return record.with_meta(**{QUARANTINED_META: {**record.meta.get(QUARANTINED_META, {}), step: f"{rule}: {detail}"}})
