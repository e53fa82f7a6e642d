"""How a deleted job is let go: its children first, then its files by a pod; given up rather than hung."""

from datetime import timedelta

from llamero.lifecycle.attempts import look_at, name_child
from llamero.lifecycle.draft import Draft
from llamero.lifecycle.world import Work
from llamero.spec.status import AttemptStatus, WorkKind

MORE_THAN_GRACE_SECONDS = 180.0
CLEAN_ATTEMPTS = 2


def clean_up(draft: Draft) -> None:
    """Stop everything, wait for it, remove the files, let go."""
    work = draft.status.work
    if work is not None and work.kind is not WorkKind.CLEAN:
        draft.end_attempt()
    draft.put(deleting_since=draft.status.deleting_since or draft.now, progress=None)
    if has_timed_out(draft):
        _let_go(draft, "CleanupGivenUp", "The clean-up took too long; files of the job may be left in storage.", True)
    elif any(c.kind is not WorkKind.CLEAN for c in draft.world.children):
        draft.wake(draft.limits.poll_seconds)
    elif has_left_nothing(draft):
        _let_go(draft, "", "", False)
    elif not draft.world.has_storage or draft.limits.storage_problem:
        _let_go(draft, "CleanupSkipped", "No clean-up pod can run; files of the job may be left in storage.", True)
    else:
        _run_cleaner(draft)


def has_left_nothing(draft: Draft) -> bool:
    """Whether no pod of the job ever ran. A first attempt may have, though its status was never written: deletion came between.

    Its Job was there in an earlier pass of this deletion then; a first pass that finds none has nothing to clean.
    """
    status = draft.status
    is_first_pass = draft.world.status.deleting_since is None
    return is_first_pass and status.run == 0 and status.base is None and WorkKind.CLEAN not in status.attempts


def has_timed_out(draft: Draft) -> bool:
    since = draft.status.deleting_since or draft.now
    limit = draft.limits.grace_seconds + MORE_THAN_GRACE_SECONDS
    draft.wake_at(since, limit)
    return draft.now - since >= timedelta(seconds=limit)


def _run_cleaner(draft: Draft) -> None:
    work = draft.status.work or _begin(draft)
    if work.job in draft.world.refused:
        _let_go(draft, "CleanupRefused", f"The clean-up pod was refused: {draft.world.refused[work.job]}", True)
        return
    standing = look_at(draft.world, work, 0, draft.limits, draft.now)
    if standing.over and standing.rule is None:
        _let_go(draft, "CleanedUp", "The job's files are removed; its published adapters stay.", False)
        return
    draft.put(work=standing.work)
    if standing.over and work.attempt >= CLEAN_ATTEMPTS:
        _let_go(draft, "CleanupFailed", f"{standing.why} Files of the job may be left in storage.", True)
        return
    if standing.over:
        draft.end_attempt()
        work = _begin(draft)
    keep = tuple(sorted({spec.sha256 for spec in draft.world.adapters.values()}))
    draft.work = [Work(WorkKind.CLEAN, 0, work.attempt, keep_adapters=keep)]
    draft.wake(draft.limits.poll_seconds)


def _begin(draft: Draft) -> AttemptStatus:
    number = draft.status.attempts.get(WorkKind.CLEAN, 0) + 1
    job = name_child(draft.world, WorkKind.CLEAN, 0, number)
    work = AttemptStatus(kind=WorkKind.CLEAN, attempt=number, job=job, started_at=draft.now)
    draft.put(work=work, attempts={**draft.status.attempts, WorkKind.CLEAN: number})
    return work


def _let_go(draft: Draft, reason: str, message: str, warning: bool) -> None:
    draft.work, draft.let_go, draft.forget_queues, draft.wake_after = [], True, True, None
    if reason:
        draft.note(reason, message, warning)
