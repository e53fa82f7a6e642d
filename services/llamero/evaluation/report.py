"""The report of a run: gathered from the phases' results, judged by the gate, written as report.json and report.html.

Nothing here loads a model. The page is one file that asks nothing of a network and runs no script; whatever came from data or
a model is escaped, cleaned and shortened on its way in.
"""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import llamero
from llamero import storage
from llamero.evaluation import formatting
from llamero.evaluation.page import build_page
from llamero.lifecycle.gate import GateFigures, judge_gate
from llamero.spec.digest import training_recipe
from llamero.spec.job import FineTuneJob, GateSpec
from llamero.spec.results import AdapterRef, DataResult, EvaluationResult, GateResult, Report, TrainingResult


def judge_evaluation(gate: GateSpec, evaluation: EvaluationResult) -> GateResult:
    """The gate's verdict on what was measured."""
    figures = GateFigures(
        base_token_perplexity=evaluation.token_perplexity.base,
        tuned_token_perplexity=evaluation.token_perplexity.tuned,
        answers=len(evaluation.samples),
        unfinished_answers=sum(not sample.tuned.finished for sample in evaluation.samples),
    )
    verdict = judge_gate(gate, figures)
    return GateResult(passed=verdict.passed, reason=verdict.reason)


def build_report(
    job: FineTuneJob,
    run: int,
    data: DataResult,
    training: TrainingResult,
    evaluation: EvaluationResult,
    gate: GateResult,
    adapter: AdapterRef,
    seconds: Mapping[str, float],
    phase: str,
    finished_at: datetime | None = None,
) -> Report:
    """One run from data to verdict. `seconds` are by phase, over all attempts. URIs lose their credentials."""
    base = job.spec.base_model
    base_model = f"{base.name}@{base.revision}" if base.name and base.revision else base.name or base.uri or ""
    sources = [s.model_copy(update={"uri": formatting.strip_credentials(s.uri)}) for s in data.sources]
    return Report(
        job=job.metadata.name,
        run=run,
        phase=phase,
        base_model=formatting.strip_credentials(base_model),
        data=data.model_copy(update={"sources": sources}),
        training=training,
        evaluation=evaluation,
        gate=gate,
        adapter=adapter,
        seconds=dict(seconds),
        recipe=training_recipe(job.spec),
        finished_at=finished_at,
        version=llamero.__version__,
    )


def write_report(report: Report, json_path: Path, html_path: Path) -> None:
    """The page and then the figures, each whole or not at all: where report.json stands, report.html does too."""
    storage.write_atomically(html_path, render_html(report))
    storage.write_atomically(json_path, render_json(report))


def render_json(report: Report) -> str:
    """The report as JSON that any parser reads: what is no number is null, lone surrogates are U+FFFD."""
    value = _make_json_safe(report.model_dump(mode="json", by_alias=True))
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _make_json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {_make_json_safe(k): _make_json_safe(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_make_json_safe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def render_html(report: Report) -> str:
    """The report as one self-contained page, well-formed as XML too."""
    return _environment().get_template("report.html.jinja").render(report=report, page=build_page(report))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("llamero.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean_value,
    )
    environment.filters |= {
        "count": formatting.format_count,
        "compact": formatting.format_compact,
        "figure": formatting.format_figure,
        "share": formatting.format_share,
        "duration": formatting.format_duration,
        "shorten": formatting.shorten_text,
        "uri": formatting.strip_credentials,
        "fences": formatting.split_fences,
    }
    return environment


def _clean_value(value: Any) -> Any:
    """Every text on its way into the page is cleaned here, so that no place in the template can forget it."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return formatting.clean_text(value)
    return value
