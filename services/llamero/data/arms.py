"""The further training sets of data.controls: what else the last choosing step might have kept, and what that came to.

Everything but the choice is the same: steps after it are done to each arm, and the held-out records are shared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from llamero.data.errors import DataError
from llamero.data.outcome import sum_side
from llamero.data.pipeline import Pipeline, State
from llamero.data.segments import Segment, find_choice, with_threshold
from llamero.data.shards import Shard
from llamero.data.taskfiles import TRAIN
from llamero.spec.profiles import PlannedStep
from llamero.spec.results import DataArm
from llamero.spec.steps import ControlsSpec, RandomStep

RANDOM = "random"


@dataclass(frozen=True)
class Arm:
    """Another choice: its name, what made it, and where its shards stand."""

    name: str
    kind: str
    threshold: float | None
    state: State


@dataclass(frozen=True)
class WrittenArm:
    """An arm, and its shards as they were written."""

    arm: Arm
    written: Sequence[Shard]

    def describe(self) -> DataArm:
        """The arm as the result tells it."""
        counts = sum_side(self.written, TRAIN)
        return DataArm(name=self.arm.name, kind=self.arm.kind, threshold=self.arm.threshold, counts=counts)


def name_arm(threshold: float) -> str:
    """`at-4.5` for the threshold 4.5."""
    return f"at-{threshold:g}"


def choose(
    pipeline: Pipeline, segments: Sequence[Segment], state: State, controls: ControlsSpec | None
) -> tuple[State, list[Arm]]:
    """The state after all segments, and the arms that the controls ask for. Raises DataError for a threshold that the step can't take."""
    at = find_choice(segments)
    if controls is None or at is None:
        return pipeline.run(segments, state), []
    step, later = segments[at].steps[0], segments[at + 1 :]
    before = pipeline.run(segments[:at], state)
    chosen = pipeline.run_set(step, before)
    arms: list[Arm] = []
    for name, threshold, other in _plan_arms(step, controls, pipeline.count_training(step, chosen)):
        arms.append(Arm(name, other.kind, threshold, pipeline.run(later, pipeline.run_set(other, before))))
    return pipeline.run(later, chosen), arms


def _plan_arms(step: PlannedStep, controls: ControlsSpec, kept: int) -> Iterator[tuple[str, float | None, PlannedStep]]:
    if controls.random and kept:
        yield RANDOM, None, replace(step, kind="random", options=RandomStep(records=kept))
    for threshold in dict.fromkeys(controls.thresholds):
        try:
            yield name_arm(threshold), threshold, with_threshold(step, threshold)
        except ValidationError as error:
            told = error.errors()[0]["msg"]
            raise DataError(
                f"data.controls.thresholds: {threshold:g} is no threshold of `{step.kind}` ({step.place}): {told}. "
                "Take it out, or choose another."
            ) from error
