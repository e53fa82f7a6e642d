"""Nodes that vanish, with or without their processes, and pods that are taken away: evicted, preempted, out of memory."""

from collections.abc import Callable

from stack.stack import Stack

from chaos.arena import Arena, build_script
from chaos.life import Life
from chaos.trials import Trial
from llamero.lifecycle.failures import PhaseExit
from llamero.spec.status import WorkKind

SAVE_EVERY = 4
STEPS = 40


def judge_end(
    life: Life, fault: str, *problems: str, lost_steps: int = 0, doubled: int = 0, attempts: int = 2, counted: int = 0
) -> Trial:
    """Succeeded with the second attempt, which went on from the checkpoint."""
    status = life.wait_end(180)
    found = list(problems)
    if status.phase != "Succeeded":
        found.append(f"it ended as {status.phase}: {status.failure}")
    if status.attempts.get(WorkKind.TRAIN) != attempts:
        found.append(f"the training took {status.attempts.get(WorkKind.TRAIN)} attempts, not {attempts}")
    if status.tries.counted > counted:
        found.append(f"{status.tries.counted} tries were counted")
    return life.judge(
        fault, *found, seconds=life.seconds_to_status(), lost_steps_allowed=lost_steps, doubled_allowed=doubled
    )


def name_of_pod(life: Life, uid: str) -> str:
    return next(p["metadata"]["name"] for p in life.stack.pods(life.uid) if p["metadata"]["uid"] == uid)


def take_away(fault: str, how: Callable[[Stack, str], None], lost_steps: int = 0) -> Callable[[Arena, Stack], Trial]:
    """A scenario in which a training's pod is taken away."""

    def scenario(arena: Arena, stack: Stack) -> Trial:
        life = Life(stack, f"{fault.split()[-1]}-{arena.number()}".lower(), hold=(WorkKind.TRAIN, "step 7"))
        with life.halt(WorkKind.TRAIN, "step 7") as halt:
            assert halt.entry is not None
            name = name_of_pod(life, halt.entry.pod)
            life.fault()
            how(stack, name)
            life.wait(lambda s: s.attempts.get(WorkKind.TRAIN) == 2, "the second attempt")
        trial = judge_end(life, fault, lost_steps=lost_steps)
        life.wait_quiet()
        return trial

    return scenario


PODS_TAKEN_AWAY = (
    take_away("pod evicted", lambda stack, name: stack.node.evict(name, stack.namespace)),
    take_away("pod preempted", lambda stack, name: stack.node.preempt(name, stack.namespace)),
    take_away(
        "pod OOMKilled",
        lambda stack, name: stack.node.kill_container(name, stack.namespace, reason="OOMKilled"),
        lost_steps=SAVE_EVERY,
    ),
)


def take_pods_away(arena: Arena) -> list[Trial]:
    with arena.stack(build_script(steps=STEPS, save_every=SAVE_EVERY)) as stack:
        return [scenario(arena, stack) for _ in range(3 if arena.full else 1) for scenario in PODS_TAKEN_AWAY]


def lose_node(arena: Arena) -> list[Trial]:
    """The node and everything on it is gone: power lost."""
    fault = "node gone with its processes"
    script = build_script(steps=STEPS, save_every=SAVE_EVERY)
    with arena.stack(script, intervals={"graceSeconds": 3}) as stack:
        life = Life(stack, f"dark-{arena.number()}", hold=(WorkKind.TRAIN, "step 7"))
        with life.halt(WorkKind.TRAIN, "step 7"):
            life.fault()
            stack.node.vanish(kill=True)
        stack.add_node()
        trial = judge_end(life, fault, lost_steps=SAVE_EVERY)
        stack.node.return_()
        life.wait_quiet(60)
        return [trial]


def keep_zombie(arena: Arena) -> list[Trial]:
    """The node falls silent and its training goes on unseen; a second one takes over; then the first one is back with its answer."""
    fault = "node silent, its pod a zombie"
    script = build_script(steps=300, step_seconds=0.1, save_every=SAVE_EVERY)
    with arena.stack(script, intervals={"graceSeconds": 3}) as stack:
        life = Life(stack, f"zombie-{arena.number()}")
        zombie = life.wait_step(6)
        assert stack.worker is not None
        with stack.worker.halt(WorkKind.TRAIN, "step 250", life.name, attempt=1) as halt:
            life.fault()
            stack.node.vanish(kill=False)
            stack.add_node()
            life.wait(lambda s: s.attempts.get(WorkKind.TRAIN) == 2, "the second attempt", 90)
            seconds = life.seconds_to_status()
            script.step_seconds = 0.02
            assert not halt.released.is_set()
            heir = life.wait_pod(WorkKind.TRAIN, 2)
            assert heir.pod != zombie.pod
        # Both end: the zombie first, or the other one; nobody hears the zombie before its node is back.
        life.wait(lambda _: zombie.exit_code is not None, "the zombie to finish its training", 60)
        status = life.wait_end(120)
        stack.node.return_()
        problems = []
        if status.phase != "Succeeded":
            problems.append(f"it ended as {status.phase}: {status.failure}")
        training = life.look().training
        if training is None or heir.pod.replace("-", "")[:8] not in training.uri:
            problems.append(f"the training's result is not the second attempt's: {training}")
        if zombie.exit_code not in (PhaseExit.DONE, PhaseExit.INTERRUPTED):
            problems.append(f"the zombie ended with {zombie.exit_code}: no zombie was played")
        before = life.look()
        life.wait_quiet(60)
        if life.look() != before:
            problems.append("the zombie's return changed the status")
        if len(stack.adapters()) != 1:
            problems.append(f"adapters: {sorted(stack.adapters())}")
        # That steps are done twice is what a zombie is; that nobody believes it is what counts.
        return [life.judge(fault, *problems, seconds=seconds, lost_steps_allowed=10_000, doubled_allowed=1)]
