"""What is to be done about a FineTuneJob now: one pure function from what is seen to what follows.

It is called again and again, with whatever is true by then: nothing here remembers, and what must survive stands in the status.
"""

from datetime import datetime

from llamero.lifecycle.bounds import fits, has_room, shrink
from llamero.lifecycle.cleanup import clean_up
from llamero.lifecycle.conditions import State, build_conditions
from llamero.lifecycle.course import check_deadline, fail, finished_phase, is_over, start_run_for_edit
from llamero.lifecycle.draft import Draft
from llamero.lifecycle.finished import look_after_finished
from llamero.lifecycle.judging import begin_stage
from llamero.lifecycle.keptlogs import print_logs
from llamero.lifecycle.progress import add_figures, describe_end
from llamero.lifecycle.rolledout import describe_rollout
from llamero.lifecycle.stages import forget_foreign_base
from llamero.lifecycle.tending import put_down, see_to_attempt
from llamero.lifecycle.validity import Obstacle, find_obstacle
from llamero.lifecycle.world import Decision, Limits, World
from llamero.spec.status import JobPhase, JobStatus, ProgressStatus


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


def hold(draft: Draft, obstacle: Obstacle) -> None:
    """Nothing runs until the obstacle is gone; then the run goes on with a further attempt."""
    put_down(draft)
    draft.put(phase=JobPhase.PENDING if obstacle.waits else JobPhase.FAILED, progress=None)
    if obstacle.waits:
        draft.wake(draft.limits.poll_seconds)


def suspend(draft: Draft) -> None:
    """Nothing runs; pods get SIGTERM and write a checkpoint."""
    put_down(draft)
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


def keep_progress(status: JobStatus) -> ProgressStatus | None:
    """All of it for a run that has succeeded; the training's figures for whatever comes after the training."""
    if status.phase is JobPhase.SUCCEEDED:
        return describe_end(status.training)
    return add_figures(status.progress, status.training)


def write_status(draft: Draft, state: State) -> JobStatus:
    """The status with its conditions. One that no cut makes small enough ends the run rather than being refused by the API server."""
    draft.put(conditions=build_conditions(draft.status, state, draft.now))
    status = shrink(draft.status)
    if fits(status) or draft.world.deleting or status.run == 0:
        return status
    draft.work.clear()
    draft.send = draft.publish = None
    draft.put(base=None, base_ref="", data=None, training=None, evaluation=None, candidate=None, phase=JobPhase.FAILED)
    fail(draft, "StatusTooLarge", "The addresses of base model and storage are too long for a status: shorten them.")
    if not has_room(draft.status.adapter):
        draft.put(adapter=None)
    draft.put(conditions=build_conditions(draft.status, state, draft.now))
    return shrink(draft.status)


def conclude(draft: Draft, obstacle: Obstacle | None) -> Decision:
    """The decision, with all conditions; a status that says the same as the old one is the old one."""
    world = draft.world
    draft.put(observed_generation=world.generation)
    if not world.deleting:
        draft.put(progress=keep_progress(draft.status))
    state = State(
        obstacle=obstacle,
        suspended=world.job is not None and world.job.spec.suspend,
        deleting=world.deleting,
        wait=draft.wait,
        scheduled=draft.scheduled,
        redis_problem=world.redis_problem if draft.status.work is not None else None,
        generation=world.generation,
        rolled_out=describe_rollout(world, draft.status),
    )
    status = write_status(draft, state)
    return Decision(
        status=status, work=tuple(draft.work), send=draft.send, publish=draft.publish, notes=tuple(draft.notes),
        wake_after=draft.wake_after, forget_queues=draft.forget_queues, delete_job=draft.delete_job, let_go=draft.let_go,
    )  # fmt: skip
