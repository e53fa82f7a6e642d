"""Every kind of mistake in a manifest: where it stands, what it is, what to do."""

import copy
from typing import Any

import pytest

from llamero.spec.rules import Severity, find_cluster_only_fields, lora_scale
from llamero.spec.validation import validate_job

VALID: dict[str, Any] = {
    "apiVersion": "llamero.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "tutor"},
    "spec": {
        "baseModel": {"uri": "/models/base"},
        "data": {"sources": [{"uri": "/data/a.json", "format": "alpaca"}]},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """VALID with the value at a dotted path; numbers are items of lists."""
    manifest = copy.deepcopy(VALID)
    node: Any = manifest
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    return manifest


def test_a_valid_manifest_has_no_problems() -> None:
    job, problems = validate_job(VALID)
    assert job is not None
    assert problems == []
    assert job.public_model_name == "tutor"


MISTAKES = [
    ("spec.training.lora.rnk", 3, "spec.training.lora.rnk", "did you mean `rank`"),
    ("spec.training.learning_rat", 1e-4, "spec.training.learning_rat", "did you mean `learningRate`"),
    ("spec.data.sources.0.format", "alpca", "spec.data.sources.0.format", "did you mean `alpaca`"),
    ("spec.training.method", "full", "spec.training.method", "must be 'qlora' or 'lora', not 'full'"),
    ("spec.training.lora.rank", 0, "spec.training.lora.rank", "at least 1, not 0"),
    ("spec.training.lora.rank", 513, "spec.training.lora.rank", "at most 512, not 513"),
    ("spec.training.learningRate", 0, "spec.training.learningRate", "above 0"),
    ("spec.data.evaluationFraction", 0.51, "spec.data.evaluationFraction", "at most 0.5"),
    ("spec.data.evaluationFraction", 0, "spec.data.evaluationFraction", "holds nothing out"),
    ("spec.training.keepCheckpoints", 1, "spec.training.keepCheckpoints", "at least 2"),
    ("spec.training.epochs", "three", "spec.training.epochs", "valid number"),
    ("spec.data.sources", [], "spec.data.sources", "at least 1 item"),
    ("metadata.name", "Tutor 1", "metadata.name", "lower-case letters"),
    ("metadata.name", "a" * 41, "metadata.name", "40 characters"),
    ("kind", "Job", "kind", "FineTuneJob"),
    ("apiVersion", "llamero.dev/v1", "apiVersion", "llamero.dev/v1alpha1"),
    ("spec.baseModel", {"name": "a/b"}, "spec.baseModel.revision", "40 hex digits"),
    ("spec.baseModel", {"name": "a/b", "revision": "main"}, "spec.baseModel.revision", "40 hex digits"),
    ("spec.baseModel", {"name": "a/b", "uri": "/x"}, "spec.baseModel", "exactly one"),
    ("spec.baseModel", {}, "spec.baseModel", "exactly one"),
    ("spec.training.lora", {"rank": 8, "alpha": 256, "rslora": True}, "spec.training.lora.alpha", "diverges"),
    ("spec.training.lora.init", "pissa", "spec.training.lora.init", "fails on 4-bit"),
    ("spec.training.lora.useDora", True, "spec.training.lora.useDora", "without a word"),
    ("spec.training.lora.modulesToSave", ["lm_head"], "spec.training.lora.modulesToSave", "without a word"),
    ("spec.training.lora.newTokens", ["<x>"], "spec.training.lora.newTokens", "merge"),
    ("spec.training.lora.rankPattern", {"q_proj": 4}, "spec.training.lora.rankPattern", "without a word"),
    ("spec.training.lora.alphaPattern", {"q_proj": 4}, "spec.training.lora.alphaPattern", "without a word"),
    ("spec.training.lora.layers", [0], "spec.training.lora.layers", "without a word"),
    ("spec.training.lora.targetModules", ["q_proj", "embed"], "spec.training.lora.targetModules.1", "`embed`"),
    ("spec.data.sources.0.format", "records", "spec.data.sources.0.columns", "needs `columns`"),
    ("spec.data.sources.0.columns", {"output": "a"}, "spec.data.sources.0.columns", "only format `records`"),
    ("spec.data.sources.0.profile", "first-turn", "spec.data.sources.0.profile", "belongs to format `dialog`"),
    ("spec.evaluation.promptSets", [{"name": "a"}], "spec.evaluation.promptSets.0", "either `prompts` or `uri`"),
    ("spec.nope", 1, "spec.nope", "unknown field"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "where", "says"), MISTAKES)
def test_each_mistake_is_told_where_it_stands(path: str, value: Any, where: str, says: str) -> None:
    job, problems = validate_job(changed(path, value))
    assert job is None
    told = {".".join(map(str, p.path)): p.message for p in problems}
    assert says in told[where]


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_something_else_than_a_mapping_is_no_manifest(raw: Any) -> None:
    job, problems = validate_job(raw)
    assert job is None
    assert "mapping" in problems[0].message


def test_a_missing_part_is_named() -> None:
    job, problems = validate_job({"kind": "FineTuneJob"})
    assert job is None
    assert {".".join(map(str, p.path)) for p in problems} == {"apiVersion", "metadata", "spec"}


def test_all_mistakes_are_told_at_once_those_of_fields_and_those_of_rules() -> None:
    manifest = changed("spec.training.epochs", -1)
    manifest["spec"]["training"]["lora"] = {"rank": 8, "alpha": 256, "rslora": True}
    manifest["spec"]["baseModel"] = {"name": "a/b"}
    _, problems = validate_job(manifest)
    assert {".".join(map(str, p.path)) for p in problems} == {
        "spec.training.epochs",
        "spec.training.lora.alpha",
        "spec.baseModel.revision",
    }


@pytest.mark.parametrize(
    ("lora", "severity"),
    [
        ({"rank": 8, "alpha": 128}, None),
        ({"rank": 8, "alpha": 129}, Severity.WARNING),
        ({"rank": 8, "alpha": 256}, Severity.WARNING),
        ({"rank": 16, "alpha": 64, "rslora": True}, None),
        ({"rank": 16, "alpha": 65, "rslora": True}, Severity.WARNING),
        ({"rank": 16, "alpha": 256, "rslora": True}, Severity.WARNING),
        ({"rank": 16, "alpha": 257, "rslora": True}, Severity.ERROR),
    ],
)
def test_scales_are_warned_of_above_16_and_refused_with_rslora_above_64(lora: Any, severity: Severity | None) -> None:
    job, problems = validate_job(changed("spec.training.lora", lora))
    assert [p.severity for p in problems] == ([severity] if severity else [])
    assert (job is None) == (severity is Severity.ERROR)


def test_the_scale_is_alpha_over_rank_and_with_rslora_over_its_root() -> None:
    assert lora_scale(256, 8, rslora=False) == 32
    assert lora_scale(256, 16, rslora=True) == 64


@pytest.mark.parametrize("remedy", [{"rollout": {"engine": "cpu"}}, {"training": {"merge": True}}])
def test_what_tgi_would_drop_is_allowed_where_it_is_not_served_by_it(remedy: Any) -> None:
    manifest = changed("spec.training.lora.useDora", True)
    for part, fields in remedy.items():
        manifest["spec"].setdefault(part, {}).update(fields)
    job, problems = validate_job(manifest)
    assert job is not None
    assert problems == []


def test_fields_of_the_cluster_are_listed_where_they_are_set() -> None:
    manifest = changed("spec.training.resources", {"gpus": 2})
    manifest["spec"]["ttlSecondsAfterFinished"] = 60
    job, _ = validate_job(manifest)
    assert job is not None
    assert find_cluster_only_fields(job) == ["spec.training.resources", "spec.ttlSecondsAfterFinished"]


MODEL = {"url": "https://judge.example/v1", "model": "judge"}

STEP_MISTAKES = [
    ("steps", [{}], "spec.data.steps.0", "exactly one kind, and this one has none"),
    ("steps", [{"quality": {}, "repetition": {}}], "spec.data.steps.0", "has `quality` and `repetition`"),
    ("steps", [{"use": "gopher-strickt"}], "spec.data.steps.0.use", "did you mean `gopher-strict`?"),
    ("steps", [{"use": "alpagasus"}], "spec.data.steps.0.models", "name at least one"),
    ("steps", [{"use": "vicuna", "models": [MODEL]}], "spec.data.steps.0.models", "asks no language model"),
    ("steps", [{"quality": {}, "models": [MODEL]}], "spec.data.steps.0.models", "belongs to `use`"),
    ("steps", [{"quality": {}, "sources": ["b"]}], "spec.data.steps.0.sources.0", "names no source"),
    ("steps", [{"kCenter": {"embedding": {"kind": "local"}}}], "spec.data.steps.0.kCenter.embedding.uri", "needs the folder"),
    ("steps", [{"threshold": {"score": "ifd", "max": 1}}], "spec.data.steps.0", "which no earlier step makes"),
    ("steps", [{"threshold": {"score": "answerWords"}}], "spec.data.steps.0.threshold", "give `min`, `max` or both"),
    ("steps", [{"nearDuplicates": {"keep": "best"}}], "spec.data.steps.0.nearDuplicates.score", "belong together"),
    ("steps", [{"random": {}}], "spec.data.steps.0.random", "exactly one of"),
    ("steps", [{"length": {}}], "spec.data.steps.0.length", "give `min`, `max` or both"),
    ("steps", [{"judge": {"models": [{**MODEL, "url": "http://a.example"}]}}], "spec.data.steps.0.judge.models.0.url", "in the open"),
    ("steps", [{"judge": {"models": [{**MODEL, "maxCost": 5}]}}], "spec.data.steps.0.judge.models.0.maxCost", "without prices"),
    ("controls", {"random": True}, "spec.data.controls", "stand beside a step that chooses"),
    ("controls", {}, "spec.data.controls", "asks for no control"),
    ("allowedLicenses", ["MIT"], "spec.data.sources.0.license", "the licence is not stated"),
    ("templateVariants", True, "spec.data.templateVariants", "set `template: alpaca`"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "where", "what"), STEP_MISTAKES, ids=[what for *_, what in STEP_MISTAKES])
def test_a_mistake_in_a_step_is_told_where_it_stands(field: str, value: Any, where: str, what: str) -> None:
    job, problems = validate_job(changed(f"spec.data.{field}", value))
    assert job is None
    assert [".".join(map(str, p.path)) for p in problems if what in p.message] == [where], problems


def test_steps_that_go_together_are_right() -> None:
    steps = [
        {"use": "instruction"},
        {"score": {"indicators": ["ifd"]}},
        {"judge": {"models": [{**MODEL, "url": "http://127.0.0.1:9/v1"}], "minScore": None}},
        {"threshold": {"score": "judge", "min": 4}},
        {"rank": {"weights": {"ifd": 1, "rarity": 0.5}}},
    ]
    manifest = changed("spec.data.steps", steps)
    manifest["spec"]["data"]["controls"] = {"random": True, "thresholds": [4.0, 4.5]}
    manifest["spec"]["data"] |= {"allowedLicenses": ["mit"], "refusedTerms": ["competitors"]}
    manifest["spec"]["data"]["sources"][0] |= {"license": "MIT", "terms": "None."}
    job, problems = validate_job(manifest)
    assert job is not None and problems == []


def test_terms_that_the_job_refuses_refuse_the_job() -> None:
    manifest = changed("spec.data.refusedTerms", ["training competitors"])
    manifest["spec"]["data"]["sources"][0]["terms"] = "Not for Training Competitors."
    job, problems = validate_job(manifest)
    assert job is None
    assert "remove the source" in problems[0].message


def test_an_endpoint_that_costs_and_has_no_cap_is_warned_of() -> None:
    model = {**MODEL, "pricePerMillionInputTokens": 1.5}
    job, problems = validate_job(changed("spec.data.steps", [{"judge": {"models": [model]}}]))
    assert job is not None
    assert [(p.severity, "no cap" in p.message) for p in problems] == [(Severity.WARNING, True)]
