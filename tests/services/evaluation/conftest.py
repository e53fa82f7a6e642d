"""A report such as a small job yields, built from parts that tests replace one by one; and a held-out split with an adapter on disk."""

import hashlib
import json
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llamero.evaluation.report import build_report, judge_evaluation
from llamero.spec.job import FineTuneJob
from llamero.spec.results import (
    AdapterRef,
    Answer,
    DataResult,
    EvaluationResult,
    FunnelStep,
    Histogram,
    LengthChoice,
    LengthSummary,
    LossPoint,
    LossSummary,
    PerplexityPair,
    RejectedSample,
    Report,
    Sample,
    ScoreHistogram,
    SourceCounts,
    SplitCounts,
    StatisticsRow,
    StepRef,
    TrainingResult,
)

JOB = {
    "apiVersion": "llamero.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "stats-tutor"},
    "spec": {
        "baseModel": {"uri": "/models/tiny-base"},
        "data": {"sources": [{"uri": "facts.json", "format": "alpaca"}]},
        "training": {"lora": {"rank": 32, "alpha": 64}, "learningRate": 0.002, "epochs": 6, "sequenceLength": 512},
        "evaluation": {"gate": {"minPerplexityImprovement": 0.3}},
    },
}


def build_curve(steps: int) -> list[LossPoint]:
    chance = random.Random(0)
    return [
        LossPoint(
            step=step,
            loss=3.4 * math.exp(-4 * step / steps) + 0.35 + chance.gauss(0, 0.09),
            learning_rate=2e-3 * min(1.0, step / (0.05 * steps)) * (1 + math.cos(math.pi * step / steps)) / 2,
            grad_norm=0.4 + 1.8 * math.exp(-3 * step / steps) + abs(chance.gauss(0, 0.15)),
            tokens=step * 412,
            seconds=step * 0.11,
        )
        for step in range(1, steps + 1)
    ]


def build_data() -> DataResult:
    lengths = LengthSummary(mean=24.6, median=21, max=96)
    answers = LengthSummary(mean=58.3, median=47, max=402)

    def row(stage: str, domain: str, samples: int) -> StatisticsRow:
        return StatisticsRow(
            stage=stage, domain=domain, samples=samples, tokens=samples * 83, input_tokens=samples * 25,
            output_tokens=samples * 58, input=lengths, output=answers,
        )  # fmt: skip

    edges = [0, 16, 32, 64, 128, 256, 512, 1024]
    return DataResult(
        digest="4f1c" * 16,
        files=[],
        read=1204,
        kept=962,
        rejected={"duplicate": 121, "unanswered": 64, "empty-answer": 31, "malformed": 14, "too-long": 9, "bad-turns": 3},
        train=SplitCounts(records=866, examples=871, tokens=74_210, target_tokens=49_870),
        evaluation=SplitCounts(records=96, examples=96, tokens=8_120, target_tokens=5_310),
        sources=[
            SourceCounts(
                name="statistics-posts", uri="/data/Posts.xml", format="stackexchange", license="CC-BY-SA-4.0",
                read=604, kept=471, rejected={"unanswered": 64, "duplicate": 60, "too-long": 9},
            ),
            SourceCounts(
                name="facts", uri="https://user:secret@data.example/facts.json?X-Amz-Signature=abc", format="alpaca",
                license="Apache-2.0", read=400, kept=331, rejected={"duplicate": 41, "empty-answer": 24, "malformed": 4},
            ),
            SourceCounts(
                name="shared-chats", uri="s3://bucket/chats.json", format="sharegpt", terms="not for training competitors",
                read=200, kept=160, rejected={"duplicate": 20, "malformed": 10, "empty-answer": 7, "bad-turns": 3},
            ),
        ],
        statistics=[
            row("read", "tests and intervals", 402), row("read", "regression", 311), row("read", "other", 491),
            row("read", "overall", 1204), row("kept", "tests and intervals", 330), row("kept", "regression", 260),
            row("kept", "other", 372), row("kept", "overall", 962),
        ],
        histograms=[
            Histogram(name="read input", edges=edges, counts=[310, 520, 301, 61, 12, 0, 0]),
            Histogram(name="kept input", edges=edges, counts=[240, 431, 250, 36, 5, 0, 0]),
            Histogram(name="read output", edges=edges, counts=[120, 260, 410, 300, 96, 15, 3]),
            Histogram(name="kept output", edges=edges, counts=[80, 230, 360, 220, 66, 6, 0]),
            Histogram(name="read total", edges=edges, counts=[20, 110, 390, 480, 170, 30, 4]),
            Histogram(name="kept total", edges=edges, counts=[5, 80, 330, 400, 130, 17, 0]),
        ],
        recommended_sequence_length=256,
        length_choices=[
            LengthChoice(sequence_length=128, cut_fraction=0.152),
            LengthChoice(sequence_length=256, cut_fraction=0.0177),
            LengthChoice(sequence_length=512, cut_fraction=0.0004),
            LengthChoice(sequence_length=1024, cut_fraction=0.0),
        ],
        rejected_samples=[
            RejectedSample(reason="duplicate", source="facts", file="facts.json", line=18, detail="same as facts:3",
                           text="What is a p-value?\nThe chance of data at least as extreme, if the null hypothesis holds."),
            RejectedSample(reason="malformed", source="shared-chats", file="chats.json", line=77,
                           detail="expecting ',' delimiter at column 41", text='{"conversations": [{"from": "human" "value"'),
            RejectedSample(reason="unanswered", source="statistics-posts", file="Posts.xml", line=9121,
                           text="Why does my random forest prefer noise over x <- lm(y ~ .)?"),
        ],
        template="base",
        seconds=4.2,
        shards=3,
    )  # fmt: skip


def add_steps(data: DataResult) -> DataResult:
    """The same data, as a recipe with steps would have left it: a judge's scores among them, and a step that changed some."""
    return data.model_copy(
        update={
            "rejected": {"duplicate": 80, "quality": 30, "threshold": 11, "unanswered": 64, "empty-answer": 31, "malformed": 17, "too-long": 9},
            "funnel": [
                FunnelStep(kind="read", before=1204),
                FunnelStep(kind="parse", before=1204, dropped=112, reasons={"unanswered": 64, "empty-answer": 31, "malformed": 17}),
                FunnelStep(
                    number=1, kind="quality", profile="instruction", place="spec.data.steps[0]", before=1092, dropped=30,
                    reasons={"maxBulletLines": 12, "minStopWords": 8, "maxHashRatio": 5, "minAlphabeticWords": 4, "maxMeanWordLength": 1},
                ),
                FunnelStep(number=2, kind="personalData", place="spec.data.steps[1]", before=1062, changed=17),
                FunnelStep(kind="equal", before=1062, dropped=80, reasons={"equal": 80}),
                FunnelStep(number=3, kind="judge", place="spec.data.steps[2]", before=982),
                FunnelStep(number=4, kind="threshold", place="spec.data.steps[2]", before=982, dropped=11, reasons={"min": 11}),
                FunnelStep(kind="cut", before=971, dropped=9, reasons={"too-long": 9}),
            ],
            "scores": [ScoreHistogram(name="judge", min=4.5, edges=[i / 4 for i in range(21)],
                                      counts=[0, 0, 1, 0, 2, 0, 3, 1, 4, 0, 11, 2, 30, 8, 91, 40, 310, 122, 250, 107])],
            "rejected_samples": [
                *data.rejected_samples,
                RejectedSample(reason="threshold", source="facts", file="facts.json", line=51, id="a" * 32, step=StepRef(number=4, kind="threshold"),
                               rule="min", value=3.5, threshold=4.5, detail="Dropped by `threshold`.", text="Name a bird. A bird."),
            ],
        }
    )  # fmt: skip


def build_training(steps: int = 156) -> TrainingResult:
    return TrainingResult(
        method="qlora", steps=steps, epochs=6.0, examples=871, tokens=445_260, target_tokens=299_220, tokens_per_second=2310.4,
        seconds=192.7, loss=LossSummary(first=3.61, last=0.42), curve=build_curve(steps), resumed_from=[80],
        trainable_parameters=1_310_720, total_parameters=7_012_352, peak_memory_bytes=1_210_000_000, device="cpu",
        attention="per-document SDPA", optimizer="AdamW (fused)",
        notes=["The optimiser is adamw: paged-adamw needs CUDA."],
    )  # fmt: skip


def build_evaluation(**changes: Any) -> EvaluationResult:
    samples = [
        Sample(
            prompt_set="held-out",
            prompt="What does a 95% confidence interval say?",
            base=Answer(
                text="The interval is the interval of the interval of the interval of the", finished=False, tokens=128
            ),
            tuned=Answer(
                text="Of all intervals made in this way, 95% hold the true value. It does not say that this one holds it with 95% chance.",
                finished=True,
                tokens=31,
            ),
            reference="If the study were repeated many times, 95% of the intervals would hold the true value.",
        ),
        Sample(
            prompt_set="held-out",
            prompt="How do I fit a linear model in R?",
            base=Answer(text="", finished=True, tokens=1),
            tuned=Answer(
                text="Use lm:\n\n```r\nfit <- lm(y ~ ., data = d)\nsummary(fit)\n```", finished=True, tokens=24
            ),
            reference="```r\nfit <- lm(y ~ x, data = d)\n```",
        ),
    ]
    values = {
        "records": 96,
        "target_tokens": 5310,
        "perplexity": PerplexityPair(base=188.31, tuned=1.6142),
        "token_perplexity": PerplexityPair(base=124.18, tuned=1.4127),
        "samples": samples,
        "seconds": 31.4,
    }
    return EvaluationResult(**(values | changes))


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """`make_report(data=…, training=…, evaluation=…)`: a whole report with those parts replaced."""

    def make(**parts: Any) -> Report:
        job = FineTuneJob.model_validate(JOB)
        evaluation = parts.get("evaluation") or build_evaluation()
        return build_report(
            job=job,
            run=parts.get("run", 3),
            data=parts.get("data") or build_data(),
            training=parts.get("training") or build_training(),
            evaluation=evaluation,
            gate=parts.get("gate") or judge_evaluation(job.spec.evaluation.gate, evaluation),
            adapter=AdapterRef(uri="/runs/stats-tutor/r3/adapter", sha256="9b0d" * 16),
            seconds=parts.get("seconds", {"Preparing": 4.2, "Training": 192.7, "Evaluating": 31.4}),
            phase="Succeeded",
            finished_at=datetime(2026, 3, 2, 14, 5, tzinfo=UTC),
        )

    return make


@pytest.fixture
def parts() -> dict[str, Callable[..., Any]]:
    """The builders of a report's parts, by name."""
    return {
        "data": build_data,
        "data_with_steps": lambda: add_steps(build_data()),
        "training": build_training,
        "evaluation": build_evaluation,
    }


QUESTIONS = [
    ("What is a licence?", "A set of terms under which the work may be used."),
    ("Who may copy the work?", "Anyone who keeps the notices."),
    ("What is a contribution?", "Any work that was sent to the licensor on purpose, to be included."),
    (
        "Is there a warranty?",
        "No. The work is given as it is, without warranties or conditions of any kind, express or implied.",
    ),
    ("What are derivative works?", "Works that are based on the work, as a whole an original work of authorship."),
    ("May I add terms?", "Yes, to your own changes."),
    ("What ends the grant of patents?", "Litigation about the work."),
]


@pytest.fixture(scope="session")
def held_out(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tokens/part-0000N` and `part-0000N.jsonl` of seven records; the last one is a talk in two chunks."""
    from llamero.model.loading import load_tokenizer
    from llamero.model.templates import encode_conversations
    from llamero.model.tokens import TokenWriter
    from llamero.spec.records import Conversation, Message

    folder = tmp_path_factory.mktemp("held-out")
    tokenizer = load_tokenizer(random_base)
    records = []
    for line, (question, answer) in enumerate(QUESTIONS, start=1):
        turns = (Message("user", question), Message("assistant", answer))
        digest = hashlib.sha256(question.encode()).hexdigest()
        records.append(Conversation(digest, "licence", "licence.json", line, turns))
    again = (Message("user", "And then?"), Message("assistant", "Then it ends on that day."))
    records[-1:] = [
        Conversation(f"{digest}_0", "licence", "licence.json", line, turns, chunk=0),
        Conversation(f"{digest}_1", "licence", "licence.json", line, again, chunk=1),
    ]
    for part, chosen in enumerate((records[:3], records[3:])):
        encoded = encode_conversations(tokenizer, [(r.messages, None) for r in chosen])
        with TokenWriter(folder / "tokens" / f"part-{part:05d}") as writer:
            for record, row in zip(chosen, encoded, strict=True):
                writer.append(row.ids, row.mask, record.id)
        lines = "".join(json.dumps(r.to_dict()) + "\n" for r in chosen)
        (folder / f"part-{part:05d}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="session")
def adapter(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the random base says: LoRA of rank 4 with random B matrices."""
    import torch

    from llamero.model.adapters import attach_adapter, describe_adapter, save_adapter
    from llamero.model.loading import load_base, load_tokenizer
    from llamero.spec.job import LoraSpec

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    base = load_base(random_base, quantization=None, device="cpu", training=True, dtype=torch.float32)
    model = attach_adapter(base, LoraSpec(rank=4, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, folder, load_tokenizer(random_base))
    files, sha256 = describe_adapter(folder)
    manifest = {"files": [f.to_json_dict() for f in files], "sha256": sha256}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def evaluation_config(random_base: Path, adapter: Path, held_out: Path, tmp_path: Path) -> dict[str, Any]:
    """The configuration file's content for an evaluation of that adapter in float32."""
    return {
        "base": str(random_base),
        "adapter": str(adapter),
        "method": "lora",
        "template": "base",
        "evaluationTokens": [str(p) for p in sorted((held_out / "tokens").iterdir())],
        "evaluationRecords": [str(p) for p in sorted(held_out.glob("*.jsonl"))],
        "spec": {"maxNewTokens": 12},
        "output": str(tmp_path / "evaluation"),
        "device": "cpu",
    }
