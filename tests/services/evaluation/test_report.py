"""The report: its figures as JSON, its page as one safe, self-contained, well-formed file."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from llamero.evaluation.page import _build_funnel as build_page_funnel
from llamero.evaluation.report import judge_evaluation, render_html, render_json, write_report
from llamero.spec.job import GateSpec
from llamero.spec.results import (
    Answer,
    ControlResult,
    GateResult,
    LengthChoice,
    ModelAccount,
    PerplexityPair,
    RejectedSample,
    Report,
    Sample,
    SourceCounts,
)

MakeReport = Callable[..., Report]
Parts = dict[str, Callable[..., Any]]

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)> \"'><svg/onload=alert(1)> {{ 7*7 }} {% raw %} &amp; ]]> --> "
    "\x00\x08\x1b[31m \ud800 \udfff \u202egnirts\u202c \ufffe 🙂 </style></title></textarea>"
)


def parse(html: str) -> etree._Element:
    """As XML, which forgives nothing."""
    return etree.fromstring(html.encode())


def hostile_report(make_report: MakeReport, parts: Parts) -> Report:
    sample = Sample(
        prompt_set=HOSTILE,
        prompt=HOSTILE,
        base=Answer(text=HOSTILE, finished=True, tokens=1),
        tuned=Answer(text=f"```\n{HOSTILE}\n```", finished=False, tokens=1),
        reference=HOSTILE,
    )
    data = parts["data"]()
    row = data.statistics[0].model_copy(update={"domain": HOSTILE})
    return make_report(
        gate=GateResult(passed=False, reason=HOSTILE),
        seconds={HOSTILE: 3.0},
        training=parts["training"]().model_copy(update={"notes": [HOSTILE], "device": HOSTILE}),
        evaluation=parts["evaluation"](samples=[sample], notes=[HOSTILE]),
        data=data.model_copy(
            update={
                "statistics": [row],
                "rejected": {HOSTILE: 1},
                "rejected_samples": [
                    RejectedSample(reason=HOSTILE, source=HOSTILE, file=HOSTILE, line=1, detail=HOSTILE, text=HOSTILE)
                ],
                "sources": [
                    SourceCounts(
                        name=HOSTILE, uri=HOSTILE, format=HOSTILE, license=HOSTILE, terms=HOSTILE, read=1, kept=0,
                        rejected={HOSTILE: 1},
                    )
                ],
                "histograms": [h.model_copy(update={"name": HOSTILE}) for h in data.histograms[:1]],
            }
        ),
    )  # fmt: skip


def test_report_json_has_the_promised_keys_and_reads_back(make_report: MakeReport) -> None:
    report = make_report()
    found = json.loads(render_json(report))
    assert (found["job"], found["run"]) == ("stats-tutor", 3)
    assert {"read", "kept", "rejected", "statistics"} <= set(found["data"])
    assert found["data"]["read"] == found["data"]["kept"] + sum(found["data"]["rejected"].values())
    assert {"steps", "tokens", "tokensPerSecond", "seconds", "loss"} <= set(found["training"])
    assert set(found["training"]["loss"]) == {"first", "last"}
    for measure in ("perplexity", "tokenPerplexity"):
        assert set(found["evaluation"][measure]) == {"base", "tuned"}
    assert {"prompt", "base", "tuned", "reference"} <= set(found["evaluation"]["samples"][0])
    assert set(found["gate"]) == {"passed", "reason"}
    assert set(found["adapter"]) == {"uri", "sha256"}
    assert Report.model_validate_json(render_json(report)) == report


def test_figures_that_were_not_measured_are_null_not_missing(make_report: MakeReport, parts: Parts) -> None:
    none = PerplexityPair(base=None, tuned=None)
    evaluation = parts["evaluation"](records=0, target_tokens=0, perplexity=none, token_perplexity=none, samples=[])
    report = make_report(evaluation=evaluation)
    found = json.loads(render_json(report))
    assert found["evaluation"]["tokenPerplexity"] == {"base": None, "tuned": None}
    assert found["gate"]["passed"] is False
    page = render_html(report)
    assert "Nothing was held out" in page
    parse(page)


def test_the_page_is_well_formed_and_fetches_nothing(make_report: MakeReport) -> None:
    page = render_html(make_report())
    tree = parse(page)
    fetching = [
        (e.tag, name, value)
        for e in tree.iter(etree.Element)
        for name, value in e.attrib.items()
        if name.rpartition("}")[2] in ("src", "href", "srcset", "action", "data", "poster", "formaction", "background")
    ]
    assert fetching, "the page has links within itself"
    assert all(value.startswith(("#", "data:")) for _, _, value in fetching), fetching
    assert not list(tree.iter("script", "iframe", "object", "embed", "form", "base"))
    style = "".join(tree.find(".//style").itertext())
    assert not re.search(r"url\(|@import|https?:", style)
    policy = tree.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy.startswith("default-src 'none'")


def test_the_page_can_be_read_without_seeing_it(make_report: MakeReport) -> None:
    tree = parse(render_html(make_report()))
    assert tree.get("lang") == "en"
    levels = [int(e.tag[1]) for e in tree.iter("h1", "h2", "h3", "h4", "h5")]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels)), "headings skip no level"
    for table in tree.iter("table"):
        assert all(th.get("scope") for th in table.iter("th"))
    for drawing in tree.iter("svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing.get("role") == "img" and drawing.get("aria-label"))
    identifiers = [e.get("id") for e in tree.iter(etree.Element) if e.get("id")]
    assert len(identifiers) == len(set(identifiers))
    targets = {a.get("href")[1:] for a in tree.iter("a")}
    assert targets <= set(identifiers)


def test_hostile_text_stays_text(make_report: MakeReport, parts: Parts) -> None:
    page = render_html(hostile_report(make_report, parts))
    tree = parse(page)
    assert not list(tree.iter("script", "img"))
    assert not [a for e in tree.iter(etree.Element) for a in e.attrib if a.startswith("on")]
    text = "".join(tree.itertext())
    assert text.count("<script>alert(1)</script>") >= 12
    assert "{{ 7*7 }}" in text
    assert "␛[31m" in text
    assert "\u202e" not in page
    page.encode()


def test_hostile_text_is_json_that_a_strict_parser_reads(make_report: MakeReport, parts: Parts) -> None:
    written = render_json(hostile_report(make_report, parts))
    report = Report.model_validate_json(written.encode())
    assert "\ufffd" in report.evaluation.samples[0].prompt
    assert "<script>" in report.evaluation.samples[0].prompt


def test_huge_texts_are_shortened_in_the_page_only(make_report: MakeReport, parts: Parts) -> None:
    huge = "word " * 200_000
    sample = Sample(
        prompt_set="s",
        prompt=huge,
        base=Answer(text=huge, finished=False, tokens=8192),
        tuned=Answer(text=huge, finished=False, tokens=8192),
        reference=huge,
    )
    report = make_report(evaluation=parts["evaluation"](samples=[sample]))
    page = render_html(report)
    assert len(page) < 500_000
    assert "993,999 more characters" in page
    assert json.loads(render_json(report))["evaluation"]["samples"][0]["prompt"] == huge


def test_a_long_training_makes_no_long_page(make_report: MakeReport, parts: Parts) -> None:
    page = render_html(make_report(training=parts["training"](steps=100_000)))
    parse(page)
    assert len(page) < 600_000
    assert "averaged in groups" in page


def test_an_empty_job_still_has_a_page(make_report: MakeReport, parts: Parts) -> None:
    data = parts["data"]().model_copy(
        update={
            "read": 0, "kept": 0, "rejected": {}, "sources": [], "statistics": [], "histograms": [], "length_choices": [],
            "rejected_samples": [],
        }
    )  # fmt: skip
    training = parts["training"]().model_copy(update={"curve": [], "notes": [], "resumed_from": []})
    parse(render_html(make_report(data=data, training=training, seconds={})))


def test_the_page_says_what_the_figures_say(make_report: MakeReport) -> None:
    text = " ".join(" ".join(parse(render_html(make_report())).itertext()).split())
    for part in (
        "Gate passed",
        "from 124.180 to 1.413",
        "Measured on 96 records that training never saw, with 5,310 answer tokens",
        "962 of 1,204 kept",
        "CC-BY-SA-4.0",
        "not for training competitors",
        "9b0d" * 16,
        "facts:18",
        "same as facts:3",
        "fit <- lm(y ~ ., data = d)",
        "cut off at 128 tokens",
        "finished after 31 tokens",
        "The optimiser is adamw: paged-adamw needs CUDA.",
        "2 March 2026, 14:05 UTC",
    ):
        assert part in text, part


def test_the_page_shows_what_each_step_of_the_data_did_and_what_records_scored(
    make_report: MakeReport, parts: Parts
) -> None:
    report = make_report(data=parts["data_with_steps"]())
    page = parse(render_html(report))
    rows = [" ".join("".join(row.itertext()).split()) for row in page.iter("{*}tr")]
    shown = [row for row in rows if any(f"{n}. " in row for n in (1, 2, 3, 4))]
    assert (
        "1. quality" in shown[0]
        and "maxBulletLines 12, minStopWords 8, maxHashRatio 5, minAlphabeticWords 4, 1 more rules 1" in shown[0]
    )
    assert "2. personalData" in shown[1] and "changed 17" in shown[1]
    assert "4. threshold" in shown[3] and "min 11" in shown[3]
    text = " ".join(" ".join(page.itertext()).split())
    assert "982 records by judge: least kept 4.500." in render_html(report)
    assert "min 3.5, threshold 4.5" in text
    assert "dropped by step 4 of data.steps" in text


def test_the_parts_of_the_funnel_add_up(parts: Parts) -> None:
    data = parts["data_with_steps"]()
    funnel = build_page_funnel(data)
    dropped = sum(row.records for row in funnel if row.kind in ("rejected", "passed"))
    assert dropped == sum(data.rejected.values()) == data.read - data.kept


def test_credentials_in_a_source_reach_neither_page_nor_json(make_report: MakeReport) -> None:
    report = make_report()
    for written in (render_html(report), render_json(report)):
        assert "secret" not in written
        assert "X-Amz-Signature" not in written


@pytest.mark.parametrize(
    ("limits", "passed", "reason"),
    [
        ({}, True, "went from 124.180 to 1.413"),
        ({"minPerplexityImprovement": 0.995}, False, "asks for a fall of at least 99.5%"),
        ({"maxTokenPerplexity": 1.2}, False, "upper bound is 1.200"),
    ],
)
def test_the_gate_judges_what_was_measured(parts: Parts, limits: dict[str, Any], passed: bool, reason: str) -> None:
    verdict = judge_evaluation(GateSpec.model_validate(limits), parts["evaluation"]())
    assert verdict.passed is passed
    assert reason in verdict.reason


def test_the_gate_counts_the_tuned_models_unfinished_answers(parts: Parts) -> None:
    evaluation = parts["evaluation"]()
    tuned = evaluation.samples[0].tuned.model_copy(update={"finished": False})
    samples = [evaluation.samples[0].model_copy(update={"tuned": tuned}), evaluation.samples[1]]
    gate = GateSpec.model_validate({"maxUnfinishedFraction": 0.4})
    verdict = judge_evaluation(gate, evaluation.model_copy(update={"samples": samples}))
    assert not verdict.passed
    assert "1 of 2 answers ran on" in verdict.reason


def test_both_files_are_written_whole(make_report: MakeReport, tmp_path: Path) -> None:
    write_report(make_report(), tmp_path / "report.json", tmp_path / "report.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
    parse((tmp_path / "report.html").read_text())


def test_the_recommended_length_stands_out(make_report: MakeReport, parts: Parts) -> None:
    data = parts["data"]().model_copy(update={"length_choices": [LengthChoice(sequence_length=256, cut_fraction=0.01)]})
    tree = parse(render_html(make_report(data=data)))
    assert [c.text for c in tree.iter("th", "td") if "recommended" in (c.get("class") or "")] == ["256", "1.0%"]


def test_controls_stand_beside_the_run_with_their_change(make_report: MakeReport, parts: Parts) -> None:
    training = parts["training"]()
    rows = [("chosen", None, 2.0), ("random", None, 2.2), ("at-4", 4.0, 1.9), ("at-5", 5.0, None)]
    controls = [
        ControlResult(
            name=name,
            kind="threshold" if threshold else name,
            threshold=threshold,
            examples=100,
            tokens=9000,
            steps=25,
            loss=training.loss,
            held_out_loss=loss,
            seconds=3.0,
        )
        for name, threshold, loss in rows
    ]
    html = render_html(make_report(training=training.model_copy(update={"controls": controls})))
    table = html[html.index('class="controls"') :].split("</table>")[0]
    assert [cell in table for cell in ("this run", "random", "threshold 4", "7.389", "+22.1%")] == [True] * 5
    assert "What the choice of data is worth" not in render_html(make_report())


def test_what_models_were_asked_and_how_pools_grew_is_told(make_report: MakeReport, parts: Parts) -> None:
    data = parts["data"]()
    asked = ModelAccount(
        purpose="judge accuracy",
        model=HOSTILE,
        endpoint="https://user@judge.example/v1",
        asked=1200,
        answered=200,
        cached=990,
        unanswered=10,
        input_tokens=45_000,
        cost=1.239,
    )
    grown = data.sources[0].model_copy(update={"growth": f"Ended at 20 records: {HOSTILE}"})
    page = render_html(make_report(data=data.model_copy(update={"asked": [asked], "sources": [grown]})))
    parse(page)
    table = page[page.index("What language models were asked") :].split("</table>")[0]
    assert [cell in table for cell in ("judge accuracy", ">1,200<", ">990<", ">45,000<", ">1.24<")] == [True] * 5
    assert "Ended at 20 records" in page
    assert HOSTILE not in page
    assert "What language models were asked" not in render_html(make_report())
