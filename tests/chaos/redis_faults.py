"""Redis killed and empty when it is back, at four moments of a job's life; messages that are lost, doubled, or make no sense."""

import shutil
import time
from collections.abc import Callable

from cluster.redis_server import RedisServer
from stack.stack import Stack

from chaos.arena import Arena, build_script
from chaos.life import Life
from chaos.trials import Trial
from llamero.spec.names import queue_name
from llamero.spec.status import WorkKind

AWAY_SECONDS = 2.0
KINDS = (WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE)


def wipe(redis: RedisServer) -> None:
    """Killed, and nothing on its disk for the next start."""
    redis.kill()
    for kept in redis.folder.glob("appendonly*"):
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()


def lose_redis(life: Life, seconds: float = AWAY_SECONDS) -> None:
    """Redis dies with everything in it, and is back after a while, empty."""
    redis = life.stack.redis
    life.fault()
    wipe(redis)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        life.look()
        time.sleep(0.05)
    redis.start()


def judge_end(life: Life, fault: str, *problems: str) -> Trial:
    """Succeeded, nothing left, one pod an attempt, no step twice: a Redis that is gone interrupts no work."""
    status = life.wait_end()
    found = list(problems)
    if status.phase != "Succeeded":
        found.append(f"it ended as {status.phase}: {status.failure}")
    if status.tries.counted:
        found.append(f"{status.tries.counted} tries were counted")
    life.wait_quiet()
    return life.judge(fault, *found, seconds=life.seconds_to_progress())


def lose_at_dispatch(arena: Arena, stack: Stack, kind: WorkKind) -> Trial:
    """The task was sent, and no pod has taken it."""
    life = Life(stack, f"dispatch-{arena.number()}", hold=(kind, "started"))
    with life.halt(kind, "started"):
        lose_redis(life)
    return judge_end(life, "Redis lost at dispatch")


def lose_before_dispatch(arena: Arena, stack: Stack) -> Trial:
    """Redis is away when the first task is to be sent."""
    stack.redis.kill()
    life = Life(stack, f"sending-{arena.number()}")
    life.wait(lambda s: s.observed_generation, "a first status")
    lose_redis(life)
    return judge_end(life, "Redis lost at dispatch")


def lose_in_preparation(arena: Arena, stack: Stack) -> Trial:
    life = Life(stack, f"prep-{arena.number()}", hold=(WorkKind.PREPARE, "taken"))
    with life.halt(WorkKind.PREPARE, "taken"):
        lose_redis(life)
    return judge_end(life, "Redis lost in preparation")


def lose_in_training(arena: Arena, stack: Stack) -> Trial:
    """Training goes on all the while: one pod, no step twice, and steps while Redis is away."""
    life = Life(stack, f"train-{arena.number()}")
    entry = life.wait_step(3)
    lose_redis(life)
    back = time.monotonic()
    assert life.faulted_at is not None
    meanwhile = [t for t in entry.stepped if life.faulted_at < t < back]
    problems = [] if meanwhile else ["no step was done while Redis was away"]
    trial = judge_end(life, "Redis lost in training", *problems)
    pods = life.entries(WorkKind.TRAIN)
    if len(pods) == 1:
        return trial
    return life.judge("Redis lost in training", f"{len(pods)} pods trained: {life.tell()}", seconds=trial.seconds)


def lose_at_result(arena: Arena, stack: Stack, kind: WorkKind) -> Trial:
    """The work is done, and its answer not yet given."""
    life = Life(stack, f"result-{arena.number()}", hold=(kind, "answering"))
    with life.halt(kind, "answering"):
        life.fault()
        wipe(stack.redis)
    life.wait(lambda s: s.work is None or s.work.kind != kind, "the answer to be heard without Redis")
    stack.redis.start()
    return judge_end(life, "Redis lost at the result")


def lose_redis_everywhere(arena: Arena) -> list[Trial]:
    script = build_script(steps=60, step_seconds=0.05)
    trials: list[Trial] = []
    with arena.stack(script) as stack:
        for _ in range(3 if arena.full else 1):
            for kind in KINDS if arena.full else KINDS[:1]:
                trials.append(lose_at_dispatch(arena, stack, kind))
            trials.append(lose_before_dispatch(arena, stack))
            trials.append(lose_in_preparation(arena, stack))
            trials.append(lose_in_training(arena, stack))
            for kind in KINDS if arena.full else KINDS[1:2]:
                trials.append(lose_at_result(arena, stack, kind))
    return trials


# -- messages ------------------------------------------------------------------------------------------------------------------


def queue_of(life: Life, kind: WorkKind) -> str:
    return queue_name(life.uid, 1, kind, 1)


def wait_sent(life: Life, kind: WorkKind) -> None:
    """Until the attempt's task lies in its queue."""
    with life.stack.redis.client as client:
        life.wait(lambda _: client.llen(queue_of(life, kind)) == 1, f"the task of {kind} to be sent")


def lose_message(arena: Arena, stack: Stack, kind: WorkKind) -> Trial:
    """The task is taken from its queue by nobody's pod."""
    life = Life(stack, f"lost-{arena.number()}", hold=(kind, "started"))
    with life.halt(kind, "started"):
        wait_sent(life, kind)
        life.fault()
        with stack.redis.client as client:
            client.delete(queue_of(life, kind))
    return judge_end(life, "message lost")


def double_message(arena: Arena, stack: Stack, kind: WorkKind) -> Trial:
    life = Life(stack, f"doubled-{arena.number()}", hold=(kind, "started"))
    with life.halt(kind, "started"):
        wait_sent(life, kind)
        life.fault()
        with stack.redis.client as client:
            name = queue_of(life, kind)
            content = client.lindex(name, 0)
            assert isinstance(content, str)
            client.lpush(name, content)
    return judge_end(life, "message doubled")


def garble(content: str) -> str:
    return content[: len(content) // 2]


NONSENSE: dict[str, Callable[[str], str]] = {
    "cut off": garble,
    "of an unknown task": lambda content: content.replace("llamero.work.v1", "llamero.work.v99"),
}


def send_nonsense(arena: Arena, stack: Stack, how: str) -> Trial:
    """What a worker can't understand is told, in a sentence, and nothing is done on a guess."""
    life = Life(stack, f"nonsense-{arena.number()}", hold=(WorkKind.TRAIN, "started"))
    with life.halt(WorkKind.TRAIN, "started"):
        wait_sent(life, WorkKind.TRAIN)
        life.fault()
        with stack.redis.client as client:
            name = queue_of(life, WorkKind.TRAIN)
            content = client.rpop(name)
            assert isinstance(content, str)
            client.rpush(name, NONSENSE[how](content))
    status = life.wait_end()
    problems = []
    if status.phase != "Failed" or status.failure is None or "does not know" not in status.failure.message:
        problems.append(f"a message {how} was not told: {status.phase}, {status.failure}")
    if any(e.steps for e in life.entries(WorkKind.TRAIN)):
        problems.append("it trained on a message that makes no sense")
    life.wait_quiet()
    return life.judge("message makes no sense", *problems, seconds=life.seconds_to_status())


def disturb_messages(arena: Arena) -> list[Trial]:
    trials: list[Trial] = []
    with arena.stack() as stack:
        for _ in range(3 if arena.full else 1):
            for kind in KINDS if arena.full else KINDS[1:2]:
                trials.append(lose_message(arena, stack, kind))
                trials.append(double_message(arena, stack, kind))
        for how in NONSENSE:
            trials.append(send_nonsense(arena, stack, how))
    return trials
