"""What the operator tells a pod, and what a pod answers: versioned JSON that carries URIs, never records.

A message goes by Celery (prepare, train, evaluate) or in the pod's environment (fetch, probe, clean). The answer is the pod's
termination message, at most 4 KiB; while it works, the pod tells its progress in Redis.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from llamero.spec.base import ResultModel
from llamero.spec.job import FineTuneJob
from llamero.spec.status import BaseStatus, DataStatus, EvaluationStatus, TrainingStatus, WorkKind

MESSAGE_VERSION = 1
MAX_TERMINATION_BYTES = 4096
PROGRESS_SECONDS = 86_400
"""How long a progress record stays in Redis after its last change."""


class TaskName(StrEnum):
    """Celery tasks, with the version of their message."""

    WORK = "llamero.work.v1"
    """A whole attempt: prepare, train or evaluate. Its only argument is a `WorkMessage` as JSON."""
    SHARD = "llamero.shard.v1"
    """One data task (`data.tasks`), sent by an attempt's coordinator to the other workers on its queue."""


class AttemptId(ResultModel):
    """Which attempt: all names, task ids and prefixes derive from it."""

    namespace: str
    job: str
    uid: str = Field(description="metadata.uid of the FineTuneJob.")
    run: int = Field(ge=0, description="0 for work that belongs to no run (fetch, probe, clean).")
    kind: WorkKind
    attempt: int = Field(ge=1)


class LogRequest(ResultModel):
    """Which kept logs a `logs` pod prints to its standard output. Absent fields choose the newest."""

    number: int = Field(ge=1, description="Tells requests apart; `llamero logs` takes the time in seconds.")
    run: int | None = Field(None, ge=1)
    kind: WorkKind | None = None
    attempt: int | None = Field(None, ge=1)


class WorkMessage(ResultModel):
    """What a pod is to do. A version that the pod does not know is refused, not guessed at."""

    version: int = MESSAGE_VERSION
    id: AttemptId
    storage: str = Field(description="Root of the storage: an fsspec URI, or the folder that a volume is mounted at.")
    manifest: FineTuneJob = Field(description="The job as the run was started with.")
    base: BaseStatus | None = Field(None, description="The base model, once it is found.")
    data: DataStatus | None = Field(None, description="The prepared data, for train and evaluate.")
    training: TrainingStatus | None = Field(None, description="The finished training, for evaluate.")
    micro_batch_tokens: int = Field(0, description="Tokens of a bin; 0 leaves it to the training.")
    init_adapter: str | None = Field(None, description="Adapter folder that training starts from (`initFrom`).")
    evaluate_too: bool = Field(
        False, description="For train: evaluate in the same pod afterwards, so that no GPU is queued for twice."
    )
    keep_adapters: list[str] = Field(default_factory=list, description="For clean: sha256 of adapters to leave alone.")
    logs: LogRequest | None = Field(None, description="For logs: which ones.")


class Outcome(ResultModel):
    """A pod's answer, written as its termination message. `exit_code` is one of `lifecycle.failures.PhaseExit`."""

    version: int = MESSAGE_VERSION
    id: AttemptId
    pod: str = Field(description="uid of the pod that answers.")
    exit_code: int
    message: Annotated[str, Field(max_length=1024)] = Field("", description="What went wrong and what to do.")
    kind: WorkKind | None = Field(
        None, description="What failed, where that is not the attempt's own kind (evaluation in a training pod)."
    )
    base: BaseStatus | None = Field(None, description="From fetch; from others where no fetch was needed.")
    data: DataStatus | None = Field(None, description="From prepare.")
    data_digest: str | None = Field(None, description="From probe: the digest that the data would have now.")
    training: TrainingStatus | None = Field(None, description="From train.")
    evaluation: EvaluationStatus | None = Field(None, description="From evaluate, or train with `evaluateToo`.")
    adapter_uri: str | None = Field(None, description="Immutable folder of the adapter, from evaluate.")
    adapter_spec: dict[str, Any] | None = Field(
        None, description="What the Adapter resource says besides (base, template, stop tokens, digests, licences)."
    )
    resumed_from: int | None = Field(None, description="Step that training was resumed at.")

    def to_termination_message(self) -> str:
        """JSON of at most 4 KiB: where it is longer, the least needed parts go first."""
        text = self._dump()
        if len(text.encode()) > MAX_TERMINATION_BYTES and self.adapter_spec:
            shorter = {k: v for k, v in self.adapter_spec.items() if k not in ("terms", "licenses")}
            text = self.model_copy(update={"adapter_spec": shorter})._dump()
        if len(text.encode()) > MAX_TERMINATION_BYTES:
            text = self.model_copy(update={"message": self.message[:200], "adapter_spec": None})._dump()
        return text

    def _dump(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=False)

    @classmethod
    def from_termination_message(cls, text: str | None) -> "Outcome | None":
        """The answer in a termination message; None where it is none (a crash's log, nothing)."""
        if not text:
            return None
        try:
            return cls.model_validate_json(text)
        except ValueError:
            return None


class ProgressReport(ResultModel):
    """What a pod tells in Redis while it works, rewritten whole every few seconds: losing it loses nothing."""

    id: AttemptId
    pod: str = Field(description="uid of the pod that tells it.")
    at: datetime = Field(description="When it was written.")
    phase: str = Field("", description="The phase at hand: a training pod may be evaluating already.")
    activity: str = ""
    done: float = 0
    total: float | None = None
    unit: str = ""
    started_at: datetime | None = Field(None, description="When this activity began, for the estimate of its end.")
    step: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
