"""Two operators and one Lease: one of them writes, and the other one takes over when it dies."""

import time

from cluster.faults import FaultProxy
from stack.operator_process import OperatorProcess
from stack.stack import Stack

from chaos.arena import Arena, build_script
from chaos.life import Life
from chaos.trials import Trial

TAKEOVER_SECONDS = 30
SHORT_LEASE = {"durationSeconds": 5, "renewSeconds": 3, "retrySeconds": 1.2}


def build_replica(stack: Stack, proxy: FaultProxy, name: str, lease: dict[str, object]) -> OperatorProcess:
    """One of two, with a way of its own to the API server, so that its writes can be counted."""
    kubeconfig = proxy.write_kubeconfig(stack.folder / f"{name}.kubeconfig")
    settings = {"lease": {"enabled": True, "namespace": stack.namespace, **lease}}
    return stack.build_operator(name, settings, kubeconfig=kubeconfig)


def count_writes(proxy: FaultProxy) -> int:
    """Writes of anything but the Lease."""
    return sum(n for (_, resource), n in dict(proxy.writes).items() if not resource.startswith("leases"))


def lose_leader(arena: Arena) -> list[Trial]:
    """Both replicas are started at once; the one that leads is killed while it has a training under way."""
    lease: dict[str, object] = {} if arena.full else dict(SHORT_LEASE)
    plane = arena.plane
    script = build_script(steps=60, step_seconds=0.05)
    trials: list[Trial] = []
    with (
        FaultProxy(plane.access, plane.server_pair) as first,
        FaultProxy(plane.access, plane.server_pair) as second,
        arena.stack(script, start_operator=False) as stack,
    ):
        ways = {"first": first, "second": second}
        replicas = {name: build_replica(stack, way, name, lease) for name, way in ways.items()}
        try:
            for replica in replicas.values():
                replica.start(wait=False)
            trials.append(start_both(arena, stack, ways))
            for _ in range(3 if arena.full else 1):
                trials.append(kill_leader(arena, stack, ways, replicas))
        finally:
            for replica in replicas.values():
                replica.kill()
    return trials


def start_both(arena: Arena, stack: Stack, ways: dict[str, FaultProxy]) -> Trial:
    fault = "two operators started at once"
    life = Life(stack, f"both-{arena.number()}")
    life.fault()
    status = life.wait_end()
    life.wait_quiet()
    problems = [] if status.phase == "Succeeded" else [f"it ended as {status.phase}"]
    writers = [name for name, way in ways.items() if count_writes(way)]
    if len(writers) != 1:
        problems.append(f"{writers} wrote, where one is to")
    return life.judge(fault, *problems, seconds=life.seconds_to_status())


def kill_leader(arena: Arena, stack: Stack, ways: dict[str, FaultProxy], replicas: dict[str, OperatorProcess]) -> Trial:
    fault = "leader killed"
    before = {name: count_writes(way) for name, way in ways.items()}
    life = Life(stack, f"headless-{arena.number()}")
    life.wait_step(3)
    leaders = [name for name, way in ways.items() if count_writes(way) > before[name]]
    problems = [] if len(leaders) == 1 else [f"{leaders} wrote, where one is to"]
    leader = leaders[0]
    heir = next(name for name in replicas if name != leader)
    life.fault()
    replicas[leader].kill()
    status = life.wait_end(120)
    seconds = life.seconds_to_status()
    life.wait_quiet()
    if status.phase != "Succeeded" or status.tries.counted or status.tries.free:
        problems.append(f"it ended as {status.phase} with {status.tries}")
    if not count_writes(ways[heir]):
        problems.append("the heir wrote nothing")
    if seconds is None or seconds > TAKEOVER_SECONDS:
        problems.append(f"takeover took {seconds} s, where {TAKEOVER_SECONDS} s are the most")
    replicas[leader].start(wait=False)
    time.sleep(0.5)
    return life.judge(fault, *problems, seconds=seconds)
