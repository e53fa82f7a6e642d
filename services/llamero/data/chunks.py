"""What becomes of a record that is longer than the sequence length: chunks on turn pairs, its beginning, or nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llamero.data.readers.draft import RowError
from llamero.data.turns import split_pairs
from llamero.model.templates import Encoded
from llamero.spec.records import Message, RejectionReason

Encode = Callable[[Sequence[tuple[Message, ...]]], list[Encoded]]


@dataclass(frozen=True)
class Example:
    """A piece of a record that fits: its turns, its tokens, and the number of its first turn in the record (the system prompt not counted)."""

    messages: tuple[Message, ...]
    encoded: Encoded
    first_turn: int = 0
    is_truncated: bool = False


@dataclass(frozen=True)
class Cut:
    """A record's examples, and how many of its turn pairs were too long by themselves and left out."""

    examples: list[Example]
    dropped_pairs: int = 0


def cut_record(
    messages: tuple[Message, ...],
    encoded: Encoded,
    sequence_length: int,
    policy: Literal["chunk", "truncate", "reject"],
    encode: Encode,
) -> Cut:
    """The record as examples of at most `sequence_length` tokens. Raises RowError (too-long) where nothing of it fits."""
    length = len(encoded.ids)
    if length <= sequence_length:
        return Cut([Example(messages, encoded)])
    if policy == "truncate":
        return _truncate(messages, encoded, sequence_length)
    system, pairs = split_pairs(messages)
    if policy == "reject" or len(pairs) < 2:
        raise RowError(
            RejectionReason.TOO_LONG, f"{length:,} tokens, more than training.sequenceLength ({sequence_length:,})."
        )
    return _chunk(system, pairs, sequence_length, encode)


def _truncate(messages: tuple[Message, ...], encoded: Encoded, sequence_length: int) -> Cut:
    short = Encoded(encoded.ids[:sequence_length], encoded.mask[:sequence_length])
    if not short.mask[1:].any():
        raise RowError(
            RejectionReason.TOO_LONG, f"The prompt alone fills training.sequenceLength ({sequence_length:,} tokens)."
        )
    return Cut([Example(messages, short, is_truncated=True)])


def _chunk(system: tuple[Message, ...], pairs: list[tuple[Message, ...]], sequence_length: int, encode: Encode) -> Cut:
    """Consecutive pairs, as many as fit, with the system prompt before each chunk. A pair that does not fit starts a new one."""
    lengths = [len(e.ids) for e in encode([system + pair for pair in pairs])]
    # What every chunk has once (system prompt, beginning-of-text) is in each pair's length.
    shared = max(0, lengths[0] + lengths[1] - len(encode([system + pairs[0] + pairs[1]])[0].ids))
    groups = _group(lengths, shared, sequence_length)
    dropped = sum(length > sequence_length for length in lengths)
    examples: list[Example] = []
    while groups:
        turns = [system + tuple(m for i in group for m in pairs[i]) for group in groups]
        rest: list[list[int]] = []
        for group, chunk, encoded in zip(groups, turns, encode(turns), strict=True):
            if len(encoded.ids) <= sequence_length:
                examples.append(Example(chunk, encoded, sum(len(p) for p in pairs[: group[0]])))
            else:  # the estimate fell short: halves fit, or their halves
                rest += [group[: len(group) // 2], group[len(group) // 2 :]]
        groups = rest
    if not examples:
        raise RowError(
            RejectionReason.TOO_LONG,
            f"Each exchange is longer than training.sequenceLength ({sequence_length:,}); the shortest has {min(lengths):,} tokens.",
        )
    return Cut(sorted(examples, key=lambda e: e.first_turn), dropped)


def _group(lengths: Sequence[int], shared: int, sequence_length: int) -> list[list[int]]:
    groups: list[list[int]] = []
    filled = sequence_length + 1
    for i, length in enumerate(lengths):
        if length > sequence_length:
            filled = sequence_length + 1  # the next pair does not follow what came before
            continue
        if filled + length - shared <= sequence_length:
            groups[-1].append(i)
            filled += length - shared
        else:
            groups.append([i])
            filled = length
    return groups
