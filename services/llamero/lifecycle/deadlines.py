"""Which of a job's own time limits have passed: activeDeadlineSeconds, ttlSecondsAfterFinished."""

from datetime import datetime, timedelta

from llamero.spec.job import FineTuneJobSpec
from llamero.spec.status import JobStatus


def seconds_to_deadline(spec: FineTuneJobSpec, status: JobStatus, now: datetime) -> float | None:
    """Seconds left to the run (0 or less: none); None where it has no limit. The clock restarts at a resumption, as for batch Jobs."""
    if spec.active_deadline_seconds is None or status.active_since is None:
        return None
    return (status.active_since + timedelta(seconds=spec.active_deadline_seconds) - now).total_seconds()


def seconds_to_removal(spec: FineTuneJobSpec, status: JobStatus, now: datetime) -> float | None:
    """Seconds until the finished job deletes itself (0 or less: now); None where it stays."""
    if spec.ttl_seconds_after_finished is None or status.finished_at is None:
        return None
    return (status.finished_at + timedelta(seconds=spec.ttl_seconds_after_finished) - now).total_seconds()
