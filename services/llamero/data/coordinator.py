"""One preparation from its sources to its result: which tasks follow which, and when to stop.

The tasks' work stands in `tasks`, the manifest's steps in `pipeline`, the tasks' processes in `pool`. Nothing here reads a record.
"""

import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from llamero.data.applying import dump_step
from llamero.data.arms import WrittenArm, choose
from llamero.data.dispatch import Dispatch, OnProgress
from llamero.data.errors import DataError
from llamero.data.outcome import RawPart, add_accounts, build_result, count_reasons, find_worst_sources
from llamero.data.pipeline import Pipeline, ShardState, State, Surroundings
from llamero.data.pool import TaskRunner
from llamero.data.reading import build_read_task
from llamero.data.segments import Segment, find_named, plan_data_steps, rename_files, split_steps
from llamero.data.selection import threshold_of
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles, copy_named, name_copy, remove_file
from llamero.data.sources import DataPlan, SourceFile
from llamero.data.steps.registry import describe_missing, find_missing
from llamero.data.taskfiles import (
    ARMS_FOLDER,
    RECORDS_FILE,
    REJECTED_FILE,
    SIDES,
    TOKENS_FOLDER,
    TRAIN,
    Task,
    raw_part_name,
)
from llamero.spec.digest import digest_json
from llamero.spec.job import DataFormat, FineTuneJobSpec
from llamero.spec.names import MANIFEST_NAME, shard_name
from llamero.spec.profiles import PlannedStep
from llamero.spec.records import RejectionReason
from llamero.spec.results import DataResult, FileEntry
from llamero.storage import delete_tree, is_local, join_uri, sha256_file, write_atomically, write_file

CANDIDATES_PER_RANGE = 500_000
STAGING = ".staging"
LISTING = "listing.json"
"""All clean shards, for the tasks that look across them; while it stands in the staging folder, its tasks are wanted."""
ANSWERS = "answers"
"""Answers of language models, below the shard cache: kept for later runs of the job."""


class Coordinator:
    """One preparation: its tasks step by step.

    `base`, `shard_cache` and `staging` are URIs that every worker sees; `output` is local. Without a base lengths are in words.
    """

    def __init__(
        self,
        spec: FineTuneJobSpec,
        plan: DataPlan,
        base: str | None,
        output: Path,
        shard_cache: str,
        staging: str,
        runner: TaskRunner,
        files: SharedFiles,
        on_progress: OnProgress,
    ) -> None:
        self.spec, self.plan, self.base, self.output = spec, plan, base, output
        self.shard_cache, self.staging, self.files = shard_cache, staging, files
        self.dispatch = Dispatch(runner, shard_cache, staging, on_progress)
        self.listing = join_uri(staging, LISTING)
        self.fingerprints = dict(plan.named)
        self.steps = plan_data_steps(spec.data)

    def prepare(self, started: float) -> DataResult:
        self.refuse_unknown()
        self.clear_output()
        self.place_named()
        leading, segments = split_steps(self.steps)
        parts = self.read_sources()
        clean = self.clean_shards(parts, leading)
        self.refuse_broken(parts, clean)
        state = self.settle_candidates(parts, clean)
        state, others = choose(self.pipeline, segments, state, self.spec.data.controls)
        written = self.write_shards(state)
        self.refuse_empty(written)
        arms = [WrittenArm(arm, self.write_shards(arm.state, arm.name)) for arm in others]
        files = self.move_into_place(written, arms)
        result = build_result(
            self.spec, self.plan, self.steps, parts, clean, state, written, files, time.monotonic() - started
        ).model_copy(
            update={"arms": [arm.describe() for arm in arms], "asked": add_accounts(self.pipeline.asked)},
        )
        write_atomically(self.output / MANIFEST_NAME, orjson.dumps(result.to_json_dict(), option=orjson.OPT_INDENT_2))
        self.report_dropped(written)
        return result

    # -- before a record is read -----------------------------------------------------------------------------------------------

    def refuse_unknown(self) -> None:
        """Raise DataError for a step that nothing here serves, before any work is done."""
        missing = find_missing(self.steps)
        if missing is not None:
            raise DataError(describe_missing(missing))
        for step in self.steps:
            if step.kind == "score" and self.base is None:
                raise DataError(
                    f"{step.place} (`score`) measures records under the base model, and this preparation has none: "
                    "take the step out, or prepare the data as a part of `llamero run`."
                )

    def clear_output(self) -> None:
        """Remove what an earlier, other or broken preparation left; the manifest first, so that no half of it counts."""
        self.output.mkdir(parents=True, exist_ok=True)
        for name in (MANIFEST_NAME, REJECTED_FILE):
            (self.output / name).unlink(missing_ok=True)
        for name in (*SIDES, ARMS_FOLDER, TOKENS_FOLDER, STAGING):
            shutil.rmtree(self.output / name, ignore_errors=True)
        delete_tree(self.staging)

    def place_named(self) -> None:
        """Put the files that steps name where all workers see them, once; `steps` then name them there."""
        places: dict[str, str] = {}
        for uri, fingerprint in self.plan.named:
            if is_local(uri):
                continue
            folder = join_uri(self.shard_cache, f"named-{fingerprint[:32]}")

            def build(partial: Path, uri: str = uri) -> dict[str, Any]:
                copy_named(uri, partial / "files", allow_http=self.spec.data.allow_http)
                return {}

            self.files.commit(folder, build)
            places[uri] = join_uri(folder, "files", name_copy(uri))
            self.fingerprints[places[uri]] = fingerprint
        self.steps = [rename_files(step, places) if places else step for step in self.steps]

    def fingerprint(self, step: PlannedStep) -> list[str]:
        """What changes with the content of the files that a step names."""
        return [self.fingerprints.get(uri, uri) for uri in find_named(step)]

    # -- steps -----------------------------------------------------------------------------------------------------------------

    def read_sources(self) -> list[RawPart]:
        tasks = [self._read_task(file) for file in self.plan.files]
        shards = self.dispatch.run(tasks, "reading sources", total=None)
        self.pipeline.note_asked(shards)
        parts: list[RawPart] = []
        for file, shard in zip(self.plan.files, shards, strict=True):
            digests = {f.name: f.sha256 for f in shard.files}
            for number, rows in enumerate(shard.summary["rows"]):
                name = raw_part_name(number)
                parts.append(RawPart(shard.uri, name, digests[name], rows, file, shard.summary.get("growth", "")))
        return parts

    def clean_shards(self, parts: Sequence[RawPart], leading: Sequence[PlannedStep]) -> list[Shard]:
        rows = [part.rows for part in parts]
        tasks = [self._clean_task(part, leading) for part in parts]
        activity = "cleaning and tokenising" if self.base is not None else "cleaning"
        return self.dispatch.run(tasks, activity, sum(rows), rows)

    def refuse_broken(self, parts: Sequence[RawPart], clean: Sequence[Shard]) -> None:
        """Raise DataError where more rows are broken than the manifest allows; what is wrong with them is written first."""
        read = sum(shard.summary["read"] for shard in clean)
        reasons = count_reasons(clean)
        broken = {reason: n for reason, n in reasons.items() if reason in RejectionReason.BROKEN}
        allowed = self.spec.data.max_rejected_fraction
        if not read:
            self._write_rejected(clean)
            raise DataError("The sources hold no record: check data.sources and their formats.")
        if sum(broken.values()) <= allowed * read:
            return
        path = self._write_rejected(clean)
        found = ", ".join(f"{n:,} {reason}" for reason, n in sorted(broken.items(), key=lambda pair: -pair[1]))
        where = ", ".join(find_worst_sources(parts, clean))
        raise DataError(
            f"{sum(broken.values()):,} of {read:,} rows ({sum(broken.values()) / read:.1%}) are broken ({found}), more than "
            f"data.maxRejectedFraction allows ({allowed:.1%}). Most are in {where}. Each row stands with its reason in {path}. "
            f"First: {_show_first(path)} Mend the data or the source's format, or raise data.maxRejectedFraction."
        )

    def settle_candidates(self, parts: Sequence[RawPart], clean: Sequence[Shard]) -> State:
        """Where each shard stands when equal records and those beyond a cap are out."""
        total = sum(shard.summary["candidates"] for shard in clean)
        ranges = max(1, -(-total // CANDIDATES_PER_RANGE))
        known = self._write_listing(parts, clean)
        shared: Task = {"partitions": ranges, "seed": self.spec.data.seed}
        thresholds = self._find_thresholds(shared, ranges, known)
        tasks = [
            self._ranged_task(
                "settle", {**shared, "partition": n, "capThresholds": [str(t) for t in thresholds]}, known
            )
            for n in range(ranges)
        ]
        settled = self.dispatch.run(tasks, "finding duplicates", len(tasks), unit="ranges")
        state = tuple(
            ShardState(
                number=number,
                source=self.plan.source_names[part.file.source],
                records=shard.uri,
                count=shard.summary["candidates"],
                drops=(),
                rejected=(shard.uri,),
            )
            for number, (part, shard) in enumerate(zip(parts, clean, strict=True))
        )
        return self.pipeline.note_drops([shard.uri for shard in settled], None, state)

    @cached_property
    def pipeline(self) -> Pipeline:
        data = self.spec.data
        surroundings = Surroundings(
            seed=data.seed,
            evaluation_fraction=data.evaluation_fraction,
            workers=data.workers,
            base=self.base,
            base_digest=self.plan.tokenizer_digest,
            answers=join_uri(self.shard_cache, ANSWERS),
            listing=self.listing,
            measure=self._measure,
            scores=self._scores,
            domains=data.domains,
            allow_http=data.allow_http,
            preparation=self.plan.digest,
            fingerprints=self.fingerprint,
        )
        return Pipeline(self.dispatch, self.files, surroundings)

    def write_shards(self, state: State, arm: str | None = None) -> list[Shard]:
        """Lay out what the shards keep; of an arm the training side alone."""
        tasks = [self._write_task(shard, arm) for shard in state]
        rows = [shard.count for shard in state]
        return self.dispatch.run(tasks, "writing examples", sum(rows), rows)

    def refuse_empty(self, written: Sequence[Shard]) -> None:
        """Raise DataError where no record is left to train on."""
        if any(shard.summary["sides"]["train"]["records"] for shard in written):
            return
        path = self._write_rejected(written)
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in count_reasons(written).most_common()) or "none rejected"
        raise DataError(
            f"No record is left to train on ({reasons}). Each rejected record stands with its reason in {path}; "
            "with few records, lower data.evaluationFraction."
        )

    def move_into_place(self, written: Sequence[Shard], arms: Sequence[WrittenArm]) -> list[FileEntry]:
        """The shards' files under their final names, numbered without gaps on each side and in each arm."""
        remove_file(self.listing)  # no task is wanted any more: a doubled one can't empty what is being moved
        taken = self._take_shards(written, "chosen")
        entries: list[FileEntry] = []
        for side in SIDES:
            entries += self._place_side(written, taken, side, side)
        for arm in arms:
            folders = self._take_shards(arm.written, arm.arm.name)
            entries += self._place_side(arm.written, folders, TRAIN, f"{ARMS_FOLDER}/{arm.arm.name}")
        rejected = self._join_rejected([folder / REJECTED_FILE for folder in taken])
        entries.append(FileEntry(name=REJECTED_FILE, size=rejected.stat().st_size, sha256=sha256_file(rejected)))
        return sorted(entries, key=lambda entry: entry.name)

    def _take_shards(self, written: Sequence[Shard], name: str) -> list[Path]:
        """The shards' folders, each taken in one step."""
        taking = self.output / STAGING / "taken" / name
        return [self.files.take(shard.uri, taking / shard_name(number)) for number, shard in enumerate(written)]

    def _place_side(self, written: Sequence[Shard], taken: Sequence[Path], side: str, target: str) -> list[FileEntry]:
        """A side's files, moved to the folder `target` (tokens below TOKENS_FOLDER)."""
        entries: list[FileEntry] = []
        keeping = [pair for pair in zip(taken, written, strict=True) if pair[1].summary["sides"][side]["examples"]]
        for number, (folder, shard) in enumerate(keeping):
            names = {
                f"{side}/{RECORDS_FILE}": f"{target}/{shard_name(number)}.jsonl",
                f"{side}/{TOKENS_FOLDER}/": f"{TOKENS_FOLDER}/{target}/{shard_name(number)}/",
            }
            for entry in shard.files:
                old = next((o for o in names if entry.name.startswith(o)), None)
                if old is None:
                    continue
                new = names[old] + entry.name.removeprefix(old)
                (self.output / new).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(folder / entry.name, self.output / new)
                entries.append(FileEntry(name=new, size=entry.size, sha256=entry.sha256))
        return entries

    def report_dropped(self, written: Sequence[Shard]) -> None:
        dropped = sum(shard.summary["droppedPairs"] for shard in written)
        if dropped:
            self.dispatch.report(
                "writing examples",
                message=f"{dropped:,} exchanges longer than training.sequenceLength were left out of records of which other exchanges "
                "are kept (meta.droppedPairs says which).",
            )

    # -- tasks -----------------------------------------------------------------------------------------------------------------

    @property
    def _measure(self) -> dict[str, Any]:
        """What decides lengths and tokens, but for the tokenizer itself."""
        return {
            "system": self.spec.data.system,
            "template": self.spec.data.template,
            "templateVariants": self.spec.data.template_variants,
            "newTokens": self.spec.training.lora.new_tokens,
        }

    @property
    def _scores(self) -> tuple[str, ...]:
        """Scores that steps choose by, of which some are computed when they are asked for."""
        return tuple(dict.fromkeys(step.options.score for step in self.steps if step.kind == "threshold"))

    def _read_task(self, file: SourceFile) -> Task:
        source = self.spec.data.sources[file.source]
        if source.generate is not None:
            return self._generate_task(file)
        task = {"format": source.format.value, "name": file.name, "shardRecords": self.spec.data.shard_records}
        return {
            **task,
            **build_read_task(file, source, self.spec.data.allow_http),
            "task": "read",
            "folder": self.dispatch.name_folder("raw", task | {"content": file.fingerprint}, is_kept=True),
        }

    def _generate_task(self, file: SourceFile) -> Task:
        data = self.spec.data
        source = data.sources[file.source].model_dump(mode="json", by_alias=True)
        decides = {"source": source, "shardRecords": data.shard_records, "seed": data.seed}
        hangs_on = decides | {"content": file.fingerprint}
        return decides | {
            "task": "generate",
            "uri": file.uri,
            "context": self.pipeline.given.context,
            "folder": self.dispatch.name_folder("raw", hangs_on, is_kept=True),
        }

    def _clean_task(self, part: RawPart, leading: Sequence[PlannedStep]) -> Task:
        spec, source = self.spec, self.spec.data.sources[part.file.source]
        layout = source.model_dump(mode="json", by_alias=True, include={"format", "columns", "profile", "html"})
        if source.generate is not None:
            # What generating left is parsed by its own reader, which `generate` tells.
            written = source.generate.model_dump(mode="json", by_alias=True)
            layout = {"format": DataFormat.ALPACA.value, "html": "never", "generate": written}
        name = self.plan.source_names[part.file.source]
        steps = [step for step in leading if Segment((step,)).concerns(name)]
        decides: Task = {
            "source": {"uri": "-", **{k: v for k, v in layout.items() if v is not None}},
            "sourceName": name,
            "file": part.file.name,
            "domains": spec.data.domains,
            "steps": [dump_step(step) for step in steps],
            **self._measure,
        }
        # Domains match in the manifest's order, which a digest of a mapping would not see.
        hangs_on = decides | {
            "rows": part.sha256,
            "tokenizer": self.plan.tokenizer_digest,
            "domainOrder": list(spec.data.domains),
            "files": [self.fingerprint(step) for step in steps],
        }
        return decides | {
            "task": "clean",
            "raw": part.uri,
            "rows": part.name,
            "tokenizer": self.base,
            "needsBase": False,
            "context": self.pipeline.given.context,
            "folder": self.dispatch.name_folder("clean", hangs_on, is_kept=True),
        }

    def _ranged_task(self, kind: str, decides: Task, known: str) -> Task:
        """A task over all clean shards; `known` is the listing's digest."""
        folder = self.dispatch.name_folder(kind, decides | {"listing": known}, is_kept=False)
        return decides | {"task": kind, "listing": self.listing, "folder": folder}

    def _write_task(self, shard: ShardState, arm: str | None) -> Task:
        data = self.spec.data
        decides: Task = {
            "records": shard.records,
            "shard": shard.number,
            "drops": [drops.to_json() for drops in shard.drops],
            "rejected": list(shard.rejected),
            "isArm": arm is not None,
            "sequenceLength": self.spec.training.sequence_length,
            "longRecords": data.long_records,
            "domains": data.domains,
            "seed": data.seed,
            "evaluationFraction": data.evaluation_fraction,
            "scores": list(self._scores),
            **self._measure,
        }
        folder = join_uri(self.staging, f"{arm}-{shard_name(shard.number)}" if arm else shard_name(shard.number))
        return decides | {"task": "write", "listing": self.listing, "folder": folder, "tokenizer": self.base}

    def _find_thresholds(self, shared: Task, ranges: int, known: str) -> list[int]:
        """The largest order that each source lets in, by its weight and its maxRecords."""
        sources = self.spec.data.sources
        thresholds = [threshold_of(source.weight) for source in sources]
        limits = {str(i): s.max_records for i, s in enumerate(sources) if s.max_records is not None}
        if not limits:
            return thresholds
        tasks = [
            self._ranged_task("cap", {**shared, "partition": number, "maxRecords": limits}, known)
            for number in range(ranges)
        ]
        shards = self.dispatch.run(tasks, "capping sources", len(tasks), unit="ranges")
        for source, limit in limits.items():
            name = f"{source}.npy"
            orders = [np.load(self.files.fetch(shard.uri, [name]) / name) for shard in shards]
            smallest = np.sort(np.concatenate(orders))[:limit]
            if len(smallest) == limit:
                thresholds[int(source)] = min(thresholds[int(source)], int(smallest[-1]))
        return thresholds

    def _write_listing(self, parts: Sequence[RawPart], clean: Sequence[Shard]) -> str:
        """Write down all clean shards for the tasks that look across them; its digest."""
        listing: dict[str, Any] = {
            "shards": [shard.uri for shard in clean],
            "shardSources": [part.file.source for part in parts],
            "origins": [self._describe_origin(part.file) for part in parts],
        }
        write_file(self.listing, orjson.dumps(listing))
        names = [uri.rpartition("/")[2] for uri in listing["shards"]]
        return digest_json(listing | {"shards": names})

    def _describe_origin(self, file: SourceFile) -> dict[str, Any]:
        """Where a part's records are from; those of many small files name theirs themselves."""
        source = self.plan.source_names[file.source]
        return {"file": file.name, "source": source, "isGathered": bool(file.members)}

    def _write_rejected(self, shards: Sequence[Shard]) -> Path:
        return self._join_rejected([self.files.fetch(shard.uri, [REJECTED_FILE]) / REJECTED_FILE for shard in shards])

    def _join_rejected(self, parts: Sequence[Path]) -> Path:
        """All rejections in one file, in the order of sources and rows."""
        path = self.output / REJECTED_FILE
        with path.open("wb") as out:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, out)
        return path


def _show_first(rejected: Path) -> str:
    """The first broken row's place and reason, as a sentence."""
    with rejected.open("rb") as stream:
        for line in stream:
            row: dict[str, Any] = orjson.loads(line)
            if row["reason"] in RejectionReason.BROKEN:
                return f"{row['file']}, row {row['line']}: {row['detail']}"
    return ""
