"""Which new instructions and instances a growing pool takes up (Self-Instruct, arXiv:2212.10560, and Alpaca; code).

The rules for an instruction by itself and for one instance are those of the `instructions` step; here stand the two that look further: an
instruction against the whole pool, an instance against the others of its instruction.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from llamero.data.generating.answers import Instance
from llamero.data.generating.recipe import Recipe
from llamero.data.rouge import RougePool
from llamero.data.steps import instructions
from llamero.data.steps.record import Drop, Record, RecordStep, StepContext
from llamero.spec.records import Message

_MOST_LIMIT = 0.999999  # RougePool wants a limit below 1: with maxRouge 1 nothing is too like


class Refusals:
    """The rules of a recipe, and the pool's instructions as ROUGE compares them."""

    def __init__(self, recipe: Recipe, pool: Iterable[str]) -> None:
        self._max_rouge = recipe.max_rouge
        self._texts = list(pool)
        self._rouge = RougePool(min(recipe.max_rouge, _MOST_LIMIT), self._texts)
        context = StepContext(seed=0, base=None, answers="", workers=1, fetch=_fetch_nothing)
        self._instruction_rules = instructions.build(
            recipe.rules.model_copy(update={"check_instances": False}), context
        )
        self._instance_rules = instructions.build(recipe.rules, context)

    def judge_instruction(self, instruction: str) -> Drop | None:
        """Why the pool does not take an instruction; None where it does."""
        drop = _apply(self._instruction_rules, instruction, Instance("", ""))
        if drop is not None:
            return drop
        value, place = self._rouge.find_best(instruction)
        if value <= self._max_rouge:
            return None
        detail = (
            f"ROUGE-L F with “{self._texts[place][:200]}” is {value:.3g}, where at most {self._max_rouge:g} is wanted."
        )
        return Drop("maxRouge", detail, value, self._max_rouge)

    def admit(self, instruction: str) -> None:
        """Put an instruction into the pool."""
        self._texts.append(instruction)
        self._rouge.add(instruction)

    def judge_instance(self, instruction: str, instance: Instance) -> Drop | None:
        """Why an instance is refused by itself."""
        return _apply(self._instance_rules, instruction, instance)


def judge_instances(
    refusals: Refusals, instruction: str, instances: Sequence[Instance]
) -> list[tuple[Instance, Drop | None]]:
    """Each instance of an instruction with why it is refused.

    After the rules for one: where two that are left give the same input different outputs, none of them is trusted; of equal ones one stays.
    """
    verdicts = {i: refusals.judge_instance(instruction, instance) for i, instance in enumerate(instances)}
    left = [i for i, drop in verdicts.items() if drop is None]
    outputs: dict[str, set[str]] = {}
    for i in left:
        if instances[i].input:
            outputs.setdefault(instances[i].input, set()).add(instances[i].output)
    torn = next((given for given, answers in outputs.items() if len(answers) > 1), None)
    seen: set[Instance] = set()
    for i in left:
        if torn is not None:
            verdicts[i] = Drop(
                "checkInstances",
                f"The input “{torn[:100]}” of this instruction has {len(outputs[torn])} outputs.",
                len(outputs[torn]),
                1,
            )
        elif instances[i] in seen:
            verdicts[i] = Drop("checkInstances", "The instruction has this instance twice.")
        seen.add(instances[i])
    return [(instance, verdicts[i]) for i, instance in enumerate(instances)]


def _apply(rules: RecordStep, instruction: str, instance: Instance) -> Drop | None:
    turns = (Message("user", instruction), Message("assistant", instance.output))
    (outcome,) = rules.apply([Record(0, "", "", 0, turns, instance.input)])
    return outcome if isinstance(outcome, Drop) else None


def _fetch_nothing(uri: str) -> Path:
    raise AssertionError(uri)
