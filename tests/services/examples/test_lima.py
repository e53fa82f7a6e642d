"""The example of LIMA's way of choosing: prepared from its files, every record that is kept holds to the manifest's rules."""

import json
from pathlib import Path

import pytest
import yaml

from llamero.data.prepare import plan_data, prepare_data
from llamero.spec.job import FineTuneJob


@pytest.fixture(scope="module")
def prepared(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = yaml.safe_load((repository / "examples" / "lima.yaml").read_text(encoding="utf-8"))
    for source in manifest["spec"]["data"]["sources"]:
        source["uri"] = str(repository / "examples" / source["uri"])
    spec = FineTuneJob.model_validate(manifest).spec
    folder = tmp_path_factory.mktemp("lima")
    prepare_data(spec, plan_data(spec), None, folder / "out", folder / "cache", lambda progress: None, 1)
    return folder / "out"


def read(prepared: Path, pattern: str) -> list[dict]:
    lines = [line for path in sorted(prepared.glob(pattern)) for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def test_titles_become_prompts_and_bodies_answers_in_both_sources(prepared):
    kept = read(prepared, "train/*.jsonl") + read(prepared, "evaluation/*.jsonl")
    assert {r["source"] for r in kept} == {"questions", "howto"}
    for record in kept:
        user, assistant = record["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert "input" not in record.get("meta", {})
        assert len(assistant["content"]) >= (120 if record["source"] == "questions" else 200)
        assert len(user["content"]) < 160
        if record["source"] == "questions":
            assert record["meta"].get("prompt", "title") == "title"  # without a body there is nothing to choose
    for record in read(prepared, "train/*.jsonl"):
        assert record.get("meta", {}).get("scores", {}).get("sourceScore", 10) >= 10


def test_what_is_too_short_or_voted_down_is_rejected_with_its_figures(prepared):
    steps = [r for r in read(prepared, "rejected.jsonl") if r.get("step")]
    short = [r for r in steps if r["source"] == "howto"]
    assert [(r["line"], r["rule"], r["value"], r["threshold"]) for r in short] == [(6, "minCharacters", 10, 200)]
    assert {r["rule"] for r in steps} >= {"minCharacters", "minAnswerScore"}
