"""Which module does which kind of step, and which function which task of a set step: imported when asked for, by name from here alone."""

from importlib import import_module
from typing import Any, Final, cast

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


def build_record_step(step: PlannedStep, context: StepContext) -> RecordStep:
    """The step, ready to be applied. Raises DataError where its options can't be served."""
    module = import_module(f"{_STEPS}.{RECORD_STEPS[step.kind]}")
    return cast(RecordStep, module.build(step.options, context))


def build_set_step(step: PlannedStep) -> SetStep:
    """The step, ready to be planned. Raises DataError where its options can't be served."""
    module = import_module(f"{_STEPS}.{SET_STEPS[step.kind]}")
    return cast(SetStep, module.build(step.options))


def find_set_task(name: str) -> SetTask:
    """The function of a task's `do`, `<module>.<function>`: one of a set step's module's TASKS. Raises KeyError for any other."""
    module, _, function = name.partition(".")
    if module not in {*SET_STEPS.values(), "embedding"}:
        raise KeyError(name)
    tasks: dict[str, Any] = import_module(f"{_STEPS}.{module}").TASKS
    return cast(SetTask, tasks[function])
