"""How a new adapter takes over a public name: the steps of its canary, and what each step is judged on.

Stands in a ModelServer (for all its names, or for one) and in a FineTuneJob (for the adapters that its runs publish).
"""

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from llamero.spec.base import SpecModel

DEFAULT_STEPS = (5, 25, 50, 100)


class AnalysisSpec(SpecModel):
    """What the canary's answers are compared with the other's on, over the step at hand."""

    min_requests: int = Field(
        20, ge=0, le=1_000_000, description="Requests that the canary must have answered before a step is judged good."
    )
    max_error_rate_increase: float = Field(
        0.02,
        ge=0,
        le=1,
        description="The share of the canary's requests that failed may be so much above the other's (0.02 = two in a hundred).",
    )
    max_first_token_ratio: float = Field(
        2.0,
        ge=1,
        le=100,
        description="The canary's 95th percentile of the time to the first token may be so many times the other's; below 250 ms it is good "
        "in any case.",
    )
    min_votes: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="Votes that both must have before votes count; with fewer they are left out.",
    )
    max_approval_loss: float = Field(
        0.15, ge=0, le=1, description="The canary's share of votes up may be so much below the other's."
    )


class StrategySpec(SpecModel):
    """The course of a rollout."""

    steps: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: list(DEFAULT_STEPS),
        json_schema_extra={"default": list(DEFAULT_STEPS)},
        description="Percent of the callers that the new adapter answers, step by step, rising to 100. `[100]` has no canary.",
    )
    interval_seconds: int = Field(60, ge=1, le=604_800, description="Least time at a step before it is judged good.")
    max_step_seconds: int = Field(
        3600,
        ge=1,
        le=2_592_000,
        description="After so long at a step with too few requests to judge by, a condition says that the rollout holds; it never guesses.",
    )
    analysis: AnalysisSpec = Field(default_factory=AnalysisSpec, description="What a step is judged on.")

    @model_validator(mode="after")
    def _rises_to_all(self) -> "StrategySpec":
        if any(a >= b for a, b in pairwise(self.steps)) or self.steps[-1] != 100:
            raise ValueError(f"steps must rise and end with 100, not {self.steps}: such as [5, 25, 50, 100]")
        return self
