"""Keeps a status below its size: what is least needed goes first."""

from llamero.spec.status import JobStatus

MAX_STATUS_BYTES = 9_500


def shrink(status: JobStatus) -> JobStatus:
    """The status, cut until it fits: addresses in the history, then long messages, then old records of the history."""
    if _fits(status):
        return status
    history = [r.model_copy(update={"adapter_uri": None}) for r in status.history]
    status = status.model_copy(update={"history": history})
    for length in (256, 120):
        if _fits(status):
            return status
        shorter = [c.model_copy(update={"message": c.message[:length]}) for c in status.conditions]
        status = status.model_copy(update={"conditions": shorter})
    while status.history and not _fits(status):
        status = status.model_copy(update={"history": status.history[1:]})
    return status


def _fits(status: JobStatus) -> bool:
    return len(status.model_dump_json(by_alias=True, exclude_none=True).encode()) <= MAX_STATUS_BYTES
