"""How far the phase at hand is: percent, estimate and figures from what a pod told in Redis."""

import math
from datetime import datetime, timedelta

from llamero.spec.run import Phase
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


def describe_failure(last: ProgressStatus | None) -> ProgressStatus | None:
    """What a failed run shows: how far it came. What is being done, how fast and for how long yet belongs to what runs."""
    if last is None:
        return None
    return last.model_copy(
        update={"activity": "", "estimated_remaining_seconds": None, "tokens_per_second": None, "written_at": None}
    )


def add_figures(progress: ProgressStatus | None, training: TrainingStatus | None) -> ProgressStatus | None:
    """The progress with the figures of the training that is done: a later phase tells none of its own."""
    if training is None:
        return progress
    figures = {"step": training.steps, "total_steps": training.steps, "loss": training.last_loss}
    return (progress or ProgressStatus()).model_copy(update=figures)


def _keep_figures(new: ProgressStatus, old: ProgressStatus) -> ProgressStatus:
    """A training pod that evaluates tells of no steps any more: those it told stay."""
    if new.step is not None or old.step is None:
        return new
    return new.model_copy(update={"step": old.step, "total_steps": old.total_steps, "loss": old.loss})


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
    old: ProgressStatus | None,
    report: ProgressReport | None,
    training: TrainingStatus | None,
    interval_seconds: float,
    now: datetime,
) -> ProgressStatus | None:
    """The progress to write: the old one where nothing new was told, or too soon to write again. `training`: one that is done."""
    if report is None:
        return old
    new = describe_progress(report)
    if training is not None:
        new = add_figures(new, training) or new
    if old is None:
        return new.model_copy(update={"written_at": now})
    new = _keep_figures(new, old)
    if new.model_copy(update={"written_at": old.written_at}) == old:
        return old
    due = old.written_at is None or abs(now - old.written_at) >= timedelta(seconds=interval_seconds)
    return new.model_copy(update={"written_at": now}) if due else old


def is_stepping(report: ProgressReport) -> bool:
    """Whether the training is between its first step and its last."""
    if report.phase not in ("", Phase.TRAINING) or not report.unit.startswith("step"):
        return False
    return report.total is None or report.done < report.total


def note_step(work: AttemptStatus, report: ProgressReport | None, restart: bool, now: datetime) -> AttemptStatus:
    """When the attempt last told a new step. `restart`: Redis was away, and silence until now says nothing.

    What is no step (bringing the base, saving, evaluating) takes as long as it takes: the worker itself watches over it.
    """
    if report is None:
        return work
    mark = report.step if report.step is not None else int(report.done) if math.isfinite(report.done) else 0
    if not is_stepping(report):
        return work.model_copy(update={"step": mark, "step_at": None})
    if mark == work.step and work.step_at is not None and not restart:
        return work
    return work.model_copy(update={"step": mark, "step_at": now})
