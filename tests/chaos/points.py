"""kill -9 of the operator before and after every API write and every send of a whole life: created, suspended, resumed, finished, deleted.

The points are counted in an undisturbed life (`LLAMERO_FAULT_LOG`); then, for each, a job is applied to an operator that dies there
(`LLAMERO_FAULT=kill:n`) and is started again without the fault.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.api import ApiError, path_of
from stack.stack import Stack

from chaos.arena import Arena
from chaos.life import EndState, Life
from chaos.trials import Trial
from llamero.spec.status import JobStatus, WorkKind
from llamero_operator.faultpoints import FAULT, FAULT_LOG
from llamero_operator.resources.environment import REDIS_SECRET

HELD = (WorkKind.TRAIN, "step 6")
"""Where the life is suspended."""
TRIES_AT_A_POINT = 3


@dataclass(frozen=True)
class Undisturbed:
    """What a life without a fault came to: its points in order (`before create Job`), by stage, and its end."""

    points: tuple[str, ...]
    stages: tuple[str, ...]
    end: EndState


def live(life: Life) -> JobStatus:
    """The whole life but its deletion; the status at its end."""
    with life.halt(*HELD):
        life.stack.patch(life.name, {"suspend": True})
        life.wait_phase("Suspended")
        life.wait(lambda _: not life.stack.pods(life.uid), "the suspended job's pods to go")
        life.stack.patch(life.name, {"suspend": False})
    status = life.wait_end()
    life.wait_quiet()
    return status


def forget_secret(stack: Stack) -> None:
    """So that each life has the writes of a namespace's first job."""
    with contextlib.suppress(ApiError):
        stack.plane.api.delete(path_of("v1", "Secret", stack.namespace, REDIS_SECRET))


def count(arena: Arena, stack: Stack) -> Undisturbed:
    """One life without a fault."""
    log = arena.folder / f"points-{arena.number()}.log"
    log.touch()
    forget_secret(stack)
    stack.operator.start(**{FAULT_LOG: str(log)})
    life = Life(stack, f"undisturbed-{arena.number()}", hold=HELD)
    stages: list[str] = []

    def note() -> None:
        stages.extend([life.stage()] * (len(read_points(log)) - len(stages)))

    life.on_look = note
    try:
        status = live(life)
        assert status.phase == "Succeeded", stack.describe()
        stack.delete(life.name)
        life.wait_gone()
        note()
    finally:
        life.close()
        stack.operator.kill()
    problems = life.judge("none").problems
    assert not problems, problems
    return Undisturbed(tuple(read_points(log)), tuple(stages), EndState.of(status))


def read_points(log: Path) -> list[str]:
    """`before create Job` a point, in order."""
    return [line.partition(" ")[2] for line in log.read_text().splitlines()]


def kill_at(arena: Arena, stack: Stack, number: int, undisturbed: Undisturbed) -> Trial | None:
    """A life whose operator dies at the point; None where it never came to it."""
    fault = f"operator killed, {undisturbed.stages[number - 1]}"
    where = f"point {number} ({undisturbed.points[number - 1]})"
    forget_secret(stack)
    stack.operator.start(wait=False, **{FAULT: f"kill:{number}"})
    life = Life(stack, f"k{number}-{arena.number()}", revive=True, hold=HELD)
    problems: list[str] = []
    try:
        status = live(life)
        problems += EndState.of(status).differences(undisturbed.end)
        stack.delete(life.name)
        life.wait_gone()
        # The last point is after the write that lets the job go.
        life.wait_dead_operator()
        problems += life.judge(fault).problems
    except AssertionError as error:
        problems.append(str(error))
    finally:
        life.close()
        stack.operator.kill()
    if life.faulted_at is None and not problems:
        return None
    told = tuple(f"{where}: {p}" for p in problems)
    return replace(life.judge(fault), problems=told, seconds=life.seconds_to_status())


def choose(points: Sequence[str], wanted: int | None) -> list[int]:
    """Every point, or this many spread evenly over them; counted from 1."""
    everything = list(range(1, len(points) + 1))
    if wanted is None or wanted >= len(everything):
        return everything
    step = len(everything) / wanted
    return [everything[int(step * (n + 0.5))] for n in range(wanted)]


def kill_everywhere(
    arena: Arena, lanes: int, wanted: int | None = None, tell: Callable[[str], None] = lambda _: None
) -> list[Trial]:
    """A trial a point, over several namespaces side by side."""
    with arena.stack(start_operator=False) as stack:
        undisturbed = count(arena, stack)
        tell(f"{len(undisturbed.points)} points in an undisturbed life")
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in choose(undisturbed.points, wanted):
            waiting.put(number)
        trials: dict[int, Trial] = {}
        errors: list[BaseException] = []

        def work(own: Stack) -> None:
            while not errors:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                trials[number] = try_point(arena, own, number, undisturbed)
                if trials[number].problems:
                    tell("; ".join(trials[number].problems))

        def lane() -> None:
            try:
                with arena.stack(start_operator=False) as own:
                    work(own)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=lane, name=f"lane {n}") for n in range(1, lanes)]
        for thread in threads:
            thread.start()
        try:
            work(stack)
        finally:
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]
    return [trials[number] for number in sorted(trials)]


def try_point(arena: Arena, stack: Stack, number: int, undisturbed: Undisturbed) -> Trial:
    """As `kill_at`, tried again where a life had fewer points than the undisturbed one."""
    for _ in range(TRIES_AT_A_POINT):
        trial = kill_at(arena, stack, number, undisturbed)
        if trial is not None:
            return trial
    return Trial(
        f"operator killed, {undisturbed.stages[number - 1]}",
        None,
        skipped=f"point {number} of {len(undisturbed.points)} was not reached in {TRIES_AT_A_POINT} lives",
    )
