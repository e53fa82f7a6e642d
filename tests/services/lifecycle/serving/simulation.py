"""A server's pods, agents, chat services and API server in memory: decisions are carried out in the operator's order, time passes at a
test's word."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llamero.lifecycle.serving.servers import decide
from llamero.lifecycle.serving.world import (
    AdapterView,
    DeploymentView,
    EnginePodView,
    ServerDecision,
    ServerRoutes,
    ServerWorld,
    ServingCapabilities,
    ServingLimits,
)
from llamero.lifecycle.world import Note
from llamero.spec import names
from llamero.spec.adapter import AdapterSpec
from llamero.spec.digest import digest_json
from llamero.spec.rollout import StrategySpec
from llamero.spec.routes import Target
from llamero.spec.server import ModelServer, ModelServerStatus, NameStatus
from llamero.spec.serving import (
    AdapterReport,
    AgentRefusal,
    AgentReport,
    AgentWanted,
    ChatReport,
    InFlight,
    TargetCounts,
    first_token_bucket,
)

START = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
NAMESPACE, SERVER = "team", "llama"
BASE = "/models/base"

Quality = Callable[[str | None], tuple[float, float, float]]
"""Of an adapter's id: the share of failed requests, seconds to the first token, the share of votes up."""


def build_server(**spec: Any) -> ModelServer:
    """A server with a local base on the cpu engine, and quick steps; `spec` changes it, in camelCase."""
    wanted: dict[str, Any] = {
        "baseModel": {"uri": BASE},
        "engine": {"type": "cpu"},
        "strategy": {"intervalSeconds": 10},
        **spec,
    }
    return ModelServer.model_validate(
        {
            "apiVersion": "llamero.dev/v1alpha1",
            "kind": "ModelServer",
            "metadata": {"name": SERVER},
            "spec": wanted,
        }
    )


def build_adapter(name: str, created_at: datetime, **spec: Any) -> AdapterView:
    """An Adapter `<job>-r<run>` for the public name `tutor`, or another with `model`; `spec` adds to it, in camelCase."""
    job, _, run = name.rpartition("-r")
    digest = digest_json(name)
    told: dict[str, Any] = {
        "uri": f"/adapters/{name}",
        "sha256": digest,
        "base": BASE,
        "baseSha256": "0" * 64,
        "model": "tutor",
        "server": SERVER,
        "goldenSha256": "1" * 64,
        **spec,
    }
    if run.isdigit():
        told["source"] = {"job": job, "uid": "u", "run": int(run)}
        served = names.served_adapter_id(NAMESPACE, job, int(run), digest)
    else:
        served = names.imported_adapter_id(NAMESPACE, name, digest)
    return AdapterView(name, f"uid-{name}", created_at, AdapterSpec.model_validate(told), served)


@dataclass
class Pod:
    """An engine's pod with its agent. `slow` looks pass until an adapter that it is told of is ready."""

    name: str
    ip: str
    created_at: datetime
    gathered: tuple[str, ...] = ()
    told: AgentWanted | None = None
    loaded: dict[str, int] = field(default_factory=dict)  # id: looks until it is ready
    refused: dict[str, str] = field(default_factory=dict)
    proven: set[str] = field(default_factory=set)  # ids that were ever ready in it
    starts_in: int = 1
    heard_at: datetime | None = None
    report: AgentReport | None = None
    silent: bool = False
    deleting: bool = False
    restarts: int = 0
    crashes: bool = False
    refusal: AgentRefusal | None = None

    @property
    def up(self) -> bool:
        return self.starts_in <= 0 and not self.crashes and self.refusal is None


@dataclass
class Chat:
    """A chat service: which routes it works by, what it counted, what is under way."""

    instance: str
    routes: ServerRoutes = field(default_factory=ServerRoutes)
    revision: str = ""
    counts: dict[tuple[str, str, str | None], TargetCounts] = field(default_factory=dict)
    in_flight: dict[tuple[str, str | None], int] = field(default_factory=dict)
    silent: bool = False
    stuck: bool = False  # takes in no new routes

    def report(self) -> ChatReport:
        under_way = [InFlight(backend=b, adapter=a, requests=n) for (b, a), n in self.in_flight.items() if n]
        return ChatReport(
            instance=self.instance, revision=self.revision, targets=list(self.counts.values()), in_flight=under_way
        )


@dataclass
class Cluster:
    """What exists. `look` is one look of the operator; `tick` lets the rest of the world go on for a while."""

    server: ModelServer | None = field(default_factory=build_server)
    limits: ServingLimits = field(default_factory=ServingLimits)
    now: datetime = START
    status: ModelServerStatus = field(default_factory=ModelServerStatus)
    adapters: dict[str, AdapterView] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    chats: list[Chat] = field(default_factory=list)
    routed: ServerRoutes = field(default_factory=ServerRoutes)
    revision: str = ""
    written_at: datetime | None = None
    wanted: AgentWanted | None = None
    replicas: int = 0
    deployed: bool = False
    generation: int = 1
    deleting: bool = False
    gone: bool = False
    problems: tuple[str, ...] = ()
    taken: dict[str, str] = field(default_factory=dict)
    strategies: dict[str, StrategySpec] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    capabilities: ServingCapabilities = field(default_factory=lambda: ServingCapabilities(True, True))
    quality: Quality = lambda _: (0.0, 0.1, 0.8)
    traffic: int = 0  # requests of each chat service for each name in a second
    votes: bool = False
    slow: int = 2
    bad_files: dict[str, str] = field(default_factory=dict)  # ids that every pod refuses, with why
    breaks: set[str] = field(default_factory=set)  # ids that an engine does not start with
    notes: list[Note] = field(default_factory=list)
    pod_count: int = 0
    last: ServerDecision | None = None

    # -- people ----------------------------------------------------------------------------------------------------------------

    def publish(self, name: str, **spec: Any) -> AdapterView:
        adapter = build_adapter(name, self.now, **spec)
        self.adapters[name] = adapter
        return adapter

    def edit(self, **spec: Any) -> None:
        """Change fields of the server's spec, given in camelCase."""
        assert self.server is not None
        told = self.server.to_json_dict()
        told["spec"] = {**told["spec"], **spec}  # type: ignore[dict-item]
        self.server, self.generation = ModelServer.model_validate(told), self.generation + 1

    def edit_name(self, **entry: Any) -> None:
        """Set the entry of the name `tutor`, or another with `name`."""
        self.edit(models=[{"name": "tutor", **entry}])

    def delete_adapter(self, name: str) -> None:
        adapter = self.adapters[name]
        if adapter.held:
            self.adapters[name] = replace(adapter, deleting=True)
        else:
            del self.adapters[name]

    # -- what is seen ----------------------------------------------------------------------------------------------------------

    def world(self) -> ServerWorld:
        newest = self._gathered() if self.engine == "tgi" else None
        current = [p for p in self.pods if not p.deleting and (newest is None or p.gathered == newest)]
        up = [p for p in self.pods if p.up and not p.deleting]
        settled = len(current) == self.replicas == len([p for p in self.pods if not p.deleting])
        settled = settled and all(self._is_ready(p) for p in current)
        return ServerWorld(
            namespace=NAMESPACE,
            name=SERVER,
            uid="uid-llama",
            generation=self.generation,
            created_at=START,
            deleting=self.deleting,
            server=self.server,
            problems=self.problems,
            status=self.status,
            adapters=tuple(self.adapters.values()),
            pods=tuple(self._view(p) for p in self.pods),
            deployment=DeploymentView(1, self.replicas, len(current), len(up), settled) if self.deployed else None,
            routed=self.routed,
            revision=self.revision,
            chats=tuple(c.report() for c in self.chats if not c.silent),
            silent_chats=sum(c.silent for c in self.chats),
            strategies=self.strategies,
            taken=self.taken,
            capabilities=self.capabilities,
            refused=self.refused,
            told_serial=self.wanted.serial if self.wanted is not None else 0,
            routes_age=(self.now - self.written_at).total_seconds() if self.written_at else None,
        )

    @property
    def engine(self) -> str:
        return self.server.spec.engine.type if self.server is not None else "cpu"

    def _gathered(self) -> tuple[str, ...]:
        return tuple(a.id for a in self.wanted.adapters) if self.wanted is not None else ()

    def _view(self, pod: Pod) -> EnginePodView:
        age = (self.now - pod.heard_at).total_seconds() if pod.heard_at is not None else None
        return EnginePodView(
            name=pod.name,
            uid=f"uid-{pod.name}",
            created_at=pod.created_at,
            ip=pod.ip,
            ready=self._is_ready(pod),
            deleting=pod.deleting,
            phase="Running" if pod.refusal is None else "Pending",
            restarts=pod.restarts,
            gathered=pod.gathered,
            problem="The engine ended with code 1, again and again." if pod.crashes else "",
            refusals=(pod.refusal,) if pod.refusal is not None else (),
            report=pod.report,
            report_age=age,
        )

    def _is_ready(self, pod: Pod) -> bool:
        """For tgi only when all that it was started with is proven."""
        return pod.up and (self.engine != "tgi" or (all(n <= 0 for n in pod.loaded.values()) and not pod.refused))

    # -- the operator ----------------------------------------------------------------------------------------------------------

    def look(self) -> ServerDecision:
        """Observe, decide, carry out."""
        world = self.world()
        decision = decide(world, self.limits, self.now)
        self.carry_out(decision)
        self.last = decision
        return decision

    def carry_out(self, decision: ServerDecision, crash_before: int | None = None) -> None:
        """In the operator's order; `crash_before` the step of that number the operator dies."""
        steps = (
            self._write_adapters, self._write_wanted, self._write_routes, self._write_deployment, self._write_status,
            self._release,
        )  # fmt: skip
        for step in steps[:crash_before]:
            step(decision)

    def _write_adapters(self, decision: ServerDecision) -> None:
        for name, status in decision.adapter_statuses.items():
            self.adapters[name] = replace(self.adapters[name], status=status)
        for name in decision.hold:
            if not self.adapters[name].deleting:
                self.adapters[name] = replace(self.adapters[name], held=True)

    def _write_wanted(self, decision: ServerDecision) -> None:
        if decision.wanted is None:
            return
        self.wanted = decision.wanted
        for pod in self.pods:
            if self.engine != "tgi" and pod.up and not pod.silent:
                pod.told = max([w for w in (pod.told, decision.wanted) if w is not None], key=lambda w: w.serial)

    def _write_routes(self, decision: ServerDecision) -> None:
        if decision.routes == self.routed:
            return
        self.routed, self.written_at = decision.routes, self.now
        told = [*(b.to_json_dict() for b in self.routed.backends), *(r.to_json_dict() for r in self.routed.routes)]
        self.revision = digest_json(told)[:16]

    def _write_deployment(self, decision: ServerDecision) -> None:
        if decision.deploy:
            self.replicas, self.deployed = decision.replicas, True

    def _write_status(self, decision: ServerDecision) -> None:
        self.status = ModelServerStatus.model_validate_json(decision.status.model_dump_json())
        self.notes += decision.notes

    def _release(self, decision: ServerDecision) -> None:
        for name in decision.release:
            adapter = replace(self.adapters[name], held=False)
            self.adapters[name] = adapter
            if adapter.deleting:
                del self.adapters[name]
        if decision.let_go:
            self.gone = True
            self.pods.clear()

    # -- the rest of the world -------------------------------------------------------------------------------------------------

    def tick(self, seconds: float = 1.0) -> None:
        """Pods start and load, chat services take in routes and send requests."""
        self.now += timedelta(seconds=seconds)
        self._run_deployment()
        for pod in self.pods:
            self._run_pod(pod)
        for chat in self.chats:
            if not chat.stuck:
                chat.routes, chat.revision = self.routed, self.revision
            self._send(chat, seconds)

    def run(self, seconds: int, step: float = 1.0) -> None:
        """Looks and ticks in turn."""
        for _ in range(int(seconds / step)):
            self.look()
            self.tick(step)

    def run_until(self, holds: Callable[[], bool], seconds: int = 2000) -> None:
        for _ in range(seconds):
            if holds():
                return
            self.look()
            self.tick()
        raise AssertionError(f"it did not come to it in {seconds} s: {self.status}")

    def _run_deployment(self) -> None:
        if not self.deployed:
            return
        self.pods = [p for p in self.pods if not p.deleting]
        newest = self._gathered() if self.engine == "tgi" else ()
        old = [p for p in self.pods if p.gathered != newest]
        new = [p for p in self.pods if p.gathered == newest]
        recreate = self.server is not None and self.server.spec.update_strategy == "Recreate"
        for pod in old[1:] if not recreate else []:
            if not self._is_ready(pod):
                pod.deleting = True
        if recreate and old:
            for pod in old:
                pod.deleting = True
            return
        if len(new) < self.replicas and len(self.pods) <= self.replicas:
            self.add_pod(newest)
        ready = [p for p in new if self._is_ready(p)]
        for pod in old[: max(len(ready) + len(old) - self.replicas, 0)]:
            pod.deleting = True
        for pod in new[self.replicas :]:
            pod.deleting = True

    def add_pod(self, gathered: tuple[str, ...] = ()) -> Pod:
        self.pod_count += 1
        pod = Pod(f"llama-engine-{self.pod_count}", f"10.0.0.{self.pod_count % 250 + 1}", self.now, gathered)
        self.pods.append(pod)
        return pod

    def _run_pod(self, pod: Pod) -> None:
        if pod.told is None and self.wanted is not None:
            pod.told = self.wanted
        if self.engine == "tgi":
            bad = next((i for i in pod.gathered if i in self.bad_files), None)
            pod.refusal = AgentRefusal(id=bad, message=self.bad_files[bad]) if bad is not None else None
            pod.crashes = pod.refusal is None and bool(set(pod.gathered) & self.breaks)
            pod.restarts += pod.crashes
            wanted = list(pod.gathered)
        else:
            wanted = [a.id for a in pod.told.adapters] if pod.told is not None else []
        pod.starts_in -= 1
        if not pod.up:
            pod.loaded.clear()
            if pod.refusal is None and (pod.starts_in <= 0 or pod.heard_at is not None):
                pod.report = self._say(pod)
            return
        pod.loaded = {i: pod.loaded.get(i, self.slow) - 1 for i in wanted if i not in self.bad_files}
        pod.refused = {i: self.bad_files[i] for i in wanted if i in self.bad_files}
        pod.proven |= {i for i, n in pod.loaded.items() if n <= 0}
        pod.report = self._say(pod)

    def _say(self, pod: Pod) -> AgentReport | None:
        if pod.silent:
            return pod.report
        pod.heard_at = self.now
        loaded = [
            AdapterReport(id=i, stage="ready" if n <= 0 else "loading", nearer=10, golden=10)
            for i, n in pod.loaded.items()
        ]
        loaded += [AdapterReport(id=i, stage="refused", message=why) for i, why in pod.refused.items()]
        serial = pod.told.serial if pod.told is not None else 0
        return AgentReport(pod=pod.name, started_at=START, serial=serial, engine_ready=pod.up, adapters=loaded)

    def _send(self, chat: Chat, seconds: float) -> None:
        """Counts are kept for the steps in its routes."""
        steps = {(r.model, r.step) for r in chat.routes.routes}
        chat.counts = {key: counts for key, counts in chat.counts.items() if key[:2] in steps}
        for route in chat.routes.routes:
            for target in route.targets:
                self._count(chat, route.model, route.step, target, int(self.traffic * seconds))

    def _count(self, chat: Chat, model: str, step: str, target: Target, traffic: int) -> None:
        key = (model, step, target.adapter)
        old = chat.counts.get(key) or TargetCounts(model=model, step=step, adapter=target.adapter)
        requests = -(-traffic * target.weight // 100)
        errors, first_token, up = self.quality(target.adapter)
        failed = round((old.requests + requests) * errors)
        buckets = list(old.first_token)
        buckets[first_token_bucket(first_token)] += requests
        votes = old.requests + requests if self.votes else 0
        chat.counts[key] = TargetCounts(
            model=model, step=step, adapter=target.adapter, requests=old.requests + requests, errors=failed,
            first_token=buckets, votes_up=round(votes * up), votes_down=votes - round(votes * up),
        )  # fmt: skip

    # -- what tests ask --------------------------------------------------------------------------------------------------------

    def name(self, name: str = "tutor") -> NameStatus:
        return next((n for n in self.status.models if n.name == name), NameStatus(name=name))

    def shares(self, name: str = "tutor") -> dict[str | None, int]:
        """Weights by Adapter, as the routes have them."""
        by_id = {a.served_id: a.name for a in self.adapters.values()}
        route = next((r for r in self.routed.routes if r.model == name), None)
        return {by_id.get(t.adapter or "", t.adapter): t.weight for t in route.targets} if route is not None else {}

    def has_settled(self) -> bool:
        """Whether the last look saw nothing under way."""
        assert self.last is not None
        return self.last.wake_after == self.limits.poll_seconds
