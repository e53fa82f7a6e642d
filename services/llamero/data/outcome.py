"""What the shards of a preparation add up to: counts by source, reason and side, statistics, samples. Touches no disk."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamero.data.lengths import LengthCounts, Statistics, build_histograms, build_statistics, choose_sequence_length
from llamero.data.pipeline import State
from llamero.data.rejections import BUILT_IN, CAPS, CUT, EQUAL, PARSE
from llamero.data.scoring import build_histograms as build_score_histograms
from llamero.data.segments import split_steps
from llamero.data.shards import Shard
from llamero.data.sources import NO_TOKENIZER, DataPlan, SourceFile
from llamero.data.taskfiles import SAMPLES_PER_REASON, SIDES, merge_counts
from llamero.spec.job import FineTuneJobSpec
from llamero.spec.profiles import PlannedStep
from llamero.spec.records import RejectionReason
from llamero.spec.results import (
    DataResult,
    FileEntry,
    FunnelStep,
    ModelAccount,
    RejectedSample,
    SourceCounts,
    SplitCounts,
)


@dataclass(frozen=True)
class RawPart:
    """A raw shard's part: the shard, the name of the file with its rows, how many, which source file they are of, and how it grew if made."""

    uri: str
    name: str
    sha256: str
    rows: int
    file: SourceFile
    growth: str = ""


def build_result(
    spec: FineTuneJobSpec,
    plan: DataPlan,
    steps: Sequence[PlannedStep],
    parts: Sequence[RawPart],
    clean: Sequence[Shard],
    state: State,
    written: Sequence[Shard],
    files: list[FileEntry],
    seconds: float,
) -> DataResult:
    """The result of a finished preparation; `clean`, `state` and `written` are the parts', in their order."""
    read, kept = merge_statistics(clean), merge_statistics(written)
    domains = list(spec.data.domains)
    unit = "words" if plan.tokenizer_digest == NO_TOKENIZER else "tokens"
    # What a longer sequence would let in counts, too: else no choice could ever look too short.
    wanted = kept.overall.total
    for shard in written:
        wanted.merge(LengthCounts.from_json(shard.summary["tooLong"]))
    recommended, choices = choose_sequence_length(wanted) if unit == "tokens" else (0, [])
    sides = {side: sum_side(written, side) for side in SIDES}
    summaries = [summary for shard in state for summary in shard.ledger] + [shard.summary for shard in written]
    return DataResult(
        digest=plan.digest,
        files=files,
        read=sum(shard.summary["read"] for shard in clean),
        kept=sides["train"].records + sides["evaluation"].records,
        rejected=dict(sorted(count_reasons(written).items())),
        train=sides["train"],
        evaluation=sides["evaluation"],
        sources=_count_sources(spec, plan, parts, clean, written),
        statistics=[*build_statistics("read", read, domains), *build_statistics("kept", kept, domains)],
        histograms=build_histograms(read.overall, kept.overall),
        recommended_sequence_length=recommended,
        length_choices=choices,
        rejected_samples=_collect_samples(written),
        template=spec.data.template,
        seconds=round(seconds, 3),
        shards=len(clean),
        reused_shards=sum(shard.is_reused for shard in clean),
        unit=unit,
        funnel=build_funnel(steps, [*(shard.summary for shard in clean), *summaries]),
        scores=build_score_histograms((summary["scores"] for summary in summaries), steps),
    )


def add_accounts(accounts: Sequence[Mapping[str, Any]]) -> list[ModelAccount]:
    """What asking each model took, by what for."""
    if not accounts:
        return []
    from llamero.data.asking.ledger import sum_accounts

    return [ModelAccount.model_validate(account) for account in sum_accounts(accounts)]


def build_funnel(steps: Sequence[PlannedStep], summaries: Sequence[Mapping[str, Any]]) -> list[FunnelStep]:
    """What each step did, built-in ones in their places, from all shards' tallies; the first step is the reading."""
    whole: dict[str, Any] = {"dropped": {}, "changed": {}}
    for summary in summaries:
        merge_counts(whole, summary["tally"])
    left = sum(summary.get("read", 0) for summary in summaries)
    leading, _ = split_steps(steps)
    before, after = steps[: len(leading)], steps[len(leading) :]
    ordered: list[PlannedStep | str] = [PARSE, *before, EQUAL, CAPS, *after, CUT]
    funnel = [FunnelStep(kind="read", before=left)]
    for step in ordered:
        key = step if isinstance(step, str) else str(step.number)
        reasons = dict(sorted(whole["dropped"].get(key, {}).items()))
        named = {"kind": key} if isinstance(step, str) else _name_step(step)
        dropped = sum(reasons.values())
        changed = whole["changed"].get(key, 0)
        funnel.append(FunnelStep(**named, before=left, dropped=dropped, reasons=reasons, changed=changed))
        left -= dropped
    return [step for step in funnel if step.kind not in BUILT_IN or step.dropped or step.kind == PARSE]


def _name_step(step: PlannedStep) -> dict[str, Any]:
    return {"number": step.number, "kind": step.kind, "profile": step.profile, "place": step.place}


def count_reasons(shards: Sequence[Shard]) -> Counter[str]:
    """How many rows were rejected for which reason."""
    reasons: Counter[str] = Counter()
    for shard in shards:
        reasons.update(shard.summary["rejected"])
    return reasons


def find_worst_sources(parts: Sequence[RawPart], clean: Sequence[Shard]) -> list[str]:
    """The URIs of the two files with the most broken rows."""
    broken: Counter[str] = Counter()
    for part, shard in zip(parts, clean, strict=True):
        own = shard.summary["rejected"]
        broken[part.file.uri] += sum(own.get(reason, 0) for reason in RejectionReason.BROKEN)
    return [uri for uri, count in broken.most_common(2) if count]


def merge_statistics(shards: Sequence[Shard]) -> Statistics:
    """The shards' statistics as one."""
    whole = Statistics()
    for shard in shards:
        whole.merge(Statistics.from_json(shard.summary["statistics"]))
    return whole


def sum_side(written: Sequence[Shard], side: str) -> SplitCounts:
    """What the shards hold of a side."""
    totals: Counter[str] = Counter({"records": 0, "examples": 0, "tokens": 0, "targetTokens": 0})
    for shard in written:
        totals.update(shard.summary["sides"][side])
    return SplitCounts.model_validate(dict(totals))


def _count_sources(
    spec: FineTuneJobSpec,
    plan: DataPlan,
    parts: Sequence[RawPart],
    clean: Sequence[Shard],
    written: Sequence[Shard],
) -> list[SourceCounts]:
    read, kept = Counter[int](), Counter[int]()
    rejected: dict[int, Counter[str]] = {i: Counter() for i in range(len(spec.data.sources))}
    growth = {part.file.source: part.growth for part in parts}
    for part, before, after in zip(parts, clean, written, strict=True):
        read[part.file.source] += before.summary["read"]
        kept[part.file.source] += sum(side["records"] for side in after.summary["sides"].values())
        rejected[part.file.source].update(after.summary["rejected"])
    return [
        SourceCounts(
            name=plan.source_names[i],
            uri=source.uri,
            format=source.format.value,
            license=source.license,
            terms=source.terms,
            read=read[i],
            kept=kept[i],
            rejected=dict(sorted(rejected[i].items())),
            growth=growth.get(i, ""),
        )
        for i, source in enumerate(spec.data.sources)
    ]


def _collect_samples(written: Sequence[Shard]) -> list[RejectedSample]:
    """The first few of each reason."""
    counts: Counter[str] = Counter()
    samples: list[RejectedSample] = []
    for row in (row for shard in written for row in shard.summary["samples"]):
        counts[row["reason"]] += 1
        if counts[row["reason"]] <= SAMPLES_PER_REASON:
            samples.append(RejectedSample.model_validate(row | {"text": row["text"][:500]}))
    return sorted(samples, key=lambda sample: sample.reason)
