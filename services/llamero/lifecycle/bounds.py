"""Keeps a status below its size: what is least needed goes first, and as little of it as will do."""

import json
from collections.abc import Callable

from llamero.spec.status import AdapterStatus, JobStatus, RunRecord

MAX_STATUS_BYTES = 9_800
"""As JSON with every other character than ASCII escaped: the longest form that anyone writes."""

MAX_ADDRESS_BYTES = 2_600

Cut = Callable[[JobStatus], JobStatus]


def fits(status: JobStatus) -> bool:
    """Whether the status is as small as it must be."""
    return len(json.dumps(status.to_json_dict())) <= MAX_STATUS_BYTES


def has_room(adapter: AdapterStatus | None) -> bool:
    """Whether the published adapter's address is one that we can have written: the candidate's was bounded (`publication`)."""
    return adapter is None or len(json.dumps(adapter.uri)) <= MAX_ADDRESS_BYTES


def shrink(status: JobStatus) -> JobStatus:
    """The status, cut until it fits. What a run needs to go on is not cut, so that it may still be too large: see `fits`."""
    for cut in CUTS:
        if fits(status):
            break
        status = cut(status)
    return status


def shorten(text: str, size: int) -> str:
    """The text, cut to so many bytes of JSON."""
    if len(json.dumps(text)) - 2 <= size:
        return text
    used = 0
    for index, letter in enumerate(text):
        used += len(json.dumps(letter)) - 2
        if used > size - 4:
            return f"{text[:index]} ..."
    return text


def _cut_oldest(needs_cut: Callable[[RunRecord], bool], cut: Callable[[RunRecord], RunRecord]) -> Cut:
    """A cut of the oldest record that is not cut yet."""

    def apply(status: JobStatus) -> JobStatus:
        index = next((i for i, record in enumerate(status.history) if needs_cut(record)), None)
        if index is None:
            return status
        records = [cut(r) if i == index else r for i, r in enumerate(status.history)]
        return status.model_copy(update={"history": records})

    return apply


_cut_oldest_uri = _cut_oldest(lambda r: r.adapter_uri is not None, lambda r: r.model_copy(update={"adapter_uri": None}))
_cut_oldest_message = _cut_oldest(
    lambda r: shorten(r.message, 80) != r.message,
    lambda r: r.model_copy(update={"message": shorten(r.message, 80)}),
)


def _cut_conditions(size: int) -> Cut:
    def apply(status: JobStatus) -> JobStatus:
        shorter = [c.model_copy(update={"message": shorten(c.message, size)}) for c in status.conditions]
        return status.model_copy(update={"conditions": shorter})

    return apply


def _cut_sentences(status: JobStatus) -> JobStatus:
    changes: dict[str, object] = {
        "tries": status.tries.model_copy(update={"message": shorten(status.tries.message, 160)})
    }
    if status.failure is not None:
        changes["failure"] = status.failure.model_copy(update={"message": shorten(status.failure.message, 240)})
    if status.evaluation is not None:
        changes["evaluation"] = status.evaluation.model_copy(update={"reason": shorten(status.evaluation.reason, 240)})
    return status.model_copy(update=changes)


def _cut_reasons(status: JobStatus) -> JobStatus:
    """Which records were rejected for what stands in the report too."""
    if status.data is None:
        return status
    return status.model_copy(update={"data": status.data.model_copy(update={"reasons": {}})})


def _cut_oldest_record(status: JobStatus) -> JobStatus:
    return status.model_copy(update={"history": status.history[1:]})


CUTS: tuple[Cut, ...] = (
    *[_cut_oldest_uri] * 7,
    *[_cut_oldest_message] * 8,
    _cut_conditions(300),
    _cut_oldest_uri,
    _cut_sentences,
    _cut_conditions(150),
    _cut_reasons,
    _cut_conditions(60),
    *[_cut_oldest_record] * 8,
)
