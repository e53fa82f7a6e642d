"""Record steps put to records: which of them each step sees, what becomes of them, and what is told of it.

Which steps there are is the manifest's, what they do their modules'. A record that a step changed is looked at again: an empty turn is
refused as it is when it is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import orjson

from llamero.data.content import hash_prompt
from llamero.data.normalise import refuse_empty
from llamero.data.readers.draft import Draft, RowError
from llamero.data.rejections import StepName, Tally
from llamero.data.selection import is_held_out
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Drop, Record, RecordStep, StepContext
from llamero.data.steps.registry import build_record_step
from llamero.spec.profiles import PlannedStep
from llamero.spec.steps import DataStep

CHANGED_BY = "changedBy"
"""Names, in a record's meta, the steps that changed its text."""

TRAINING_ONLY = frozenset({"judge"})
"""Kinds that never see a held-out record."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record: itself, perhaps changed; or why it was dropped, and by which step."""

    record: Record
    is_changed: bool = False
    step: StepName | None = None
    drop: Drop | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Prepared:
    plan: PlannedStep
    name: StepName
    step: RecordStep


class Applier:
    """The record steps of a task, in their order. `seed` and `evaluation_fraction` tell the sides."""

    def __init__(self, steps: Sequence[_Prepared], seed: int, evaluation_fraction: float) -> None:
        self._steps, self._seed, self._fraction = steps, seed, evaluation_fraction

    def __bool__(self) -> bool:
        return bool(self._steps)

    def apply(self, records: Sequence[Record], tally: Tally) -> list[Outcome]:
        """Each record's outcome, in their order; `tally` is added to."""
        outcomes = [Outcome(record) for record in records]
        for prepared in self._steps:
            seen = [i for i, outcome in enumerate(outcomes) if outcome.step is None and self._sees(prepared, outcome)]
            results = prepared.step.apply([outcomes[i].record for i in seen]) if seen else []
            for i, result in zip(seen, results, strict=True):
                if result is not outcomes[i].record:
                    outcomes[i] = _take_result(outcomes[i], result, prepared.name, tally)
        return outcomes

    def take_accounts(self) -> list[dict[str, Any]]:
        """What steps that ask models did since this was asked last (`asking.ledger.Account.to_dict`)."""
        taken: list[dict[str, Any]] = []
        for prepared in self._steps:
            accounts = getattr(prepared.step, "accounts", [])
            taken += [account.to_dict() for account in accounts]
            accounts.clear()
        return taken

    def _sees(self, prepared: _Prepared, outcome: Outcome) -> bool:
        record = outcome.record
        if prepared.plan.sources and record.source not in prepared.plan.sources:
            return False
        if prepared.plan.kind not in TRAINING_ONLY or self._fraction <= 0:
            return True
        prompt = int.from_bytes(hash_prompt(record.messages, record.input), "big")
        return not is_held_out(prompt, self._seed, self._fraction)


def _take_result(before: Outcome, result: Record | Drop, step: StepName, tally: Tally) -> Outcome:
    if isinstance(result, Drop):
        tally.drop(step.key, result.rule)
        return replace(before, step=step, drop=result, reason=step.kind)
    old = before.record
    if result.messages == old.messages and result.input == old.input:
        return replace(before, record=result)
    try:
        refuse_empty(Draft(result.messages, result.input))
    except RowError as error:
        tally.drop(step.key, error.reason)
        emptied = Drop(error.reason, f"After `{step.kind}`: {error.detail}")
        return replace(before, step=step, drop=emptied, reason=error.reason)
    tally.change(step.key)
    changed_by = [*old.meta.get(CHANGED_BY, ()), step.kind]
    return Outcome(result.with_meta(**{CHANGED_BY: changed_by}), is_changed=True)


def dump_step(step: PlannedStep) -> dict[str, Any]:
    """A step as tasks carry it."""
    return {
        "number": step.number,
        "kind": step.kind,
        "options": step.options.model_dump(mode="json", by_alias=True),
        "sources": list(step.sources),
        "place": step.place,
        "profile": step.profile,
    }


def load_step(row: dict[str, Any]) -> PlannedStep:
    """What `dump_step` made."""
    options = DataStep.model_validate({row["kind"]: row["options"]}).options
    return PlannedStep(row["number"], row["kind"], options, tuple(row["sources"]), row["place"], row["profile"])


def open_applier(task: dict[str, Any], files: SharedFiles) -> Applier:
    """The record steps that a task names, built once a process."""
    context = task["context"]
    base = files.fetch_base(task["tokenizer"]) if task["needsBase"] and task["tokenizer"] else None
    return _open(orjson.dumps(task["steps"]), orjson.dumps(context), base, files)


def build_context(given: dict[str, Any], base: Path | None, files: SharedFiles) -> StepContext:
    """A step's surroundings from what tasks carry of them (`pipeline.Surroundings.context`)."""
    return StepContext(
        seed=given["seed"],
        base=base,
        answers=given["answers"],
        workers=given["workers"],
        fetch=partial(files.fetch_named, allow_http=given["allowHttp"]),
        allow_http=given["allowHttp"],
        preparation=given["preparation"],
    )


@lru_cache(maxsize=8)
def _open(steps: bytes, context: bytes, base: Path | None, files: SharedFiles) -> Applier:
    given = orjson.loads(context)
    surroundings = build_context(given, base, files)
    planned = [load_step(row) for row in orjson.loads(steps)]
    prepared = [_Prepared(step, StepName.of(step), build_record_step(step, surroundings)) for step in planned]
    return Applier(prepared, given["seed"], given["evaluationFraction"])
