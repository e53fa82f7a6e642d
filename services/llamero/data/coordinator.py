"""One preparation step by step: which tasks follow which, what their shards add up to, and when to stop.

The tasks' work stands in `tasks`, their processes in `pool`. Nothing here reads a record.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from llamero.data.errors import DataError
from llamero.data.outcome import RawPart, build_result, count_reasons, find_worst_sources
from llamero.data.pool import TaskRunner
from llamero.data.selection import threshold_of
from llamero.data.shards import Shard, code_version
from llamero.data.shared import SharedFiles, remove_file
from llamero.data.sources import DataPlan, SourceFile, secret_variable
from llamero.data.tasks import (
    RECORDS_FILE,
    REJECTED_FILE,
    SIDES,
    TOKENS_FOLDER,
    Task,
    raw_part_name,
)
from llamero.spec.digest import digest_json
from llamero.spec.job import FineTuneJobSpec
from llamero.spec.names import MANIFEST_NAME, shard_name
from llamero.spec.progress import Progress
from llamero.spec.records import RejectionReason
from llamero.spec.results import DataResult, FileEntry
from llamero.storage import delete_tree, join_uri, sha256_file, write_atomically, write_file

PHASE = "Preparing"
CANDIDATES_PER_RANGE = 2_000_000
STAGING = ".staging"
LISTING = "listing.json"
"""All clean shards, for the tasks that look across them; while it stands in the staging folder, its tasks are wanted."""

OnProgress = Callable[[Progress], None]


class Coordinator:
    """One preparation: its tasks step by step.

    `base`, `shard_cache` and `staging` are URIs that every worker sees; `output` is local.
    """

    def __init__(
        self,
        spec: FineTuneJobSpec,
        plan: DataPlan,
        base: str,
        output: Path,
        shard_cache: str,
        staging: str,
        runner: TaskRunner,
        files: SharedFiles,
        on_progress: OnProgress,
    ) -> None:
        self.spec, self.plan, self.base, self.output = spec, plan, base, output
        self.shard_cache, self.staging = shard_cache, staging
        self.runner, self.files, self.on_progress = runner, files, on_progress
        self.listing = join_uri(staging, LISTING)

    def prepare(self, started: float) -> DataResult:
        self.clear_output()
        parts = self.read_sources()
        clean = self.clean_shards(parts)
        self.refuse_broken(parts, clean)
        judged = self.judge_candidates(parts, clean)
        written = self.write_shards(parts, clean, judged)
        self.refuse_empty(written)
        files = self.move_into_place(written)
        result = build_result(self.spec, self.plan, parts, clean, written, files, time.monotonic() - started)
        write_atomically(self.output / MANIFEST_NAME, orjson.dumps(result.to_json_dict(), option=orjson.OPT_INDENT_2))
        self.report_dropped(clean)
        return result

    # -- steps -----------------------------------------------------------------------------------------------------------------

    def clear_output(self) -> None:
        """Remove what an earlier, other or broken preparation left; the manifest first, so that no half of it counts."""
        self.output.mkdir(parents=True, exist_ok=True)
        for name in (MANIFEST_NAME, REJECTED_FILE):
            (self.output / name).unlink(missing_ok=True)
        for name in (*SIDES.values(), TOKENS_FOLDER, STAGING):
            shutil.rmtree(self.output / name, ignore_errors=True)
        delete_tree(self.staging)

    def read_sources(self) -> list[RawPart]:
        tasks = [self._read_task(file) for file in self.plan.files]
        shards = self._run(tasks, "reading sources", total=None)
        parts: list[RawPart] = []
        for file, shard in zip(self.plan.files, shards, strict=True):
            digests = {f.name: f.sha256 for f in shard.files}
            for number, rows in enumerate(shard.summary["rows"]):
                name = raw_part_name(number)
                parts.append(RawPart(shard.uri, name, digests[name], rows, file))
        return parts

    def clean_shards(self, parts: Sequence[RawPart]) -> list[Shard]:
        rows = [part.rows for part in parts]
        return self._run([self._clean_task(part) for part in parts], "cleaning and tokenising", sum(rows), rows)

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

    def judge_candidates(self, parts: Sequence[RawPart], clean: Sequence[Shard]) -> list[Shard]:
        total = sum(shard.summary["candidates"] for shard in clean)
        ranges = max(1, -(-total // CANDIDATES_PER_RANGE))
        self._write_listing(parts, clean)
        shared: Task = {"listing": self.listing, "partitions": ranges, "seed": self.spec.data.seed}
        thresholds = self._find_thresholds(shared, ranges)
        tasks = [
            shared
            | {
                "task": "judge",
                "folder": join_uri(self.staging, f"judge-{number:05d}"),
                "partition": number,
                "evaluationFraction": self.spec.data.evaluation_fraction,
                "capThresholds": [str(t) for t in thresholds],
            }
            for number in range(ranges)
        ]
        return self._run(tasks, "finding duplicates", len(tasks), unit="ranges")

    def write_shards(self, parts: Sequence[RawPart], clean: Sequence[Shard], judged: Sequence[Shard]) -> list[Shard]:
        tasks: list[Task] = [
            {
                "task": "write",
                "listing": self.listing,
                "folder": join_uri(self.staging, shard_name(number)),
                "clean": shard.uri,
                "domains": shard.summary["domains"],
                "shard": number,
                "verdicts": [j.uri for j in judged],
            }
            for number, shard in enumerate(clean)
        ]
        rows = [part.rows for part in parts]
        return self._run(tasks, "writing examples", sum(rows), rows)

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

    def move_into_place(self, written: Sequence[Shard]) -> list[FileEntry]:
        """The shards' files under their final names, numbered without gaps on each side."""
        taken = self._take_shards(written)
        entries: list[FileEntry] = []
        for side in SIDES.values():
            keeping = [pair for pair in zip(taken, written, strict=True) if pair[1].summary["sides"][side]["examples"]]
            for number, (folder, shard) in enumerate(keeping):
                names = {
                    f"{side}/{RECORDS_FILE}": f"{side}/{shard_name(number)}.jsonl",
                    f"{side}/{TOKENS_FOLDER}/": f"{TOKENS_FOLDER}/{side}/{shard_name(number)}/",
                }
                for entry in shard.files:
                    old = next((o for o in names if entry.name.startswith(o)), None)
                    if old is None:
                        continue
                    new = names[old] + entry.name.removeprefix(old)
                    (self.output / new).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(folder / entry.name, self.output / new)
                    entries.append(FileEntry(name=new, size=entry.size, sha256=entry.sha256))
        rejected = self._join_rejected([folder / REJECTED_FILE for folder in taken])
        entries.append(FileEntry(name=REJECTED_FILE, size=rejected.stat().st_size, sha256=sha256_file(rejected)))
        return sorted(entries, key=lambda entry: entry.name)

    def _take_shards(self, written: Sequence[Shard]) -> list[Path]:
        """The shards' folders, each taken in one step, and no task is wanted any more: a doubled one can't empty what is being moved."""
        remove_file(self.listing)
        taking = self.output / STAGING / "taken"
        return [self.files.take(shard.uri, taking / shard_name(number)) for number, shard in enumerate(written)]

    def report_dropped(self, clean: Sequence[Shard]) -> None:
        dropped = sum(shard.summary["droppedPairs"] for shard in clean)
        if dropped:
            self._report(
                "cleaning and tokenising",
                message=f"{dropped:,} exchanges longer than training.sequenceLength were left out of records of which other exchanges "
                "are kept (meta.droppedPairs says which).",
            )

    # -- tasks -----------------------------------------------------------------------------------------------------------------

    def _read_task(self, file: SourceFile) -> Task:
        source = self.spec.data.sources[file.source]
        task = {"format": source.format.value, "name": file.name, "shardRecords": self.spec.data.shard_records}
        key = digest_json(task | {"content": file.fingerprint, "code": code_version()})
        return task | {
            "task": "read",
            "uri": file.uri,
            "secret": secret_variable(source),
            "allowHttp": self.spec.data.allow_http,
            "folder": join_uri(self.shard_cache, f"raw-{key[:32]}"),
        }

    def _clean_task(self, part: RawPart) -> Task:
        spec, source = self.spec, self.spec.data.sources[part.file.source]
        layout = source.model_dump(mode="json", by_alias=True, include={"format", "columns", "profile", "html"})
        task: Task = {
            "source": {"uri": "-", **{k: v for k, v in layout.items() if v is not None}},
            "sourceName": self.plan.source_names[part.file.source],
            "file": part.file.name,
            "system": spec.data.system,
            "sequenceLength": spec.training.sequence_length,
            "longRecords": spec.data.long_records,
            "domains": spec.data.domains,
            "template": spec.data.template,
            "newTokens": spec.training.lora.new_tokens,
        }
        # Domains match in the manifest's order, which a digest of a mapping would not see.
        order = list(spec.data.domains)
        key = digest_json(
            task
            | {
                "rows": part.sha256,
                "tokenizer": self.plan.tokenizer_digest,
                "code": code_version(),
                "domainOrder": order,
            }
        )
        return task | {
            "task": "clean",
            "raw": part.uri,
            "rows": part.name,
            "tokenizer": self.base,
            "folder": join_uri(self.shard_cache, f"clean-{key[:32]}"),
        }

    def _find_thresholds(self, shared: Task, ranges: int) -> list[int]:
        """The largest order that each source lets in, by its weight and its maxRecords."""
        sources = self.spec.data.sources
        thresholds = [threshold_of(source.weight) for source in sources]
        limits = {str(i): s.max_records for i, s in enumerate(sources) if s.max_records is not None}
        if not limits:
            return thresholds
        tasks = [
            shared
            | {
                "task": "cap",
                "folder": join_uri(self.staging, f"cap-{number:05d}"),
                "partition": number,
                "maxRecords": limits,
            }
            for number in range(ranges)
        ]
        shards = self._run(tasks, "capping sources", len(tasks), unit="ranges")
        for source, limit in limits.items():
            name = f"{source}.npy"
            orders = [np.load(self.files.fetch(shard.uri, [name]) / name) for shard in shards]
            smallest = np.sort(np.concatenate(orders))[:limit]
            if len(smallest) == limit:
                thresholds[int(source)] = min(thresholds[int(source)], int(smallest[-1]))
        return thresholds

    def _run(
        self,
        tasks: Sequence[Task],
        activity: str,
        total: int | None,
        rows: Sequence[int] | None = None,
        unit: str = "records",
    ) -> list[Shard]:
        """Do the tasks, reporting the rows that are done; `rows` says how many each task has."""
        done = [0] * len(tasks)

        def on_rows(number: int, count: int) -> None:
            done[number] = count
            self._report(activity, sum(done), total, unit)

        def on_done(number: int, shard: Shard) -> None:
            counted = shard.summary.get("rows")
            done[number] = rows[number] if rows else sum(counted) if isinstance(counted, list) else 1
            self._report(activity, sum(done), total, unit)

        self._report(activity, 0, total, unit)
        return self.runner.run(tasks, on_rows, on_done)

    def _report(
        self, activity: str, done: float = 0, total: float | None = None, unit: str = "records", message: str = ""
    ) -> None:
        self.on_progress(Progress(PHASE, activity, done, total, unit, message))

    def _write_listing(self, parts: Sequence[RawPart], clean: Sequence[Shard]) -> None:
        listing = {
            "shards": [shard.uri for shard in clean],
            "shardSources": [part.file.source for part in parts],
            "origins": [{"file": p.file.name, "source": self.plan.source_names[p.file.source]} for p in parts],
        }
        write_file(self.listing, orjson.dumps(listing))

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
