"""What became of the attempt at hand, read from its Job, its pods and their words; what follows is decided in `jobs`."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from llamero.lifecycle.failures import FailureClass, FailureRule, NextStep, PhaseExit, classify_exit
from llamero.lifecycle.progress import is_stepping
from llamero.lifecycle.world import ChildView, Limits, PodView, World
from llamero.spec import names
from llamero.spec.status import AttemptStatus, WorkKind
from llamero.spec.tasks import Outcome, ProgressReport

CELERY_KINDS = frozenset({WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE})
"""Work whose task is sent to a queue; the others find theirs in their environment."""

RUNLESS_KINDS = frozenset({WorkKind.FETCH, WorkKind.PROBE, WorkKind.CLEAN})
"""Work that belongs to no run."""

PREEMPTED = FailureRule(FailureClass.PREEMPTED, NextStep.RETRY_FREE, "it goes on from its last checkpoint")
LOST_ANSWER = FailureRule(FailureClass.INTERRUPTED, NextStep.RETRY_FREE, "the next attempt finds what was finished")
UNSCHEDULABLE = FailureRule(FailureClass.UNSCHEDULABLE, NextStep.RETRY_FREE, "the next GPU class is tried")
HUNG = classify_exit(PhaseExit.HUNG)
BUG = classify_exit(PhaseExit.BUG)
COUNTED_MEMORY = FailureRule(
    FailureClass.OUT_OF_MEMORY, NextStep.RETRY_COUNTED, "give this kind of pod more memory in the operator's settings"
)

MENDED_BY_A_WORD = frozenset(
    {PhaseExit.BAD_CONFIG, PhaseExit.DATA_ERROR, PhaseExit.DIVERGED, PhaseExit.SELF_TEST_FAILED}
)
"""Codes that end a run for good, and are believed only with a sentence: an interpreter ends with 2 of itself."""


@dataclass(frozen=True)
class Wait:
    """Why nothing moves, for the conditions. `unscheduled`: it is the pod's place that is missing."""

    reason: str
    message: str
    unscheduled: bool = False


@dataclass(frozen=True)
class Standing:
    """What was found. `over` with `rule` None: it did its work; `outcome` is its answer, where it gave one."""

    work: AttemptStatus
    over: bool = False
    rule: FailureRule | None = None
    outcome: Outcome | None = None
    why: str = ""
    wait: Wait | None = None
    scheduled: bool = False
    next_gpu_class: bool = False


def run_of(kind: WorkKind, run: int) -> int:
    """The run that stands in the names of this work: 0 for work that belongs to none."""
    return 0 if kind in RUNLESS_KINDS else run


def find_child(world: World, kind: WorkKind, run: int, attempt: int) -> ChildView | None:
    """The child Job of an attempt."""
    key = (kind, run_of(kind, run), attempt)
    return next((c for c in world.children if (c.kind, c.run, c.attempt) == key), None)


def is_alive(pod: PodView) -> bool:
    """Whether its process may still run."""
    return pod.exit_code is None and pod.phase not in ("Succeeded", "Failed")


WRITERS = frozenset({WorkKind.TRAIN, WorkKind.EVALUATE})
"""Work whose pods hold GPUs or leave what a later stage takes up. A straggling data pod is harmless to the stages after it:
its shards are named by their content, and what it commits lies below its own uid."""


def find_zombies(world: World, kind: WorkKind, run: int, attempt: int) -> list[PodView]:
    """Pods of the run's other attempts that may still run: at the same work, and those that write."""
    return [
        pod
        for child in world.children
        if (child.kind is kind or (kind in CELERY_KINDS and child.kind in WRITERS))
        and child.run == run_of(child.kind, run)
        and (child.kind, child.attempt) != (kind, attempt)
        for pod in child.pods
        if is_alive(pod)
    ]


def progress_of(world: World, kind: WorkKind, run: int, attempt: int) -> ProgressReport | None:
    """The progress in Redis, where it is this attempt's."""
    report = world.progress
    if report is None or (report.id.uid, report.id.kind, report.id.attempt) != (world.uid, kind, attempt):
        return None
    return report if report.id.run == run_of(kind, run) else None


def look_at(world: World, work: AttemptStatus, run: int, limits: Limits, now: datetime) -> Standing:
    """Where the attempt stands."""
    child = find_child(world, work.kind, run, work.attempt)
    if child is None:
        return _look_at_absent(world, work, run)
    report = progress_of(world, work.kind, run, work.attempt)
    work = _note_pods(work.model_copy(update={"seen": True}), child, report)
    done = _find_answer(world, work, run, child)
    if done is not None:
        return Standing(work, over=True, outcome=done)
    failed = _find_failure(world, work, run, child)
    if failed is not None:
        return failed
    return _look_at_running(work, child, limits, now)


def _look_at_absent(world: World, work: AttemptStatus, run: int) -> Standing:
    if work.seen:
        return Standing(
            work, over=True, rule=PREEMPTED, why=f"The Job {work.job} is gone, and nobody heard its answer."
        )
    if refusal := world.refused.get(work.job):
        return Standing(work, wait=Wait("ChildRefused", f"The API server refuses the Job {work.job}: {refusal}", True))
    return Standing(work, wait=Wait("PodsStarting", f"The Job {work.job} is being made.", True))


def _note_pods(work: AttemptStatus, child: ChildView, report: ProgressReport | None) -> AttemptStatus:
    """Which pod's word counts, and since when it runs. Among data pods it is the one that tells the progress."""
    changes: dict[str, object] = {}
    if report is not None and not work.received:
        changes["received"] = True
    uid = work.pod
    if work.kind is WorkKind.PREPARE:
        if report is not None and any(p.uid == report.pod for p in child.pods):
            uid = report.pod
    elif uid is None and child.pods:
        uid = child.pods[0].uid
    pod = next((p for p in child.pods if p.uid == uid), None) or (child.pods[0] if uid is None and child.pods else None)
    if uid is not None and uid != work.pod:
        changes |= {"pod": uid[:64]}
    if pod is not None and pod.uid == uid:
        changes |= {"pod_name": pod.name, "node": pod.node or work.node}
    if work.running_since is None and pod is not None and pod.running_since is not None:
        changes["running_since"] = pod.running_since
    return work.model_copy(update=changes)


def _believes(world: World, kind: WorkKind, attempt: int, run: int, pod: PodView) -> Outcome | None:
    """The pod's answer, where it is one about this very attempt of this very run."""
    outcome = pod.outcome
    if outcome is None:
        return None
    said = outcome.id
    here = (world.namespace, world.name, world.uid, run_of(kind, run), kind, attempt)
    return outcome if (said.namespace, said.job, said.uid, said.run, said.kind, said.attempt) == here else None


def _find_answer(world: World, work: AttemptStatus, run: int, child: ChildView) -> Outcome | None:
    """The answer of an attempt that did its work."""
    for pod in child.pods:
        if work.kind is not WorkKind.PREPARE and pod.uid != work.pod:
            continue
        outcome = _believes(world, work.kind, work.attempt, run, pod)
        if outcome is not None and outcome.exit_code == PhaseExit.DONE and _has_result(work.kind, outcome):
            return outcome
    return None


def find_late_answer(world: World, kind: WorkKind, run: int, last: int) -> Outcome | None:
    """What a pod of an attempt that was given up did in its grace after all; `last` is the last attempt's number.

    It is as good as any: the pod wrote it as any other would, and nobody has begun the work anew.
    """
    mine = [c for c in world.children if c.kind is kind and c.run == run_of(kind, run) and c.attempt <= last]
    for child in sorted(mine, key=lambda c: -c.attempt):
        for pod in child.pods:
            outcome = _believes(world, kind, child.attempt, run, pod)
            if outcome is not None and outcome.exit_code == PhaseExit.DONE and _has_result(kind, outcome):
                return outcome
    return None


def _has_result(kind: WorkKind, outcome: Outcome) -> bool:
    match kind:
        case WorkKind.FETCH:
            return outcome.base is not None
        case WorkKind.PREPARE:
            return outcome.data is not None
        case WorkKind.TRAIN:
            return outcome.training is not None
        case WorkKind.EVALUATE:
            return outcome.evaluation is not None and outcome.adapter_uri is not None
        case WorkKind.PROBE:
            return outcome.data_digest is not None
        case _:
            return True


def _find_failure(world: World, work: AttemptStatus, run: int, child: ChildView) -> Standing | None:
    """How the attempt ended without doing its work; None where it goes on."""
    pods = child.pods
    if work.kind is not WorkKind.PREPARE:
        pods = tuple(p for p in pods if p.uid == work.pod)
    if work.pod is not None and all(p.uid != work.pod for p in pods):
        return Standing(work, over=True, rule=PREEMPTED, why=f"The pod {work.pod_name or work.pod} was taken away.")
    ended = [p for p in pods if not is_alive(p) and not _ended_well(world, work, run, p)]
    ended.sort(key=lambda p: (p.uid != work.pod, p.outcome is None, p.created_at, p.name))
    if ended:
        return _explain_end(world, work, run, ended[0])
    dying = next((p for p in pods if p.deleting and (p.uid == work.pod or work.kind is not WorkKind.PREPARE)), None)
    if dying is not None and is_alive(dying):
        return Standing(work, over=True, rule=PREEMPTED, why=f"The pod {dying.name} is being taken away.")
    if child.deleting:
        return Standing(work, over=True, rule=PREEMPTED, why=f"The Job {child.name} is being deleted by someone else.")
    if (child.failed or child.complete) and not any(is_alive(p) and not p.deleting for p in pods):
        if child.failed and "deadline" in child.message.lower():
            return Standing(work, over=True, rule=HUNG, why=f"The Job {child.name} took too long: {child.message}")
        return Standing(work, over=True, rule=LOST_ANSWER, why=f"The Job {child.name} ended, but its answer is lost.")
    return None


def _ended_well(world: World, work: AttemptStatus, run: int, pod: PodView) -> bool:
    """A data pod that helped and left; the one whose word counts has to say more."""
    return work.kind is WorkKind.PREPARE and pod.uid != work.pod and pod.exit_code == 0


def _explain_end(world: World, work: AttemptStatus, run: int, pod: PodView) -> Standing:
    outcome = _believes(world, work.kind, work.attempt, run, pod)
    rule, why = _classify(work.kind, pod, outcome)
    return Standing(work, over=True, rule=rule, outcome=outcome, why=why)


def _classify(kind: WorkKind, pod: PodView, outcome: Outcome | None) -> tuple[FailureRule, str]:
    where = f"pod {pod.name}"
    if outcome is not None and outcome.exit_code == PhaseExit.DONE:
        return BUG, f"The {where} says that it is done, but its answer lacks the result of `{kind}`."
    if outcome is None and pod.reason in ("Evicted", "NodeLost"):
        place = f" from node {pod.node}" if pod.node else ""
        return PREEMPTED, f"The {where} was taken away{place} ({pod.reason})."
    if pod.reason == "OOMKilled":
        return _memory_rule(kind), f"The {where} ran out of memory (OOMKilled)."
    if outcome is not None:
        rule = classify_exit(outcome.exit_code)
        if rule.failure is FailureClass.OUT_OF_MEMORY:
            rule = _memory_rule(outcome.kind or kind)
        return rule, outcome.message or f"The {where} ended with code {outcome.exit_code}: {rule.advice}."
    if pod.deleting or pod.exit_code is None:
        return PREEMPTED, f"The {where} was taken away."
    if pod.exit_code == 0:
        return LOST_ANSWER, f"The {where} ended, but its answer is lost."
    rule = classify_exit(pod.exit_code)
    if rule.failure is FailureClass.OUT_OF_MEMORY:
        rule = _memory_rule(kind)
    if pod.exit_code in MENDED_BY_A_WORD:
        rule = BUG
    return rule, f"The {where} ended with code {pod.exit_code} and no word: {rule.advice}."


def _memory_rule(kind: WorkKind) -> FailureRule:
    """Smaller bins help a training alone."""
    return classify_exit(PhaseExit.OUT_OF_MEMORY) if kind is WorkKind.TRAIN else COUNTED_MEMORY


def _look_at_running(work: AttemptStatus, child: ChildView, limits: Limits, now: datetime) -> Standing:
    if child.suspended:
        return Standing(work, wait=Wait("QueuedByKueue", f"The Job {child.name} waits in Kueue's queue.", True))
    pods = [p for p in child.pods if is_alive(p)]
    if not child.pods:
        return Standing(work, wait=Wait("PodsStarting", child.message or f"The Job {child.name} has no pod yet.", True))
    without_place = next((p for p in pods if p.unschedulable and p.node is None), None)
    runs = any(p.running_since is not None and p.phase == "Running" for p in pods)
    if without_place is not None and not runs:
        waited = now - without_place.created_at >= timedelta(seconds=limits.unschedulable_seconds)
        sentence = f"No node takes the pod {without_place.name}: {without_place.unschedulable}"
        return Standing(work, wait=Wait("Unschedulable", sentence, True), next_gpu_class=waited)
    stuck = next((p for p in pods if p.waiting), None)
    if stuck is not None and not runs:
        return Standing(
            work, wait=Wait("PodWaiting", f"The pod {stuck.name} does not start: {stuck.waiting}"), scheduled=True
        )
    return Standing(work, scheduled=any(p.node for p in pods) or runs)


def needs_sending(world: World, work: AttemptStatus, run: int, limits: Limits, now: datetime) -> bool:
    """Whether its pod has waited so long for the task that it must have been lost. A doubled task does nothing."""
    if work.kind not in CELERY_KINDS or world.redis_problem is not None or work.received:
        return False
    if work.sent_at is None:
        return True
    if work.running_since is None:
        return False
    return now - max(work.running_since, work.sent_at) >= timedelta(seconds=limits.resend_seconds)


def is_hung(work: AttemptStatus, report: ProgressReport | None, deadline_seconds: float, now: datetime) -> bool:
    """Whether the training told no new step for so long, though it could have."""
    if work.kind is not WorkKind.TRAIN or report is None or not is_stepping(report) or work.step_at is None:
        return False
    return now - work.step_at >= timedelta(seconds=deadline_seconds)


def name_child(world: World, kind: WorkKind, run: int, attempt: int) -> str:
    """The name of the attempt's batch Job."""
    return names.child_job_name(world.name, world.uid, run_of(kind, run), kind, attempt)
