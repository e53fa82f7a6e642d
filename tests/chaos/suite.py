"""The suite: which scenarios there are, and which of them have the control plane to themselves."""

import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from chaos import api_faults, node_faults, real_runs, redis_faults, replica_faults, storage_faults
from chaos.arena import Arena
from chaos.points import kill_everywhere
from chaos.trials import Trial, add_up, render

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """`alone`: it stops what the others stand on, or needs the machine; it runs in the main thread, after the others."""

    name: str
    run: Callable[[Arena], list[Trial]]
    alone: bool = False
    only_full: bool = False


SCENARIOS = (
    Scenario("redis", redis_faults.lose_redis_everywhere),
    Scenario("messages", redis_faults.disturb_messages),
    Scenario("api", api_faults.misbehave),
    Scenario("replicas", replica_faults.lose_leader),
    Scenario("pods", node_faults.take_pods_away),
    Scenario("node", node_faults.lose_node),
    Scenario("zombie", node_faults.keep_zombie),
    Scenario("disk", storage_faults.fill_disk),
    Scenario("checkpoint", storage_faults.tear_checkpoint),
    Scenario("api-server", api_faults.stop_api_server, alone=True),
    Scenario("real", real_runs.run_real, alone=True, only_full=True),
)
POINTS = "points"
NAMES = (POINTS, *(s.name for s in SCENARIOS))


def run_suite(
    arena: Arena, chosen: Sequence[str], lanes: int, points: int | None = None, tell: Tell = lambda _: None
) -> list[Trial]:
    """Every chosen scenario; `points` kill points, or all of them. What a scenario raises is a trial that was not recovered."""
    trials: list[Trial] = []
    if POINTS in chosen:
        trials += kill_everywhere(arena, lanes, points, tell)
        tell(f"points: {len(trials)} tried\n{render(add_up(trials))}")
    wanted = [s for s in SCENARIOS if s.name in chosen and (arena.full or not s.only_full)]
    with ThreadPoolExecutor(lanes) as pool:
        # `map` keeps the order of the table; a thread lives as long as its scenario, and so do the processes that it starts.
        for found in pool.map(lambda s: attempt(arena, s, tell), [s for s in wanted if not s.alone]):
            trials += found
    for scenario in wanted:
        if scenario.alone:
            trials += attempt(arena, scenario, tell)
    return trials


def attempt(arena: Arena, scenario: Scenario, tell: Tell) -> list[Trial]:
    """The scenario's trials, or one that tells what it raised."""
    try:
        found = scenario.run(arena)
    except Exception as error:
        tell(f"{scenario.name}: {traceback.format_exc()}")
        return [Trial(scenario.name, None, problems=(str(error).partition("\n")[0] or type(error).__name__,))]
    for trial in found:
        for problem in trial.problems:
            tell(f"{trial.fault}: {problem}")
    tell(f"{scenario.name}: {sum(t.is_recovered for t in found)} of {len(found)} recovered\n{render(add_up(found))}")
    return found
