"""What a variant does where the manifest leaves it open, each figure from the authors' code (Self-Instruct arXiv:2212.10560, Alpaca)."""

from dataclasses import dataclass
from typing import Final

from llamero.spec.steps import ALPACA_BLOCKED_WORDS, SELF_INSTRUCT_BLOCKED_WORDS, GenerateSpec, InstructionsStep

_CALLS_PER_RECORD: Final = 20


@dataclass(frozen=True)
class Recipe:
    """How a pool is grown; every figure is settled. `with_instances`: new tasks come with theirs, and no task is classified."""

    records: int
    human_examples: int
    machine_examples: int
    tasks_per_call: int
    max_instances: int
    max_rouge: float
    max_calls: int
    with_instances: bool
    rules: InstructionsStep


_DEFAULTS: Final[dict[str, tuple[int, int, int]]] = {"self-instruct": (6, 2, 8), "alpaca": (3, 0, 20)}
"""Human and machine-made examples in a prompt, and tasks asked for in a call."""

_BLOCKED: Final[dict[str, tuple[str, ...]]] = {
    "self-instruct": SELF_INSTRUCT_BLOCKED_WORDS,
    "alpaca": SELF_INSTRUCT_BLOCKED_WORDS + ALPACA_BLOCKED_WORDS,
}


def settle_recipe(spec: GenerateSpec) -> Recipe:
    """The recipe that a manifest's `generate` stands for."""
    human, machine, tasks = _DEFAULTS[spec.variant]
    blocked = spec.blocked_words if spec.blocked_words is not None else list(_BLOCKED[spec.variant])
    return Recipe(
        records=spec.records,
        human_examples=human if spec.human_examples is None else spec.human_examples,
        machine_examples=machine if spec.machine_examples is None else spec.machine_examples,
        tasks_per_call=tasks if spec.tasks_per_call is None else spec.tasks_per_call,
        max_instances=spec.max_instances,
        max_rouge=spec.max_rouge,
        max_calls=spec.max_calls or _CALLS_PER_RECORD * spec.records,
        with_instances=spec.variant == "alpaca",
        rules=InstructionsStep(min_words=spec.min_words, max_words=spec.max_words, blocked_words=blocked),
    )
