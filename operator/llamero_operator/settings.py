"""The operator's settings: every field with its default, bounds and meaning, read once from a YAML file.

What a cluster's owner decides stands here (images, storage, GPU classes, limits); what a job wants stands in its manifest.
The reference page is generated from these models. Nothing here talks to a cluster.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import yaml
from pydantic import Field, ValidationError

from llamero.lifecycle.serving.world import ServingLimits
from llamero.lifecycle.world import Limits
from llamero.spec.base import SpecModel
from llamero.spec.validation import explain_errors
from llamero_operator.resources.quantities import QUANTITY_PATTERN, Quantity, parse_quantity

SETTINGS_VARIABLE = "LLAMERO_SETTINGS"
"""Names the settings file."""

ENVIRONMENT: dict[str, str] = {"LLAMERO_REDIS_URL": "redisUrl"}
"""Environment variables that take the place of a field, for what is secret and comes from a Secret."""

EXIT_BAD_SETTINGS = 2
MAX_SETTINGS_BYTES = 1 << 20

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_DNS_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_RESOURCE_NAME = r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$"
_ABSOLUTE_PATH = r"^/[^,:$]*[^/,:$]$"
_IMAGE = r"^[a-zA-Z0-9][\w./:@-]*$"
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_STORAGE_URI = r"^[a-z][a-z0-9+.-]*://[^\s$]+$"
_HTTP_URL = r"^https?://[^\s$]+$"
_ADDRESS = r"^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$"
_KEY = r"^[-._a-zA-Z0-9]+$"
_WORDS: dict[str, str] = {
    _DNS_LABEL: "a name: lower-case letters, digits and dashes, beginning and ending with a letter or digit",
    _DNS_NAME: "a resource's name: lower-case letters, digits, dashes and dots",
    _RESOURCE_NAME: "a qualified name, such as `nvidia.com/gpu`",
    _ABSOLUTE_PATH: "an absolute path without `,`, `:`, `$` and without a slash at its end",
    _IMAGE: "an image, such as `registry/name:tag` or `registry/name@sha256:...`",
    _LABEL_VALUE: "a label's value: letters, digits, dashes, underscores and dots (a number or a truth value stands in quotes)",
    _STORAGE_URI: "a URI, such as `s3://bucket/prefix`",
    _HTTP_URL: "an address that begins with http:// or https://",
    _ADDRESS: "an address, such as `llamero-chat-inner.llamero.svc:8081`",
    _KEY: "a key: letters, digits, dashes, underscores and dots",
    QUANTITY_PATTERN: "a quantity, such as 500m, 2 or 16Gi",
}
"""What a text must look like, in words."""

DnsLabel = Annotated[str, Field(pattern=_DNS_LABEL, max_length=63)]
DnsName = Annotated[str, Field(pattern=_DNS_NAME, max_length=253)]
ResourceName = Annotated[str, Field(pattern=_RESOURCE_NAME, max_length=253)]
AbsolutePath = Annotated[str, Field(pattern=_ABSOLUTE_PATH, max_length=1024)]
Image = Annotated[str, Field(pattern=_IMAGE, max_length=512)]
ShortText = Annotated[str, Field(max_length=1024)]
LabelValue = Annotated[str, Field(max_length=63, pattern=_LABEL_VALUE)]


class SettingsError(Exception):
    """The settings are wrong; `problems` has a sentence for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ImageSettings(SpecModel):
    """The images that pods run. A digest (`name@sha256:…`) keeps a run repeatable."""

    operator: Image = Field("llamero-operator", description="The operator's own image; the chart's Deployment uses it.")
    data: Image = Field(
        "llamero-data", description="Image of data workers and of the helpers: fetch, probe, clean, logs."
    )
    trainer: Image = Field("llamero-trainer", description="Image of training and evaluation.")
    engine: Image = Field("llamero-engine", description="Image of the built-in CPU engine.")
    agent: Image = Field("llamero-agent", description="Image of the agent beside each engine.")
    chat: Image = Field("llamero-chat", description="Image of the chat service; the chart's Deployment uses it.")
    tgi: Image = Field(
        "llamero-tgi",
        description="Image of text-generation-inference. `images/tgi` makes it from `ghcr.io/huggingface/text-generation-inference:3.3.7`, which "
        "starts as root alone.",
    )
    vllm: Image = Field("vllm/vllm-openai:v0.28.0", description="Image of vLLM; 0.19 or later.")


class StoragePolicy(StrEnum):
    """What becomes of a deleted job's unpublished files."""

    DELETE = "Delete"
    RETAIN = "Retain"


class StorageSettings(SpecModel):
    """Where jobs keep their files. Exactly one of `uri`, `claim` and `hostPath`."""

    uri: Annotated[str, Field(pattern=_STORAGE_URI, max_length=1024)] | None = Field(
        None, description="An object store: `s3://bucket/prefix`, `gs://bucket/prefix`, or another fsspec URI."
    )
    secret_name: DnsName | None = Field(
        None,
        description="With `uri`: a Secret in each job's namespace whose keys become the pods' environment "
        "(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, …).",
    )
    claim: DnsName | None = Field(
        None,
        description="A PersistentVolumeClaim in each job's namespace, ReadWriteMany where pods run on several nodes.",
    )
    host_path: AbsolutePath | None = Field(
        None,
        description="A folder of the node, for clusters of one node. Pod Security above `privileged` refuses such pods.",
    )
    mount_path: AbsolutePath = Field(
        "/llamero/storage", description="Where pods see `claim` or `hostPath`; URIs in statuses begin with it."
    )


class Toleration(SpecModel):
    """A toleration, as in a pod's spec."""

    key: ResourceName | None = Field(None, description="The taint's key; absent for all.")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="How the value is compared.")
    value: LabelValue | None = Field(None, description="The taint's value, for `Equal`.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="The taint's effect; absent for all."
    )
    toleration_seconds: int | None = Field(
        None, ge=0, le=86_400, description="With NoExecute: how long the pod stays once the node has the taint."
    )


class GpuClass(SpecModel):
    """One kind of GPU node that jobs may ask for by name."""

    resource: ResourceName = Field("nvidia.com/gpu", description="The extended resource that a GPU counts as.")
    memory_gib: int | None = Field(
        None, ge=1, le=4096, alias="memoryGiB", description="Memory of a GPU, in GiB, for estimates."
    )
    price_per_hour: float = Field(0, ge=0, le=100_000, description="Price of a GPU hour, in any currency; 0: not told.")
    node_selector: Annotated[dict[ResourceName, LabelValue], Field(max_length=32)] = Field(
        default_factory=dict, description="Labels that the node must have."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(
        default_factory=list, description="Taints that the pods tolerate."
    )
    runtime_class: DnsName | None = Field(None, description="The pods' runtimeClassName.")


class PodSettings(SpecModel):
    """What one kind of pod asks for and may use."""

    cpu_request: Quantity = Field("500m", description="CPU that the scheduler sets aside.")
    cpu_limit: Quantity | None = Field(None, description="CPU that it may use at most; absent: no limit.")
    memory_request: Quantity = Field("1Gi", description="Memory that the scheduler sets aside.")
    memory_limit: Quantity | None = Field("4Gi", description="Memory above which the pod is ended; absent: no limit.")
    scratch: Quantity = Field(
        "10Gi", description="Size of the scratch folder (an emptyDir); a pod above it is evicted."
    )
    shared_memory: Quantity | None = Field(
        None,
        description="Size of /dev/shm (an emptyDir in memory, counted as the pod's memory); absent: the runtime's own.",
    )
    ephemeral_request: Quantity = Field("1Gi", description="Disk of the node that the scheduler sets aside.")
    ephemeral_limit: Quantity | None = Field(
        None, description="Disk of the node that it may use at most; absent: scratch, /tmp and 1 GiB for logs."
    )
    node_selector: Annotated[dict[ResourceName, LabelValue], Field(max_length=32)] = Field(
        default_factory=dict, description="Labels that the node must have; a GPU class adds its own."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(
        default_factory=list, description="Taints that the pods tolerate; a GPU class adds its own."
    )


def _default(name: str, value: Any) -> Any:
    """The field of PodSettings with another default."""
    return Field(value, description=PodSettings.model_fields[name].description)


class DataPodSettings(PodSettings):
    """What a data worker asks for and may use."""

    cpu_request: Quantity = _default("cpu_request", "1")
    memory_request: Quantity = _default("memory_request", "2Gi")
    scratch: Quantity = _default("scratch", "20Gi")


class TrainingPodSettings(PodSettings):
    """What a training pod asks for and may use, besides its GPUs."""

    cpu_request: Quantity = _default("cpu_request", "2")
    memory_request: Quantity = _default("memory_request", "16Gi")
    memory_limit: Quantity | None = _default("memory_limit", "64Gi")
    scratch: Quantity = _default("scratch", "100Gi")
    shared_memory: Quantity | None = _default("shared_memory", "8Gi")


class EvaluationPodSettings(PodSettings):
    """What a pod that evaluates alone asks for and may use."""

    cpu_request: Quantity = _default("cpu_request", "2")
    memory_request: Quantity = _default("memory_request", "8Gi")
    memory_limit: Quantity | None = _default("memory_limit", "32Gi")
    scratch: Quantity = _default("scratch", "50Gi")
    shared_memory: Quantity | None = _default("shared_memory", "1Gi")


class HelperPodSettings(PodSettings):
    """What a helper asks for and may use: fetch, probe, clean, logs."""

    cpu_request: Quantity = _default("cpu_request", "100m")
    memory_request: Quantity = _default("memory_request", "256Mi")
    memory_limit: Quantity | None = _default("memory_limit", "2Gi")


class TgiPodSettings(PodSettings):
    """What a pod of text-generation-inference asks for and may use, besides its GPUs; a ModelServer may say otherwise."""

    cpu_request: Quantity = _default("cpu_request", "4")
    memory_request: Quantity = _default("memory_request", "32Gi")
    memory_limit: Quantity | None = _default("memory_limit", "64Gi")
    scratch: Quantity = _default("scratch", "100Gi")
    shared_memory: Quantity | None = _default("shared_memory", "8Gi")


class VllmPodSettings(TgiPodSettings):
    """What a pod of vLLM asks for and may use, besides its GPUs; a ModelServer may say otherwise."""


class CpuPodSettings(PodSettings):
    """What a pod of the CPU engine asks for and may use; a ModelServer may say otherwise."""

    cpu_request: Quantity = _default("cpu_request", "2")
    memory_request: Quantity = _default("memory_request", "8Gi")
    memory_limit: Quantity | None = _default("memory_limit", "32Gi")
    scratch: Quantity = _default("scratch", "50Gi")


class AgentPodSettings(PodSettings):
    """What the agent asks for and may use, in the pod of its engine. Scratch and nodes are the engine's."""

    cpu_request: Quantity = _default("cpu_request", "100m")
    memory_request: Quantity = _default("memory_request", "256Mi")
    memory_limit: Quantity | None = _default("memory_limit", "1Gi")


class PodsSettings(SpecModel):
    """What each kind of pod asks for. Fields that are left out keep the kind's own default."""

    data: DataPodSettings = Field(default_factory=DataPodSettings, description="Data workers (prepare).")
    training: TrainingPodSettings = Field(default_factory=TrainingPodSettings, description="Training.")
    evaluation: EvaluationPodSettings = Field(
        default_factory=EvaluationPodSettings, description="Evaluation in a pod of its own."
    )
    helper: HelperPodSettings = Field(
        default_factory=HelperPodSettings,
        description="fetch, probe, clean and logs. With an object store as storage, fetch's scratch must hold a base model.",
    )
    tgi: TgiPodSettings = Field(
        default_factory=TgiPodSettings,
        description="text-generation-inference. With an object store as storage, scratch must hold the base model.",
    )
    vllm: VllmPodSettings = Field(
        default_factory=VllmPodSettings,
        description="vLLM. With an object store as storage, scratch must hold the base model.",
    )
    cpu: CpuPodSettings = Field(
        default_factory=CpuPodSettings,
        description="The CPU engine. With an object store as storage, scratch must hold the base model.",
    )
    agent: AgentPodSettings = Field(
        default_factory=AgentPodSettings, description="The agent's containers in each engine's pod."
    )


class CaConfigMap(SpecModel):
    """Certificates of authorities to trust besides the public ones."""

    name: DnsName = Field(description="A ConfigMap in each job's namespace.")
    key: Annotated[str, Field(pattern=_KEY, max_length=253)] = Field(
        "ca.crt", description="Its key with the whole bundle (PEM): it takes the place of the image's own."
    )


class ProxySettings(SpecModel):
    """The way out through a proxy."""

    http: ShortText | None = Field(None, description="`HTTP_PROXY` of the pods.")
    https: ShortText | None = Field(None, description="`HTTPS_PROXY` of the pods.")
    no_proxy: ShortText | None = Field(
        None, description="`NO_PROXY` of the pods: Redis, storage and what else is near."
    )


class HubSettings(SpecModel):
    """How pods reach the model hub."""

    endpoint: Annotated[str, Field(pattern=_HTTP_URL, max_length=1024)] | None = Field(
        None, description="Address of the hub or of a mirror (`HF_ENDPOINT`)."
    )
    offline: bool = Field(False, description="Never ask the hub: base models and data come from storage alone.")
    ca_config_map: CaConfigMap | None = Field(None, description="Certificates to trust.")
    proxy: ProxySettings = Field(default_factory=ProxySettings, description="The way out.")


class ClientSettings(SpecModel):
    """How fast the operator may talk to the API server."""

    qps: float = Field(100, gt=0, le=10_000, description="Requests a second, in the long run.")
    burst: int = Field(200, ge=1, le=100_000, description="Requests at once, after a quiet time.")
    max_concurrent: int = Field(16, ge=1, le=1_000, description="Requests under way at the same time.")


class IntervalSettings(SpecModel):
    """Times, in seconds."""

    status_interval_seconds: float = Field(
        5, ge=0.1, le=3_600, description="Least time between two status writes that change nothing but progress."
    )
    poll_seconds: float = Field(
        30,
        ge=1,
        le=3_600,
        description="Time after which a job with an attempt under way is looked at again, whatever happens.",
    )
    resend_seconds: float = Field(
        30, ge=1, le=3_600, description="A task without sign of life for so long while its pod runs is sent again."
    )
    idle_seconds: int = Field(120, ge=5, le=86_400, description="A worker that was given no task for so long ends.")
    unschedulable_seconds: float = Field(
        300, ge=1, le=86_400, description="A pod without a node for so long is tried on the job's next GPU class."
    )
    grace_seconds: int = Field(
        120, ge=1, le=3_600, description="Time that a pod gets to write its checkpoint when it is told to end."
    )
    watchdog_seconds: float = Field(
        180,
        ge=10,
        le=86_400,
        description="A watch that was silent for so long ends the process, so that it is started afresh.",
    )
    hung_margin_seconds: float = Field(
        120,
        ge=1,
        le=86_400,
        description="Time past progressDeadlineSeconds until a worker that did not end itself is ended.",
    )
    helper_deadline_seconds: int = Field(
        3_600, ge=60, le=86_400, description="Longest time for a look at the data, a clean-up or a print of logs."
    )


Address = Annotated[str, Field(pattern=_ADDRESS, max_length=259)]


class ServingSettings(SpecModel):
    """How ModelServers are served, and how long what may take. Times are in seconds."""

    enabled: bool = Field(True, description="Serve ModelServers and adapters; false: jobs publish adapters alone.")
    chats: Annotated[list[Address], Field(max_length=16)] = Field(
        default_factory=list,
        description="The chat services' inner ports, `host:port`, each asked at all of its addresses: they tell how rollouts go and which "
        "adapters are in use. The chart sets its own.",
    )
    poll_seconds: float = Field(10, ge=0.5, le=3_600, description="Time between two looks at a quiet server.")
    busy_poll_seconds: float = Field(
        1, ge=0.1, le=600, description="Time between two looks while something is under way."
    )
    timeout_seconds: float = Field(3, ge=0.1, le=60, description="An agent or a chat service answers within this.")
    report_seconds: float = Field(
        30,
        ge=1,
        le=3_600,
        description="A pod whose agent was not heard for so long takes no requests, unless Kubernetes calls it ready.",
    )
    drain_seconds: float = Field(
        120,
        ge=0,
        le=86_400,
        description="An adapter that is routed away is unloaded once no request is under way to it, at the latest after this.",
    )
    settle_seconds: float = Field(
        10,
        ge=0,
        le=3_600,
        description="Where no chat service tells which routes it works by, new ones count as taken in after this.",
    )
    gather_seconds: float = Field(
        60,
        ge=0,
        le=86_400,
        description="Further finished jobs are waited for so long before an engine is restarted for them.",
    )
    crash_restarts: int = Field(
        2, ge=1, le=100, description="Restarts of the engine in a new pod that count as a crash loop."
    )
    start_seconds: int = Field(
        1_800,
        ge=10,
        le=86_400,
        description="A new pod that is not ready after so long has failed: a big model takes its time.",
    )
    leave_seconds: int = Field(
        15,
        ge=1,
        le=600,
        description="A pod that is to end goes on taking requests for so long, until every chat service has new routes.",
    )
    finish_seconds: int = Field(
        90, ge=1, le=3_600, description="Time that answers under way then have to come to their end."
    )

    @property
    def grace_seconds(self) -> int:
        """The engine pods' terminationGracePeriodSeconds: leaving, finishing, and some for the process itself."""
        return self.leave_seconds + self.finish_seconds + 15


class LeaseSettings(SpecModel):
    """Leader election, for two replicas of which one works."""

    enabled: bool = Field(False, description="Take a Lease before working; needed as soon as there are two replicas.")
    name: DnsName = Field("llamero-operator", description="The Lease's name.")
    namespace: DnsLabel | None = Field(None, description="Its namespace; by default the operator's own.")
    duration_seconds: int = Field(
        15, ge=2, le=300, description="A Lease that was not renewed for so long may be taken over."
    )
    renew_seconds: float = Field(
        10, gt=0, le=300, description="A leader that could not renew for so long ends its process."
    )
    retry_seconds: float = Field(2, ge=1, le=300, description="Time between two tries to take or renew it.")


class LogSettings(SpecModel):
    """The operator's own log."""

    format: Literal["json", "text"] = Field("json", description="A JSON object or a line of text for each record.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level that is written.")


class SecuritySettings(SpecModel):
    """The user that pods run as. Absent ids are left to the cluster, as OpenShift wants it."""

    uid: int | None = Field(10001, ge=1, le=2**31 - 1, description="runAsUser.")
    gid: int | None = Field(10001, ge=1, le=2**31 - 1, description="runAsGroup.")
    fs_group: int | None = Field(
        10001, ge=1, le=2**31 - 1, description="fsGroup: the group that volumes are made writable for."
    )


class OperatorSettings(SpecModel):
    """All of the operator's settings."""

    redis_url: Annotated[str, Field(max_length=2048)] = Field(
        "",
        repr=False,
        description="Redis, as operator and pods reach it: `redis://[:password@]host:port/number`, or `rediss://` with TLS. "
        "Best given by LLAMERO_REDIS_URL from a Secret, since it holds a password.",
    )
    namespaces: Annotated[list[DnsLabel], Field(max_length=1000)] = Field(
        default_factory=list, description="Namespaces whose jobs are served; empty: all."
    )
    images: ImageSettings = Field(default_factory=ImageSettings, description="What pods run.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="The pods' imagePullPolicy; absent: Kubernetes' own rule by tag."
    )
    image_pull_secrets: Annotated[list[DnsName], Field(max_length=16)] = Field(
        default_factory=list, description="Secrets in each job's namespace that images are pulled with."
    )
    storage: StorageSettings = Field(default_factory=StorageSettings, description="Where jobs keep their files.")
    storage_policy: StoragePolicy = Field(
        StoragePolicy.DELETE,
        description="What becomes of a deleted job's unpublished files; published adapters always stay.",
    )
    gpu_classes: Annotated[dict[DnsLabel, GpuClass], Field(max_length=64)] = Field(
        default_factory=dict,
        description="GPU classes by name. A job that names none gets the one called `default`, or, without it, any node with `nvidia.com/gpu`.",
    )
    pods: PodsSettings = Field(default_factory=PodsSettings, description="What each kind of pod asks for.")
    hub: HubSettings = Field(default_factory=HubSettings, description="How pods reach the model hub.")
    allowed_bases: Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=256)] = Field(
        default_factory=list,
        description="Glob patterns of base models that jobs may name (`meta-llama/*`, `s3://models/*`); empty: all.",
    )
    client: ClientSettings = Field(default_factory=ClientSettings, description="How fast the API server may be asked.")
    concurrency: int = Field(8, ge=1, le=256, description="Jobs that are looked at side by side.")
    intervals: IntervalSettings = Field(default_factory=IntervalSettings, description="Times, in seconds.")
    serving: ServingSettings = Field(default_factory=ServingSettings, description="How adapters are served.")
    lease: LeaseSettings = Field(default_factory=LeaseSettings, description="Leader election.")
    metrics_port: int = Field(9090, ge=0, le=65_535, description="Port of /metrics; 0: none.")
    health_port: int = Field(8080, ge=0, le=65_535, description="Port of /healthz and /readyz; 0: none.")
    logs: LogSettings = Field(default_factory=LogSettings, description="The operator's own log.")
    priority_class_name: DnsName | None = Field(None, description="The pods' priorityClassName.")
    service_account_name: DnsName | None = Field(
        None,
        description="A service account in each job's namespace that pods run as, for a cloud's workload identity; its token is never mounted.",
    )
    security: SecuritySettings = Field(default_factory=SecuritySettings, description="The user that pods run as.")

    @property
    def storage_root(self) -> str:
        """Root of the storage as pods see it: the URI, or the folder that the volume is mounted at."""
        return self.storage.uri or self.storage.mount_path

    @property
    def cleans_storage(self) -> bool:
        """Whether a deleted job's files are removed."""
        return self.storage_policy is StoragePolicy.DELETE and find_storage_problem(self.storage) is None

    def to_limits(self) -> Limits:
        """What decisions need of them."""
        times = self.intervals
        return Limits(
            resend_seconds=times.resend_seconds,
            unschedulable_seconds=times.unschedulable_seconds,
            hung_margin_seconds=times.hung_margin_seconds,
            grace_seconds=float(times.grace_seconds),
            status_interval_seconds=times.status_interval_seconds,
            poll_seconds=times.poll_seconds,
            gpu_prices={name: c.price_per_hour for name, c in self.gpu_classes.items() if c.price_per_hour},
            known_gpu_classes=frozenset(self.gpu_classes),
            allowed_bases=tuple(self.allowed_bases),
            storage_problem=find_storage_problem(self.storage),
        )

    def to_serving_limits(self) -> ServingLimits:
        """What decisions about ModelServers need of them."""
        times = self.serving
        return ServingLimits(
            poll_seconds=times.poll_seconds,
            busy_poll_seconds=times.busy_poll_seconds,
            report_seconds=times.report_seconds,
            drain_seconds=times.drain_seconds,
            settle_seconds=times.settle_seconds,
            gather_seconds=times.gather_seconds,
            crash_restarts=times.crash_restarts,
            start_seconds=float(times.start_seconds),
            known_gpu_classes=frozenset(self.gpu_classes),
            allowed_bases=tuple(self.allowed_bases),
        )


# -- reading -------------------------------------------------------------------------------------------------------------------


def parse_settings(raw: Any, environment: Mapping[str, str] | None = None) -> OperatorSettings:
    """The settings from what a YAML file holds (None: nothing), environment variables first. Raises SettingsError with every mistake."""
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise SettingsError(
            [f"the settings are a mapping of fields, not a {type(raw).__name__}: write `field: value` lines"]
        )
    given = {field: value for name, field in ENVIRONMENT.items() if (value := (environment or {}).get(name))}
    try:
        settings = OperatorSettings.model_validate(raw | given)
    except ValidationError as error:
        wrong = explain_errors(error, OperatorSettings, _WORDS)
        raise SettingsError([f"{_format_path(p.path)}: {p.message}" for p in wrong]) from None
    if problems := list(_check(settings)):
        raise SettingsError(problems)
    return settings


def load_settings(environment: Mapping[str, str] | None = None) -> OperatorSettings:
    """The settings from the file that LLAMERO_SETTINGS names (none: defaults), and the environment. Raises SettingsError."""
    environment = os.environ if environment is None else environment
    name = environment.get(SETTINGS_VARIABLE)
    if not name:
        return parse_settings(None, environment)
    try:
        return parse_settings(_read(Path(name)), environment)
    except SettingsError as error:
        raise SettingsError([f"{name}: {p}" for p in error.problems]) from None


def load_settings_or_exit(environment: Mapping[str, str] | None = None) -> OperatorSettings:
    """The settings; where they are wrong, a line for each mistake on the standard error and the process ends with 2."""
    try:
        return load_settings(environment)
    except SettingsError as error:
        _give_up(error)


def _give_up(error: SettingsError) -> NoReturn:
    sys.stderr.writelines(f"error: {p}\n" for p in error.problems)
    raise SystemExit(EXIT_BAD_SETTINGS)


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_SETTINGS_BYTES:
            raise SettingsError([f"the file is larger than {MAX_SETTINGS_BYTES >> 20} MiB, which no settings are"])
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError([f"there is no such file: mend {SETTINGS_VARIABLE}"]) from None
    except UnicodeDecodeError as error:
        raise SettingsError([f"not UTF-8 text (byte {error.start}): save it as UTF-8"]) from None
    except OSError as error:
        raise SettingsError([f"can't be read: {error.strerror}"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise SettingsError([f"not readable as YAML{where}: {getattr(error, 'problem', None) or 'mend it'}"]) from None


def _format_path(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


# -- rules over several fields -------------------------------------------------------------------------------------------------


def find_storage_problem(storage: StorageSettings) -> str | None:
    """Why no job can run with this storage, as a sentence; None where it is well."""
    given = _storage_kinds(storage)
    if not given:
        return "The operator's settings name no storage: its administrator must set one of storage.uri, storage.claim and storage.hostPath."
    if len(given) > 1:
        return f"The operator's settings name {' and '.join(given)} as storage, where exactly one can be: its administrator must remove the others."
    return None


def _storage_kinds(storage: StorageSettings) -> list[str]:
    kinds = {"uri": storage.uri, "claim": storage.claim, "hostPath": storage.host_path}
    return [name for name, value in kinds.items() if value]


def _check(settings: OperatorSettings) -> Iterator[str]:
    # No value of redisUrl is ever repeated: it may hold a password.
    if not settings.redis_url:
        yield "redisUrl: it is missing: set LLAMERO_REDIS_URL, or write `redisUrl: redis://host:6379/0`"
    elif not settings.redis_url.startswith(("redis://", "rediss://", "unix://")):
        yield "redisUrl: it must begin with redis://, rediss:// or unix://"
    storage = settings.storage
    given = _storage_kinds(storage)
    if len(given) > 1:
        yield f"storage: give exactly one of uri, claim and hostPath, not {' and '.join(given)}"
    if storage.secret_name and not storage.uri:
        yield "storage.secretName: it goes with storage.uri alone: remove it, or name a uri"
    for name in PodsSettings.model_fields:
        yield from _check_pod(f"pods.{name}", getattr(settings.pods, name))
    lease = settings.lease
    # The election waits up to a fifth longer than it was told, so that candidates do not ask at the same moment.
    if not 1.2 * lease.retry_seconds < lease.renew_seconds < lease.duration_seconds:
        yield (
            "lease: retrySeconds and a fifth more must be below renewSeconds, and that below durationSeconds, so that a leader stops "
            "before another starts"
        )
    times = settings.serving
    if times.busy_poll_seconds > times.poll_seconds:
        yield f"serving.busyPollSeconds: must be at most serving.pollSeconds ({times.poll_seconds:g}), not {times.busy_poll_seconds:g}"
    for address in times.chats:
        if not 0 < int(address.rpartition(":")[2]) <= 65_535:
            yield f"serving.chats: `{address}` has no port between 1 and 65535 behind its colon"
    if settings.client.burst < settings.client.qps:
        yield f"client.burst: must be at least client.qps ({settings.client.qps:g}), not {settings.client.burst}"
    if settings.metrics_port == settings.health_port != 0:
        yield f"metricsPort: it must differ from healthPort, and both are {settings.health_port}: choose another"


def _check_pod(path: str, pod: PodSettings) -> Iterator[str]:
    pairs = (
        ("cpu", pod.cpu_request, pod.cpu_limit),
        ("memory", pod.memory_request, pod.memory_limit),
        ("ephemeral", pod.ephemeral_request, pod.ephemeral_limit),
    )
    for name, request, limit in pairs:
        if limit is not None and parse_quantity(request) > parse_quantity(limit):
            yield f"{path}.{name}Request: must be at most {path}.{name}Limit ({limit}), not {request}"
    if pod.ephemeral_limit is not None and parse_quantity(pod.scratch) > parse_quantity(pod.ephemeral_limit):
        yield f"{path}.scratch: must be at most {path}.ephemeralLimit ({pod.ephemeral_limit}), not {pod.scratch}"
    if pod.shared_memory and pod.memory_limit and parse_quantity(pod.shared_memory) >= parse_quantity(pod.memory_limit):
        yield f"{path}.sharedMemory: it counts as the pod's memory and must be below {path}.memoryLimit ({pod.memory_limit}), not {pod.shared_memory}"
