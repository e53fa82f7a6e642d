"""Named lists of data steps, with the rules of the system that each is called after; and a manifest's steps with those put in.

A profile holds what can be had without naming a model or a source; what needs one (`alpagasus` a judge) takes it from the step
that uses the profile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llamero.spec.steps import ALPACA_BLOCKED_WORDS, SELF_INSTRUCT_BLOCKED_WORDS, DataStep, ThresholdStep

_STRICT_QUALITY: dict[str, Any] = {
    "scope": "document",
    "words": "signs",
    "minWords": 50,
    "shortTextWords": 0,
    "exemptCode": False,
}
_STRICT_REPETITION: dict[str, Any] = {"scope": "document", "words": "signs", "shortTextWords": 0, "exemptCode": False}

PROFILES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "instruction": ({"quality": {}}, {"repetition": {}}, {"nearDuplicates": {}}, {"decontaminate": {}}),
    "gopher-strict": (
        {"quality": _STRICT_QUALITY},
        {"repetition": _STRICT_REPETITION},
        {"nearDuplicates": {}},
        {"decontaminate": {}},
    ),
    "vicuna": (
        {"conversations": {}},
        {"language": {}},
        {"duplicates": {"by": "id"}},
        {"duplicates": {"by": "first-turns"}},
        {"decontaminate": {}},
    ),
    "lima": ({"answerStyle": {}}, {"nearDuplicates": {"field": "prompt", "threshold": 0.9}}, {"sample": {}}),
    "ltd": ({"nearDuplicates": {}}, {"kCenter": {}}),
    "deita": (
        {"judge": {"models": [], "dimension": "complexity", "scale": 6, "minScore": None, "score": "complexity"}},
        {"judge": {"models": [], "dimension": "quality", "scale": 6, "minScore": None, "score": "quality"}},
        {"diversity": {}},
    ),
    "alpagasus": ({"judge": {"models": []}},),
    "instruction-mining": (
        {"mining": {"coefficients": {"answerWords": 8.257e-5, "neighbourDistance": -0.9350}, "intercept": 1.0694}},
    ),
    "self-instruct": (
        {"instructions": {}},
        {"duplicates": {"by": "record", "conflicting": "drop-instruction"}},
        {"nearDuplicates": {"field": "prompt", "verify": "rouge-l", "threshold": 0.7}},
    ),
    "alpaca": (
        {"instructions": {"blockedWords": [*SELF_INSTRUCT_BLOCKED_WORDS, *ALPACA_BLOCKED_WORDS]}},
        {"duplicates": {"by": "record", "conflicting": "drop-instruction"}},
        {"nearDuplicates": {"field": "prompt", "verify": "rouge-l", "threshold": 0.7}},
    ),
    "none": (),
}
"""Steps by profile, as they stand in a manifest. `models: []` is filled by the step that uses the profile."""

COSTLY_KINDS: Final = frozenset({"judge", "rewrite", "evolve", "backTranslate", "principles", "score"})
"""Record steps that ask a model: done after equal records and caps are out, so that nothing is paid for twice."""

SET_KINDS: Final = frozenset(
    {
        "duplicates",
        "nearDuplicates",
        "decontaminate",
        "threshold",
        "kCenter",
        "diversity",
        "rank",
        "mining",
        "sample",
        "random",
    }
)
"""Steps that look across records. All other kinds are record steps: they see one record at a time."""

CHOOSING_KINDS: Final = frozenset({"threshold", "kCenter", "diversity", "rank", "mining", "sample", "random"})
"""Set steps that choose among the training records and leave the held-out ones alone."""


@dataclass(frozen=True)
class PlannedStep:
    """A step in its place. `number` counts from 1; `place` is where it stands in the manifest, `profile` what put it there."""

    number: int
    kind: str
    options: Any
    sources: tuple[str, ...]
    place: str
    profile: str | None = None


def plan_steps(steps: Sequence[DataStep]) -> list[PlannedStep]:
    """The steps with profiles put in, and a judge's `minScore` as the `threshold` step that it stands for.

    Raises KeyError for a profile that is not known, ValueError for one that asks models and is given none.
    """
    planned: list[PlannedStep] = []
    for index, given in enumerate(steps):
        place = f"spec.data.steps[{index}]"
        for step, profile in _expand(given):
            for kind, options in _split(step):
                planned.append(PlannedStep(len(planned) + 1, kind, options, tuple(given.sources), place, profile))
    return planned


def _expand(given: DataStep) -> Iterator[tuple[DataStep, str | None]]:
    if given.kind != "use":
        yield given, None
        return
    for raw in PROFILES[given.options]:
        kind, options = next(iter(raw.items()))
        if options.get("models") == []:
            if not given.models:
                raise ValueError(f"The profile `{given.options}` asks language models: name them in `models`.")
            options = {**options, "models": [m.to_json_dict() for m in given.models]}
        yield DataStep.model_validate({kind: options}), given.options


def _split(step: DataStep) -> Iterator[tuple[str, Any]]:
    yield step.kind, step.options
    if step.judge is not None and step.judge.min_score is not None:
        yield "threshold", ThresholdStep(score=step.judge.score, min=step.judge.min_score)
