"""The FineTuneJob manifest: its fields, defaults and bounds, each documented beside itself.

This is the only definition: validation, JSON schema and docs come from it. Rules that span several fields stand in
`rules.py`; what a text file looks like and where a mistake stands in it is the CLI's business.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from llamero.spec.base import SpecModel
from llamero.spec.rollout import StrategySpec
from llamero.spec.secrets import SecretRef as SecretRef
from llamero.spec.steps import DEFAULT_PROFILE, ControlsSpec, DataStep, GenerateSpec

API_VERSION: Final = "llamero.dev/v1alpha1"
KIND = "FineTuneJob"
SERVED_BY = "x-llamero-served-by"

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=40)]
Uri = Annotated[str, Field(min_length=1, max_length=2048)]
ShortText = Annotated[str, Field(max_length=256)]


def cluster_only(default: Any = None, **kwargs: Any) -> Any:
    """A field that the operator serves; a laptop run says that it has no effect there."""
    if "default_factory" not in kwargs:
        kwargs["default"] = default
    return Field(json_schema_extra={SERVED_BY: "cluster"}, **kwargs)


class BaseModelRef(SpecModel):
    """The model to fine-tune. Exactly one of `name` and `uri`."""

    name: Annotated[str, Field(max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = Field(
        None, description="A model id on the hub, such as `meta-llama/Llama-3.2-1B`; needs `revision`."
    )
    uri: Uri | None = Field(
        None,
        description="A folder with the model's files: a local path (relative to the manifest), `s3://`, `gs://`, `https://` or `file://`.",
    )
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        None, description="The commit (40 hex digits) that `name` is pinned to, so that a run can be repeated."
    )
    secret_ref: SecretRef | None = Field(None, description="Token for a gated or private model.")


class DataFormat(StrEnum):
    """How a source's records are laid out."""

    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    MESSAGES = "messages"
    STACKEXCHANGE = "stackexchange"
    DIALOG = "dialog"
    SEED_TASKS = "seed-tasks"
    RECORDS = "records"


class ColumnMapping(SpecModel):
    """Which columns of a `records` source hold what. Dots reach into nested objects (`answer.text`)."""

    instruction: ShortText | None = Field(None, description="Column of the prompt.")
    input: ShortText | None = Field(None, description="Column of additional input, joined to the prompt.")
    output: ShortText | None = Field(
        None, description="Column of the answer; alone, of a text whose instruction a `backTranslate` step writes."
    )
    messages: ShortText | None = Field(
        None, description="Column with a list of {role, content}, instead of the three above."
    )
    system: ShortText | None = Field(None, description="Column of the system prompt.")
    tags: ShortText | None = Field(None, description="Column with tags: a list, or a string separated by commas.")
    id: ShortText | None = Field(None, description="Column with the record's id.")


class DataSource(SpecModel):
    """One place that data comes from."""

    name: Name | None = Field(None, description="How reports call it; by default made from the file's name.")
    uri: Uri = Field(
        description="A file, a folder or a glob: a local path (relative to the manifest), `https://`, `s3://`, `gs://` or `hf://`. "
        "`.gz`, `.bz2`, `.xz` and `.zst` are read as they are, `.zip` and `.tar` archives as the files in them."
    )
    format: DataFormat = Field(
        description="alpaca (instruction, input, output), sharegpt (conversations of from/value), messages (role/content), "
        "stackexchange (a dump's Posts.xml), dialog (a line a dialogue, turns ended by `__eou__`), seed-tasks (Self-Instruct's: "
        "instruction, instances), or records (any JSONL, JSON, CSV or Parquet with `columns`)."
    )
    columns: ColumnMapping | None = Field(None, description="For `records`: which column is what.")
    profile: Literal["first-turn", "all-turns"] = Field(
        "all-turns",
        description="For `dialog`: the whole dialogue as a conversation, or its first turn as input and its second as output.",
    )
    html: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Turn HTML into Markdown: where tags are found, always, or never. Stack Exchange is always turned.",
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1,
        description="The share of the source's records to use, chosen by content hash; the others are counted as `capped`.",
    )
    max_records: int | None = Field(
        None,
        ge=1,
        description="Use at most so many records, chosen by content hash; the others are counted as `capped`.",
    )
    generate: GenerateSpec | None = Field(
        None,
        description="Make the source's records with a language model; `uri` then names the seeds (Self-Instruct's seed tasks, or any records).",
    )
    license: ShortText | None = Field(
        None, description="The data's licence, such as `CC-BY-SA-4.0`; travels to the report and the adapter."
    )
    terms: Annotated[str, Field(max_length=1024)] | None = Field(
        None, description="Terms of use beyond the licence, such as `not for training competitors`."
    )
    secret_ref: SecretRef | None = Field(None, description="Token for a private source.")


class DataSpec(SpecModel):
    """From raw sources to training and evaluation examples."""

    sources: Annotated[list[DataSource], Field(min_length=1, max_length=64)] = Field(
        description="Where the data comes from, merged in this order."
    )
    template: Literal["base", "alpaca", "vicuna", "chatml"] = Field(
        "base", description="The chat template: the base model's own, or one of the named ones."
    )
    system: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="A system prompt for conversations that have none."
    )
    template_variants: bool = Field(
        False,
        description="With template `alpaca`: several wordings of the template at random (by content hash), as Self-Instruct trains, so that the "
        "model does not hang on one.",
    )
    steps: Annotated[list[DataStep], Field(max_length=64)] = Field(
        default_factory=lambda: [DataStep(use=DEFAULT_PROFILE)],
        # A schema does not show what a factory makes.
        json_schema_extra={"default": [{"use": DEFAULT_PROFILE}]},
        description="What the records are put through, in this order; an empty list leaves only what every preparation does (parsing, equal "
        "records, caps, the split).",
    )
    controls: ControlsSpec | None = Field(
        None, description="Further trainings that show what the last choosing step is worth."
    )
    allowed_licenses: Annotated[list[ShortText], Field(max_length=64)] = Field(
        default_factory=list,
        description="Where given, sources under another licence, or none, are refused.",
    )
    refused_terms: Annotated[list[ShortText], Field(max_length=64)] = Field(
        default_factory=list, description="Sources whose `terms` hold one of these texts are refused."
    )
    allow_http: bool = Field(
        False,
        description="Fetch `http://` files too, and from private addresses: for servers of one's own. Metadata services never.",
    )
    evaluation_fraction: float = Field(
        0.05, ge=0, le=0.5, description="Share of records held out, decided by content hash: stable when data grows."
    )
    max_rejected_fraction: float = Field(
        0.1, ge=0, le=1, description="More broken rows than this share of the rows read stop the job (exit code 3)."
    )
    long_records: Literal["chunk", "truncate", "reject"] = Field(
        "chunk",
        description="What becomes of a record longer than training.sequenceLength: cut at turns into chunks (a single pair that is still "
        "too long is rejected), cut off at the end, or rejected.",
    )
    domains: Annotated[dict[ShortText, Annotated[list[ShortText], Field(max_length=256)]], Field(max_length=64)] = (
        Field(
            default_factory=dict,
            description="Lists of tags by domain for the statistics table; the first match wins, the rest is `other`.",
        )
    )
    workers: int = Field(2, ge=1, le=256, description="Processes (on a cluster: pods) that share the shards.")
    shard_records: int = Field(5000, ge=10, le=1_000_000, description="Records in a shard, the unit of work.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Changes which records are held out or capped.")


class LoraSpec(SpecModel):
    """The adapter's shape (LoRA, arXiv:2106.09685; rsLoRA, arXiv:2312.03732; LoRA+, arXiv:2402.12354)."""

    rank: int = Field(16, ge=1, le=512, description="Rank of the update matrices.")
    alpha: float = Field(
        32, gt=0, le=4096, description="The update is scaled by alpha / rank (with rsLoRA by alpha / sqrt(rank))."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank). A scale above 64 is refused, above 16 warned of."
    )
    lora_plus_ratio: float | None = Field(
        None, ge=1, le=64, description="LoRA+: learning rate of the B matrices as a multiple of that of the A matrices."
    )
    init: Literal["default", "eva", "pissa"] = Field(
        "default",
        description="eva: from the activations of the training data (arXiv:2410.07170). pissa: from the weights' main singular vectors "
        "(arXiv:2404.02948); method `lora` only, exported as plain LoRA.",
    )
    target_modules: Annotated[list[ShortText], Field(min_length=1, max_length=32)] | None = Field(
        None, description="Modules that get an adapter; by default all linear layers but the output head."
    )
    layers: Annotated[list[int], Field(min_length=1, max_length=1024)] | None = Field(
        None, description="Only these layers get an adapter (by default all)."
    )
    rank_pattern: Annotated[dict[ShortText, int], Field(max_length=64)] = Field(
        default_factory=dict, description="Other ranks for modules that match a pattern."
    )
    alpha_pattern: Annotated[dict[ShortText, float], Field(max_length=64)] = Field(
        default_factory=dict, description="Other alphas for modules that match a pattern."
    )
    modules_to_save: Annotated[list[ShortText], Field(max_length=32)] = Field(
        default_factory=list, description="Modules trained in full and saved with the adapter."
    )
    use_dora: bool = Field(False, description="Weight-decomposed LoRA (arXiv:2402.09353).")
    new_tokens: Annotated[list[ShortText], Field(max_length=256)] = Field(
        default_factory=list,
        description="Tokens added to the vocabulary; only their embeddings are trained (trainable_token_indices).",
    )


class ResourcesSpec(SpecModel):
    """What a training pod asks for."""

    gpu_class: Annotated[list[ShortText], Field(max_length=16)] = cluster_only(
        default_factory=list, description="GPU classes of the operator's settings, in order of preference."
    )
    gpus: int = cluster_only(1, ge=0, le=16, description="GPUs of a pod; 0 trains on CPU.")
    nodes: Literal[1] = cluster_only(1, description="Nodes; more than one is not served yet.")


class TrainingSpec(SpecModel):
    """How the adapter is trained."""

    method: Literal["qlora", "lora"] = Field(
        "qlora",
        description="qlora: base in 4-bit NF4 with double quantisation (arXiv:2305.14314). lora: base in bf16 (fp32 on a CPU without bf16).",
    )
    init_from: Annotated[str, Field(max_length=2048)] = Field(
        "base",
        description="base, previous (the last adapter of this job), or the path of an adapter folder to go on from.",
    )
    lora: LoraSpec = Field(default_factory=LoraSpec, description="The adapter's shape.")
    epochs: float = Field(3.0, gt=0, le=1000, description="Passes over the training examples.")
    max_steps: int | None = Field(
        None, ge=1, le=10_000_000, description="Stop after so many optimiser steps, even within an epoch."
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Course of the learning rate after warm-up."
    )
    warmup_fraction: float = Field(
        0.03, ge=0, le=0.5, description="Share of the steps over which the learning rate rises."
    )
    batch_size: int = Field(8, ge=1, le=65536, description="Examples of an optimiser step (the global batch).")
    sequence_length: int = Field(
        1024,
        ge=16,
        le=1_048_576,
        description="Tokens of the longest example, and the capacity of a bin that examples are laid into.",
    )
    packing: Literal["batch", "dataset"] = Field(
        "batch",
        description="batch: a step takes the recipe's batchSize examples, laid without padding into bins; same samples, same loss. "
        "dataset: bins are filled over the whole set, batchSize bins a step; the changed step count is reported.",
    )
    optimizer: Literal["adamw", "paged-adamw", "paged-adamw-8bit"] = Field(
        "adamw",
        description="Fused AdamW, or bitsandbytes' paged forms (CUDA only; a CPU run falls back to adamw and says so).",
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, le=1000, description="Gradients are clipped to this norm.")
    gradient_checkpointing: bool | None = Field(
        None, description="Recompute activations in the backward pass; by default on CUDA only."
    )
    save_interval_seconds: int = Field(300, ge=1, le=86_400, description="Seconds between checkpoints.")
    keep_checkpoints: int = Field(
        2, ge=2, le=100, description="Checkpoints kept; at least two, so that a torn one has a predecessor."
    )
    merge: bool = Field(
        False, description="Also export the adapter merged into the dequantised base, with the measured change of loss."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seeds initialisation, order and dropout.")
    resources: ResourcesSpec = cluster_only(default_factory=ResourcesSpec, description="What a training pod asks for.")


class PromptSet(SpecModel):
    """Prompts that base and tuned model answer side by side."""

    name: Name = Field("prompts", description="How the report calls it.")
    prompts: Annotated[list[Annotated[str, Field(min_length=1, max_length=8192)]], Field(max_length=200)] = Field(
        default_factory=list, description="The prompts themselves."
    )
    uri: Uri | None = Field(
        None,
        description="A JSONL file with a `prompt` (or `instruction`, `question`, `turns`) a line, instead of `prompts`.",
    )


class GateSpec(SpecModel):
    """What an adapter must reach to be rolled out; the first limit it misses is the reason for the refusal."""

    min_perplexity_improvement: float = Field(
        0.0,
        ge=-10,
        lt=1,
        description="Held-out token perplexity must fall by at least this share of the base's (0.3 = 30%).",
    )
    max_token_perplexity: float | None = Field(
        None, gt=1, description="Upper bound of the tuned model's token perplexity."
    )
    max_unfinished_fraction: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the tuned model's side-by-side answers that may run on to maxNewTokens without a stop token.",
    )


class EvaluationSpec(SpecModel):
    """How the adapter is measured against its base."""

    prompt_sets: Annotated[list[PromptSet], Field(max_length=16)] = Field(
        default_factory=list, description="Prompts for the side by side; by default three held-out ones."
    )
    max_records: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="Held-out records that perplexity is measured on (the first by content hash).",
    )
    max_new_tokens: int = Field(128, ge=1, le=8192, description="Longest answer in the side by side.")
    gate: GateSpec = Field(default_factory=GateSpec, description="What the adapter must reach.")


class RolloutSpec(SpecModel):
    """Where a finished adapter is served."""

    enabled: bool = cluster_only(True, description="Serve what a run publishes; false: publish it alone.")
    server: Name | None = cluster_only(
        None,
        description="The ModelServer, made where there is none of the name; by default one for the base and engine.",
    )
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=63)] | None = Field(
        None, description="The public model name; by default the job's name."
    )
    engine: Literal["tgi", "vllm", "cpu"] = Field(
        "tgi", description="The engine that the adapter must be servable by; options that it would drop are refused."
    )
    strategy: StrategySpec | None = cluster_only(
        None, description="The course of the rollouts of its adapters; by default the ModelServer's."
    )


class RetrainSpec(SpecModel):
    """When a further run starts by itself."""

    schedule: ShortText | None = Field(
        None, description="A cron line of five fields, such as `0 3 * * 1`: a run starts at each of its times."
    )
    time_zone: ShortText = Field("UTC", description="The schedule's time zone, such as `Europe/Berlin`.")
    on_data_change: bool = Field(False, description="Start a run when the data's digest changes.")
    poll_interval_seconds: int = Field(
        3600, ge=5, le=2_592_000, description="Seconds between two looks at the data, for onDataChange."
    )
    min_interval_seconds: int = Field(
        3600, ge=0, le=31_536_000, description="Least time between the starts of two runs that start by themselves."
    )


class FineTuneJobSpec(SpecModel):
    """What a FineTuneJob wants."""

    base_model: BaseModelRef = Field(description="The model to fine-tune.")
    data: DataSpec = Field(description="The data and what is done to it.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="How the adapter is trained.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="How the adapter is measured.")
    rollout: RolloutSpec = Field(default_factory=RolloutSpec, description="Where the adapter is served.")
    retrain: RetrainSpec | None = cluster_only(None, description="When a further run starts by itself.")
    suspend: bool = Field(False, description="Do not start, or stop until it is false again.")
    backoff_limit: int = Field(3, ge=0, le=100, description="Times a phase that failed by a bug is tried again.")
    active_deadline_seconds: int | None = Field(None, ge=1, description="Longest time a run may take.")
    progress_deadline_seconds: int = Field(
        1800, ge=10, description="A training without a new step for so long is ended and resumed."
    )
    ttl_seconds_after_finished: int | None = cluster_only(
        None, ge=0, description="Delete the job so long after it finished; its adapters stay."
    )


class Metadata(SpecModel):
    """The part of Kubernetes' metadata that llamero reads."""

    model_config = SpecModel.model_config | {"extra": "allow"}

    name: Name = Field(description="Its name: lower-case letters, digits and dashes, at most 40.")
    namespace: Annotated[str, Field(max_length=63)] = Field("default", description="Its namespace.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations.")


class FineTuneJob(SpecModel):
    """A manifest that takes raw data to a served chat model."""

    api_version: Literal["llamero.dev/v1alpha1"] = Field(description="`llamero.dev/v1alpha1`.")
    kind: Literal["FineTuneJob"] = Field(description="`FineTuneJob`.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: FineTuneJobSpec = Field(description="What is wanted.")
    status: dict[str, Any] | None = Field(None, description="Written by the operator; ignored when read.")

    @property
    def public_model_name(self) -> str:
        """The model name that chat clients ask for."""
        return self.spec.rollout.model or self.metadata.name
