"""Two versions of data side by side: what was added, removed and changed, by content hash.

Only hashes are held: measured, 130 bytes a record of both sides together, sorting included; examples are found in a second pass.
Two different records share a 64-bit hash in one of 100,000 comparisons of 10 million records.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_EXAMPLES: Final = 100
_BLOCK: Final = 1 << 16
_NONE: Final = np.uint64(0)

KEY_DTYPE = np.dtype([("content", "<u8"), ("prompt", "<u8"), ("source_id", "<u8")])
"""A record's hashes; 0 for a source id that it does not have."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it is compared and shown."""

    content: int
    prompt: int
    source_id: int
    place: str
    question: str
    answer: str


Read = Callable[[], Iterator[Entry]]
OnRows = Callable[[int], None]


@dataclass(frozen=True)
class Changed:
    """The same prompt, or the same source id, with another content."""

    by: str
    before: Entry
    after: Entry


@dataclass(frozen=True)
class Difference:
    """Counts of distinct records, and examples of each kind. before = same + changed + removed, after = same + changed + added."""

    before: int
    after: int
    repeated_before: int
    repeated_after: int
    same: int
    added: int
    removed: int
    changed_answer: int
    changed_source: int
    added_examples: tuple[Entry, ...] = ()
    removed_examples: tuple[Entry, ...] = ()
    changed_examples: tuple[Changed, ...] = ()

    def to_json_dict(self) -> dict[str, Any]:
        """For machines."""

        def show(entry: Entry) -> dict[str, str]:
            return {"place": entry.place, "prompt": entry.question, "answer": entry.answer}

        return {
            "before": {"records": self.before, "repeated": self.repeated_before},
            "after": {"records": self.after, "repeated": self.repeated_after},
            "same": self.same,
            "added": self.added,
            "removed": self.removed,
            "changed": {"samePrompt": self.changed_answer, "sameSourceId": self.changed_source},
            "examples": {
                "added": [show(e) for e in self.added_examples],
                "removed": [show(e) for e in self.removed_examples],
                "changed": [
                    {"by": c.by, "before": show(c.before), "after": show(c.after)} for c in self.changed_examples
                ],
            },
        }


def hash_id(source_id: str) -> int:
    """64 bits of a source's own id, never 0; 0 where there is none."""
    return int.from_bytes(blake2b(source_id.encode(), digest_size=8).digest(), "big") or 1 if source_id else 0


def compare(before: Read, after: Read, examples: int, on_rows: OnRows) -> Difference:
    """What differs. `before` and `after` are read twice where there are examples to show (at most MAX_EXAMPLES)."""
    old, old_count = _collect(before(), on_rows, 0)
    new, new_count = _collect(after(), on_rows, old_count)
    gone = old[~np.isin(old["content"], new["content"], assume_unique=True)]
    come = new[~np.isin(new["content"], old["content"], assume_unique=True)]
    same = len(old) - len(gone)
    by_prompt, gone_left, come_left = _pair(gone, come, "prompt")
    by_source, removed, added = _pair(gone_left, come_left, "source_id")
    found = _find_examples(before, after, (by_prompt, by_source), removed, added, min(examples, MAX_EXAMPLES))
    return Difference(
        before=len(old),
        after=len(new),
        repeated_before=old_count - len(old),
        repeated_after=new_count - old_count - len(new),
        same=same,
        added=len(added),
        removed=len(removed),
        changed_answer=len(by_prompt),
        changed_source=len(by_source),
        added_examples=found[0],
        removed_examples=found[1],
        changed_examples=found[2],
    )


def _collect(entries: Iterable[Entry], on_rows: OnRows, seen: int) -> tuple[NDArray, int]:
    """The distinct records' hashes, sorted by content, and how many entries were seen in all."""
    blocks: list[NDArray] = []
    block: list[tuple[int, int, int]] = []
    for entry in entries:
        block.append((entry.content, entry.prompt, entry.source_id))
        seen += 1
        if len(block) == _BLOCK:
            blocks.append(np.array(block, dtype=KEY_DTYPE))
            block = []
            on_rows(seen)
    blocks.append(np.array(block, dtype=KEY_DTYPE))
    on_rows(seen)
    keys = np.concatenate(blocks)
    _, first = np.unique(keys["content"], return_index=True)
    return keys[first], seen


def _pair(gone: NDArray, come: NDArray, field: str) -> tuple[NDArray, NDArray, NDArray]:
    """Pairs [n, 2] of contents that share the field, each record in one at most; and what is left of both sides."""
    old, new = gone[gone[field] != _NONE], come[come[field] != _NONE]
    old = old[np.lexsort((old["content"], old[field]))]
    new = new[np.lexsort((new["content"], new[field]))]
    # The n-th of those that share a value goes with the n-th of the other side.
    place = np.searchsorted(new[field], old[field]) + _rank(old[field])
    is_within = place < len(new)
    old, place = old[is_within], place[is_within]
    is_shared = new[field][place] == old[field]
    pairs = np.stack([old["content"][is_shared], new["content"][place[is_shared]]], axis=1)
    return (
        pairs,
        gone[~np.isin(gone["content"], pairs[:, 0])],
        come[~np.isin(come["content"], pairs[:, 1])],
    )


def _rank(values: NDArray) -> NDArray[np.int64]:
    """The place of each value among its equals, in a sorted array."""
    return np.arange(len(values)) - np.searchsorted(values, values)


def _find_examples(
    before: Read, after: Read, changed: tuple[NDArray, NDArray], removed: NDArray, added: NDArray, count: int
) -> tuple[tuple[Entry, ...], tuple[Entry, ...], tuple[Changed, ...]]:
    """The first of each kind, as they stand in the data."""
    pairs = [
        (by, int(a), int(b)) for by, part in zip(("prompt", "source id"), changed, strict=True) for a, b in part[:count]
    ]
    pairs = pairs[:count]
    wanted_old = {a for _, a, _ in pairs}
    wanted_new = {b for _, _, b in pairs}
    old, first_removed = _pick(before, wanted_old, removed["content"], count)
    new, first_added = _pick(after, wanted_new, added["content"], count)
    return first_added, first_removed, tuple(Changed(by, old[a], new[b]) for by, a, b in pairs)


def _pick(read: Read, wanted: set[int], contents: NDArray, count: int) -> tuple[dict[int, Entry], tuple[Entry, ...]]:
    """The entries of the wanted contents, and the first `count` distinct ones of `contents` (sorted)."""
    target = min(count, len(contents))
    ordered = np.sort(contents)
    found: dict[int, Entry] = {}
    first: dict[int, Entry] = {}
    if not wanted and not target:
        return found, ()
    for entry in read():
        content = entry.content
        if content in wanted and content not in found:
            found[content] = entry
        elif len(first) < target and content not in first:
            place = int(np.searchsorted(ordered, np.uint64(content)))
            if place < len(ordered) and int(ordered[place]) == content:
                first[content] = entry
        if len(found) == len(wanted) and len(first) == target:
            break
    return found, tuple(first.values())
