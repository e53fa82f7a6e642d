"""The API server is away, forgets its watches, refuses every second write, or asks to be left alone for a while."""

import time
from collections.abc import Callable

from cluster.faults import FaultProxy
from stack.stack import Stack

from chaos.arena import Arena, build_script
from chaos.life import Life
from chaos.trials import Trial


def judge_end(life: Life, fault: str, *problems: str, lost_steps: int = 0, doubled: int = 0) -> Trial:
    """Succeeded, no try counted, nothing left."""
    status = life.wait_end(180)
    found = list(problems)
    if status.phase != "Succeeded":
        found.append(f"it ended as {status.phase}: {status.failure}")
    if status.tries.counted:
        found.append(f"{status.tries.counted} tries were counted")
    life.wait_quiet()
    return life.judge(
        fault, *found, seconds=life.seconds_to_status(), lost_steps_allowed=lost_steps, doubled_allowed=doubled
    )


def stop_api_server(arena: Arena) -> list[Trial]:
    """The process is killed and started again; everyone loses it: operator, nodes, controllers. Run it alone, in the main thread.

    A minute is longer than a node may be silent: when the server is back, the controllers may think the node gone and take the pod away,
    before its next heartbeat. The training goes on from its checkpoint then.
    """
    seconds = 60 if arena.full else 4
    script = build_script(steps=max(10, int(seconds * 4)), step_seconds=0.2)
    with arena.stack(script) as stack:
        life = Life(stack, f"headless-{arena.number()}")
        life.wait_step(3)
        life.fault()
        stack.plane.stop_api()
        try:
            time.sleep(seconds)
        finally:
            stack.plane.start_api()
        save_every = script.save_every
        return [judge_end(life, f"API server away for {seconds} s", lost_steps=2 * save_every, doubled=0)]


def cut_off(arena: Arena, stack: Stack, proxy: FaultProxy) -> Trial:
    """Nobody but the operator loses the API server."""
    life = Life(stack, f"cut-{arena.number()}")
    life.wait_step(3)
    life.fault()
    proxy.block()
    time.sleep(20 if arena.full else 4)
    proxy.unblock()
    return judge_end(life, "operator cut off from the API server")


def expire_watches(arena: Arena, stack: Stack, proxy: FaultProxy) -> Trial:
    """Every watch ends, and the next three tries are answered with 410 Gone."""
    life = Life(stack, f"expired-{arena.number()}")
    life.wait_step(3)
    life.fault()
    before = proxy.gone.times
    proxy.gone.next(12)
    proxy.cut_connections()
    trial = judge_end(life, "410 Gone on watches")
    if proxy.gone.times == before:
        return life.judge("410 Gone on watches", "no watch was answered with 410")
    proxy.calm()
    return trial


def under(
    name: str, fault: str, switch_on: Callable[[FaultProxy], None]
) -> Callable[[Arena, Stack, FaultProxy], Trial]:
    """A scenario in which the proxy misbehaves from the job's creation to its end."""

    def scenario(arena: Arena, stack: Stack, proxy: FaultProxy) -> Trial:
        switch_on(proxy)
        life = Life(stack, f"{name}-{arena.number()}")
        life.fault()
        try:
            trial = judge_end(life, fault)
            stack.delete(life.name)
            life.wait_gone(90)
            return trial
        finally:
            proxy.calm()

    return scenario


def refuse_writes(proxy: FaultProxy) -> None:
    proxy.conflicts.every(2)


def throttle(proxy: FaultProxy) -> None:
    proxy.retry_after = 1
    proxy.throttles.every(3)


def lose_answers(proxy: FaultProxy) -> None:
    proxy.cuts_after.every(3)


SCENARIOS = (
    cut_off,
    expire_watches,
    under("conflict", "409 on every second write", refuse_writes),
    under("throttled", "429 on every third request", throttle),
    under("unheard", "answer lost of every third write", lose_answers),
)


def misbehave(arena: Arena) -> list[Trial]:
    plane = arena.plane
    with FaultProxy(plane.access, plane.server_pair) as proxy:
        folder = arena.folder / f"proxy-{arena.number()}"
        folder.mkdir()
        kubeconfig = proxy.write_kubeconfig(folder / "kubeconfig")
        with arena.stack(build_script(steps=40, step_seconds=0.05), kubeconfig=kubeconfig) as stack:
            return [scenario(arena, stack, proxy) for _ in range(3 if arena.full else 1) for scenario in SCENARIOS]
