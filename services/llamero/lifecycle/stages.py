"""Which work a run needs next, what its next attempt waits for, and the attempt as the cluster is to have it."""

from datetime import timedelta

from llamero.lifecycle import attempts as at
from llamero.lifecycle.conditions import REDIS_AWAY
from llamero.lifecycle.draft import Draft
from llamero.lifecycle.runs import RETRY_MAX_SECONDS
from llamero.lifecycle.validity import needs_fetch
from llamero.lifecycle.world import Work
from llamero.spec import names
from llamero.spec.digest import digest_json
from llamero.spec.status import AttemptStatus, JobPhase, WorkKind

PHASES = {
    WorkKind.FETCH: JobPhase.PENDING,
    WorkKind.PREPARE: JobPhase.PREPARING,
    WorkKind.TRAIN: JobPhase.TRAINING,
    WorkKind.EVALUATE: JobPhase.EVALUATING,
}


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
