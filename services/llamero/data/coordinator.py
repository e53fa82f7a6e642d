"""One preparation step by step: which tasks follow which, what their shards add up to, and when to stop.

The tasks' work stands in `tasks`, their processes in `pool`. Nothing here reads a record.
"""

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from llamero.data.errors import DataError
from llamero.data.lengths import LengthCounts, Statistics, build_histograms, build_statistics, choose_sequence_length
from llamero.data.pool import TaskRunner
from llamero.data.selection import threshold_of
from llamero.data.shards import Shard, code_version
from llamero.data.sources import SourceFile, secret_variable
from llamero.data.tasks import (
    RECORDS_FILE,
    REJECTED_FILE,
    SAMPLES_PER_REASON,
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
from llamero.spec.results import DataResult, FileEntry, RejectedSample, SourceCounts, SplitCounts
from llamero.storage import write_atomically

PHASE = "Preparing"
CANDIDATES_PER_RANGE = 2_000_000
STAGING = ".staging"

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class DataPlan:
    """What is to be prepared: the files of all sources as they stood, and the digest that names the outcome.

    `tokenizer_digest` changes with the tokenizer and its template.
    """

    digest: str
    files: tuple[SourceFile, ...]
    source_names: tuple[str, ...]
    tokenizer_digest: str


@dataclass(frozen=True)
class _RawPart:
    """A raw shard: where its rows lie, how many, and which file they are of."""

    path: Path
    sha256: str
    rows: int
    file: SourceFile


class Coordinator:
    """One preparation: its tasks step by step."""

    def __init__(
        self,
        spec: FineTuneJobSpec,
        plan: DataPlan,
        base_folder: Path,
        output: Path,
        shard_cache: Path,
        runner: TaskRunner,
        on_progress: OnProgress,
    ) -> None:
        self.spec, self.plan, self.base_folder, self.output = spec, plan, base_folder, output
        self.shard_cache, self.runner, self.on_progress = shard_cache, runner, on_progress
        self.staging = output / STAGING

    def prepare(self, started: float) -> DataResult:
        self.clear_output()
        parts = self.read_sources()
        clean = self.clean_shards(parts)
        self.refuse_broken(parts, clean)
        judged = self.judge_candidates(parts, clean)
        written = self.write_shards(parts, clean, judged)
        self.refuse_empty(written)
        files = self.move_into_place(written)
        result = self.build_result(parts, clean, written, files, started)
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

    def read_sources(self) -> list[_RawPart]:
        tasks = [self._read_task(file) for file in self.plan.files]
        shards = self._run(tasks, "reading sources", total=None)
        parts: list[_RawPart] = []
        for file, shard in zip(self.plan.files, shards, strict=True):
            digests = {f.name: f.sha256 for f in shard.files}
            for number, rows in enumerate(shard.summary["rows"]):
                name = raw_part_name(number)
                parts.append(_RawPart(shard.folder / name, digests[name], rows, file))
        return parts

    def clean_shards(self, parts: Sequence[_RawPart]) -> list[Shard]:
        rows = [part.rows for part in parts]
        return self._run([self._clean_task(part) for part in parts], "cleaning and tokenising", sum(rows), rows)

    def refuse_broken(self, parts: Sequence[_RawPart], clean: Sequence[Shard]) -> None:
        """Raise DataError where more rows are broken than the manifest allows; what is wrong with them is written first."""
        read = sum(shard.summary["read"] for shard in clean)
        reasons = _count_reasons(clean)
        broken = {reason: n for reason, n in reasons.items() if reason in RejectionReason.BROKEN}
        allowed = self.spec.data.max_rejected_fraction
        if not read:
            self._write_rejected([shard.folder / REJECTED_FILE for shard in clean])
            raise DataError("The sources hold no record: check data.sources and their formats.")
        if sum(broken.values()) <= allowed * read:
            return
        path = self._write_rejected([shard.folder / REJECTED_FILE for shard in clean])
        found = ", ".join(f"{n:,} {reason}" for reason, n in sorted(broken.items(), key=lambda pair: -pair[1]))
        where = self._worst_sources(parts, clean)
        raise DataError(
            f"{sum(broken.values()):,} of {read:,} rows ({sum(broken.values()) / read:.1%}) are broken ({found}), more than "
            f"data.maxRejectedFraction allows ({allowed:.1%}). Most are in {where}. Each row stands with its reason in {path}. "
            f"First: {_show_first(path)} Mend the data or the source's format, or raise data.maxRejectedFraction."
        )

    def judge_candidates(self, parts: Sequence[_RawPart], clean: Sequence[Shard]) -> list[Shard]:
        total = sum(shard.summary["candidates"] for shard in clean)
        ranges = max(1, -(-total // CANDIDATES_PER_RANGE))
        shared = {
            "shards": [str(shard.folder) for shard in clean],
            "shardSources": [part.file.source for part in parts],
            "partitions": ranges,
            "seed": self.spec.data.seed,
        }
        thresholds = self._find_thresholds(shared, ranges)
        tasks = [
            shared
            | {
                "task": "judge",
                "folder": str(self.staging / f"judge-{number:05d}"),
                "partition": number,
                "evaluationFraction": self.spec.data.evaluation_fraction,
                "capThresholds": [str(t) for t in thresholds],
            }
            for number in range(ranges)
        ]
        return self._run(tasks, "finding duplicates", len(tasks), unit="ranges")

    def write_shards(self, parts: Sequence[_RawPart], clean: Sequence[Shard], judged: Sequence[Shard]) -> list[Shard]:
        origins = [{"file": p.file.name, "source": self.plan.source_names[p.file.source]} for p in parts]
        tasks: list[Task] = [
            {
                "task": "write",
                "folder": str(self.staging / shard_name(number)),
                "clean": str(shard.folder),
                "domains": shard.summary["domains"],
                "shard": number,
                "verdicts": [str(j.folder) for j in judged],
                "origins": origins,
            }
            for number, shard in enumerate(clean)
        ]
        rows = [part.rows for part in parts]
        return self._run(tasks, "writing examples", sum(rows), rows)

    def refuse_empty(self, written: Sequence[Shard]) -> None:
        """Raise DataError where no record is left to train on."""
        if any(shard.summary["sides"]["train"]["records"] for shard in written):
            return
        path = self._write_rejected([shard.folder / REJECTED_FILE for shard in written])
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in _count_reasons(written).most_common()) or "none rejected"
        raise DataError(
            f"No record is left to train on ({reasons}). Each rejected record stands with its reason in {path}; "
            "with few records, lower data.evaluationFraction."
        )

    def move_into_place(self, written: Sequence[Shard]) -> list[FileEntry]:
        """The shards' files under their final names, numbered without gaps on each side."""
        entries: list[FileEntry] = []
        for side in SIDES.values():
            keeping = [shard for shard in written if shard.summary["sides"][side]["examples"]]
            for number, shard in enumerate(keeping):
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
                    (shard.folder / entry.name).rename(self.output / new)
                    entries.append(FileEntry(name=new, size=entry.size, sha256=entry.sha256))
        rejected = self._write_rejected([shard.folder / REJECTED_FILE for shard in written])
        with rejected.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        entries.append(FileEntry(name=REJECTED_FILE, size=rejected.stat().st_size, sha256=digest))
        return sorted(entries, key=lambda entry: entry.name)

    def build_result(
        self,
        parts: Sequence[_RawPart],
        clean: Sequence[Shard],
        written: Sequence[Shard],
        files: list[FileEntry],
        started: float,
    ) -> DataResult:
        read, kept = _merge_statistics(clean), _merge_statistics(written)
        domains = list(self.spec.data.domains)
        # What a longer sequence would let in counts, too: else no choice could ever look too short.
        wanted = kept.overall.total
        for shard in clean:
            wanted.merge(LengthCounts.from_json(shard.summary["tooLong"]))
        recommended, choices = choose_sequence_length(wanted)
        sides = {side: _sum_side(written, side) for side in SIDES.values()}
        return DataResult(
            digest=self.plan.digest,
            files=files,
            read=sum(shard.summary["read"] for shard in clean),
            kept=sides["train"].records + sides["evaluation"].records,
            rejected=dict(sorted(_count_reasons(written).items())),
            train=sides["train"],
            evaluation=sides["evaluation"],
            sources=self._count_sources(parts, clean, written),
            statistics=[*build_statistics("read", read, domains), *build_statistics("kept", kept, domains)],
            histograms=build_histograms(read.overall, kept.overall),
            recommended_sequence_length=recommended,
            length_choices=choices,
            rejected_samples=_collect_samples(written),
            template=self.spec.data.template,
            seconds=round(time.monotonic() - started, 3),
            shards=len(clean),
            reused_shards=sum(shard.is_reused for shard in clean),
        )

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
            "folder": str(self.shard_cache / f"raw-{key[:32]}"),
        }

    def _clean_task(self, part: _RawPart) -> Task:
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
            "rows": str(part.path),
            "tokenizer": str(self.base_folder),
            "folder": str(self.shard_cache / f"clean-{key[:32]}"),
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
                "folder": str(self.staging / f"cap-{number:05d}"),
                "partition": number,
                "maxRecords": limits,
            }
            for number in range(ranges)
        ]
        shards = self._run(tasks, "capping sources", len(tasks), unit="ranges")
        for source, limit in limits.items():
            smallest = np.sort(np.concatenate([np.load(s.folder / f"{source}.npy") for s in shards]))[:limit]
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

    # -- counts ----------------------------------------------------------------------------------------------------------------

    def _write_rejected(self, parts: Sequence[Path]) -> Path:
        """All rejections in one file, in the order of sources and rows."""
        path = self.output / REJECTED_FILE
        with path.open("wb") as out:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, out)
        return path

    def _worst_sources(self, parts: Sequence[_RawPart], clean: Sequence[Shard]) -> str:
        broken: Counter[str] = Counter()
        for part, shard in zip(parts, clean, strict=True):
            own = shard.summary["rejected"]
            broken[part.file.uri] += sum(own.get(reason, 0) for reason in RejectionReason.BROKEN)
        return ", ".join(uri for uri, count in broken.most_common(2) if count)

    def _count_sources(
        self, parts: Sequence[_RawPart], clean: Sequence[Shard], written: Sequence[Shard]
    ) -> list[SourceCounts]:
        read, kept = Counter[int](), Counter[int]()
        rejected: dict[int, Counter[str]] = {i: Counter() for i in range(len(self.spec.data.sources))}
        for part, before, after in zip(parts, clean, written, strict=True):
            read[part.file.source] += before.summary["read"]
            kept[part.file.source] += sum(side["records"] for side in after.summary["sides"].values())
            rejected[part.file.source].update(after.summary["rejected"])
        return [
            SourceCounts(
                name=self.plan.source_names[i],
                uri=source.uri,
                format=source.format.value,
                license=source.license,
                terms=source.terms,
                read=read[i],
                kept=kept[i],
                rejected=dict(sorted(rejected[i].items())),
            )
            for i, source in enumerate(self.spec.data.sources)
        ]


def _count_reasons(shards: Sequence[Shard]) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for shard in shards:
        reasons.update(shard.summary["rejected"])
    return reasons


def _merge_statistics(shards: Sequence[Shard]) -> Statistics:
    whole = Statistics()
    for shard in shards:
        whole.merge(Statistics.from_json(shard.summary["statistics"]))
    return whole


def _sum_side(written: Sequence[Shard], side: str) -> SplitCounts:
    totals: Counter[str] = Counter({"records": 0, "examples": 0, "tokens": 0, "targetTokens": 0})
    for shard in written:
        totals.update(shard.summary["sides"][side])
    return SplitCounts.model_validate(dict(totals))


def _collect_samples(written: Sequence[Shard]) -> list[RejectedSample]:
    """The first few of each reason."""
    counts: Counter[str] = Counter()
    samples: list[RejectedSample] = []
    for row in (row for shard in written for row in shard.summary["samples"]):
        counts[row["reason"]] += 1
        if counts[row["reason"]] <= SAMPLES_PER_REASON:
            samples.append(RejectedSample.model_validate(row | {"text": row["text"][:500]}))
    return sorted(samples, key=lambda sample: sample.reason)


def _show_first(rejected: Path) -> str:
    """The first broken row's place and reason, as a sentence."""
    with rejected.open("rb") as stream:
        for line in stream:
            row: dict[str, Any] = orjson.loads(line)
            if row["reason"] in RejectionReason.BROKEN:
                return f"{row['file']}, row {row['line']}: {row['detail']}"
    return ""
