"""The manifest's steps put to the shards of a preparation, segment by segment, and what is left of each shard in between.

Which tasks there are and what they are given stands here; their work in `refining` and in the steps' own modules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llamero.data.applying import dump_step
from llamero.data.dispatch import Dispatch
from llamero.data.folders import load_rows
from llamero.data.rejections import StepName
from llamero.data.segments import Segment
from llamero.data.selection import find_held_out
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.registry import build_set_step
from llamero.data.steps.view import DROPS_FILE, ROWS_FILE, Round, SetContext, View, read_drops
from llamero.data.taskfiles import Task
from llamero.spec.profiles import PlannedStep


@dataclass(frozen=True)
class Drops:
    """A table of drops, and the step that left it (None: equal records and caps)."""

    uri: str
    step: StepName | None

    def to_json(self) -> dict[str, Any]:
        return {"uri": self.uri, "step": self.step.to_json() if self.step else None}


@dataclass(frozen=True)
class ShardState:
    """Where one shard stands: the folder with its records, how many of them are still there, the tables that drop the others, and the
    folders with the rejections so far."""

    number: int
    source: str
    records: str
    count: int
    drops: tuple[Drops, ...]
    rejected: tuple[str, ...]
    ledger: tuple[Mapping[str, Any], ...] = ()


State = tuple[ShardState, ...]


@dataclass(frozen=True)
class Surroundings:
    """What tasks are told besides their shard. `base` is None where lengths are counted in words."""

    seed: int
    evaluation_fraction: float
    workers: int
    base: str | None
    base_digest: str
    answers: str
    listing: str
    measure: Mapping[str, Any]
    scores: tuple[str, ...]
    domains: Mapping[str, Sequence[str]]
    allow_http: bool
    preparation: str
    fingerprints: Callable[[PlannedStep], list[str]]

    @property
    def context(self) -> dict[str, Any]:
        """For record steps."""
        return {
            "seed": self.seed,
            "evaluationFraction": self.evaluation_fraction,
            "answers": self.answers,
            "workers": self.workers,
            "allowHttp": self.allow_http,
            "preparation": self.preparation,
        }


class Pipeline:
    """Puts segments to shards. Every method takes a state and returns the next one; kept in between is only what asking models took."""

    def __init__(self, dispatch: Dispatch, files: SharedFiles, surroundings: Surroundings) -> None:
        self.dispatch, self.files, self.given = dispatch, files, surroundings
        self._asked: dict[str, list[dict[str, Any]]] = {}

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The accounts of all tasks that asked models, each task's once."""
        return [account for accounts in self._asked.values() for account in accounts]

    def note_asked(self, shards: Sequence[Shard]) -> list[Shard]:
        """Take in the shards' accounts."""
        self._asked |= {shard.uri: shard.summary["asked"] for shard in shards if shard.summary.get("asked")}
        return list(shards)

    def run(self, segments: Sequence[Segment], state: State) -> State:
        """The state after all segments."""
        for segment in segments:
            state = self.run_set(segment.steps[0], state) if segment.is_set else self.refine(segment, state)
        return state

    # -- steps across records --------------------------------------------------------------------------------------------------

    def run_set(self, step: PlannedStep, state: State) -> State:
        """Plan the step, do its rounds, and note its drops."""
        plan = build_set_step(step).plan(self._describe(step, state))
        try:
            wanted = next(plan)
            while True:
                wanted = plan.send(self._run_round(step, wanted))
        except StopIteration as end:
            return self.note_drops(end.value or [], StepName.of(step), state)

    def _describe(self, step: PlannedStep, state: State) -> SetContext:
        given = self.given
        concerned = [shard.count if not step.sources or shard.source in step.sources else 0 for shard in state]
        return SetContext(
            views=tuple(self.view(shard, step.sources) for shard in state),
            counts=tuple(concerned),
            seed=given.seed,
            base=given.base,
            answers=given.answers,
            workers=given.workers,
            domains=given.domains,
            allow_http=given.allow_http,
            preparation=given.preparation,
        )

    def view(self, shard: ShardState, sources: Sequence[str] = ()) -> View:
        """What a step across records may see of a shard."""
        return {
            "shard": shard.number,
            "records": shard.records,
            "rows": True,
            "drops": [drops.uri for drops in shard.drops],
            "seed": self.given.seed,
            "evaluationFraction": self.given.evaluation_fraction,
            "sources": list(sources),
        }

    def _run_round(self, step: PlannedStep, wanted: Round) -> list[Shard]:
        decides = {"files": self.given.fingerprints(step), "base": self.given.base_digest}
        tasks: list[Task] = [
            {
                "task": "set",
                "listing": self.given.listing,
                "step": inner,
                "folder": self.dispatch.name_folder("set", decides | {"step": inner}, wanted.reusable),
            }
            for inner in wanted.tasks
        ]
        if wanted.rows is not None:
            return self.note_asked(self.dispatch.run(tasks, wanted.activity, sum(wanted.rows), wanted.rows))
        return self.note_asked(self.dispatch.run(tasks, wanted.activity, len(tasks), [1] * len(tasks), unit="parts"))

    def note_drops(self, uris: Sequence[str], step: StepName | None, state: State) -> State:
        """The state without the records that the tables name; a table is noted with the shards that it is about."""
        found: dict[int, list[Drops]] = {}
        gone = np.zeros(len(state), dtype=np.int64)
        for uri in uris:
            folder = self.files.fetch(uri, [DROPS_FILE])
            table = np.load(folder / DROPS_FILE, mmap_mode="r", allow_pickle=False)
            counts = np.bincount(table["shard"], minlength=len(state))
            gone += counts
            for shard in np.flatnonzero(counts).tolist():
                found.setdefault(shard, []).append(Drops(uri, step))
        return tuple(
            replace(
                shard, drops=(*shard.drops, *found.get(shard.number, ())), count=shard.count - int(gone[shard.number])
            )
            for shard in state
        )

    def count_training(self, step: PlannedStep, state: State) -> int:
        """How many training records of the step's sources are still there."""
        count = 0
        for shard in state:
            if step.sources and shard.source not in step.sources:
                continue
            rows = load_rows(self.files.fetch(shard.records, [ROWS_FILE]))
            held_out = find_held_out(rows["prompt"], self.given.seed, self.given.evaluation_fraction)
            gone = [read_drops(drops.uri, shard.number, self.files)["row"] for drops in shard.drops]
            is_gone = np.isin(rows["row"], np.concatenate(gone)) if gone else np.zeros(len(rows), dtype=bool)
            count += int(np.count_nonzero(~held_out & ~is_gone))
        return count

    # -- record steps ----------------------------------------------------------------------------------------------------------

    def refine(self, segment: Segment, state: State) -> State:
        """Put the segment's record steps to the shards that they are for; those get folders of their own."""
        concerned = [shard for shard in state if segment.concerns(shard.source)]
        tasks = [self._refine_task(segment, shard) for shard in concerned]
        names = ", ".join(dict.fromkeys(step.kind for step in segment.steps))
        rows = [shard.count for shard in concerned]
        made = self.note_asked(self.dispatch.run(tasks, f"doing {names}", sum(rows), rows))
        following = {shard.number: self._follow(shard, result) for shard, result in zip(concerned, made, strict=True)}
        return tuple(following.get(shard.number, shard) for shard in state)

    def _follow(self, shard: ShardState, made: Shard) -> ShardState:
        return replace(
            shard,
            records=made.uri,
            count=made.summary["records"],
            drops=(),
            rejected=(*shard.rejected, made.uri),
            ledger=(*shard.ledger, made.summary),
        )

    def _refine_task(self, segment: Segment, shard: ShardState) -> Task:
        given = self.given
        decides: Task = {
            "records": shard.records,
            "shard": shard.number,
            "drops": [drops.to_json() for drops in shard.drops],
            "steps": [dump_step(step) for step in segment.steps],
            "scores": list(given.scores),
            "isCostly": segment.is_costly,
            "needsBase": segment.needs_base,
            "last": str(segment.steps[-1].number),
            **given.measure,
        }
        hangs_on = decides | {
            "files": [self.given.fingerprints(step) for step in segment.steps],
            "base": given.base_digest,
            "seed": given.seed,
            "evaluationFraction": given.evaluation_fraction,
        }
        folder = self.dispatch.name_folder("refine", hangs_on, is_kept=True)
        return decides | {
            "task": "refine",
            "listing": given.listing,
            "folder": folder,
            "context": given.context,
            "tokenizer": given.base,
        }
