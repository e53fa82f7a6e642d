"""How far the phase at hand is: percent, estimate and figures from what a pod told in Redis."""

import math
from datetime import datetime, timedelta

from llamero.spec.status import AttemptStatus, ProgressStatus, TrainingStatus
from llamero.spec.tasks import ProgressReport


def describe_progress(report: ProgressReport) -> ProgressStatus:
    """The report as the status says it. The estimate is of the report's own time, so that a passing clock changes nothing."""
    share = _share(report)
    remaining = None
    if share and report.started_at is not None:
        spent = max((report.at - report.started_at).total_seconds(), 0.0)
        remaining = math.ceil(spent * (1 - share) / share)
    counts_steps = report.step is not None
    return ProgressStatus(
        percent=math.floor(100 * share) if share is not None else None,
        activity=report.activity[:64],
        estimated_remaining_seconds=remaining,
        step=max(report.step, 0) if report.step is not None else None,
        total_steps=int(report.total) if counts_steps and report.unit.startswith("step") and report.total else None,
        loss=format_figure(report.loss, 4),
        tokens_per_second=format_figure(report.tokens_per_second, 1),
    )


def describe_end(training: TrainingStatus | None) -> ProgressStatus:
    """What a finished run shows in place of a phase's progress: all of it done, with the training's figures."""
    if training is None:
        return ProgressStatus(percent=100)
    return ProgressStatus(
        percent=100,
        step=training.steps,
        total_steps=training.steps,
        loss=training.last_loss,
        tokens_per_second=training.tokens_per_second,
    )


def _share(report: ProgressReport) -> float | None:
    if not report.total or not math.isfinite(report.total) or not math.isfinite(report.done) or report.total < 0:
        return None
    return min(max(report.done / report.total, 0.0), 1.0)


def format_figure(value: float | None, digits: int) -> str | None:
    """A figure as text: a status holds no floats."""
    if value is None:
        return None
    text = f"{value:.{digits}f}"
    return text if len(text) <= 32 else f"{value:.6g}"


def refresh_progress(
    old: ProgressStatus | None, report: ProgressReport | None, interval_seconds: float, now: datetime
) -> ProgressStatus | None:
    """The progress to write: the old one where nothing new was told, or too soon to write again."""
    if report is None:
        return old
    new = describe_progress(report)
    if old is None:
        return new.model_copy(update={"written_at": now})
    if new.model_copy(update={"written_at": old.written_at}) == old:
        return old
    due = old.written_at is None or abs(now - old.written_at) >= timedelta(seconds=interval_seconds)
    return new.model_copy(update={"written_at": now}) if due else old


def note_step(work: AttemptStatus, report: ProgressReport | None, restart: bool, now: datetime) -> AttemptStatus:
    """When the attempt last told something new. `restart`: Redis was away, and silence until now says nothing."""
    if report is None:
        return work
    mark = report.step if report.step is not None else int(report.done) if math.isfinite(report.done) else 0
    if mark == work.step and work.step_at is not None and not restart:
        return work
    return work.model_copy(update={"step": mark, "step_at": now})
