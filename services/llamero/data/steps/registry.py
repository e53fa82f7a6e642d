"""Which module does which kind of step, and which function which task of a set step: imported when asked for, by name from here alone."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, cast

from llamero.data.errors import DataError
from llamero.data.steps.record import RecordStep, StepContext
from llamero.data.steps.view import SetStep, SetTask
from llamero.spec.profiles import PlannedStep

_STEPS = "llamero.data.steps"

RECORD_STEPS: Final[dict[str, str]] = {
    "extract": "extract",
    "content": "content",
    "personalData": "personal_data",
    "language": "language",
    "conversations": "conversations",
    "length": "length",
    "answerStyle": "answer_style",
    "instructions": "instructions",
    "quality": "quality",
    "repetition": "repetition",
    "judge": "judge",
    "rewrite": "rewrite",
    "evolve": "evolve",
    "backTranslate": "back_translate",
    "principles": "principles",
    "score": "score",
}
"""Kind → module with `build(options, context) -> RecordStep`."""

SET_STEPS: Final[dict[str, str]] = {
    "duplicates": "duplicates",
    "nearDuplicates": "near_duplicates",
    "decontaminate": "decontaminate",
    "threshold": "threshold",
    "kCenter": "k_center",
    "diversity": "diversity",
    "rank": "rank",
    "mining": "mining",
    "sample": "sample",
    "random": "random_part",
}
"""Kind → module with `build(options) -> SetStep`."""


def find_missing(steps: Iterable[PlannedStep]) -> PlannedStep | None:
    """The first step that nothing here serves."""
    return next((step for step in steps if find_spec(f"{_STEPS}.{_find_module(step.kind)}") is None), None)


def build_record_step(step: PlannedStep, context: StepContext) -> RecordStep:
    """The step, ready to be applied. Raises DataError where it can't be served."""
    return cast(RecordStep, _load(step).build(step.options, context))


def build_set_step(step: PlannedStep) -> SetStep:
    """The step, ready to be planned. Raises DataError where it can't be served."""
    return cast(SetStep, _load(step).build(step.options))


def find_set_task(name: str) -> SetTask:
    """The function of a task's `do`, `<module>.<function>`: one of a set step's module's TASKS. Raises KeyError for any other."""
    module, _, function = name.partition(".")
    if module not in {*SET_STEPS.values(), "embedding"}:
        raise KeyError(name)
    tasks: dict[str, Any] = import_module(f"{_STEPS}.{module}").TASKS
    return cast(SetTask, tasks[function])


def _find_module(kind: str) -> str:
    return RECORD_STEPS.get(kind) or SET_STEPS[kind]


def _load(step: PlannedStep) -> Any:
    try:
        return import_module(f"{_STEPS}.{_find_module(step.kind)}")
    except ModuleNotFoundError as error:
        raise DataError(describe_missing(step, str(error))) from error


def describe_missing(step: PlannedStep, why: str = "it is not part of this installation") -> str:
    """That a step can't be served, and what to do."""
    return (
        f"{step.place} (`{step.kind}`) can't be done here: {why}. Take the step out of data.steps, or install all of llamero "
        "with the `data` extra."
    )
