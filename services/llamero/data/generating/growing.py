"""Grows a pool of instructions from human seeds with a language model, wave by wave, and gives each candidate as a row: made or refused.

A wave's prompts are drawn from the pool as it stood before, by a generator that the call's number seeds, and its answers are taken in the
calls' order: so a growth that was killed asks the same again, and the cache answers. Prompts, parsers and thresholds stand in the modules
beside; who answers, and what that may cost, is the asker's business.
"""

import logging
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final, Literal

from llamero.data.asking.asker import Asker
from llamero.data.asking.client import Backoff
from llamero.data.asking.ledger import Account
from llamero.data.asking.questions import Answer, Question, Unanswered
from llamero.data.errors import DataError
from llamero.data.generating.answers import Instance, NewTask, read_blocks, read_class, read_instances, read_list
from llamero.data.generating.prompts import ask_class, ask_instances, ask_tasks, ask_whole_tasks
from llamero.data.generating.recipe import Recipe, settle_recipe
from llamero.data.generating.refusing import Refusals, judge_instances
from llamero.data.generating.seeds import Task, read_seeds
from llamero.data.readers.generated import build_made_row, build_refused_row
from llamero.data.rows import Row
from llamero.data.steps.asked import Asking
from llamero.data.steps.record import Drop, StepContext
from llamero.spec.job import DataSource
from llamero.spec.steps import GenerateSpec

PURPOSE: Final = "generate"

_WAVE: Final = (
    16  # calls: not the endpoint's concurrency, which may change between two runs that must grow the same pool
)
_BARREN_CALLS: Final = 64
_CLASS_EXAMPLES: Final = 4  # of each kind
_INSTANCE_EXAMPLES: Final = 3

Rows = Generator[Row, None, None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Growth:
    """What a growth came to: `calls` questions, `made` instructions with `records` instances, `refused` candidates, and why it ended.

    `ended`: records (as many instructions as were asked for), calls (maxCalls), or barren (so many calls gave nothing new that going on
    would be waste).
    """

    wanted: int
    calls: int
    made: int
    records: int
    refused: int
    ended: Literal["records", "calls", "barren"]

    def describe(self) -> str:
        """A sentence for a person."""
        what = f"{self.made:,} of {self.wanted:,} instructions made in {self.calls:,} questions"
        rows = f"{self.records:,} records, {self.refused:,} refused candidates"
        why = {
            "records": "",
            "calls": ": `maxCalls` is reached",
            "barren": f": the last {_BARREN_CALLS} calls for tasks gave none that is new and usable",
        }
        return f"{what} ({rows}){why[self.ended]}."


class GeneratedRows(Iterator[Row]):
    """The rows of a growth, made as they are asked for. `growth` says what it came to once they are all there, `accounts` what that took."""

    def __init__(self, rows: Generator[Row, None, Growth], accounts: list[Account]) -> None:
        self._rows = rows
        self.growth: Growth | None = None
        self.accounts = accounts

    def __next__(self) -> Row:
        try:
            return next(self._rows)
        except StopIteration as end:
            if self.growth is None:
                self.growth = end.value
            raise StopIteration from None


def generate_rows(source: DataSource, context: StepContext, backoff: Backoff | None = None) -> GeneratedRows:
    """The rows of a source with `generate`, from the seeds in all files of its `uri`; to be read with `readers.generated.parse_generated`.

    Raises DataError: no usable seeds, the endpoint refuses, or a cap on cost is reached (what was answered is in the cache).
    """
    spec = source.generate
    assert spec is not None
    recipe, seeds = settle_recipe(spec), read_seeds(source, context.allow_http)
    if len(seeds) < recipe.human_examples:
        raise DataError(
            f"{source.uri} holds {len(seeds)} seed tasks, and a prompt shows {recipe.human_examples}: add seeds, or lower `humanExamples`."
        )
    # One task grows a source's whole pool, so that what the endpoint bears is all for it.
    alone = replace(context, workers=1)
    name = source.name or source.uri.rsplit("/", 1)[-1]
    # The source's name keeps the budgets of two sources apart that ask the same model.
    asking = Asking(spec.model, f"{PURPOSE} {name}", alone, backoff)
    pool = _Pool(recipe, seeds, spec, context.seed)
    return GeneratedRows(_grow(pool, asking, name), asking.accounts)


def _grow(pool: "_Pool", asking: Asking, name: str) -> Generator[Row, None, Growth]:
    with asking.open() as asker:
        while pool.ended is None:
            yield from _do_wave(pool, asker)
    growth = pool.tell()
    _log.log(logging.INFO if growth.ended == "records" else logging.WARNING, "%s: %s", name, growth.describe())
    return growth


@dataclass
class _Admitted:
    """A new task that passed the rules for instructions, on its way to its instances."""

    task: NewTask
    origin: dict[str, Any]
    is_classification: bool = False
    instances: list[Instance] = field(default_factory=list)


class _Pool:
    """The seeds and what was made, what is drawn from them, and how far the growth is."""

    def __init__(self, recipe: Recipe, seeds: Sequence[Task], spec: GenerateSpec, seed: int) -> None:
        self.recipe, self.seeds, self.seed = recipe, seeds, seed
        self.by, self.operation = spec.model.model, f"{PURPOSE}.{spec.variant}"
        self.refusals = Refusals(recipe, [task.instruction for task in seeds])
        self.class_examples = self._pick_class_examples()
        self.instance_examples = {kind: self._pick_instance_examples(kind) for kind in (True, False)}
        self._machine: list[Task] = []
        self._calls_for_tasks = self._barren = self._rows = self._records = self._refused = 0
        self.calls = 0

    @property
    def wanted(self) -> int:
        """Instructions that are still to be made."""
        return self.recipe.records - len(self._machine)

    @property
    def calls_left(self) -> int:
        return self.recipe.max_calls - self.calls

    @property
    def ended(self) -> Literal["records", "calls", "barren"] | None:
        if self.wanted <= 0:
            return "records"
        # With a classification and instances to ask for besides, a call for tasks alone makes nothing.
        if self.calls_left < (1 if self.recipe.with_instances else 3):
            return "calls"
        return "barren" if self._barren >= _BARREN_CALLS else None

    def draw_wave(self) -> list[tuple[int, list[Task]]]:
        """The calls of the next wave: their numbers, from 1, and the tasks that each shows."""
        needed, patience = math.ceil(self.wanted / self.recipe.tasks_per_call), _BARREN_CALLS - self._barren
        # A task that is taken up asks twice more: what would leave nothing for that is not started.
        each = 1 if self.recipe.with_instances else 1 + 2 * self.recipe.tasks_per_call
        affordable = max(1, self.calls_left // each)
        numbers = [self._calls_for_tasks + 1 + i for i in range(min(_WAVE, needed, affordable, patience))]
        self._calls_for_tasks += len(numbers)
        self._barren += len(numbers)
        self.calls += len(numbers)
        return [(number, self._draw(number)) for number in numbers]

    def _draw(self, number: int) -> list[Task]:
        """Machine-made tasks as far as there are some, human ones for the rest, in random order (code)."""
        generator = Random(f"{self.seed}:{number}")
        machine = generator.sample(self._machine, min(self.recipe.machine_examples, len(self._machine)))
        human = self.recipe.human_examples + self.recipe.machine_examples - len(machine)
        shown = machine + generator.sample(self.seeds, min(human, len(self.seeds)))
        generator.shuffle(shown)
        return shown

    def _pick_class_examples(self) -> list[Task]:
        generator = Random(f"{self.seed}:class")
        picked: list[Task] = []
        for kind in (True, False):
            known = [task for task in self.seeds if task.is_classification is kind]
            picked += generator.sample(known, min(_CLASS_EXAMPLES, len(known)))
        generator.shuffle(picked)
        return picked

    def _pick_instance_examples(self, is_classification: bool) -> list[Task]:
        known = [task for task in self.seeds if (task.is_classification is True) == is_classification]
        return Random(f"{self.seed}:instances").sample(known, min(_INSTANCE_EXAMPLES, len(known)))

    def describe_call(self, number: int, shown: Sequence[Task]) -> dict[str, Any]:
        """The lineage of what a call made."""
        return {"operation": self.operation, "by": self.by, "call": number, "shown": [task.name for task in shown]}

    def keep(self, admitted: _Admitted, instances: Sequence[Instance]) -> Rows:
        """The rows of a new task's instances; it may be shown from now on."""
        name = f"made-{len(self._machine) + 1}"
        # Only Alpaca's prompts show instances: a great pool need not hold the others.
        first = instances[0] if self.recipe.with_instances and self.recipe.machine_examples else Instance("", "")
        known = None if self.recipe.with_instances else admitted.is_classification
        origin = {**admitted.origin, "task": name} | ({} if known is None else {"classification": known})
        self._machine.append(Task(name, admitted.task.instruction, first.input, first.output, known))
        self._barren = 0
        for instance in instances:
            self._rows += 1
            self._records += 1
            yield build_made_row(self._rows, admitted.task.instruction, instance.input, instance.output, origin)

    def refuse(
        self, drop: Drop, origin: dict[str, Any], instruction: str | None = None, instance: Instance | None = None
    ) -> Row:
        self._rows += 1
        self._refused += 1
        candidate: dict[str, Any] = {} if instruction is None else {"instruction": instruction}
        if instance is not None:
            candidate |= {"input": instance.input, "output": instance.output}
        return build_refused_row(self._rows, candidate, origin, drop)

    def tell(self) -> Growth:
        assert self.ended is not None
        return Growth(self.recipe.records, self.calls, len(self._machine), self._records, self._refused, self.ended)


def _do_wave(pool: _Pool, asker: Asker) -> Rows:
    recipe, wave = pool.recipe, pool.draw_wave()
    answers = _ask_tasks(asker, recipe, [shown for _, shown in wave])
    admitted: list[_Admitted] = []
    for (number, shown), answer in zip(wave, answers, strict=True):
        origin = pool.describe_call(number, shown)
        if isinstance(answer, Unanswered):
            yield pool.refuse(
                Drop("unanswered", f"Call {number} gave no usable list of tasks: {answer.reason}"), origin
            )
            continue
        for task in answer:
            drop = _find_surplus(len(admitted), pool) or pool.refusals.judge_instruction(task.instruction)
            if drop is not None:
                yield pool.refuse(drop, origin, task.instruction, task.instance)
                continue
            pool.refusals.admit(task.instruction)
            admitted.append(_Admitted(task, origin, instances=[task.instance] if task.instance else []))
    if not recipe.with_instances:
        admitted = yield from _ask_instances(pool, asker, admitted)
    for candidate in admitted:
        yield from _finish(pool, candidate)


def _ask_tasks(asker: Asker, recipe: Recipe, shown: Sequence[Sequence[Task]]) -> list[list[NewTask] | Unanswered]:
    """The new tasks of each prompt."""
    count = recipe.tasks_per_call
    if recipe.with_instances:
        return _ask_whole_tasks(asker, [ask_whole_tasks(tasks, count) for tasks in shown], count)
    answers = asker.ask([ask_tasks(tasks, count) for tasks in shown], read_list(count))
    return [answer for answer in answers if not isinstance(answer, Answer)]


def _ask_whole_tasks(asker: Asker, questions: Sequence[Question], count: int) -> list[list[NewTask] | Unanswered]:
    """The new tasks with their instances; an answer that was cut off loses its last task alone (Alpaca, code)."""
    outcome: list[list[NewTask] | Unanswered] = []
    unread: list[int] = []
    for place, answer in enumerate(asker.ask(questions, allow_cut=True)):
        if isinstance(answer, Unanswered):
            outcome.append(answer)
            continue
        try:
            outcome.append(read_blocks(count, answer.is_cut)(answer.text))
        except ValueError as error:
            outcome.append(Unanswered(str(error)))
            unread.append(place)
    # The first try comes out of the cache; further ones are warmer, so that not the same is answered.
    again = asker.ask([questions[place] for place in unread], read_blocks(count)) if unread else []
    for place, tasks in zip(unread, again, strict=True):
        if not isinstance(tasks, Answer):
            outcome[place] = tasks
    return outcome


def _find_surplus(admitted: int, pool: _Pool) -> Drop | None:
    if admitted < pool.wanted:
        return None
    return Drop("records", f"It came after the last of the {pool.recipe.records:,} instructions that were wanted.")


def _ask_instances(pool: _Pool, asker: Asker, admitted: Sequence[_Admitted]) -> Generator[Row, None, list[_Admitted]]:
    """Classify the tasks, ask for their instances, output first or input first; what is left of the tasks."""
    affordable = pool.calls_left // 2
    for candidate in admitted[affordable:]:
        limit = pool.recipe.max_calls
        yield pool.refuse(
            Drop("maxCalls", f"No question was left to ask for its instances (limit {limit:,})."),
            candidate.origin,
            candidate.task.instruction,
        )
    going_on = list(admitted[:affordable])
    classes = (
        asker.ask([ask_class(c.task.instruction, pool.class_examples) for c in going_on], read_class)
        if going_on
        else []
    )
    pool.calls += len(going_on)
    classified = yield from _sort_out(pool, going_on, classes, "whether it is a classification")
    for candidate, answer in classified:
        candidate.is_classification = answer is True
    going_on = [candidate for candidate, _ in classified]
    pool.calls += len(going_on)
    by_kind: list[_Admitted] = []
    # Two askings, since the forms differ; the order of the tasks is restored below.
    given: dict[int, object] = {}
    for kind in (True, False):
        part = [c for c in going_on if c.is_classification is kind]
        questions = [_build_instances_question(pool, c) for c in part]
        answers = asker.ask(questions, read_instances(kind, pool.recipe.max_instances)) if part else []
        given |= {id(candidate): answer for candidate, answer in zip(part, answers, strict=True)}
    with_instances = yield from _sort_out(pool, going_on, [given[id(c)] for c in going_on], "instances of it")
    for candidate, instances in with_instances:
        assert isinstance(instances, list)
        candidate.instances = instances
        by_kind.append(candidate)
    return by_kind


def _build_instances_question(pool: _Pool, candidate: _Admitted) -> Question:
    kind = candidate.is_classification
    return ask_instances(candidate.task.instruction, kind, pool.recipe.max_instances, pool.instance_examples[kind])


def _sort_out(
    pool: _Pool, candidates: Sequence[_Admitted], answers: Sequence[object], what: str
) -> Generator[Row, None, list[tuple[_Admitted, object]]]:
    """The candidates that got an answer, with it; the others become refused rows."""
    answered: list[tuple[_Admitted, object]] = []
    for candidate, answer in zip(candidates, answers, strict=True):
        if isinstance(answer, Unanswered):
            drop = Drop("unanswered", f"The model did not say {what}: {answer.reason}")
            yield pool.refuse(drop, candidate.origin, candidate.task.instruction)
        else:
            answered.append((candidate, answer))
    return answered


def _finish(pool: _Pool, candidate: _Admitted) -> Rows:
    """The rows of a task's instances, good ones and refused ones."""
    instruction = candidate.task.instruction
    verdicts = judge_instances(pool.refusals, instruction, candidate.instances)
    good = [instance for instance, drop in verdicts if drop is None]
    if good:
        yield from pool.keep(candidate, good)
    for instance, drop in verdicts:
        if drop is not None:
            yield pool.refuse(drop, candidate.origin, instruction, instance)
