"""A manifest's steps as the pipeline does them: those that `clean` does, then runs of record steps and single steps across records. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamero.spec.job import DataSpec
from llamero.spec.profiles import CHOOSING_KINDS, COSTLY_KINDS, SET_KINDS, PlannedStep, plan_steps
from llamero.spec.steps import DataStep


@dataclass(frozen=True)
class Segment:
    """Steps that are done together: one across records (`is_set`), or record steps in a row."""

    steps: tuple[PlannedStep, ...]

    @property
    def is_set(self) -> bool:
        return self.steps[0].kind in SET_KINDS

    @property
    def is_costly(self) -> bool:
        """Whether a step asks a model."""
        return any(step.kind in COSTLY_KINDS for step in self.steps)

    @property
    def needs_base(self) -> bool:
        """Whether a step computes with the base model's weights."""
        return any(step.kind == "score" for step in self.steps)

    def concerns(self, source: str) -> bool:
        """Whether a step is for this source's records."""
        return any(not step.sources or source in step.sources for step in self.steps)


def split_steps(steps: Sequence[PlannedStep]) -> tuple[list[PlannedStep], list[Segment]]:
    """The leading cheap record steps, and the rest in segments."""
    first = next((i for i, step in enumerate(steps) if step.kind in COSTLY_KINDS or step.kind in SET_KINDS), len(steps))
    segments: list[Segment] = []
    for step in steps[first:]:
        if step.kind in SET_KINDS or not segments or segments[-1].is_set:
            segments.append(Segment((step,)))
        else:
            segments[-1] = Segment((*segments[-1].steps, step))
    return list(steps[:first]), segments


def find_choice(segments: Sequence[Segment]) -> int | None:
    """The last segment that chooses among the training records."""
    choosing = [i for i, segment in enumerate(segments) if segment.steps[0].kind in CHOOSING_KINDS]
    return choosing[-1] if choosing else None


# Which option of a choosing step a threshold of data.controls stands for: the first that the step has set.
_THRESHOLDS: Mapping[str, tuple[str, ...]] = {
    "threshold": ("min", "max"),
    "diversity": ("max_similarity",),
    "kCenter": ("fraction",),
    "rank": ("fraction",),
    "mining": ("fraction",),
    "random": ("fraction",),
    "sample": ("records",),
}


def with_threshold(step: PlannedStep, threshold: float) -> PlannedStep:
    """The choosing step with another threshold; of one that keeps a share or a number, a threshold above 1 is a number.

    Raises ValueError where the step takes no such value.
    """
    names = _THRESHOLDS[step.kind]
    name = next((n for n in names if getattr(step.options, n) is not None), names[0])
    changes: dict[str, Any] = {name: threshold}
    if name == "fraction":
        changes = {"fraction": None, "records": int(threshold)} if threshold > 1 else {**changes, "records": None}
    if name == "records":
        changes = {"records": int(threshold)}
    options = type(step.options).model_validate(step.options.model_dump() | changes)
    return replace(step, options=options)


def plan_data_steps(data: DataSpec) -> list[PlannedStep]:
    """The manifest's steps, profiles put in."""
    return plan_steps(data.steps)


def find_named(step: PlannedStep) -> Iterator[str]:
    """The URIs of the files and folders that a step's options name: fields called `uri` or ending in `Uri`."""
    yield from _walk(step.options.model_dump(mode="json", by_alias=True))


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for part in value:
            yield from _walk(part)
    elif isinstance(value, dict):
        for name, part in value.items():
            if isinstance(part, str) and _is_named(name):
                yield part
            else:
                yield from _walk(part)


def rename_files(step: PlannedStep, places: Mapping[str, str]) -> PlannedStep:
    """The step with the URIs of its files replaced by the places where they were put."""
    options = _replace(step.options.model_dump(mode="json", by_alias=True), lambda uri: places.get(uri, uri))
    return replace(step, options=type(step.options).model_validate(options))


def place_files(steps: Sequence[DataStep], place: Callable[[str], str]) -> list[DataStep]:
    """A manifest's steps with the URIs of their files as `place` says."""
    return [DataStep.model_validate(_replace(s.model_dump(mode="json", by_alias=True), place)) for s in steps]


def _replace(value: Any, place: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_replace(part, place) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        name: place(part) if isinstance(part, str) and _is_named(name) else _replace(part, place)
        for name, part in value.items()
    }


def _is_named(name: str) -> bool:
    return name == "uri" or name.endswith("Uri")
