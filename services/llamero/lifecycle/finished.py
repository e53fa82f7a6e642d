"""What a job whose run is over still does: judge again by an edited gate, start further runs, remove itself."""

from llamero.lifecycle import attempts as at
from llamero.lifecycle.course import adapter_name, fail, finished_phase, start_run
from llamero.lifecycle.deadlines import seconds_to_removal
from llamero.lifecycle.draft import Draft
from llamero.lifecycle.judging import GATE_REFUSED, begin_stage, judge, judge_and_publish
from llamero.lifecycle.retrain import BY_DATA, find_cause, refresh_schedule, seconds_to_probe, seconds_to_start
from llamero.lifecycle.stages import build_work, next_number
from llamero.spec.status import AttemptStatus, RetrainStatus, WorkKind


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
