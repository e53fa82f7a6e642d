"""A FineTuneJob's status: what the operator writes and everyone else reads.

Bounded in every part, so that a resource stays under 10 kB; figures are strings, since a status holds no floats; nothing secret.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from llamero.spec.base import ResultModel

MAX_HISTORY = 8
MAX_MESSAGE = 512

Message = Annotated[str, Field(max_length=MAX_MESSAGE)]
Figure = Annotated[str, Field(max_length=32)]


class JobPhase(StrEnum):
    """Where the job stands: the phase of its run at hand, or Suspended."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    ROLLING_OUT = "RollingOut"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class WorkKind(StrEnum):
    """What a child Job's pods do. The words stand in names, labels, paths and messages."""

    FETCH = "fetch"
    PROBE = "probe"
    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    CLEAN = "clean"
    LOGS = "logs"


class ConditionType(StrEnum):
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SCHEDULED = "Scheduled"
    DATA_READY = "DataReady"
    TRAINED = "Trained"
    EVALUATION_PASSED = "EvaluationPassed"
    ADAPTER_PUBLISHED = "AdapterPublished"
    ROLLED_OUT = "RolledOut"
    AVAILABLE = "Available"
    PROGRESSING = "Progressing"
    PROTECTED = "Protected"
    AUTOSCALED = "Autoscaled"
    VERIFIED = "Verified"
    SERVING = "Serving"
    ROLLED_BACK = "RolledBack"


class Condition(ResultModel):
    """One condition, as Kubernetes writes them."""

    type: ConditionType = Field(description="Which condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Annotated[str, Field(max_length=64)] = Field(description="One word in CamelCase that a program can read.")
    message: Message = Field("", description="A sentence for a person.")
    last_transition_time: datetime = Field(description="When `status` last changed.")
    observed_generation: int | None = Field(None, description="The generation of the spec that it speaks of.")


class ProgressStatus(ResultModel):
    """How far the phase at hand is."""

    percent: int | None = Field(None, ge=0, le=100, description="Share of the phase that is done.")
    activity: Annotated[str, Field(max_length=64)] = Field("", description="What is being done.")
    estimated_remaining_seconds: int | None = Field(None, ge=0, description="Estimated seconds to the phase's end.")
    step: int | None = Field(None, ge=0, description="Finished optimiser steps.")
    total_steps: int | None = Field(None, ge=0, description="Optimiser steps in all.")
    loss: Figure | None = Field(None, description="Loss of the last step, in nats per token.")
    tokens_per_second: Figure | None = Field(None, description="Tokens trained a second, over the last seconds.")
    written_at: datetime | None = Field(None, description="When this was last brought up to date.")


class AttemptStatus(ResultModel):
    """The attempt at hand: one try at one kind of work, by one child Job."""

    kind: WorkKind = Field(description="What it does.")
    attempt: int = Field(ge=1, description="Its number within the kind and the run; never reused.")
    job: Annotated[str, Field(max_length=63)] = Field(description="Name of its batch Job.")
    started_at: datetime = Field(description="When the operator decided on it.")
    seen: bool = Field(
        False, description="Whether its Job has been seen in the cluster: one that is gone then is lost."
    )
    pod: Annotated[str, Field(max_length=64)] | None = Field(None, description="uid of the pod whose word counts.")
    pod_name: Annotated[str, Field(max_length=253)] | None = Field(None, description="That pod's name.")
    node: Annotated[str, Field(max_length=253)] | None = Field(None, description="The node that it runs on.")
    running_since: datetime | None = Field(None, description="When that pod was first seen running.")
    sent_at: datetime | None = Field(None, description="When its task was last sent.")
    sends: int = Field(0, ge=0, description="How often its task was sent: more than once means that one was lost.")
    received: bool = Field(False, description="Whether the worker has told that it has the task.")
    step: int | None = Field(None, description="The last step told; with `stepAt` it shows a training that hangs.")
    step_at: datetime | None = Field(None, description="When that step was first told.")
    gpu_class: Annotated[str, Field(max_length=63)] | None = Field(None, description="The GPU class it asked for.")
    gpus: int = Field(0, ge=0, description="GPUs of its pod, for the usage.")
    micro_batch_tokens: int = Field(0, ge=0, description="Tokens of a bin; 0 leaves it to the training.")


class TriesStatus(ResultModel):
    """What became of the attempts at the phase at hand so far (see `lifecycle.runs.Attempts`)."""

    counted: int = Field(0, ge=0, description="Failures that count against backoffLimit.")
    free: int = Field(0, ge=0, description="Interruptions, which do not count.")
    micro_batch_tokens: int = Field(0, ge=0, description="Tokens of a bin after running out of memory; 0: not set.")
    gpu_class: int = Field(0, ge=0, description="Index into training.resources.gpuClass that is being tried.")
    retry_at: datetime | None = Field(None, description="When the next attempt may start.")
    ended_at: datetime | None = Field(
        None, description="When the last attempt was given up: its pods get their grace before the next one starts."
    )
    message: Annotated[str, Field(max_length=300)] = Field("", description="Why the last attempt ended.")


class BaseStatus(ResultModel):
    """The base model as it was found."""

    uri: Annotated[str, Field(max_length=2048)] = Field(description="Where its files lie.")
    digest: Annotated[str, Field(max_length=64)] = Field(description="sha256 of its files.")


class DataStatus(ResultModel):
    """What the preparation came to. read = kept + rejected."""

    uri: Annotated[str, Field(max_length=2048)] = Field(description="Where the prepared data lies.")
    digest: Annotated[str, Field(max_length=64)] = Field(description="Digest of recipe, sources and tokenizer.")
    read: int = Field(ge=0, description="Records read.")
    kept: int = Field(ge=0, description="Records kept.")
    rejected: int = Field(ge=0, description="Records rejected.")
    reasons: dict[Annotated[str, Field(max_length=64)], int] = Field(
        default_factory=dict, description="Rejected records by reason; the twelve most frequent."
    )
    train_examples: int = Field(ge=0, description="Examples to train on.")
    evaluation_examples: int = Field(ge=0, description="Examples held out.")
    tokens: int = Field(ge=0, description="Tokens of the training examples.")


class TrainingStatus(ResultModel):
    """What the training came to."""

    uri: Annotated[str, Field(max_length=2048)] = Field(description="Where its results lie.")
    steps: int = Field(ge=0, description="Optimiser steps.")
    tokens: int = Field(ge=0, description="Tokens that went through the model.")
    first_loss: Figure = Field(description="Mean loss of the first five steps.")
    last_loss: Figure = Field(description="Mean loss of the last five steps.")
    tokens_per_second: Figure = Field(description="Tokens a second over the training.")
    adapter_sha256: Annotated[str, Field(max_length=64)] = Field(description="sha256 of the trained adapter.")


class EvaluationStatus(ResultModel):
    """The figures of base and tuned model on the held-out records, and what the gate says of them."""

    uri: Annotated[str, Field(max_length=2048)] = Field(description="Where result and report lie.")
    records: int = Field(ge=0, description="Held-out records measured.")
    base_token_perplexity: Figure | None = Field(None, description="The base's token perplexity.")
    tuned_token_perplexity: Figure | None = Field(None, description="The tuned model's.")
    answers: int = Field(0, ge=0, description="Answers of the side by side.")
    unfinished_answers: int = Field(0, ge=0, description="Those of the tuned model that ran on without a stop token.")
    passed: bool | None = Field(None, description="Whether the gate passed it.")
    reason: Message = Field("", description="The gate's sentence, with the figures.")


class AdapterStatus(ResultModel):
    """The adapter that the run published."""

    name: Annotated[str, Field(max_length=253)] = Field(description="Name of the Adapter resource.")
    uri: Annotated[str, Field(max_length=2048)] = Field(description="Where its files lie.")
    sha256: Annotated[str, Field(max_length=64)] = Field(description="sha256 over its files.")


class UsageStatus(ResultModel):
    """What the job has used, over all runs."""

    gpu_seconds: int = Field(0, ge=0, description="Seconds of GPUs held by its pods.")
    cost: Figure | None = Field(None, description="Their cost by the GPU classes' prices; absent where none is set.")


class RunRecord(ResultModel):
    """One finished or superseded run."""

    run: int = Field(ge=1, description="Its number.")
    phase: Literal["Succeeded", "Failed", "Superseded"] = Field(description="How it ended.")
    reason: Annotated[str, Field(max_length=64)] = Field("", description="Why, in one word.")
    message: Annotated[str, Field(max_length=200)] = Field("", description="Why, in a sentence.")
    cause: Annotated[str, Field(max_length=64)] = Field("", description="Why it was started.")
    started_at: datetime = Field(description="When it started.")
    finished_at: datetime = Field(description="When it ended.")
    loss: Figure | None = Field(None, description="Last loss.")
    base_token_perplexity: Figure | None = Field(None, description="The base's token perplexity.")
    token_perplexity: Figure | None = Field(None, description="The tuned model's.")
    adapter: Annotated[str, Field(max_length=253)] | None = Field(None, description="The Adapter it published.")
    adapter_uri: Annotated[str, Field(max_length=2048)] | None = Field(None, description="Where its adapter lies.")


class RetrainStatus(ResultModel):
    """When a further run starts by itself."""

    next_at: datetime | None = Field(None, description="When the schedule starts the next run.")
    checked_at: datetime | None = Field(None, description="When the data was last looked at.")
    pending: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="A cause that waits for minInterval."
    )
    schedule_digest: Annotated[str, Field(max_length=16)] = Field(
        "", description="Digest of the schedule that `nextAt` belongs to."
    )
    data_digest: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="What the last look at the data found."
    )


class FailureStatus(ResultModel):
    """Why the run at hand has failed for good."""

    reason: Annotated[str, Field(max_length=64)] = Field(description="One word in CamelCase.")
    message: Message = Field("", description="What happened and what to do.")


class LogsStatus(ResultModel):
    """The last request for kept logs."""

    number: int = Field(ge=1, description="Its number.")
    ended_at: datetime | None = Field(None, description="When its pod was first seen to have ended.")


class JobStatus(ResultModel):
    """Status of a FineTuneJob."""

    observed_generation: int = Field(0, description="The generation of the spec that the status speaks of.")
    phase: JobPhase = Field(JobPhase.PENDING, description="Where the job stands.")
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default_factory=list, description="What holds, by type."
    )
    run: int = Field(0, ge=0, description="The run at hand; 0 before the first.")
    run_digest: Annotated[str, Field(max_length=64)] = Field(
        "", description="Digest of the inputs that the run was started with: a spec with another starts the next run."
    )
    run_cause: Annotated[str, Field(max_length=64)] = Field("", description="Why the run was started.")
    attempt: int = Field(0, ge=0, description="The attempt at hand of the phase.")
    work: AttemptStatus | None = Field(None, description="The attempt at hand.")
    tries: TriesStatus = Field(default_factory=TriesStatus, description="Earlier attempts at the phase.")
    progress: ProgressStatus | None = Field(None, description="How far the phase is.")
    attempts: dict[WorkKind, int] = Field(
        default_factory=dict,
        description="The last attempt's number by kind; those of a run's work start again with it.",
    )
    base: BaseStatus | None = Field(None, description="The base model.")
    base_ref: Annotated[str, Field(max_length=64)] = Field(
        "", description="Digest of the spec's baseModel that `base` belongs to."
    )
    data: DataStatus | None = Field(None, description="The prepared data.")
    training: TrainingStatus | None = Field(None, description="The training's figures.")
    evaluation: EvaluationStatus | None = Field(None, description="The evaluation's figures.")
    adapter: AdapterStatus | None = Field(None, description="The adapter of the newest run that published one.")
    candidate: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="The trained adapter's spec as JSON, until the gate has passed it and it is published."
    )
    failure: FailureStatus | None = Field(None, description="Why the run failed for good.")
    usage: UsageStatus = Field(default_factory=UsageStatus, description="GPU time and cost.")
    started_at: datetime | None = Field(None, description="When the run started.")
    finished_at: datetime | None = Field(None, description="When the run ended.")
    active_since: datetime | None = Field(
        None, description="When activeDeadlineSeconds began to count: the run's start, or its last resumption."
    )
    deleting_since: datetime | None = Field(None, description="When the clean-up of the deleted job began.")
    logs: LogsStatus | None = Field(None, description="The last request for kept logs.")
    retrain: RetrainStatus | None = Field(None, description="When a further run starts by itself.")
    history: Annotated[list[RunRecord], Field(max_length=MAX_HISTORY)] = Field(
        default_factory=list, description="Earlier runs, newest last."
    )

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of a type, if it is set."""
        return next((c for c in self.conditions if c.type == kind), None)
