"""How `llamero get` shows jobs: aligned text that other programs can cut, made from objects as the API server gives them. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from llamero.cli.display import format_number, format_seconds
from llamero.cli.following import describe_wait, find_wait, read_status
from llamero.spec.status import JobPhase, JobStatus, RunRecord

Object = dict[str, Any]
NONE = "-"
MAX_EVENTS = 10


def format_jobs(jobs: Sequence[Object], now: datetime, *, wide: bool = False, with_namespace: bool = False) -> str:
    """A line a job: phase, progress, loss, adapter, age; wide adds run, attempt, remaining time, GPU hours, cost and why it waits or failed."""
    heading = ["NAME", "PHASE", "PROGRESS", "LOSS", "ADAPTER", "AGE"]
    if wide:
        heading += ["RUN", "ATTEMPT", "REMAINING", "GPU-HOURS", "COST", "REASON"]
    rows = [heading if not with_namespace else ["NAMESPACE", *heading]]
    for job in jobs:
        status = read_status(job)
        row = [job["metadata"]["name"], *_summary(job, status, now)]
        if wide:
            row += _more(status)
        rows.append([job["metadata"]["namespace"], *row] if with_namespace else row)
    return align(rows)


def _summary(job: Object, status: JobStatus, now: datetime) -> list[str]:
    return [
        status.phase if job.get("status") else NONE,
        format_percent(status),
        last_loss(status),
        status.adapter.name if status.adapter else NONE,
        format_age(job["metadata"]["creationTimestamp"], now),
    ]


def _more(status: JobStatus) -> list[str]:
    remaining = status.progress.estimated_remaining_seconds if status.progress else None
    return [
        str(status.run or NONE),
        str(status.attempt or NONE),
        format_seconds(remaining) if remaining is not None else NONE,
        f"{status.usage.gpu_seconds / 3600:.1f}" if status.usage.gpu_seconds else NONE,
        status.usage.cost or NONE,
        find_wait(status)[0] or NONE,
    ]


def format_percent(status: JobStatus) -> str:
    if status.phase == JobPhase.SUCCEEDED:
        return "100%"
    return f"{status.progress.percent}%" if status.progress and status.progress.percent is not None else NONE


def last_loss(status: JobStatus) -> str:
    """The loss of the moment, else the finished training's last."""
    if status.progress and status.progress.loss:
        return status.progress.loss
    return status.training.last_loss if status.training else NONE


def format_job(job: Object, events: Sequence[Object], now: datetime) -> str:
    """All about one job: where it stands, its figures, its conditions, its runs, its newest events."""
    status, metadata = read_status(job), job["metadata"]
    lines = [f"Job {metadata['namespace']}/{metadata['name']}: {_headline(job, status)}"]
    lines += [f"  {label:<11} {text}" for label, text in _facts(job, status, now) if text]
    if status.conditions:
        rows = [["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"]]
        rows += [
            [c.type, c.status, c.reason, format_age(c.last_transition_time, now), c.message or NONE]
            for c in status.conditions
        ]
        lines += ["", align(rows)]
    if runs := _runs(status, now):
        heading = ["RUN", "PHASE", "BECAUSE", "STARTED", "TIME", "LOSS", "BASE PPL", "TUNED PPL", "CHANGE", "ADAPTER"]
        lines += ["", align([heading, *runs])]
    if events:
        rows = [["EVENT", "SEEN", "TIMES", "MESSAGE"]]
        rows += [
            [e.get("reason") or NONE, _seen(e, now), str(e.get("count") or 1), e.get("message") or NONE]
            for e in list(events)[-MAX_EVENTS:]
        ]
        lines += ["", align(rows)]
    return "\n".join(lines)


def _headline(job: Object, status: JobStatus) -> str:
    if job["metadata"].get("deletionTimestamp"):
        return "being deleted"
    if not job.get("status"):
        return "the operator has not seen it yet"
    if not status.run:
        return str(status.phase)
    cause = f" ({status.run_cause})" if status.run_cause else ""
    return f"{status.phase}, run {status.run}{cause}, attempt {status.attempt or 1}"


def _facts(job: Object, status: JobStatus, now: datetime) -> list[tuple[str, str]]:
    data, evaluation, work, adapter = status.data, status.evaluation, status.work, status.adapter
    where = ""
    if work and work.pod_name:
        node = f" on {work.node}" if work.node else ""
        where = f"{work.pod_name}{node}" + (f", GPU class {work.gpu_class}" if work.gpu_class else "")
    measured = ""
    if evaluation:
        base, tuned = evaluation.base_token_perplexity, evaluation.tuned_token_perplexity
        measured = f"token perplexity {base or NONE} to {tuned or NONE} ({format_change(base, tuned)}) on {format_number(evaluation.records)} records"
    hours = status.usage.gpu_seconds / 3600
    return [
        ("progress", _progress_line(status)),
        ("reason", describe_wait(status)),
        ("last try", status.tries.message),
        ("pod", where),
        (
            "data",
            f"{format_number(data.kept)} of {format_number(data.read)} records kept, {format_number(data.train_examples)} examples, "
            f"{format_number(data.tokens)} tokens"
            if data
            else "",
        ),
        ("evaluation", measured),
        ("gate", evaluation.reason if evaluation else ""),
        ("adapter", f"{adapter.name} at {adapter.uri}" if adapter else ""),
        ("usage", f"{hours:.2f} GPU hours" + (f", cost {status.usage.cost}" if status.usage.cost else "") if hours else ""),
        ("next run", status.retrain.next_at.isoformat() if status.retrain and status.retrain.next_at else ""),
        ("age", format_age(job["metadata"]["creationTimestamp"], now)),
    ]  # fmt: skip


def _progress_line(status: JobStatus) -> str:
    progress = status.progress
    if progress is None:
        return ""
    parts = [f"{progress.percent}%" if progress.percent is not None else "", progress.activity]
    if progress.step is not None:
        parts.append(f"step {progress.step}" + (f"/{progress.total_steps}" if progress.total_steps else ""))
    parts.append(f"loss {progress.loss}" if progress.loss else "")
    parts.append(f"{progress.tokens_per_second} tokens/s" if progress.tokens_per_second else "")
    if progress.estimated_remaining_seconds is not None:
        parts.append(f"{format_seconds(progress.estimated_remaining_seconds)} left")
    return "  ".join(part for part in parts if part)


def _runs(status: JobStatus, now: datetime) -> list[list[str]]:
    """Earlier runs, then the one at hand."""
    rows = [_record(record) for record in status.history]
    if not status.run or any(record.run == status.run for record in status.history):
        return rows
    evaluation = status.evaluation
    base = evaluation.base_token_perplexity if evaluation else None
    tuned = evaluation.tuned_token_perplexity if evaluation else None
    return [
        *rows,
        [
            *(str(status.run), str(status.phase), status.run_cause or NONE, format_time(status.started_at)),
            _span(status.started_at, status.finished_at or now),
            *(last_loss(status), base or NONE, tuned or NONE, format_change(base, tuned)),
            status.adapter.name if status.adapter and status.phase == JobPhase.SUCCEEDED else NONE,
        ],
    ]


def _record(record: RunRecord) -> list[str]:
    base, tuned = record.base_token_perplexity, record.token_perplexity
    phase = f"{record.phase} ({record.reason})" if record.reason and record.phase == "Failed" else record.phase
    return [
        *(str(record.run), phase, record.cause or NONE, format_time(record.started_at)),
        _span(record.started_at, record.finished_at),
        *(record.loss or NONE, base or NONE, tuned or NONE, format_change(base, tuned), record.adapter or NONE),
    ]


def format_change(base: str | None, tuned: str | None) -> str:
    """`-98.5%` from two figures as text."""
    try:
        return f"{float(tuned or '') / float(base or '') - 1:+.1%}"
    except (ValueError, ZeroDivisionError):
        return NONE


def format_time(when: datetime | None) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if when else NONE


def format_age(since: str | datetime, now: datetime) -> str:
    """`42s`, `5m`, `3h`, `2d`: as kubectl shows ages, in one unit."""
    moment = since if isinstance(since, datetime) else datetime.fromisoformat(since)
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _span(start: datetime | None, end: datetime | None) -> str:
    return format_seconds((end - start).total_seconds()) if start and end else NONE


def _seen(event: Object, now: datetime) -> str:
    when = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    return format_age(when, now)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns set by spaces; the last one runs on. Line ends within a cell become spaces."""
    cells = [[" ".join(str(cell).split()) or NONE for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
