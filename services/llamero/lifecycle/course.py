"""How a run begins and ends: what it starts from, what is recorded of it, the time that it may take."""

from typing import Literal

from llamero.lifecycle import attempts as at
from llamero.lifecycle.deadlines import seconds_to_deadline
from llamero.lifecycle.draft import Draft
from llamero.lifecycle.progress import describe_end, describe_failure
from llamero.spec import names
from llamero.spec.digest import inputs_digest
from llamero.spec.status import MAX_HISTORY, MAX_MESSAGE, FailureStatus, JobPhase, JobStatus, RunRecord, TriesStatus


def is_over(draft: Draft) -> bool:
    """Whether the run at hand has ended, and the spec asks for no other."""
    job = draft.world.job
    return (
        job is not None and draft.status.finished_at is not None and inputs_digest(job.spec) == draft.status.run_digest
    )


def start_run_for_edit(draft: Draft) -> None:
    """The first run, or the next one because the inputs are others."""
    digest = inputs_digest(draft.spec)
    if draft.status.run == 0:
        start_run(draft, digest, "Created")
    elif digest != draft.status.run_digest:
        start_run(draft, digest, "SpecChanged")


def start_run(draft: Draft, digest: str, cause: str) -> None:
    """The next run; the one at hand is recorded as superseded where it has not ended."""
    old = draft.status
    if old.run and old.finished_at is None:
        draft.end_attempt()
        record_run(draft, "Superseded", cause, f"Run {old.run + 1} takes its place.")
    draft.end_attempt()
    run = old.run + 1
    while names.adapter_resource_name(draft.world.name, run) in draft.world.adapters:
        run += 1
    kept = {k: n for k, n in draft.status.attempts.items() if k in at.RUNLESS_KINDS}
    draft.put(
        run=run, run_digest=digest, run_cause=cause, attempt=0, work=None, attempts=kept, progress=None,
        tries=TriesStatus(ended_at=draft.status.tries.ended_at), data=None, training=None, evaluation=None,
        candidate=None, failure=None, started_at=draft.now, finished_at=None, active_since=draft.now, phase=JobPhase.PENDING,
    )  # fmt: skip
    draft.forget_queues = bool(old.run)
    draft.note("RunStarted", f"Run {run} starts ({cause}).")
    if draft.spec.training.init_from == "previous" and draft.status.adapter is None:
        draft.note(
            "NoPreviousAdapter",
            "training.initFrom is `previous`, but no run has published an adapter: it starts from the base.",
        )


def record_run(draft: Draft, phase: Literal["Succeeded", "Failed", "Superseded"], reason: str, message: str) -> None:
    """Put the run at hand into the history, in place of an earlier record of it."""
    status = draft.status
    found = status.evaluation
    mine = status.adapter is not None and status.adapter.name == adapter_name(draft)
    record = RunRecord(
        run=status.run, phase=phase, reason=reason[:64], message=message[:200], cause=status.run_cause,
        started_at=status.started_at or draft.now, finished_at=draft.now,
        loss=status.training.last_loss if status.training else None,
        base_token_perplexity=found.base_token_perplexity if found else None,
        token_perplexity=found.tuned_token_perplexity if found else None,
        adapter=status.adapter.name if mine and status.adapter else None,
        adapter_uri=status.adapter.uri if mine and status.adapter else None,
    )  # fmt: skip
    draft.put(history=[*(r for r in status.history if r.run != status.run), record][-MAX_HISTORY:])


def fail(draft: Draft, reason: str, message: str) -> None:
    """The run has failed for good."""
    draft.end_attempt()
    draft.put(failure=FailureStatus(reason=reason[:64], message=message[:MAX_MESSAGE]))
    finish(draft, "Failed", reason, message)
    draft.note(reason, message, warning=True)


def finish(draft: Draft, phase: Literal["Succeeded", "Failed"], reason: str, message: str) -> None:
    progress = describe_end(draft.status.training) if phase == "Succeeded" else describe_failure(draft.status.progress)
    draft.put(finished_at=draft.status.finished_at or draft.now, progress=progress, active_since=None)
    draft.put(phase=finished_phase(draft.status), attempt=0)
    record_run(draft, phase, reason, message)
    draft.forget_queues = True


def finished_phase(status: JobStatus) -> JobPhase:
    return JobPhase.FAILED if status.failure is not None else JobPhase.SUCCEEDED


def check_deadline(draft: Draft) -> bool:
    left = seconds_to_deadline(draft.spec, draft.status, draft.now)
    draft.wake(left)
    if left is None or left > 0:
        return False
    fail(
        draft,
        "DeadlineExceeded",
        f"Run {draft.status.run} took longer than activeDeadlineSeconds ({draft.spec.active_deadline_seconds} s): raise it and change "
        "the job's inputs, or make the job again.",
    )
    return True


def adapter_name(draft: Draft) -> str:
    return names.adapter_resource_name(draft.world.name, draft.status.run)
