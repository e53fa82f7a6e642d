"""The ModelServer resource: a base model on an engine, with the adapters that its public names need.

Which adapter a name is served by follows from levels: what the name's entry pins, else the newest adapter for the name that was not
rolled back. Everything a person can do to a rollout (pause, promote, roll back, try again) is a value here, not a command: applying
the same manifest twice does nothing the second time.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from llamero.spec.base import ResultModel, SpecModel
from llamero.spec.job import API_VERSION, BaseModelRef, Metadata, ShortText
from llamero.spec.rollout import StrategySpec
from llamero.spec.status import Condition, Message

SERVER_KIND = "ModelServer"
MAX_MODELS = 32
MAX_SERVED_ADAPTERS = 64
MAX_PODS_TOLD = 16

EngineType = Literal["tgi", "vllm", "cpu"]
AdapterName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]
PublicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=63)]


class EngineSpec(SpecModel):
    """The inference server."""

    type: EngineType = Field(
        "tgi", description="tgi (text-generation-inference), vllm, or cpu (llamero's own engine, without a GPU)."
    )
    args: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=64)] = Field(
        default_factory=list,
        description="Further options of the engine's own launcher, such as `--max-batch-prefill-tokens=4096`; those that llamero sets "
        "itself are refused.",
    )
    quantization: Literal["nf4"] | None = Field(
        None, description="Serve the base in 4 bits (bitsandbytes' NF4), as QLoRA trained on; absent: as it is."
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="Precision; absent: the engine's own choice."
    )
    max_total_tokens: int | None = Field(
        None,
        ge=16,
        le=10_000_000,
        description="Most tokens of a prompt and its answer; absent: the model's own window.",
    )
    max_adapters: int = Field(
        8,
        ge=1,
        le=MAX_SERVED_ADAPTERS,
        description="Adapters that a pod may hold at once; a rollout needs room for one more.",
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(
        64, description="For vLLM, which sets room for adapters aside at start: the largest rank."
    )


class ServerResourcesSpec(SpecModel):
    """What an engine's pod asks for; absent fields are the operator's settings for the engine."""

    gpus: int | None = Field(None, ge=0, le=16, description="GPUs of a pod; by default 1, and 0 for the cpu engine.")
    gpu_class: ShortText | None = Field(None, description="A GPU class of the operator's settings.")
    cpu: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?m?$", max_length=16)] | None = Field(
        None, description="CPU that the scheduler sets aside, such as `4` or `500m`."
    )
    memory: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$", max_length=16)] | None = (
        Field(None, description="Memory of a pod (request and limit), such as `32Gi`.")
    )


class AutoscalingSpec(SpecModel):
    """More replicas while requests queue. Needs a metrics adapter that serves the engine's queue metric by pod."""

    min_replicas: int = Field(1, ge=1, le=1000, description="Least replicas.")
    max_replicas: int = Field(4, ge=1, le=1000, description="Most replicas.")
    queue_depth: int = Field(4, ge=1, le=10_000, description="Waiting requests a pod that it scales to.")


class WindowSpec(SpecModel):
    """When an engine that must be stopped for new adapters may be."""

    schedule: ShortText = Field(description="A cron line of five fields: when the window opens.")
    duration_seconds: int = Field(3600, ge=60, le=86_400, description="How long it stays open.")
    time_zone: ShortText = Field("UTC", description="The schedule's time zone, such as `Europe/Berlin`.")


class ServedNameSpec(SpecModel):
    """A public model name of this server. Names that no entry speaks of are served by what adapters ask for."""

    name: PublicName = Field(description="The name that chat clients ask for.")
    base: bool = Field(False, description="Answer by the base itself, without an adapter.")
    adapter: AdapterName | None = Field(
        None, description="Pin: the Adapter that serves the name, whichever is newest. It takes over by the same steps."
    )
    paused: bool = Field(False, description="Hold the rollout at the step where it is.")
    promote: AdapterName | None = Field(
        None,
        description="This Adapter takes all callers at once, without further steps and also after an automatic rollback, as long as it is "
        "the one to be served.",
    )
    rollback: Annotated[list[AdapterName], Field(max_length=16)] = Field(
        default_factory=list, description="Adapters that must not serve the name; taken from the list they may again."
    )
    retry: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Raise it to give adapters that were rolled back automatically another try.",
    )
    retired: bool = Field(False, description="Serve the name no longer.")
    strategy: StrategySpec | None = Field(
        None,
        description="The course of the name's rollouts; absent: the job's that made the adapter, else the server's.",
    )


class ModelServerSpec(SpecModel):
    """A base model on an engine, and its public names."""

    base_model: BaseModelRef = Field(
        description="The base model. Exactly one of `name` and `uri`; never changed: another base is another ModelServer."
    )
    engine: EngineSpec = Field(default_factory=EngineSpec, description="The inference server.")
    replicas: int = Field(1, ge=0, le=1000, description="Pods; without effect where `autoscaling` is set.")
    autoscaling: AutoscalingSpec | None = Field(None, description="More pods while requests queue.")
    resources: ServerResourcesSpec = Field(
        default_factory=ServerResourcesSpec, description="What an engine's pod asks for."
    )
    models: Annotated[list[ServedNameSpec], Field(max_length=MAX_MODELS)] = Field(
        default_factory=list, description="What is wanted of single names: pins, pauses, rollbacks."
    )
    strategy: StrategySpec = Field(default_factory=StrategySpec, description="The course of rollouts.")
    update_strategy: Literal["RollingUpdate", "Recreate"] = Field(
        "RollingUpdate",
        description="How pods are replaced: a new one beside the old ones (needs a spare GPU), or `Recreate`: all end before new ones start, "
        "and requests meanwhile are answered by 503 with Retry-After.",
    )
    window: WindowSpec | None = Field(
        None, description="With `Recreate`: when pods may be replaced for new adapters; absent: at once."
    )


class ModelServer(SpecModel):
    """A base model that is served, with its adapters."""

    api_version: Literal["llamero.dev/v1alpha1"] = Field(API_VERSION, description="`llamero.dev/v1alpha1`.")
    kind: Literal["ModelServer"] = Field("ModelServer", description="`ModelServer`.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: ModelServerSpec = Field(description="What is wanted.")
    status: dict[str, Any] | None = Field(None, description="Written by the operator; ignored when read.")


# -- status --------------------------------------------------------------------------------------------------------------------

ServerPhase = Literal["Pending", "Progressing", "Ready", "Degraded", "Suspended", "Failed"]
NameState = Literal["Waiting", "Serving", "Canary", "Holding", "Paused", "RolledBack", "Retired", "Conflict"]
ServedAdapterState = Literal["Pending", "Loading", "Ready", "Refused", "Draining"]


class NameStatus(ResultModel):
    """A public name: which adapter serves it, and where its rollout stands. Adapters are named by their resource."""

    name: Annotated[str, Field(max_length=63)] = Field(description="The public name.")
    state: NameState = Field("Waiting", description="Where it stands.")
    message: Annotated[str, Field(max_length=300)] = Field("", description="Why, in a sentence.")
    adapter: Annotated[str, Field(max_length=63)] | None = Field(
        None, description="The Adapter that serves it; absent: none yet, or the base where the entry says so."
    )
    canary: Annotated[str, Field(max_length=63)] | None = Field(None, description="The Adapter that is taking over.")
    weight: int = Field(0, ge=0, le=100, description="Percent of the callers that the canary answers.")
    step: int = Field(0, ge=0, description="Index into the strategy's steps.")
    step_id: Annotated[str, Field(max_length=64)] = Field(
        "", description="Names the step at hand in the routes: counts of requests and votes are kept by it."
    )
    step_started_at: datetime | None = Field(None, description="When the step began.")
    other_requests: int | None = Field(
        None,
        ge=0,
        description="Requests to the other adapter in the last step that it had a share in: the step with all callers is judged by them.",
    )
    other_errors: int | None = Field(None, ge=0, description="How many of these failed.")
    previous: Annotated[str, Field(max_length=63)] | None = Field(
        None, description="The Adapter that served before; it is kept loaded where there is room, for a quick rollback."
    )
    since: datetime | None = Field(None, description="When `adapter` took all callers.")


class ServedAdapterStatus(ResultModel):
    """An adapter in the engine."""

    name: Annotated[str, Field(max_length=63)] = Field(description="The Adapter resource.")
    id: Annotated[str, Field(max_length=160)] = Field(description="The id that the engine serves it under.")
    state: ServedAdapterState = Field(description="Where it stands over all pods.")
    pods: int = Field(0, ge=0, description="Pods in which it is ready: loaded, and proven to answer.")
    message: Annotated[str, Field(max_length=300)] = Field("", description="Why it is refused or waits.")


class ServerPodStatus(ResultModel):
    """A pod of the engine."""

    name: Annotated[str, Field(max_length=253)] = Field(description="Its name.")
    ready: bool = Field(False, description="Whether it takes requests.")
    adapters: Annotated[list[Annotated[str, Field(max_length=160)]], Field(max_length=MAX_SERVED_ADAPTERS)] = Field(
        default_factory=list, description="Ids of the adapters that are ready in it."
    )
    message: Annotated[str, Field(max_length=200)] = Field("", description="Why it is not ready.")


class ModelServerStatus(ResultModel):
    """Status of a ModelServer."""

    observed_generation: int = Field(0, description="The generation of the spec that the status speaks of.")
    phase: ServerPhase = Field("Pending", description="Where it stands.")
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default_factory=list, description="What holds, by type."
    )
    replicas: int = Field(0, ge=0, description="Pods that exist.")
    ready_replicas: int = Field(0, ge=0, description="Pods that take requests.")
    models: Annotated[list[NameStatus], Field(max_length=MAX_MODELS)] = Field(
        default_factory=list, description="The public names."
    )
    adapters: Annotated[list[ServedAdapterStatus], Field(max_length=MAX_SERVED_ADAPTERS)] = Field(
        default_factory=list, description="The adapters in the engine."
    )
    pods: Annotated[list[ServerPodStatus], Field(max_length=MAX_PODS_TOLD)] = Field(
        default_factory=list, description="The engine's pods; the first sixteen."
    )
    gathered: Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=MAX_SERVED_ADAPTERS)] = Field(
        default_factory=list,
        description="For an engine that reads its adapters at start: the Adapters that its pods are started with.",
    )
    gathered_at: datetime | None = Field(None, description="When `gathered` was last changed.")
    suspects: Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=MAX_SERVED_ADAPTERS)] = Field(
        default_factory=list,
        description="Adapters of a start that failed without saying which of them it was: they are tried one by one.",
    )
    wanted_serial: int = Field(
        0, ge=0, description="Number of the list of adapters that pods are told; the higher counts."
    )
    wanted_digest: Annotated[str, Field(max_length=64)] = Field("", description="Digest of that list.")
    drains: dict[Annotated[str, Field(max_length=160)], datetime] = Field(
        default_factory=dict,
        description="Served ids that get no requests any more, with since when: unloaded once quiet.",
    )
    deleting_since: datetime | None = Field(None, description="When its deletion began: routes first, then pods.")
    deletion_message: Message = Field("", description="What its deletion waits for.")
