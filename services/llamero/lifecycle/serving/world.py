"""What a look at a ModelServer sees and what it comes to, as values: the seam to the operator's I/O, and to the laptop's.

`ServerWorld` is observed, `ServerDecision` is carried out; everything between is `serving.servers.decide`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from llamero.lifecycle.world import Note
from llamero.spec.adapter import AdapterResourceStatus, AdapterSpec
from llamero.spec.rollout import StrategySpec
from llamero.spec.routes import Backend, Route
from llamero.spec.server import ModelServer, ModelServerStatus
from llamero.spec.serving import AgentRefusal, AgentReport, AgentWanted, ChatReport


@dataclass(frozen=True)
class ServingCapabilities:
    """What the API server offers for serving, by discovery."""

    disruption_budgets: bool = False  # policy/v1
    autoscaling: bool = False  # autoscaling/v2
    spread_by_template: bool = False  # matchLabelKeys in topology spread constraints, since 1.27


@dataclass(frozen=True)
class ServingLimits:
    """The operator's settings that decisions about servers need; documented beside `llamero_operator.settings`."""

    poll_seconds: float = 10.0  # between two looks at a quiet server
    busy_poll_seconds: float = 1.0  # while something is under way
    report_seconds: float = (
        30.0  # a pod whose agent was not heard for so long takes no requests, unless Kubernetes calls it ready
    )
    drain_seconds: float = 120.0  # an adapter without requests is unloaded; with some it is after so long
    settle_seconds: float = (
        10.0  # where no chat service tells which routes it works by, they count as taken in after so long
    )
    gather_seconds: float = 60.0  # further finished jobs are waited for so long before an engine is restarted for them
    crash_restarts: int = 2  # restarts of the engine in a new pod that count as a crash loop
    start_seconds: float = 1800.0  # a new pod that is not ready after so long has failed
    known_gpu_classes: frozenset[str] = frozenset()
    allowed_bases: tuple[str, ...] = ()  # glob patterns of base models; empty: all


@dataclass(frozen=True)
class AdapterView:
    """An Adapter resource of the server's namespace."""

    name: str
    uid: str
    created_at: datetime
    spec: AdapterSpec
    served_id: str
    status: AdapterResourceStatus = field(default_factory=AdapterResourceStatus)
    deleting: bool = False
    held: bool = False  # has names.SERVED_FINALIZER


@dataclass(frozen=True)
class EnginePodView:
    """A pod of the server. `report` is the last word of its agent, `report_age` its age in seconds (None: never heard)."""

    name: str
    uid: str
    created_at: datetime
    ip: str = ""
    url: str = ""  # the engine's, where it does not answer at `ip` and names.ENGINE_PORT: on a laptop
    ready: bool = False  # Kubernetes' Ready condition
    deleting: bool = False
    phase: str = "Pending"
    restarts: int = 0  # of the engine's container
    template: str = ""  # the Deployment's pod-template-hash
    gathered: tuple[str, ...] = ()  # served ids that it was started with, for an engine that reads them at start
    problem: str = ""  # why it does not start or run, as a sentence: unschedulable, image, crash loop
    refusals: tuple[AgentRefusal, ...] = ()  # from its fetch container's termination message
    report: AgentReport | None = None
    report_age: float | None = None


@dataclass(frozen=True)
class DeploymentView:
    """The server's Deployment. `settled`: its newest template is in all its pods and they are available."""

    generation: int
    replicas: int = 0
    updated: int = 0
    available: int = 0
    settled: bool = False
    serves: str = ""  # `names.serves_mark` of what it was made for
    message: str = ""  # of its Progressing or ReplicaFailure condition, where it does not get on


@dataclass(frozen=True)
class ServerRoutes:
    """What the routes say of one server: its backends and its public names."""

    backends: tuple[Backend, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class ServerWorld:
    """All that one look at one server sees. `server` is None where its spec is wrong; `problems` say why, a sentence each."""

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: datetime
    deleting: bool
    server: ModelServer | None
    problems: tuple[str, ...]
    status: ModelServerStatus
    adapters: tuple[AdapterView, ...]  # of the namespace
    pods: tuple[EnginePodView, ...]
    deployment: DeploymentView | None
    routed: ServerRoutes  # what the routes that were last written say of this server
    revision: str  # of those routes
    chats: tuple[ChatReport, ...]  # of the chat services that answered
    silent_chats: int = 0  # chat services that are known and did not answer
    strategies: Mapping[str, StrategySpec] = field(default_factory=dict)  # by Adapter: of the job that made it
    taken: Mapping[str, str] = field(default_factory=dict)  # public names that other servers serve, with whose key
    capabilities: ServingCapabilities = ServingCapabilities()
    refused: Mapping[str, str] = field(default_factory=dict)  # objects that the API server refused, with its sentence
    routes_age: float | None = None  # seconds since these routes were written
    told_serial: int = 0  # of the list of adapters that pods start with, as it was last written; 0: not known


@dataclass(frozen=True)
class ServerDecision:
    """What one look comes to. Nothing happens that is not said here.

    Order of carrying out: verdicts and finalizers on Adapters, what pods are told, routes, Deployment, status, deletions.
    """

    status: ModelServerStatus
    routes: ServerRoutes
    wanted: (
        AgentWanted | None
    )  # what pods are told (cpu, vllm), or are started with (tgi); None: leave them as they are
    replicas: int = 1
    deploy: bool = True  # whether Deployment and the rest are to be as spec and `wanted` say; False: leave them alone
    adapter_statuses: Mapping[str, AdapterResourceStatus] = field(
        default_factory=dict
    )  # only those that change, by name
    hold: frozenset[str] = frozenset()  # Adapters that must have names.SERVED_FINALIZER
    release: frozenset[str] = frozenset()  # Adapters that are to lose it
    notes: tuple[Note, ...] = ()
    wake_after: float | None = None
    let_go: bool = False  # deletion: everything has drained; take the server's finalizer away
