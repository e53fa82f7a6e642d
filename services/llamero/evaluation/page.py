"""What the report's page shows, worked out from a Report: the groups, shares and charts that the template only lays out. Pure."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from llamero.evaluation.charts import (
    draw_histogram,
    draw_loss_curve,
    draw_scores,
    draw_share,
    draw_shares,
    draw_small_curve,
)
from llamero.evaluation.formatting import (
    clean_text,
    format_bytes,
    format_change,
    format_count,
    format_duration,
    format_figure,
    format_plain,
    format_share,
    shorten_text,
)
from llamero.spec.records import RejectionReason
from llamero.spec.results import (
    DataResult,
    Histogram,
    LossPoint,
    PerplexityPair,
    RejectedSample,
    Report,
    Sample,
    StatisticsRow,
)
from llamero.spec.results import FunnelStep as DataFunnelStep

SAMPLES_SHOWN_AT_ONCE = 6
REJECTED_SHOWN_BY_REASON = 20
REJECTED_TEXT_CHARACTERS = 700
RULES_SHOWN = 4

METHOD_NAMES = {"qlora": "QLoRA", "lora": "LoRA"}

# What a reader is told about each reason; one that is not here is shown by its own word.
REASON_MEANINGS: dict[str, str] = {
    RejectionReason.MALFORMED: "not readable as a record of the declared format",
    RejectionReason.EMPTY_PROMPT: "nothing is asked",
    RejectionReason.EMPTY_ANSWER: "nothing is answered",
    RejectionReason.BAD_TURNS: "roles that do not alternate, or no assistant turn",
    RejectionReason.UNANSWERED: "a question that nobody answered",
    RejectionReason.DUPLICATE: "the same record was read before",
    RejectionReason.TOO_LONG: "longer than training.sequenceLength",
    RejectionReason.CAPPED: "beyond the source's weight or maxRecords",
}


@dataclass(frozen=True)
class ControlRow:
    """One of the trainings that data.controls sets side by side."""

    name: str
    meaning: str
    examples: int
    tokens: int
    steps: int
    last_loss: str
    perplexity: str
    change: str
    bar: Markup


# What every preparation does goes by the reason that its rejections have.
_BUILT_IN = {"equal": RejectionReason.DUPLICATE, "caps": RejectionReason.CAPPED}


@dataclass(frozen=True)
class FunnelStep:
    """A row of the data funnel: how many records, and where its bar stands within those read."""

    kind: str  # read, rejected, passed (a step that dropped nothing), kept, part
    name: str
    meaning: str
    records: int
    share: float
    bar: Markup


@dataclass(frozen=True)
class PerplexityRow:
    name: str
    formula: str
    base: str
    tuned: str
    change: str
    base_bar: Markup
    tuned_bar: Markup


@dataclass(frozen=True)
class Fact:
    """A name and a value of a definition list; `code` where the value is a path, a digest or a setting."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Page:
    """Everything that the template needs beside the report itself."""

    title: str
    method: str
    headline: list[Fact]
    perplexities: list[PerplexityRow]
    sample_sets: list[tuple[str, list[Sample], list[Sample]]]
    loss_curves: list[tuple[str, Markup]]
    small_curves: list[tuple[str, Markup]]
    training_facts: list[Fact]
    controls: list[ControlRow]
    recipe: list[Fact]
    funnel: list[FunnelStep]
    histograms: list[tuple[str, Markup]]
    statistics: list[tuple[str, list[StatisticsRow]]]
    scores: list[tuple[str, Markup]]
    rejected: list[tuple[str, str, int, list[RejectedSample]]]
    adapter_facts: list[Fact]
    timing_bar: Markup
    timing: list[tuple[int, str, float, str]]
    notes: list[str]


def build_page(report: Report) -> Page:
    """The page's parts, in the order in which they stand on it."""
    verdict = "gate passed" if report.gate.passed else "gate refused"
    return Page(
        title=f"{report.job} run {report.run}: {verdict} · llamero",
        method=METHOD_NAMES.get(report.training.method, report.training.method),
        headline=_headline(report),
        perplexities=_compare_perplexities(report),
        sample_sets=_group_samples(report.evaluation.samples),
        loss_curves=_draw_loss_curves(report),
        small_curves=_draw_small_curves(report.training.curve),
        training_facts=_training_facts(report),
        controls=_build_controls(report),
        recipe=[Fact(name, value, code=True) for name, value in _flatten(report.recipe)],
        funnel=_build_funnel(report.data),
        histograms=_draw_histograms(report.data),
        statistics=_group_statistics(report.data.statistics),
        scores=[(scores.name, draw_scores(scores)) for scores in report.data.scores],
        rejected=_group_rejected(report.data),
        adapter_facts=_adapter_facts(report),
        timing_bar=draw_shares(list(report.seconds.items())),
        timing=_time_phases(report.seconds),
        notes=[*report.training.notes, *report.evaluation.notes],
    )


def _headline(report: Report) -> list[Fact]:
    training, data = report.training, report.data
    facts = [
        Fact("Trained", f"{format_count(training.steps)} steps in {format_duration(training.seconds)}"),
        Fact("Throughput", f"{format_count(training.tokens_per_second)} tokens a second"),
        Fact("Records", f"{format_count(data.kept)} of {format_count(data.read)} kept"),
    ]
    if report.seconds:
        facts.append(Fact("Whole run", format_duration(sum(report.seconds.values()))))
    return facts


def _compare_perplexities(report: Report) -> list[PerplexityRow]:
    evaluation = report.evaluation
    rows = (
        ("Token perplexity", "exp(Σ −log P ÷ Σ n)", evaluation.token_perplexity),
        ("Perplexity by record", "mean of exp(−log P ÷ n)", evaluation.perplexity),
    )
    return [_compare(name, formula, pair) for name, formula, pair in rows]


def _compare(name: str, formula: str, pair: PerplexityPair) -> PerplexityRow:
    top = max(pair.base or 0.0, pair.tuned or 0.0)
    bars = [
        draw_share((v or 0.0) / top if top else 0.0, kind=k) for v, k in ((pair.base, "base"), (pair.tuned, "tuned"))
    ]
    change = format_change(pair.base, pair.tuned)
    return PerplexityRow(name, formula, format_figure(pair.base), format_figure(pair.tuned), change, bars[0], bars[1])


def _group_samples(samples: Sequence[Sample]) -> list[tuple[str, list[Sample], list[Sample]]]:
    """By prompt set, in the order of the manifest: those shown at once and those behind a fold."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_set, []).append(sample)
    return [(name, group[:SAMPLES_SHOWN_AT_ONCE], group[SAMPLES_SHOWN_AT_ONCE:]) for name, group in groups.items()]


def _draw_loss_curves(report: Report) -> list[tuple[str, Markup]]:
    """The same curve for three widths of page, since text in a drawing shrinks with it."""
    curve, resumed = report.training.curve, report.training.resumed_from
    sizes = (("wide", 1020, 340), ("medium", 640, 300), ("narrow", 340, 250))
    return [(name, draw_loss_curve(curve, w, h, resumed)) for name, w, h in sizes] if curve else []


def _draw_small_curves(curve: Sequence[LossPoint]) -> list[tuple[str, Markup]]:
    if not curve:
        return []
    steps = [p.step for p in curve]
    drawn = [("Learning rate", draw_small_curve(steps, [p.learning_rate for p in curve], "learning rate", 420, 165))]
    norms = [(p.step, p.grad_norm) for p in curve if p.grad_norm is not None]
    if norms:
        drawn.append(
            (
                "Gradient norm, before clipping",
                draw_small_curve([s for s, _ in norms], [n for _, n in norms], "gradient norm", 420, 165),
            )
        )
    return drawn


def _training_facts(report: Report) -> list[Fact]:
    training = report.training
    share = training.trainable_parameters / training.total_parameters if training.total_parameters else 0.0
    facts = [
        Fact("Loss", f"{format_figure(training.loss.first, 3)} → {format_figure(training.loss.last, 3)} nats a token"),
        Fact("Method", METHOD_NAMES.get(training.method, training.method)),
        Fact("Steps", f"{format_count(training.steps)} over {format_plain(round(training.epochs, 2))} epochs"),
        Fact("Examples", format_count(training.examples)),
        Fact("Tokens", f"{format_count(training.tokens)}, {format_count(training.target_tokens)} of them trained on"),
        Fact("Throughput", f"{format_count(training.tokens_per_second)} tokens a second"),
        Fact("Time", format_duration(training.seconds)),
        Fact(
            "Trainable parameters",
            f"{format_count(training.trainable_parameters)} of {format_count(training.total_parameters)} ({format_share(share)})",
        ),
        Fact("Device", training.device),
        Fact("Attention", training.attention),
        Fact("Optimiser", training.optimizer),
    ]
    if training.peak_memory_bytes:
        facts.append(Fact("Peak memory", format_bytes(training.peak_memory_bytes)))
    if training.resumed_from:
        facts.append(Fact("Resumed at step", ", ".join(map(format_count, training.resumed_from))))
    return facts


def _build_controls(report: Report) -> list[ControlRow]:
    """The run's own training first, then its controls; the change is against the run's own."""
    controls = report.training.controls
    figures = [c.held_out_perplexity for c in controls]
    top = max((f for f in figures if f is not None), default=0.0)
    return [
        ControlRow(
            name={"chosen": "this run", "random": "random"}.get(
                c.kind, f"threshold {format_plain(c.threshold or 0.0)}"
            ),
            meaning={
                "chosen": "what the last choosing step kept",
                "random": "as many records, drawn at random from what it chose from",
            }.get(c.kind, "what it keeps at this threshold"),
            examples=c.examples,
            tokens=c.tokens,
            steps=c.steps,
            last_loss=format_figure(c.loss.last, 3),
            perplexity=format_figure(c.held_out_perplexity),
            change="" if c.kind == "chosen" else format_change(figures[0], c.held_out_perplexity),
            bar=draw_share((c.held_out_perplexity or 0.0) / top if top else 0.0, kind="tuned"),
        )
        for c in controls
    ]


def _flatten(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """A nested recipe as dotted names and values as the manifest would write them; empty parts are left out."""
    for key, part in value.items():
        if isinstance(part, dict):
            yield from _flatten(part, f"{path}{key}.")
        elif part not in (None, []):
            text = str(part).lower() if isinstance(part, bool) else str(part)
            yield f"{path}{key}", ", ".join(map(str, part)) if isinstance(part, list) else text


def _build_funnel(data: DataResult) -> list[FunnelStep]:
    """From what was read, each step takes its part from the right, down to what was kept and its two sides.

    A result without a funnel, as older versions wrote it, shows a part for each reason instead.
    """

    def step(kind: str, name: str, meaning: str, records: int, start: int) -> FunnelStep:
        share = records / data.read if data.read else 0.0
        bar = draw_share(share, start / data.read if data.read else 0.0, kind)
        return FunnelStep(kind, name, meaning, records, share, bar)

    steps = [step("read", "Read", "", data.read, 0)]
    left = data.read
    for name, meaning, count in _list_parts(data):
        left -= count
        steps.append(step("rejected" if count else "passed", name, meaning, count, left))
    steps.append(step("kept", "Kept", "", data.kept, 0))
    steps.append(
        step("part", "for training", _describe_split(data.train.examples, data.train.tokens), data.train.records, 0)
    )
    evaluation = data.evaluation
    steps.append(
        step(
            "part",
            "held out",
            _describe_split(evaluation.examples, evaluation.tokens),
            evaluation.records,
            data.train.records,
        )
    )
    return steps


def _list_parts(data: DataResult) -> Iterator[tuple[str, str, int]]:
    """What took records away, in its order: name, meaning and how many."""
    if not data.funnel:
        for reason, count in sorted(data.rejected.items(), key=lambda item: -item[1]):
            if count:
                yield reason, REASON_MEANINGS.get(reason, ""), count
        return
    for step in data.funnel:
        if step.number is not None:
            yield f"{step.number}. {step.kind}", _describe_step(step), step.dropped
        elif step.kind in _BUILT_IN:
            yield _BUILT_IN[step.kind], REASON_MEANINGS[_BUILT_IN[step.kind]], step.dropped
        else:
            for reason, count in sorted(step.reasons.items(), key=lambda item: -item[1]):
                yield reason, REASON_MEANINGS.get(reason, ""), count


def _describe_step(step: DataFunnelStep) -> str:
    """The rules that dropped most, and how many records the step changed."""
    ordered = sorted(step.reasons.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{rule} {format_count(count)}" for rule, count in ordered[:RULES_SHOWN]]
    if len(ordered) > RULES_SHOWN:
        told.append(f"{len(ordered) - RULES_SHOWN} more rules {format_count(sum(n for _, n in ordered[RULES_SHOWN:]))}")
    if step.changed:
        told.append(f"changed {format_count(step.changed)}")
    return ", ".join(told)


def _describe_split(examples: int, tokens: int) -> str:
    return f"{format_count(examples)} examples, {format_count(tokens)} tokens"


def _draw_histograms(data: DataResult) -> list[tuple[str, Markup]]:
    """One chart a measure, with the data as read and as kept in it. Names are `<stage> <measure>`."""
    measures: dict[str, dict[str, Histogram]] = {}
    for histogram in data.histograms:
        stage, measure = _split_histogram_name(histogram.name)
        measures.setdefault(measure, {})[stage] = histogram
    drawn = []
    for measure, stages in measures.items():
        whole = measure in ("", "total", "length", "record", "example", "all")
        marker = data.recommended_sequence_length if whole else None
        title = "Whole record" if whole else measure.capitalize()
        drawn.append((title, draw_histogram(stages.get("read"), stages.get("kept"), marker, "tokens")))
    return drawn


def _split_histogram_name(name: str) -> tuple[str, str]:
    """`read input`, `kept.output`, `input-read` as (stage, measure)."""
    words = [w for w in re.split(r"[\s._:/-]+", name.lower()) if w]
    stage = next((w for w in words if w in ("read", "kept")), "kept")
    return stage, " ".join(w for w in words if w != stage)


def _group_statistics(rows: Sequence[StatisticsRow]) -> list[tuple[str, list[StatisticsRow]]]:
    stages: dict[str, list[StatisticsRow]] = {}
    for row in rows:
        stages.setdefault(row.stage, []).append(row)
    return list(stages.items())


def _group_rejected(data: DataResult) -> list[tuple[str, str, int, list[RejectedSample]]]:
    """Reason, its meaning, how many in all, and a few of them with their text shortened; the most frequent first."""
    groups: dict[str, list[RejectedSample]] = {}
    for sample in data.rejected_samples:
        groups.setdefault(sample.reason, []).append(sample)
    ordered = sorted(groups.items(), key=lambda item: -data.rejected.get(item[0], 0))
    return [
        (
            reason,
            REASON_MEANINGS.get(reason) or _explain_step(data, reason),
            data.rejected.get(reason, len(samples)),
            [
                s.model_copy(update={"text": shorten_text(clean_text(s.text).strip(), REJECTED_TEXT_CHARACTERS)})
                for s in samples[:REJECTED_SHOWN_BY_REASON]
            ],
        )
        for reason, samples in ordered
    ]


def _explain_step(data: DataResult, reason: str) -> str:
    """Which steps a reason that is a step's kind stands for."""
    steps = [f"{step.number}" for step in data.funnel if step.number is not None and step.kind == reason]
    return f"dropped by step {' and '.join(steps)} of data.steps" if steps else ""


def _adapter_facts(report: Report) -> list[Fact]:
    facts = [
        Fact("Location", report.adapter.uri, code=True),
        Fact("sha256", report.adapter.sha256, code=True),
        Fact("Base model", report.base_model, code=True),
        Fact("Chat template", report.data.template),
        Fact("Data digest", report.data.digest, code=True),
    ]
    merge = report.training.merge
    if merge is not None:
        facts.append(Fact("Merged export", merge.uri, code=True))
        if merge.change is not None:
            losses = f"{format_figure(merge.adapter_loss)} → {format_figure(merge.merged_loss)}"
            facts.append(
                Fact(
                    "Held-out loss by merging", f"{losses} (change {merge.change:+.2g})".replace("-", "\N{MINUS SIGN}")
                )
            )
    licenses = dict.fromkeys(s.license for s in report.data.sources if s.license)
    terms = dict.fromkeys(s.terms for s in report.data.sources if s.terms)
    if licenses:
        facts.append(Fact("Licences of the data", ", ".join(licenses)))
    if terms:
        facts.append(Fact("Terms of the data", "; ".join(terms)))
    return facts


def _time_phases(seconds: dict[str, float]) -> list[tuple[int, str, float, str]]:
    """Colour, phase, seconds and share of the whole."""
    total = sum(seconds.values())
    return [
        (index % 4, name, value, format_share(value / total if total else 0.0))
        for index, (name, value) in enumerate(seconds.items())
    ]
