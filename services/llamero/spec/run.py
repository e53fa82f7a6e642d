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
    """A phase's work so far: the digest of what goes into it, and its seconds over all starts."""

    digest: str
    seconds: float


class RunState(ResultModel):
    """run.json. `digest` is of what alters the result: base, data, training (see `spec.digest`)."""

    job: str
    run: int
    digest: str
    phase: Phase = Phase.PENDING
    reason: str = ""
    worked: dict[Phase, PhaseRecord] = Field(default_factory=dict, description="Phases that were begun.")
    finished: dict[Phase, PhaseRecord] = Field(default_factory=dict, description="Phases that are done.")
