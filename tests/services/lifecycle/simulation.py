"""An API server and its pods in memory, to which decisions are applied: in the operator's order, with crashes where a test asks for them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llamero.lifecycle.jobs import decide
from llamero.lifecycle.world import Capabilities, ChildView, Decision, Limits, Note, PodView, Publication, Work, World
from llamero.spec import names
from llamero.spec.adapter import AdapterResourceStatus, AdapterSpec
from llamero.spec.job import FineTuneJob
from llamero.spec.status import (
    BaseStatus,
    ConditionType,
    DataStatus,
    EvaluationStatus,
    JobPhase,
    JobStatus,
    TrainingStatus,
    WorkKind,
)
from llamero.spec.tasks import AttemptId, Outcome, ProgressReport

START = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
UID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def build_job(labels: dict[str, str] | None = None, **spec: Any) -> FineTuneJob:
    """A job with a local base; `spec` adds to it, in camelCase."""
    wanted = {
        "baseModel": {"uri": "/models/base"},
        "data": {"sources": [{"uri": "/data/a.jsonl", "format": "alpaca"}], "workers": 1},
        "training": {"resources": {"gpus": 0}},
        **spec,
    }
    return FineTuneJob.model_validate(
        {
            "apiVersion": "llamero.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "tutor", "labels": labels or {}},
            "spec": wanted,
        }
    )


class Crash(Exception):
    """The operator dies here."""


@dataclass
class Cluster:
    """What exists. `crash` is called before each write with its name, and may raise Crash.

    `hidden` children exist, but the watch has not shown them yet; `ghosts` are gone, but the watch still shows them.
    `refuses` says why the API server takes no object of a name; the next pass is told.
    """

    job: FineTuneJob | None
    problems: tuple[str, ...] = ()
    hidden: set[str] = field(default_factory=set)
    ghosts: dict[str, ChildView] = field(default_factory=dict)
    shown_once: set[str] = field(default_factory=set)
    refuses: Callable[[str], str | None] = lambda _: None
    refused: dict[str, str] = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=Capabilities)
    has_storage: bool = True
    suspends_children: bool = False
    reported: list[Note] = field(default_factory=list)
    removed: bool = False
    now: datetime = START
    status: JobStatus = field(default_factory=JobStatus)
    generation: int = 1
    children: dict[str, ChildView] = field(default_factory=dict)
    adapters: dict[str, AdapterSpec] = field(default_factory=dict)
    sent: list[Work] = field(default_factory=list)
    held: set[tuple[WorkKind, int, int]] = field(default_factory=set)
    deleting: bool = False
    gone: bool = False
    redis_problem: str | None = None
    progress: ProgressReport | None = None
    limits: Limits = field(default_factory=Limits)
    crash: Callable[[str], None] = lambda _: None
    status_writes: int = 0
    pods_made: int = 0
    data_digest: str = "d" * 64
    perplexity: str = "2.0"
    log_request: Any = None
    servers: set[str] | None = None  # None: the operator serves none
    adapter_statuses: dict[str, AdapterResourceStatus] = field(default_factory=dict)

    def world(self) -> World:
        return World(
            namespace="default", name="tutor", uid=UID, generation=self.generation, created_at=START, deleting=self.deleting,
            job=self.job, problems=self.problems, status=self.status, children=self.shown(), progress=self.progress,
            redis_problem=self.redis_problem, adapters=dict(self.adapters), log_request=self.log_request, refused=self.refused,
            capabilities=self.capabilities, has_storage=self.has_storage,
            servers=None if self.servers is None else frozenset(self.servers),
            adapter_statuses={n: self.adapter_statuses.get(n, AdapterResourceStatus()) for n in self.adapters},
        )  # fmt: skip

    def make_server(self, publication: Publication) -> dict[str, str]:
        """The ModelServer that the Adapter is for; what was refused."""
        server = publication.server
        if server is None or self.servers is None or server.name in self.servers:
            return {}
        self.crash("make server")
        if why := self.refuses(server.name):
            return {server.name: why}
        self.servers.add(server.name)
        return {}

    def shown(self) -> tuple[ChildView, ...]:
        """The children that the watch shows."""
        real = [c for n, c in self.children.items() if n not in self.hidden]
        return (*real, *(c for n, c in self.ghosts.items() if n not in self.children))

    def reconcile(self) -> Decision:
        """One pass, in the operator's order of writes."""
        shown = self.shown()
        decision = decide(self.world(), self.limits, self.now)
        refused: dict[str, str] = {}
        for work in decision.work:
            name = names.child_job_name("tutor", UID, work.run, work.kind, work.attempt)
            if name in self.children or any(c.name == name for c in shown):
                continue
            self.crash("create")
            if why := self.refuses(name):
                refused[name] = why
                continue
            self.children[name] = ChildView(
                name, work.kind, work.run, work.attempt, self.now, suspended=self.suspends_children
            )
            for _ in range(0 if self.suspends_children else work.pods):
                self.add_pod(name)
        if decision.publish is not None:
            self.crash("publish")
            if why := self.refuses(decision.publish.name):
                refused[decision.publish.name] = why
            else:
                self.adapters.setdefault(decision.publish.name, decision.publish.spec)
                refused |= self.make_server(decision.publish)
        self.refused = refused
        if decision.send is not None:
            self.crash("send")
            self.sent.append(decision.send)
        if decision.status != self.status:
            self.crash("status")
            # what is written is what can be read back
            self.status = JobStatus.model_validate_json(decision.status.model_dump_json(by_alias=True))
            self.status_writes += 1
        self.reported += decision.notes
        wanted = {(w.kind, w.run, w.attempt) for w in decision.work}
        for child in shown:
            if (child.kind, child.run, child.attempt) not in wanted and child.name in self.children:
                self.crash("delete")
                self.delete_child(child.name)
        self.removed |= decision.delete_job
        if decision.let_go:
            self.crash("let go")
            self.gone = True
        return decision

    def add_pod(self, name: str) -> None:
        self.pods_made += 1
        pod = PodView(
            f"{name}-{self.pods_made}", f"pod-{self.pods_made}", "Running", self.now, node="n1", running_since=self.now
        )
        child = self.children[name]
        self.children[name] = replace(child, pods=(*child.pods, pod))

    def delete_child(self, name: str) -> None:
        """Background propagation: a running pod stays for its grace, then all is gone."""
        child = self.children[name]
        alive = tuple(replace(p, deleting=True) for p in child.pods if p.exit_code is None)
        if alive and not child.deleting:
            self.children[name] = replace(child, deleting=True, pods=alive)
        elif not alive:
            del self.children[name]

    def reap(self) -> None:
        """Pods that are being deleted end."""
        self.children = {n: c for n, c in self.children.items() if not c.deleting}

    def change_pod(self, name: str, **changes: Any) -> None:
        child = self.children[name]
        self.children[name] = replace(child, pods=(replace(child.pods[0], **changes), *child.pods[1:]))

    def finish(
        self,
        name: str,
        exit_code: int = 0,
        message: str = "",
        reason: str | None = None,
        silent: bool = False,
        **results: Any,
    ) -> None:
        """The child's pod ends, with an answer unless it is `silent`."""
        child = self.children[name]
        outcome = None if silent else self.answer(child, exit_code, message, **results)
        self.change_pod(
            name, phase="Failed" if exit_code else "Succeeded", exit_code=exit_code, outcome=outcome, reason=reason
        )
        self.children[name] = replace(self.children[name], complete=exit_code == 0, failed=exit_code != 0)

    def answer(self, child: ChildView, exit_code: int, message: str, **results: Any) -> Outcome:
        attempt = AttemptId(
            namespace="default", job="tutor", uid=UID, run=child.run, kind=child.kind, attempt=child.attempt
        )
        outcome = Outcome(id=attempt, pod=child.pods[0].uid, exit_code=exit_code, message=message)
        return outcome.model_copy(update={**({} if exit_code else self.results(child.kind)), **results})

    def results(self, kind: WorkKind) -> dict[str, Any]:
        match kind:
            case WorkKind.FETCH:
                return {"base": BaseStatus(uri="/models/x", digest="b" * 64)}
            case WorkKind.PREPARE:
                data = DataStatus(
                    uri="/d", digest=self.data_digest, read=10, kept=9, rejected=1, train_examples=8, evaluation_examples=1, tokens=99
                )  # fmt: skip
                return {"data": data, "base": BaseStatus(uri="/models/base", digest="b" * 64)}
            case WorkKind.TRAIN:
                done = TrainingStatus(
                    uri="/t", steps=5, tokens=99, first_loss="3.0", last_loss="1.0", tokens_per_second="9.0", adapter_sha256="a" * 64
                )  # fmt: skip
                return {"training": done}
            case WorkKind.EVALUATE:
                found = EvaluationStatus(
                    uri="/e", records=1, base_token_perplexity="4.0", tuned_token_perplexity=self.perplexity, answers=3
                )
                spec = {
                    "sha256": "a" * 64,
                    "base": "/models/base",
                    "baseSha256": "b" * 64,
                    "model": "tutor",
                    "uri": "/x",
                }
                return {"evaluation": found, "adapter_uri": "/adapters/a", "adapter_spec": spec}
            case WorkKind.PROBE:
                return {"data_digest": self.data_digest}
            case _:
                return {}

    def edit(self, **spec: Any) -> None:
        self.job = build_job(**spec)
        self.generation += 1

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def tell(self, **report: Any) -> None:
        """The attempt at hand tells its progress."""
        work = self.status.work
        assert work is not None
        identity = AttemptId(
            namespace="default", job="tutor", uid=UID, run=self.status.run, kind=work.kind, attempt=work.attempt
        )
        self.progress = ProgressReport(id=identity, pod=work.pod or "", at=self.now, **report)

    def go_to(self, kind: WorkKind) -> ChildView:
        """Let pods do their work until one of this kind runs; its child."""
        for _ in range(200):
            self.reconcile()
            found = next((c for c in self.live() if c.kind is kind), None)
            if found is not None:
                self.reconcile()  # its pod is seen
                return self.children[found.name]
            for child in self.live():
                self.finish(child.name)
            self.wait(1)
        raise AssertionError(f"no {kind} was begun: {self.status}")

    def settle(self, passes: int = 60) -> list[JobPhase]:
        """Let every pod do its work until nothing moves; the phases on the way."""
        phases: list[JobPhase] = []
        for _ in range(passes):
            if self.gone:
                break
            self.reconcile()
            phases.append(self.status.phase)
            self.reap()
            for child in self.live():
                if child.pods and child.pods[0].exit_code is None:
                    self.finish(child.name)
            self.wait(2)
        return list(dict.fromkeys(phases))

    def reason(self, kind: ConditionType) -> tuple[str, str]:
        """Status and reason of a condition."""
        found = self.status.condition(kind)
        assert found is not None
        return found.status, found.reason

    def live(self) -> list[ChildView]:
        return [c for c in self.children.values() if not c.deleting]
