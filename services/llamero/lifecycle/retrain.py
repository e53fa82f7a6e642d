"""When a further run starts by itself: at times of a schedule, or when the data has changed."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from llamero.spec.digest import digest_json
from llamero.spec.job import RetrainSpec
from llamero.spec.status import RetrainStatus

BY_SCHEDULE = "Schedule"
BY_DATA = "DataChanged"


def find_next_time(schedule: str, time_zone: str, after: datetime) -> datetime | None:
    """The schedule's first time after `after`, in UTC; None where it has none or can't be read (validation says why)."""
    try:
        local = after.astimezone(ZoneInfo(time_zone))
        return next(CronSim(schedule, local)).astimezone(UTC)
    except (CronSimError, ZoneInfoNotFoundError, StopIteration, ValueError):
        return None


def refresh_schedule(spec: RetrainSpec | None, old: RetrainStatus | None, now: datetime) -> RetrainStatus | None:
    """The times to wait for, by the schedule as it is now. A time that has passed stays until a run has started for it."""
    if spec is None:
        return None
    status = old or RetrainStatus()
    if not spec.on_data_change and status.pending == BY_DATA:
        status = status.model_copy(update={"pending": None})
    if spec.schedule is None:
        pending = None if status.pending == BY_SCHEDULE else status.pending
        return status.model_copy(update={"next_at": None, "schedule_digest": "", "pending": pending})
    digest = digest_json([spec.schedule, spec.time_zone])[:16]
    if digest == status.schedule_digest and status.next_at is not None:
        return status
    next_at = find_next_time(spec.schedule, spec.time_zone, now)
    return status.model_copy(update={"next_at": next_at, "schedule_digest": digest})


def find_cause(
    spec: RetrainSpec, status: RetrainStatus, started_at: datetime | None, now: datetime
) -> tuple[RetrainStatus, bool]:
    """The status with the cause that is due (`pending`), and whether it may start now: minInterval is kept.

    Missed times come to one cause, since the next time is counted from now.
    """
    if spec.schedule is not None and status.next_at is not None and status.next_at <= now:
        next_at = find_next_time(spec.schedule, spec.time_zone, now)
        status = status.model_copy(update={"pending": status.pending or BY_SCHEDULE, "next_at": next_at})
    if status.pending is None:
        return status, False
    return status, seconds_to_start(spec, started_at, now) <= 0


def seconds_to_start(spec: RetrainSpec, started_at: datetime | None, now: datetime) -> float:
    """Seconds until minInterval since the last start has passed."""
    if started_at is None:
        return 0.0
    return (started_at + timedelta(seconds=spec.min_interval_seconds) - now).total_seconds()


def seconds_to_probe(
    spec: RetrainSpec, status: RetrainStatus, finished_at: datetime | None, now: datetime
) -> float | None:
    """Seconds until the data is looked at again; None where nobody asked for it, or a change is known already."""
    if not spec.on_data_change or status.pending is not None or finished_at is None:
        return None
    last = max(status.checked_at, finished_at) if status.checked_at else finished_at
    return (last + timedelta(seconds=spec.poll_interval_seconds) - now).total_seconds()
