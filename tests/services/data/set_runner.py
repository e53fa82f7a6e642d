"""Runs a set step's plan without the pipeline: records in shards of any size, a folder per task, tasks in any order and done twice.

`from services.data.set_runner import SetRunner, make_record`. It holds a step to the contract: tasks are JSON, a doubled task leaves
the same bytes, and only what `SET_TASKS` of its module names is run.
"""

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from llamero.data.shards import Shard, commit_shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.record import Record
from llamero.data.steps.registry import find_set_task
from llamero.data.steps.view import RECORDS_FILE, SetContext, SetDrop, SetStep, View, read_drops, read_rules
from llamero.spec.records import Message


def make_record(row: int, prompt: str, answer: str, **rest: Any) -> Record:
    """A record of one exchange; `rest`: fields of Record, or `turns`: further texts, user and assistant in turn."""
    turns = [prompt, answer, *rest.pop("turns", ())]
    messages = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns))
    return Record(**{"row": row, "source": "s", "file": "s.jsonl", "line": row + 1, "messages": messages, **rest})


@dataclass(frozen=True)
class Outcome:
    """What a plan left: drops by place, and each round's activity with its shards. `kept`: the records that are left, in order."""

    drops: dict[tuple[int, int], SetDrop]
    rounds: list[tuple[str, list[Shard]]]
    uris: list[str]
    kept: list[Record]
    dropped: list[tuple[Record, SetDrop]]

    @property
    def kept_lines(self) -> list[int]:
        """The `line` of each record that is left: what stays the same however records are cut into shards."""
        return sorted(r.line for r in self.kept)

    @property
    def dropped_lines(self) -> dict[int, str]:
        """The rule by the `line` of each record that is dropped."""
        return {record.line: drop.rule for record, drop in self.dropped}


class SetRunner:
    """Runs plans in `root`. `order`: given, reversed or shuffled tasks of a round; `doubled`: each task is done twice."""

    def __init__(self, root: Path, order: str = "given", doubled: bool = False) -> None:
        self._root = root
        self._order = order
        self._doubled = doubled
        self.files = SharedFiles()

    def run(
        self,
        step: SetStep,
        records: Sequence[Record],
        shards: int = 1,
        seed: int = 0,
        evaluation_fraction: float = 0.0,
        workers: int = 1,
        base: str | None = None,
        sources: Sequence[str] = (),
    ) -> Outcome:
        """Cut the records into shards (in their order, rows numbered anew), run the step's plan, and gather what it drops."""
        self._root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self._root))
        cut = [
            [replace(record, row=row) for row, record in enumerate(part)] for part in cut_evenly(list(records), shards)
        ]
        views = [
            self._write_view(folder, number, part, seed, evaluation_fraction, sources)
            for number, part in enumerate(cut)
        ]
        context = SetContext(tuple(views), tuple(map(len, cut)), seed, base, str(folder / "answers"), workers)
        rounds, uris = self.run_plan(step, context, folder / "tasks")
        places = {(shard, r.row): r for shard, part in enumerate(cut) for r in part}
        drops = self.read_all_drops(uris, len(cut))
        assert set(drops) <= set(places), "a drop names a record that is not there"
        kept = [r for place, r in places.items() if place not in drops]
        dropped = [(places[place], drop) for place, drop in sorted(drops.items())]
        return Outcome(drops, rounds, uris, kept, dropped)

    def run_plan(
        self, step: SetStep, context: SetContext, folder: Path
    ) -> tuple[list[tuple[str, list[Shard]]], list[str]]:
        """The rounds that the step's plan yields, each with its shards, and the URIs of its tables of drops."""
        plan = step.plan(context)
        rounds: list[tuple[str, list[Shard]]] = []
        shards: list[Shard] | None = None
        while True:
            try:
                found = plan.send(shards) if shards is not None else next(plan)
            except StopIteration as end:
                return rounds, list(end.value or [])
            assert found.rows is None or len(found.rows) == len(found.tasks)
            order = list(range(len(found.tasks)))
            if self._order == "reversed":
                order.reverse()
            elif self._order == "shuffled":
                random.Random(len(rounds)).shuffle(order)
            done = {i: self._do(found.tasks[i], folder) for i in order}
            shards = [done[i] for i in range(len(found.tasks))]
            rounds.append((found.activity, shards))

    def read_all_drops(self, uris: Sequence[str], shards: int) -> dict[tuple[int, int], SetDrop]:
        """All tables of drops as values; a record may be dropped once alone."""
        drops: dict[tuple[int, int], SetDrop] = {}
        for uri in uris:
            rules = read_rules(uri, self.files)
            for shard in range(shards):
                for row in read_drops(uri, shard, self.files):
                    place = int(row["shard"]), int(row["row"])
                    other = int(row["other_shard"]), int(row["other_row"])
                    assert place not in drops, f"{place} is dropped twice"
                    drops[place] = SetDrop(
                        place,
                        rules[row["rule"]],
                        None if row["value"] != row["value"] else float(row["value"]),
                        None if row["threshold"] != row["threshold"] else float(row["threshold"]),
                        None if other == place else other,
                    )
        return drops

    def _do(self, task: Mapping[str, Any], folder: Path) -> Shard:
        content = orjson.dumps(task, option=orjson.OPT_SORT_KEYS)
        carried = orjson.loads(content)
        function = find_set_task(carried["do"])

        def do(target: Path) -> Shard:
            shard = commit_shard(
                target, lambda partial: function(orjson.loads(content), partial, self.files, lambda rows: None)
            )
            return replace(shard, summary=orjson.loads(orjson.dumps(shard.summary)))

        name = sha256(content).hexdigest()[:24]
        shard = do(folder / name)
        if self._doubled:
            again = do(folder / f"{name}-again")
            assert (again.files, again.summary) == (shard.files, shard.summary), f"{carried['do']} done twice differs"
        return shard

    def _write_view(
        self, folder: Path, number: int, part: Sequence[Record], seed: int, fraction: float, sources: Sequence[str]
    ) -> View:
        target = folder / "shards" / f"{number:05d}"
        target.mkdir(parents=True)
        lines = [orjson.dumps(r.to_dict(), option=orjson.OPT_APPEND_NEWLINE) for r in part]
        (target / RECORDS_FILE).write_bytes(b"".join(lines))
        return {
            "shard": number,
            "records": str(target),
            "drops": [],
            "seed": seed,
            "evaluationFraction": fraction,
            "sources": list(sources),
        }


def cut_evenly(records: Sequence[Record], shards: int) -> list[Sequence[Record]]:
    """The records in `shards` runs whose sizes differ by at most one."""
    ends = [len(records) * i // shards for i in range(shards + 1)]
    return [records[a:b] for a, b in pairwise(ends)]
