"""Random walks: crashes, lost and doubled answers, stale caches, evictions, edits, deletions. Whatever happens, certain things hold."""

import contextlib
import random
from dataclasses import replace

import pytest
from services.lifecycle.simulation import Cluster, Crash, build_job

from llamero.lifecycle.jobs import decide
from llamero.lifecycle.world import Decision
from llamero.spec.status import ConditionType, JobPhase, WorkKind

OVER = (JobPhase.SUCCEEDED, JobPhase.FAILED)
TOLD = set(ConditionType) - {
    ConditionType.ROLLED_OUT,  # once an adapter is published
    ConditionType.AVAILABLE, ConditionType.PROGRESSING, ConditionType.PROTECTED, ConditionType.AUTOSCALED,  # of servers
    ConditionType.VERIFIED, ConditionType.SERVING, ConditionType.ROLLED_BACK,  # of Adapters
}  # fmt: skip


class Watcher:
    """What must hold at every step, whatever happened."""

    def __init__(self) -> None:
        self.given: dict[tuple[int, WorkKind], int] = {}
        self.run = 0
        self.published: dict[str, str] = {}

    def look(self, cluster: Cluster, decision: Decision) -> None:
        assert decision == decide(cluster.world(), cluster.limits, cluster.now), "the same world, the same decision"
        assert len({(w.kind, w.run) for w in decision.work}) == len(decision.work)
        for work in decision.work:
            assert work.attempt >= self.given.get((work.run, work.kind), 0), "a number never comes back"
            self.given[work.run, work.kind] = work.attempt
        assert decision.status.run >= self.run
        self.run = cluster.status.run
        self.look_at_status(cluster, decision)
        if status_of_success(decision) and cluster.servers is not None:
            assert cluster.servers, "a run that has succeeded has its ModelServer"
        for name, spec in cluster.adapters.items():
            assert self.published.setdefault(name, spec.sha256) == spec.sha256, "an Adapter never changes"

    def look_at_status(self, cluster: Cluster, decision: Decision) -> None:
        status = decision.status
        truths = {c.type: c.status for c in status.conditions}
        is_told = status.adapter is not None and cluster.servers is not None
        assert set(truths) == (TOLD | {ConditionType.ROLLED_OUT} if is_told else TOLD)
        assert not (truths[ConditionType.COMPLETE] == "True" and truths[ConditionType.FAILED] == "True")
        if status.phase is JobPhase.SUCCEEDED and not cluster.deleting:
            assert truths[ConditionType.EVALUATION_PASSED] == "True"
            assert status.progress is not None and status.progress.percent == 100
            assert decision.status.adapter is not None
        if status.work is not None and status.work.kind is not WorkKind.CLEAN:
            assert status.attempts[status.work.kind] == status.work.attempt


def status_of_success(decision: Decision) -> bool:
    return decision.status.phase is JobPhase.SUCCEEDED


def look_for_fixpoint(cluster: Cluster) -> None:
    """Where nothing happens, one more pass writes nothing more, and who writes nothing tells nothing."""
    world = cluster.world()
    for _ in range(6):
        decision = decide(world, cluster.limits, cluster.now)
        if decision.status == world.status:
            assert not decision.notes or decision.let_go
            return
        world = replace(world, status=decision.status)
    raise AssertionError(f"it does not come to rest: {world.status}")


@pytest.mark.parametrize("deletes", [False, True], ids=["kept", "deleted"])
@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_a_job_ends_and_no_number_repeats(seed: int, deletes: bool) -> None:
    rng = random.Random(seed)
    cluster = Cluster(build_job(backoffLimit=100, data=workers(rng.choice([1, 3]))))
    cluster.servers = set() if seed % 2 else None

    def crash(_: str) -> None:
        if rng.random() < 0.15:
            raise Crash

    cluster.crash = crash
    watcher = Watcher()
    for _ in range(80):
        watcher.look(cluster, decide(cluster.world(), cluster.limits, cluster.now))
        with contextlib.suppress(Crash):
            cluster.reconcile()
        look_for_fixpoint(cluster)
        disturb(cluster, rng)
        cluster.wait(rng.choice([0, 1, 5, 30, -3]))
        cluster.deleting |= deletes and rng.random() < 0.02
        if cluster.gone:
            break
    calm_down(cluster)
    for _ in range(80):
        if cluster.gone:
            break
        watcher.look(cluster, decide(cluster.world(), cluster.limits, cluster.now))
        cluster.wait(30)
        cluster.settle(1)
    if deletes:
        cluster.deleting = True
        cluster.settle(30)
        assert cluster.gone
        return
    assert cluster.status.phase in OVER
    assert decide(cluster.world(), cluster.limits, cluster.now).status == cluster.status


def workers(count: int) -> dict[str, object]:
    return {"sources": [{"uri": "/data/a.jsonl", "format": "alpaca"}], "workers": count}


def calm_down(cluster: Cluster) -> None:
    cluster.crash = lambda _: None
    cluster.redis_problem = None
    cluster.hidden.clear()
    cluster.ghosts.clear()
    cluster.refuses = lambda _: None
    cluster.edit()


def disturb(cluster: Cluster, rng: random.Random) -> None:
    cluster.redis_problem = "away" if rng.random() < 0.1 else None
    make_stale(cluster, rng)
    if rng.random() < 0.5:
        cluster.reap()
    if rng.random() < 0.05:
        cluster.edit(suspend=True)
    elif rng.random() < 0.2:
        cluster.edit(
            **({"training": {"epochs": rng.choice([1, 2]), "resources": {"gpus": 0}}} if rng.random() < 0.3 else {})
        )
    for child in [c for c in cluster.children.values() if c.deleting and rng.random() < 0.2]:
        cluster.finish(child.name, rng.choice([0, 0, 75, 1]))  # in its grace
    for child in cluster.live():
        if not child.pods:
            continue
        if child.pods[0].exit_code is not None:
            if rng.random() < 0.1:
                cluster.finish(child.name)  # it answers again, and otherwise
            continue
        match rng.randrange(12):
            case 0 | 1 | 2:
                cluster.finish(child.name)
            case 3:
                cluster.finish(child.name, rng.choice([1, 75, 13, 15]), "It ended.")
            case 4:
                cluster.finish(child.name, 0, silent=True)
            case 5:
                cluster.delete_child(child.name)
            case 6:
                cluster.change_pod(child.name, deleting=True)


def make_stale(cluster: Cluster, rng: random.Random) -> None:
    """The watch lags: what was made is not shown yet, what is gone still is. It never goes back."""
    shown = {child.name for child in cluster.shown()}
    cluster.ghosts = {n: c for n, c in cluster.ghosts.items() if rng.random() < 0.5}
    if rng.random() < 0.3:
        cluster.ghosts |= {n: c for n, c in cluster.children.items() if c.deleting and n in shown}
        cluster.reap()
    cluster.hidden = {n for n in cluster.children if n not in cluster.shown_once and rng.random() < 0.5}
    cluster.shown_once |= {child.name for child in cluster.shown()}
