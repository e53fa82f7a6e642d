"""Where a laptop's run stands: run.json beside its results, so that a second start resumes or reuses it."""

from enum import StrEnum

from pydantic import Field

from llamero.spec.base import ResultModel


class Phase(StrEnum):
    PENDING = "Pending"
    PREPARING = "Preparing"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    ROLLING_OUT = "RollingOut"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class PhaseRecord(ResultModel):
    """A finished phase: the digest of what went into it, and its seconds over all attempts."""

    digest: str
    seconds: float


class RunState(ResultModel):
    """run.json. `digest` is of what alters the result: base, data, training (see `spec.digest`)."""

    job: str
    run: int
    digest: str
    phase: Phase = Phase.PENDING
    reason: str = ""
    finished: dict[Phase, PhaseRecord] = Field(default_factory=dict)
