"""The attempt at hand: it goes on, has done its work, or has failed and is tried again."""

import math
from datetime import timedelta

from llamero.lifecycle import attempts as at
from llamero.lifecycle.conditions import REDIS_AWAY
from llamero.lifecycle.course import fail
from llamero.lifecycle.draft import Draft
from llamero.lifecycle.failures import FailureClass, FailureRule, NextStep
from llamero.lifecycle.progress import note_step, refresh_progress
from llamero.lifecycle.publication import keep_candidate
from llamero.lifecycle.runs import FREE_RETRIES_LIMIT, Attempts, decide_retry
from llamero.lifecycle.stages import PHASES, base_reference, build_work, next_stage
from llamero.spec.status import AttemptStatus, ConditionType, TriesStatus, WorkKind
from llamero.spec.tasks import Outcome

UNKNOWN_ADAPTER = (
    "The evaluation's answer does not describe an adapter that the status has room for: shorten the storage's address, or see the "
    "evaluation's log; a change of the inputs starts the next run."
)
STEADY_SECONDS = 600.0
"""A pod that ran so long was no failure of the place: interruptions are counted anew."""


def see_to_attempt(draft: Draft) -> None:
    """What became of it: it goes on, has done its work, or has failed."""
    work, status = draft.status.work, draft.status
    assert work is not None
    if work.kind not in PHASES or (work.kind is not next_stage(draft)):
        draft.end_attempt()
        return
    standing = at.look_at(draft.world, work, status.run, draft.limits, draft.now)
    draft.put(work=standing.work)
    if standing.over:
        take_answer(draft, standing)
    elif standing.next_gpu_class and has_next_class(draft, standing.work):
        try_next_class(draft, standing)
    else:
        keep_running(draft, standing)


def put_down(draft: Draft) -> None:
    """The attempt at hand ends by someone's wish: what it has finished is kept, and the numbers of Jobs that go now are taken.

    A pass that died before its status was written may have heard an answer and made the next attempt's Job, of which the status says
    nothing.
    """
    work, status = draft.status.work, draft.status
    if draft.world.job is not None and work is not None and work.kind in PHASES and work.kind is next_stage(draft):
        standing = at.look_at(draft.world, work, status.run, draft.limits, draft.now)
        if standing.over and standing.rule is None:
            take_answer(draft, standing)
    draft.end_attempt()
    taken = dict(draft.status.attempts)
    for child in draft.world.children:
        if child.kind in PHASES and child.run == at.run_of(child.kind, status.run):
            taken[child.kind] = max(taken.get(child.kind, 0), child.attempt)
    if taken != draft.status.attempts:
        draft.put(attempts=taken)


def take_answer(draft: Draft, standing: at.Standing) -> None:
    """Believe what the answer says, then go on or retry."""
    before = next_stage(draft)
    if standing.outcome is not None:
        absorb(draft, standing.outcome)
    if standing.rule is None:
        complete_stage(draft, standing.outcome)
        return
    if next_stage(draft) is not before:
        draft.put(tries=TriesStatus(ended_at=draft.now))
    retry_or_fail(draft, standing.rule, standing.why)


def complete_stage(draft: Draft, outcome: Outcome | None) -> None:
    """The stage is done, and its answer absorbed: what became of the attempts at it counts no more."""
    if outcome is not None and outcome.evaluation is not None and draft.status.candidate is None:
        fail(draft, "AdapterUnknown", UNKNOWN_ADAPTER)
        return
    draft.end_attempt()
    draft.put(tries=TriesStatus(ended_at=draft.now), progress=None, attempt=0)


def take_late_answer(draft: Draft, kind: WorkKind) -> bool:
    """Whether a pod that was given up has done this work in its grace."""
    last = draft.status.attempts.get(kind, 0)
    outcome = at.find_late_answer(draft.world, kind, draft.status.run, last)
    if outcome is None:
        return False
    absorb(draft, outcome)
    complete_stage(draft, outcome)
    return True


def absorb(draft: Draft, outcome: Outcome) -> None:
    """Everything finished that the answer tells of; a failed evaluation does not undo the training before it."""
    kind = outcome.id.kind
    if outcome.base is not None and kind in PHASES:
        draft.put(base=outcome.base, base_ref=base_reference(draft))
    if kind is WorkKind.PREPARE and outcome.data is not None and outcome.exit_code == 0:
        draft.put(data=outcome.data)
    if kind is WorkKind.TRAIN and outcome.training is not None:
        draft.put(training=outcome.training)
    if (
        kind in (WorkKind.TRAIN, WorkKind.EVALUATE)
        and outcome.exit_code == 0
        and outcome.evaluation
        and outcome.adapter_uri
    ):
        draft.put(evaluation=outcome.evaluation, candidate=keep_candidate(draft.world, draft.status, outcome))


def retry_or_fail(draft: Draft, rule: FailureRule, why: str) -> None:
    """Another attempt, by the failure's rule, or the end of the run."""
    work, tries = draft.status.work, draft.status.tries
    assert work is not None
    ran_well = work.running_since is not None and draft.now - work.running_since >= timedelta(seconds=STEADY_SECONDS)
    free = 0 if ran_well else tries.free
    idle_for_redis = rule.failure is FailureClass.IDLE and draft.world.redis_problem is not None
    limit = (
        None
        if rule.failure in (FailureClass.PREEMPTED, FailureClass.UNSCHEDULABLE) or idle_for_redis
        else FREE_RETRIES_LIMIT
    )
    retry = decide_retry(
        rule,
        Attempts(tries.counted, free, tries.micro_batch_tokens),
        draft.spec.backoff_limit,
        draft.spec.training.sequence_length,
        free_limit=limit,
        free_delays=True,
    )
    if retry is None:
        advice = f" {rule.advice[:1].upper()}{rule.advice[1:]}." if rule.advice and rule.advice not in why else ""
        fail(draft, rule.failure.value, f"{why}{advice}")
        return
    draft.end_attempt()
    delay = math.ceil(retry.delay_seconds)
    draft.put(
        progress=None,
        tries=draft.status.tries.model_copy(
            update={
                "counted": retry.attempts.counted,
                "free": min(retry.attempts.free, 1000),
                "micro_batch_tokens": retry.attempts.micro_batch_tokens,
                "retry_at": draft.now + timedelta(seconds=delay) if delay else None,
                "message": why[:300],
            }
        ),
    )
    draft.note(rule.failure.value, f"{why} Trying again: {retry.why}.", rule.next_step is not NextStep.RETRY_FREE)


def has_next_class(draft: Draft, work: AttemptStatus) -> bool:
    classes = draft.spec.training.resources.gpu_class
    return work.kind is WorkKind.TRAIN and draft.status.tries.gpu_class + 1 < len(classes)


def try_next_class(draft: Draft, standing: at.Standing) -> None:
    retry_or_fail(draft, at.UNSCHEDULABLE, standing.wait.message if standing.wait else "")
    tries = draft.status.tries
    draft.put(tries=tries.model_copy(update={"gpu_class": tries.gpu_class + 1, "retry_at": None}))


def keep_running(draft: Draft, standing: at.Standing) -> None:
    """Its Job is to exist; its progress is told on; its task is sent again where it was lost; a hung one is ended."""
    work, run = standing.work, draft.status.run
    report = None if draft.world.redis_problem else at.progress_of(draft.world, work.kind, run, work.attempt)
    was_away = (ready := draft.status.condition(ConditionType.READY)) is not None and ready.reason == REDIS_AWAY
    work = note_progress(draft, work, was_away)
    if at.is_hung(work, report, hung_seconds(draft), draft.now):
        draft.put(work=work)
        why = f"The training told no new step since step {work.step}, for longer than progressDeadlineSeconds."
        retry_or_fail(draft, at.HUNG, why)
        return
    draft.wait, draft.scheduled = standing.wait, standing.scheduled
    if at.needs_sending(draft.world, work, run, draft.limits, draft.now):
        work = work.model_copy(update={"sent_at": draft.now, "sends": work.sends + 1})
        draft.send = build_work(draft, work)
    draft.put(work=work, phase=PHASES[work.kind], attempt=work.attempt)
    draft.work.append(build_work(draft, work))
    wake_for_attempt(draft, work, report is not None)


def note_progress(draft: Draft, work: AttemptStatus, was_away: bool) -> AttemptStatus:
    """The attempt with its last step; progress alone is written only every few seconds."""
    if draft.world.redis_problem is not None:
        return work
    report = at.progress_of(draft.world, work.kind, draft.status.run, work.attempt)
    progress = refresh_progress(
        draft.status.progress, report, draft.status.training, draft.limits.status_interval_seconds, draft.now
    )
    is_news = progress != draft.status.progress or work.step is None or was_away
    draft.put(progress=progress)
    return note_step(work, report, was_away, draft.now) if is_news else work


def hung_seconds(draft: Draft) -> float:
    return draft.spec.progress_deadline_seconds + draft.limits.hung_margin_seconds


def wake_for_attempt(draft: Draft, work: AttemptStatus, has_report: bool) -> None:
    draft.wake(draft.limits.poll_seconds)
    if has_report:
        draft.wake(draft.limits.status_interval_seconds)
    if work.kind is WorkKind.TRAIN and work.step_at is not None:
        draft.wake_at(work.step_at, hung_seconds(draft))
    if work.running_since is not None and work.sent_at is not None and not work.received:
        draft.wake(draft.limits.resend_seconds)
