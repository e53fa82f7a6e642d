"""What a reconcile sees and what it decides, as values: the seam between the operator's I/O and the pure decisions.

`World` is observed (by the operator), `Decision` is carried out (by the operator); everything between is `jobs.decide`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from llamero.spec.adapter import AdapterResourceStatus, AdapterSpec
from llamero.spec.job import BaseModelRef, FineTuneJob
from llamero.spec.server import EngineType
from llamero.spec.status import JobStatus, WorkKind
from llamero.spec.tasks import LogRequest, Outcome, ProgressReport


@dataclass(frozen=True)
class PodView:
    """A child's pod, as far as decisions need it. `exit_code` and `outcome` are those of its main container, once it ended."""

    name: str
    uid: str
    phase: str  # Pending, Running, Succeeded, Failed, Unknown
    created_at: datetime
    node: str | None = None
    running_since: datetime | None = None
    deleting: bool = False
    unschedulable: str | None = None  # the scheduler's sentence
    waiting: str | None = None  # why its container does not start, such as `ErrImagePull: ...`
    exit_code: int | None = None
    reason: str | None = None  # OOMKilled, Evicted, Error, NodeLost, ...
    outcome: Outcome | None = None


@dataclass(frozen=True)
class ChildView:
    """A child Job of the FineTuneJob and its pods, found by its labels."""

    name: str
    kind: WorkKind
    run: int
    attempt: int
    created_at: datetime
    complete: bool = False
    failed: bool = False
    suspended: bool = False  # by Kueue
    deleting: bool = False
    message: str = ""  # why the Job failed, or why it could not be made
    pods: tuple[PodView, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What the API server can do, by discovery."""

    job_suspend: bool = False
    version: tuple[int, int] = (1, 28)


@dataclass(frozen=True)
class Limits:
    """The operator's settings that decisions need; documented beside `llamero_operator.settings`, where they come from."""

    resend_seconds: float = 30.0
    unschedulable_seconds: float = 300.0
    hung_margin_seconds: float = 120.0
    grace_seconds: float = 120.0
    status_interval_seconds: float = 5.0
    poll_seconds: float = 30.0
    gpu_prices: Mapping[str, float] = field(default_factory=dict)  # price of a GPU hour by class
    known_gpu_classes: frozenset[str] = frozenset()
    allowed_bases: tuple[str, ...] = ()  # glob patterns of base models; empty: all
    storage_problem: str | None = None  # why no job can run at all (a sentence), such as no storage being set


@dataclass(frozen=True)
class World:
    """All that one reconcile of one job sees. `job` is None where its spec is wrong; `problems` say why, a sentence each."""

    namespace: str
    name: str
    uid: str
    generation: int
    created_at: datetime
    deleting: bool
    job: FineTuneJob | None
    problems: tuple[str, ...]
    status: JobStatus
    children: tuple[ChildView, ...]
    progress: ProgressReport | None  # of the attempt at hand
    redis_problem: str | None  # why Redis can't be asked, as a sentence; None where it answered
    adapters: Mapping[str, AdapterSpec]  # the job's Adapter resources, by name
    has_storage: bool = True  # whether a clean-up pod can run (its namespace is not going away)
    capabilities: Capabilities = Capabilities()
    log_request: LogRequest | None = None  # from the annotation
    refused: Mapping[str, str] = field(default_factory=dict)  # children that the API server refused, with its sentence
    adapter_statuses: Mapping[str, AdapterResourceStatus] = field(default_factory=dict)  # of `adapters`, by name
    servers: frozenset[str] | None = None  # the namespace's ModelServers; None: the operator serves none


@dataclass(frozen=True)
class Work:
    """A child Job that must exist, and what its pods are told. `AttemptStatus` of the same attempt stands in the status."""

    kind: WorkKind
    run: int
    attempt: int
    pods: int = 1
    gpu_class: str | None = None
    gpus: int = 0
    micro_batch_tokens: int = 0
    evaluate_too: bool = False
    init_adapter: str | None = None
    keep_adapters: tuple[str, ...] = ()
    logs: LogRequest | None = None


@dataclass(frozen=True)
class Note:
    """An Event for a person. `warning` for what went wrong."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class DefaultServer:
    """A ModelServer that must exist, with defaults for all that is not said here; one that is there is left as it is."""

    name: str
    base: BaseModelRef
    engine: EngineType


@dataclass(frozen=True)
class Publication:
    """An Adapter resource that must exist, and the ModelServer that is to serve it."""

    name: str
    spec: AdapterSpec
    server: DefaultServer | None = None


@dataclass(frozen=True)
class Decision:
    """What one reconcile comes to. Children that are not in `work` are deleted; nothing happens that is not said here."""

    status: JobStatus
    work: tuple[Work, ...] = ()
    send: Work | None = None  # the attempt whose task is to be sent now
    publish: Publication | None = None
    notes: tuple[Note, ...] = ()
    wake_after: float | None = (
        None  # seconds to the next pass where nothing happens before; None: only an event wakes it
    )
    forget_queues: bool = False  # remove the job's keys from Redis (all but the attempt at hand's)
    delete_job: bool = False  # its TTL has passed
    let_go: bool = False  # clean-up is done, or given up: take the finalizer away
