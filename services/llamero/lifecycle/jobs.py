"""What is to be done about a FineTuneJob now: one pure function from what is seen to what follows.

It is called again and again, with whatever is true by then: nothing here remembers, and what must survive stands in the status.
"""

import math
from datetime import datetime, timedelta
from typing import Literal

from llamero.lifecycle import attempts as at
from llamero.lifecycle.bounds import shrink
from llamero.lifecycle.cleanup import clean_up
from llamero.lifecycle.conditions import REDIS_AWAY, State, build_conditions
from llamero.lifecycle.deadlines import seconds_to_deadline, seconds_to_removal
from llamero.lifecycle.draft import Draft
from llamero.lifecycle.failures import FailureClass, FailureRule, NextStep
from llamero.lifecycle.gate import GateFigures, judge_gate
from llamero.lifecycle.progress import describe_end, note_step, refresh_progress
from llamero.lifecycle.publication import build_publication, is_published, keep_candidate
from llamero.lifecycle.retrain import (
    BY_DATA,
    find_cause,
    refresh_schedule,
    seconds_to_probe,
    seconds_to_start,
)
from llamero.lifecycle.runs import FREE_RETRIES_LIMIT, RETRY_MAX_SECONDS, Attempts, decide_retry
from llamero.lifecycle.validity import Obstacle, find_obstacle, needs_fetch
from llamero.lifecycle.world import Decision, Limits, Work, World
from llamero.spec import names
from llamero.spec.digest import digest_json, inputs_digest
from llamero.spec.status import (
    MAX_HISTORY,
    MAX_MESSAGE,
    AdapterStatus,
    AttemptStatus,
    ConditionType,
    EvaluationStatus,
    FailureStatus,
    JobPhase,
    JobStatus,
    LogsStatus,
    RetrainStatus,
    RunRecord,
    TriesStatus,
    WorkKind,
)
from llamero.spec.tasks import Outcome

LOGS_SECONDS = 120.0
STEADY_SECONDS = 600.0
"""A pod that ran so long was no failure of the place: interruptions are counted anew."""

PHASES = {
    WorkKind.FETCH: JobPhase.PENDING,
    WorkKind.PREPARE: JobPhase.PREPARING,
    WorkKind.TRAIN: JobPhase.TRAINING,
    WorkKind.EVALUATE: JobPhase.EVALUATING,
}
GATE_REFUSED = "GateRefused"


def decide(world: World, limits: Limits, now: datetime) -> Decision:
    """What follows from the world as it is. The same world and time give the same decision."""
    draft = Draft(world, limits, now.replace(microsecond=0), world.status)
    obstacle = None if world.deleting else find_obstacle(world, limits, is_over(draft))
    if world.deleting:
        clean_up(draft)
    elif obstacle is not None:
        hold(draft, obstacle)
    elif draft.spec.suspend:
        suspend(draft)
    else:
        go_on(draft)
    if not world.deleting:
        print_logs(draft)
    return conclude(draft, obstacle)


def is_over(draft: Draft) -> bool:
    """Whether the run at hand has ended, and the spec asks for no other."""
    job = draft.world.job
    return (
        job is not None and draft.status.finished_at is not None and inputs_digest(job.spec) == draft.status.run_digest
    )


def hold(draft: Draft, obstacle: Obstacle) -> None:
    """Nothing runs until the obstacle is gone; then the run goes on with a further attempt."""
    draft.end_attempt()
    draft.put(phase=JobPhase.PENDING if obstacle.waits else JobPhase.FAILED, progress=None)
    if obstacle.waits:
        draft.wake(draft.limits.poll_seconds)


def suspend(draft: Draft) -> None:
    """Nothing runs; pods get SIGTERM and write a checkpoint."""
    draft.end_attempt()
    if is_over(draft):
        draft.put(phase=finished_phase(draft.status))
        return
    draft.put(phase=JobPhase.SUSPENDED, progress=None, active_since=None)


def go_on(draft: Draft) -> None:
    """The story of a job: start what is to be started, see to the attempt at hand, go to the next stage, judge, publish."""
    start_run_for_edit(draft)
    if draft.status.finished_at is not None:
        look_after_finished(draft)
        return
    if draft.status.active_since is None:
        draft.put(active_since=draft.now)
    if check_deadline(draft):
        return
    forget_foreign_base(draft)
    if draft.status.work is not None:
        see_to_attempt(draft)
    if draft.status.finished_at is None and draft.status.work is None:
        begin_stage(draft)


# -- runs ----------------------------------------------------------------------------------------------------------------------


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
    progress = describe_end(draft.status.training) if phase == "Succeeded" else None
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


# -- the attempt at hand -------------------------------------------------------------------------------------------------------


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


def take_answer(draft: Draft, standing: at.Standing) -> None:
    """Believe what the answer says, then go on or retry."""
    before = next_stage(draft)
    if standing.outcome is not None:
        absorb(draft, standing.outcome)
    if standing.rule is None:
        draft.end_attempt()
        draft.put(tries=TriesStatus(ended_at=draft.now), progress=None, attempt=0)
        return
    if next_stage(draft) is not before:
        draft.put(tries=TriesStatus(ended_at=draft.now))
    retry_or_fail(draft, standing.rule, standing.why)


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
    if at.is_hung(work, report is not None, hung_seconds(draft), draft.now):
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
    progress = refresh_progress(draft.status.progress, report, draft.limits.status_interval_seconds, draft.now)
    is_news = progress != draft.status.progress or work.step_at is None or was_away
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


# -- stages --------------------------------------------------------------------------------------------------------------------


def next_stage(draft: Draft) -> WorkKind | None:
    """The work that the run needs next; None where only the gate is left."""
    status = draft.status
    if needs_fetch(draft.spec.base_model) and status.base is None:
        return WorkKind.FETCH
    if status.data is None:
        return WorkKind.PREPARE
    if status.training is None:
        return WorkKind.TRAIN
    if status.evaluation is None or status.candidate is None:
        return WorkKind.EVALUATE
    return None


def base_reference(draft: Draft) -> str:
    return digest_json(draft.spec.base_model.to_json_dict())


def forget_foreign_base(draft: Draft) -> None:
    """A base that was found for another baseModel is none."""
    if draft.status.base is not None and draft.status.base_ref != base_reference(draft):
        draft.put(base=None, base_ref="")


def begin_stage(draft: Draft) -> None:
    """Start the next attempt, once nothing is in its way; where no work is left, judge and publish."""
    kind = next_stage(draft)
    if kind is None:
        judge_and_publish(draft)
        return
    draft.put(phase=PHASES[kind])
    draft.wait = find_wait(draft, kind)
    if draft.wait is None:
        begin_attempt(draft, kind)


def find_wait(draft: Draft, kind: WorkKind) -> at.Wait | None:
    """Why the next attempt may not start yet."""
    job, tries, world = draft.world.job, draft.status.tries, draft.world
    assert job is not None
    if job.metadata.labels.get(names.QUEUE_LABEL) and not world.capabilities.job_suspend:
        return at.Wait(
            "QueueNotSupported",
            f"The job has the label {names.QUEUE_LABEL}, but this API server can't suspend batch Jobs: remove the label, or use "
            "Kubernetes 1.24 or newer with Kueue.",
            unscheduled=True,
        )
    if kind in at.CELERY_KINDS and world.redis_problem is not None:
        draft.wake(draft.limits.poll_seconds)
        return at.Wait(REDIS_AWAY, f"The next attempt starts once Redis answers: {world.redis_problem}")
    if tries.retry_at is not None and draft.now < tries.retry_at <= draft.now + timedelta(seconds=RETRY_MAX_SECONDS):
        draft.wake_at(tries.retry_at)
        return at.Wait("Retrying", f"The next attempt starts at {tries.retry_at:%H:%M:%S} UTC. {tries.message}")
    number = next_number(draft, kind)
    zombies = at.find_zombies(world, kind, draft.status.run, number)
    grace = timedelta(seconds=draft.limits.grace_seconds)
    if zombies and tries.ended_at is not None and abs(draft.now - tries.ended_at) < grace:
        draft.wake_at(tries.ended_at, draft.limits.grace_seconds)
        return at.Wait(
            "WaitingForPods", f"The pod {zombies[0].name} of an earlier attempt is still ending. {tries.message}"
        )
    return None


def next_number(draft: Draft, kind: WorkKind) -> int:
    return draft.status.attempts.get(kind, 0) + 1


def begin_attempt(draft: Draft, kind: WorkKind) -> None:
    """Decide on the attempt: write it down, have its Job made, send its task."""
    number, tries, run = next_number(draft, kind), draft.status.tries, draft.status.run
    resources = draft.spec.training.resources
    gpus = resources.gpus if kind is WorkKind.TRAIN else 0
    index = min(tries.gpu_class, len(resources.gpu_class) - 1)
    work = AttemptStatus(
        kind=kind,
        attempt=number,
        job=at.name_child(draft.world, kind, run, number),
        started_at=draft.now,
        gpus=gpus,
        gpu_class=resources.gpu_class[index] if gpus and index >= 0 else None,
        micro_batch_tokens=tries.micro_batch_tokens if kind is WorkKind.TRAIN else 0,
    )
    draft.put(
        attempts={**draft.status.attempts, kind: number},
        attempt=number,
        progress=None,
        tries=tries.model_copy(update={"retry_at": None, "ended_at": None}),
    )
    if kind in at.CELERY_KINDS:
        work = work.model_copy(update={"sent_at": draft.now, "sends": 1})
        draft.send = build_work(draft, work)
    # A Job of this number may be there already: made by a pass whose status was never written.
    standing = at.look_at(draft.world, work, run, draft.limits, draft.now)
    work = work.model_copy(update={"seen": standing.work.seen})
    draft.wait, draft.scheduled = standing.wait, standing.scheduled
    draft.put(work=work)
    draft.work.append(build_work(draft, work))
    draft.wake(1.0 if standing.over else draft.limits.poll_seconds)


def build_work(draft: Draft, work: AttemptStatus) -> Work:
    """The attempt as the cluster is to have it."""
    is_training = work.kind is WorkKind.TRAIN
    previous = draft.status.adapter if draft.spec.training.init_from == "previous" else None
    return Work(
        kind=work.kind,
        run=at.run_of(work.kind, draft.status.run),
        attempt=work.attempt,
        pods=draft.spec.data.workers if work.kind is WorkKind.PREPARE else 1,
        gpu_class=work.gpu_class,
        gpus=work.gpus,
        micro_batch_tokens=work.micro_batch_tokens,
        evaluate_too=is_training and work.gpus > 0,
        init_adapter=previous.uri if is_training and previous is not None else None,
    )


# -- gate and publication ------------------------------------------------------------------------------------------------------


def adapter_name(draft: Draft) -> str:
    return names.adapter_resource_name(draft.world.name, draft.status.run)


def judge_and_publish(draft: Draft) -> None:
    """The gate's word on the figures, then the Adapter resource, then the end of the run."""
    found = judge(draft)
    if not found.passed:
        fail(draft, GATE_REFUSED, f"{found.reason} Change the data or the training, or lower evaluation.gate.")
        return
    publication = build_publication(draft.world, draft.status, adapter_name(draft))
    if publication is None:
        draft.put(evaluation=None, candidate=None)
        draft.put(work=None)
        fail(
            draft,
            "AdapterUnknown",
            "The evaluation's answer does not describe the adapter: see its log, and start a new run.",
        )
        return
    draft.put(phase=JobPhase.ROLLING_OUT)
    if not is_published(draft.world, publication):
        if refusal := draft.world.refused.get(publication.name):
            draft.wait = at.Wait("AdapterRefused", f"The API server refuses the Adapter {publication.name}: {refusal}")
        draft.publish = publication
        draft.wake(draft.limits.poll_seconds)
        return
    spec = publication.spec
    draft.put(adapter=AdapterStatus(name=publication.name, uri=spec.uri, sha256=spec.sha256), failure=None)
    finish(draft, "Succeeded", "Succeeded", found.reason)
    draft.note("Succeeded", f"Run {draft.status.run} has succeeded: {found.reason}")


def judge(draft: Draft) -> EvaluationStatus:
    """The evaluation with what the gate, as it is now, says of it."""
    found = draft.status.evaluation
    assert found is not None
    figures = GateFigures(
        read_figure(found.base_token_perplexity),
        read_figure(found.tuned_token_perplexity),
        found.answers,
        found.unfinished_answers,
    )
    verdict = judge_gate(draft.spec.evaluation.gate, figures)
    judged = found.model_copy(update={"passed": verdict.passed, "reason": verdict.reason[:MAX_MESSAGE]})
    draft.put(evaluation=judged)
    return judged


def read_figure(text: str | None) -> float | None:
    """A perplexity; None where it is none."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and value > 0 else None


# -- afterwards ----------------------------------------------------------------------------------------------------------------


def look_after_finished(draft: Draft) -> None:
    """A gate that was edited judges again; a further run may be due; a job may have outlived its TTL."""
    draft.put(phase=finished_phase(draft.status))
    judge_again(draft)
    if draft.status.finished_at is None or draft.publish is not None:
        return
    left = seconds_to_removal(draft.spec, draft.status, draft.now)
    if left is not None and left <= 0:
        draft.delete_job = True
        return
    draft.wake(left)
    look_for_retrain(draft)


def judge_again(draft: Draft) -> None:
    status = draft.status
    failed_otherwise = status.failure is not None and status.failure.reason != GATE_REFUSED
    if status.evaluation is None or status.candidate is None or failed_otherwise:
        return
    was = status.evaluation.passed
    found = judge(draft)
    if found.passed and status.failure is not None:
        draft.put(failure=None, finished_at=None)
        judge_and_publish(draft)
    elif not found.passed and was:
        stays = (
            " Its adapter was published before and stays."
            if status.adapter and status.adapter.name == adapter_name(draft)
            else ""
        )
        fail(draft, GATE_REFUSED, f"{found.reason}{stays}")


def look_for_retrain(draft: Draft) -> None:
    """A further run by schedule or by changed data."""
    spec = draft.spec.retrain
    status = refresh_schedule(spec, draft.status.retrain, draft.now)
    if spec is None or status is None:
        draft.end_attempt()
        draft.put(retrain=None)
        return
    draft.put(retrain=status)
    probe(draft)
    status, may_start = find_cause(spec, draft.status.retrain or status, draft.status.started_at, draft.now)
    draft.put(retrain=status)
    if may_start and status.pending is not None:
        cause = status.pending
        draft.put(retrain=status.model_copy(update={"pending": None}))
        draft.work.clear()
        start_run(draft, draft.status.run_digest, cause)
        begin_stage(draft)
        return
    if status.pending is not None:
        draft.wake(seconds_to_start(spec, draft.status.started_at, draft.now))
    elif status.next_at is not None:
        draft.wake_at(status.next_at)


def probe(draft: Draft) -> None:
    """See to the look at the data, or begin one that is due."""
    spec, status = draft.spec.retrain, draft.status.retrain
    assert spec is not None and status is not None
    if not spec.on_data_change:
        draft.end_attempt()
        return
    work = draft.status.work
    if work is None:
        left = seconds_to_probe(spec, status, draft.status.finished_at, draft.now)
        if left is None or left > 0:
            draft.wake(left)
            return
        number = next_number(draft, WorkKind.PROBE)
        job = at.name_child(draft.world, WorkKind.PROBE, 0, number)
        work = AttemptStatus(kind=WorkKind.PROBE, attempt=number, job=job, started_at=draft.now)
        draft.put(attempts={**draft.status.attempts, WorkKind.PROBE: number})
    standing = at.look_at(draft.world, work, 0, draft.limits, draft.now)
    draft.put(work=standing.work)
    if not standing.over:
        draft.work.append(build_work(draft, standing.work))
        draft.wake(draft.limits.poll_seconds)
        return
    draft.end_attempt()
    draft.put(retrain=read_probe(draft, status, standing))
    left = seconds_to_probe(spec, draft.status.retrain or status, draft.status.finished_at, draft.now)
    draft.wake(left)


def read_probe(draft: Draft, status: RetrainStatus, standing: at.Standing) -> RetrainStatus:
    """What the look at the data says: the data that a run read, or that was seen last, is what it is compared with."""
    status = status.model_copy(update={"checked_at": draft.now})
    digest = standing.outcome.data_digest if standing.outcome is not None and standing.rule is None else None
    if digest is None:
        draft.note(
            "ProbeFailed", f"The look at the data failed, and is tried again later. {standing.why}", warning=True
        )
        return status
    known = draft.status.data.digest if draft.status.data is not None else status.data_digest
    changed = known is not None and digest != known
    return status.model_copy(
        update={"data_digest": digest[:64], "pending": status.pending or (BY_DATA if changed else None)}
    )


def print_logs(draft: Draft) -> None:
    """A pod that prints kept logs, for a while after it has ended."""
    request = draft.world.log_request
    if request is None:
        return
    logs = draft.status.logs
    if logs is None or logs.number != request.number:
        logs = LogsStatus(number=request.number)
    child = next((c for c in draft.world.children if c.kind is WorkKind.LOGS and c.attempt == request.number), None)
    if child is not None and logs.ended_at is None and (child.complete or child.failed):
        logs = logs.model_copy(update={"ended_at": draft.now})
    draft.put(logs=logs)
    if logs.ended_at is not None:
        left = LOGS_SECONDS - (draft.now - logs.ended_at).total_seconds()
        if left <= 0 or child is None:
            return
        draft.wake(left)
    draft.work.append(Work(WorkKind.LOGS, request.run or 0, request.number, logs=request))


# -- the end -------------------------------------------------------------------------------------------------------------------


def conclude(draft: Draft, obstacle: Obstacle | None) -> Decision:
    """The decision, with all conditions; a status that says the same as the old one is the old one."""
    world = draft.world
    draft.put(observed_generation=world.generation)
    state = State(
        obstacle=obstacle,
        suspended=world.job is not None and world.job.spec.suspend,
        deleting=world.deleting,
        wait=draft.wait,
        scheduled=draft.scheduled,
        redis_problem=world.redis_problem if draft.status.work is not None else None,
        generation=world.generation,
    )
    draft.put(conditions=build_conditions(draft.status, state, draft.now))
    status = shrink(draft.status)
    return Decision(
        status=status, work=tuple(draft.work), send=draft.send, publish=draft.publish, notes=tuple(draft.notes),
        wake_after=draft.wake_after, forget_queues=draft.forget_queues, delete_job=draft.delete_job, let_go=draft.let_go,
    )  # fmt: skip
