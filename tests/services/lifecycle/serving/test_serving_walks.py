"""Random walks: people edit, pods and agents and chat services fail, the operator dies between two writes. Whatever happens, certain
things hold, and when everything stands still it comes to rest with the right adapter."""

import json
import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from services.lifecycle.serving.simulation import Chat, Cluster, Pod, build_server

from llamero.lifecycle.bounds import MAX_STATUS_BYTES
from llamero.lifecycle.serving.servers import decide
from llamero.lifecycle.serving.world import ServerDecision
from llamero.spec.status import ConditionType

NAMES = ("tutor", "other")


class Watcher:
    """What must hold at every look, whatever happened."""

    def __init__(self) -> None:
        self.serial = 0
        self.lists: dict[int, object] = {}
        self.told: set[str] = set()
        self.unrouted_since: dict[str, datetime] = {}
        self.forgiven: set[str] = set()

    def look(self, cluster: Cluster, decision: ServerDecision) -> None:
        assert decision == decide(cluster.world(), cluster.limits, cluster.now), "the same world, the same decision"
        self.look_at_routes(cluster, decision)
        self.look_at_wanted(cluster, decision)
        self.look_at_verdicts(cluster, decision)
        self.look_at_names(cluster, decision)
        assert len(json.dumps(decision.status.to_json_dict())) <= MAX_STATUS_BYTES
        assert decision.wake_after is not None and 0 <= decision.wake_after <= cluster.limits.poll_seconds

    def look_at_routes(self, cluster: Cluster, decision: ServerDecision) -> None:
        pods = {p.name: p for p in cluster.pods}
        for backend in decision.routes.backends:
            pod = pods[backend.pod]
            assert not pod.deleting
            assert set(backend.adapters) <= set(pod.proven), "nobody is routed to an adapter that was not proven"
            if not pod.silent and pod.report is not None:
                assert pod.report.engine_ready and set(backend.adapters) <= pod.report.ready_ids
        for route in decision.routes.routes:
            assert sum(t.weight for t in route.targets) == (100 if route.targets else 0)
            for target in route.targets:
                able = [b for b in decision.routes.backends if target.adapter is None or target.adapter in b.adapters]
                assert able and target.weight > 0, "every target has an able backend"
        assert list(decision.routes.routes) == sorted(decision.routes.routes, key=lambda r: r.model)

    def look_at_wanted(self, cluster: Cluster, decision: ServerDecision) -> None:
        for served_id in {t.adapter for r in cluster.routed.routes for t in r.targets if t.adapter is not None}:
            self.unrouted_since.pop(served_id, None)
        if decision.wanted is None:
            return
        assert decision.wanted.serial >= self.serial or cluster.engine == "tgi"
        self.serial = decision.wanted.serial
        told = {a.id for a in decision.wanted.adapters}
        assert self.lists.setdefault(self.serial, decision.wanted) == decision.wanted
        here = {a.served_id for a in cluster.adapters.values()}
        for served_id in (self.told & here) - told:
            self.look_at_unloading(cluster, served_id)
        self.told = told
        assert len(told) <= 8 + sum(a.state == "Draining" for a in decision.status.adapters)

    def look_at_unloading(self, cluster: Cluster, served_id: str) -> None:
        routed = {t.adapter for r in cluster.routed.routes for t in r.targets}
        assert served_id not in routed, "an adapter that is routed is never unloaded"
        if cluster.engine == "tgi" and not any(served_id in b.adapters for b in cluster.routed.backends):
            return  # what no pod that takes requests has, nobody can be sent to
        since = self.unrouted_since.get(served_id, cluster.now)
        if (cluster.now - since).total_seconds() >= cluster.limits.drain_seconds:
            return
        for chat in cluster.chats:
            assert not any(n and a == served_id for (_, a), n in chat.in_flight.items()), "one is under way"
            assert served_id not in {t.adapter for r in chat.routes.routes for t in r.targets}, "one may come"
        assert not any(c.silent for c in cluster.chats), "nobody knows"

    def look_at_verdicts(self, cluster: Cluster, decision: ServerDecision) -> None:
        routed = {t.adapter for r in decision.routes.routes for t in r.targets}
        for adapter in cluster.adapters.values():
            status = decision.adapter_statuses.get(adapter.name, adapter.status)
            found = status.condition(ConditionType.ROLLED_BACK)
            if found is not None and found.status == "True" and adapter.name not in self.forgiven:
                stable = {n.adapter for n in decision.status.models}
                assert adapter.served_id not in routed or adapter.name in stable, "it was rolled back"

    def look_at_names(self, cluster: Cluster, decision: ServerDecision) -> None:
        """Whoever serves a name goes on, or another does; and answers it wherever a pod can."""
        entries = {e.name: e for e in cluster.server.spec.models} if cluster.server is not None else {}
        now = {n.name: n for n in decision.status.models}
        routes = {r.model: r for r in decision.routes.routes}
        for old in cluster.status.models:
            adapter, entry = cluster.adapters.get(old.adapter or ""), entries.get(old.name)
            if adapter is None or (entry is not None and adapter.name in entry.rollback):
                continue
            new = now[old.name]
            assert new.adapter is not None or (entry is not None and entry.base), "who serves does not vanish"
            served = cluster.adapters[new.adapter] if new.adapter is not None else None
            able = [b for b in decision.routes.backends if served is None or served.served_id in b.adapters]
            assert not able or routes[old.name].targets, "who can answer is asked"
            if able and not new.weight:
                expected = [(served.served_id if served is not None else None, 100)]
                assert [(t.adapter, t.weight) for t in routes[old.name].targets] == expected

    def after(self, cluster: Cluster) -> None:
        routed = {t.adapter for r in cluster.routed.routes for t in r.targets}
        for served_id in self.told - routed:
            self.unrouted_since.setdefault(served_id, cluster.now)


class Walk:
    """A walk of one server. People and faults come at random."""

    def __init__(self, seed: int, engine: str) -> None:
        self.random = random.Random(seed)
        self.cluster = Cluster(
            server=build_server(engine={"type": engine}, replicas=self.random.choice([1, 2, 3])),
            chats=[Chat(f"chat-{i}") for i in range(self.random.choice([0, 1, 2, 3]))],
            traffic=20,
        )
        self.watcher = Watcher()
        self.runs = dict.fromkeys(NAMES, 0)
        self.bad: set[str] = set()
        self.entries: dict[str, dict[str, object]] = {n: {} for n in NAMES}
        self.cluster.quality = lambda i: (0.4, 0.1, 0.5) if i in self.bad else (0.0, 0.1, 0.8)

    # -- what happens ----------------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        name = self.random.choice(NAMES)
        self.runs[name] += 1
        adapter = self.cluster.publish(f"{name}-r{self.runs[name]}", model=name)
        kind = self.random.choice(["good", "good", "good", "answers badly", "is refused", "breaks the start"])
        if kind == "answers badly":
            self.bad.add(adapter.served_id)
        elif kind == "is refused":
            self.cluster.bad_files[adapter.served_id] = "A file is corrupt."
        elif kind == "breaks the start":
            self.cluster.breaks.add(adapter.served_id)

    def edit(self) -> None:
        name = self.random.choice(NAMES)
        mine = [a.name for a in self.cluster.adapters.values() if a.spec.model == name]
        some = self.random.choice(mine) if mine else "nobody"
        entry = dict(self.entries[name])
        kind = self.random.choice(
            ["pin", "pause", "promote", "rollback", "retry", "base", "strategy", "clear", "clear"]
        )
        if kind == "pin":
            entry["adapter"] = some
        elif kind == "pause":
            entry["paused"] = not entry.get("paused", False)
        elif kind == "promote":
            entry["promote"] = some
        elif kind == "rollback":
            entry["rollback"] = sorted({some, *self.random.sample(mine, min(len(mine), 1))})
        elif kind == "retry":
            entry["retry"] = int(str(entry.get("retry", 0))) + 1
        elif kind == "base":
            entry = {"base": True, "retry": entry.get("retry", 0)}
        elif kind == "strategy":
            steps = sorted(self.random.sample(range(1, 100), self.random.randint(0, 3)))
            entry["strategy"] = {"steps": [*steps, 100], "intervalSeconds": self.random.choice([1, 10, 60])}
        else:
            entry = {"retry": entry.get("retry", 0)}
        if kind in ("promote", "retry"):
            self.watcher.forgiven |= set(self.cluster.adapters)
        self.entries[name] = entry
        self.write_entries()

    def write_entries(self) -> None:
        self.cluster.edit(models=[{"name": n, **e} for n, e in self.entries.items() if e])

    def delete(self) -> None:
        if self.cluster.adapters:
            self.cluster.delete_adapter(self.random.choice(list(self.cluster.adapters)))

    def kill_pod(self) -> None:
        if self.cluster.pods:
            self.cluster.pods.remove(self.random.choice(self.cluster.pods))

    def evict_pod(self) -> None:
        if self.cluster.pods:
            self.random.choice(self.cluster.pods).deleting = True

    def restart_engine(self) -> None:
        if self.cluster.pods:
            pod = self.random.choice(self.cluster.pods)
            pod.starts_in, pod.loaded = 3, {}
            pod.restarts += 1

    def silence_agents(self) -> None:
        for pod in self.cluster.pods:
            pod.silent = self.random.random() < 0.5

    def silence_chats(self) -> None:
        for chat in self.cluster.chats:
            chat.silent, chat.stuck = self.random.random() < 0.3, self.random.random() < 0.3

    def restart_chat(self) -> None:
        if self.cluster.chats:
            index = self.random.randrange(len(self.cluster.chats))
            self.cluster.chats[index] = Chat(f"chat-{self.random.random()}", self.cluster.routed, self.cluster.revision)

    def jump(self) -> None:
        self.cluster.now += timedelta(seconds=self.random.choice([5, 60, 600, -30]))

    def scale(self) -> None:
        self.cluster.edit(replicas=self.random.choice([0, 1, 2, 3]))

    def heal(self) -> None:
        for pod in self.cluster.pods:
            pod.silent = False
        for chat in self.cluster.chats:
            chat.silent = chat.stuck = False

    def send(self) -> None:
        """Requests start and end: by the routes that each chat service has, at a backend that they name."""
        for chat in self.cluster.chats:
            for key in list(chat.in_flight):
                chat.in_flight[key] = max(chat.in_flight[key] - self.random.choice([0, 1, 2]), 0)
            for route in chat.routes.routes:
                for target in route.targets:
                    able = [b for b in chat.routes.backends if target.adapter is None or target.adapter in b.adapters]
                    backend = self.random.choice(able)
                    key = (backend.url, target.adapter)
                    chat.in_flight[key] = chat.in_flight.get(key, 0) + self.random.choice([0, 1])

    # -- the walk --------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        rare = (self.kill_pod, self.evict_pod, self.restart_engine, self.silence_agents, self.silence_chats)
        rare += (self.restart_chat, self.jump, self.scale, self.delete)
        if self.random.random() < 0.06:
            self.publish()
        if self.random.random() < 0.05:
            self.edit()
        if self.random.random() < 0.08:
            self.random.choice(rare)()
        if self.random.random() < 0.1:
            self.heal()
        self.look(crash=self.random.random() < 0.05)
        self.cluster.tick()
        self.send()

    def look(self, crash: bool = False) -> ServerDecision:
        decision = decide(self.cluster.world(), self.cluster.limits, self.cluster.now)
        self.watcher.look(self.cluster, decision)
        self.cluster.carry_out(decision, self.random.randrange(6) if crash else None)
        self.cluster.last = decision
        self.watcher.after(self.cluster)
        return decision

    def come_to_rest(self) -> None:
        """Nothing happens any more: the status must stop changing."""
        self.heal()
        self.cluster.edit(replicas=2)
        self.cluster.chats.append(Chat("last"))  # without any, no step can be judged
        for chat in self.cluster.chats:
            chat.in_flight.clear()
        for entry in self.entries.values():
            entry.pop("paused", None)
        self.write_entries()
        quiet = 0
        for _ in range(3000):
            before = (self.cluster.status, self.cluster.routed, self.cluster.wanted, dict(self.cluster.adapters))
            self.look()
            after = (self.cluster.status, self.cluster.routed, self.cluster.wanted, dict(self.cluster.adapters))
            quiet = quiet + 1 if before == after else 0
            self.cluster.tick()
            if quiet > 60 and not any(n.canary for n in self.cluster.status.models):
                return
        raise AssertionError(f"it does not come to rest: {self.cluster.status}")

    def check_rest(self) -> None:
        """Each name is served by whom it should be."""
        for name in self.cluster.status.models:
            entry = self.entries.get(name.name, {})
            able = [
                a
                for a in self.cluster.adapters.values()
                if a.spec.model == name.name
                and not a.deleting
                and a.served_id not in self.bad | set(self.cluster.bad_files) | self.cluster.breaks
                and a.name not in entry.get("rollback", [])  # type: ignore[operator]
            ]
            if entry.get("base"):
                assert self.cluster.shares(name.name) == {None: 100}
            elif not entry.get("adapter") and not entry.get("promote") and able:
                best = max(able, key=lambda a: (a.created_at, a.spec.source.run if a.spec.source else 0))
                served = name.adapter
                assert served is not None and self.cluster.shares(name.name) == {served: 100}
                found = self.cluster.adapters[best.name].status.condition(ConditionType.ROLLED_BACK)
                is_unlucky = found is not None and found.status == "True"
                assert served == best.name or is_unlucky or self.cluster.adapters[served].created_at >= best.created_at
        routed = {t.adapter for r in self.cluster.routed.routes for t in r.targets}
        for adapter in self.cluster.adapters.values():
            assert not adapter.deleting or adapter.served_id in routed, "what is deleted goes once it has drained"


@pytest.mark.parametrize("engine", ["cpu", "vllm", "tgi"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_certain_things_hold_and_it_comes_to_rest(seed: int, engine: str) -> None:
    walk = Walk(seed, engine)
    walk.publish()
    for _ in range(300):
        walk.step()
    walk.come_to_rest()
    walk.check_rest()


def test_a_deleted_server_goes_within_its_bound_whatever_chat_services_do() -> None:
    for seed in range(4):
        walk = Walk(seed, "cpu")
        walk.publish()
        for _ in range(100):
            walk.step()
        walk.cluster.deleting = True
        walk.silence_chats()
        start = walk.cluster.now
        while not walk.cluster.gone:
            walk.cluster.look()
            walk.cluster.tick()
            walk.send()
            assert (walk.cluster.now - start).total_seconds() <= walk.cluster.limits.drain_seconds + 2
        assert not any(a.held for a in walk.cluster.adapters.values())
        assert not any(a.status.weight or a.status.server for a in walk.cluster.adapters.values())
        assert walk.cluster.routed.backends == ()


def test_pods_that_are_told_the_same_twice_are_told_the_same_number() -> None:
    walk = Walk(1, "cpu")
    walk.publish()
    for _ in range(30):
        walk.cluster.look()
        walk.cluster.tick()
    serial = walk.cluster.status.wanted_serial
    walk.cluster.run(30)
    assert walk.cluster.status.wanted_serial == serial


def make_pod(name: str) -> Pod:
    return Pod(name, "10.0.0.9", datetime.fromisoformat("2026-01-05T12:00:00+00:00"))


def test_a_pod_of_unknown_origin_takes_no_requests_while_its_agent_is_silent() -> None:
    walk = Walk(1, "cpu")
    walk.cluster.publish("tutor-r1")
    walk.cluster.run(10)
    stranger = replace(make_pod("stranger"), silent=True, starts_in=0)
    walk.cluster.pods.append(stranger)
    walk.look()
    assert "stranger" not in {b.pod for b in walk.cluster.routed.backends}
