"""The real data sets: what is known of them must come out, to the record."""

import json
from pathlib import Path

import pytest
import yaml

from llamero.spec.job import FineTuneJob

MANIFESTS = {"alpaca": 52_002, "stackexchange": 421, "gsm8k": 8_792, "dailydialog": 13_118, "merged": 65_120}


def read_manifest(repository: Path, name: str) -> FineTuneJob:
    return FineTuneJob.model_validate(yaml.safe_load((repository / "benchmarks" / "real" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifest_reads_the_known_number_of_records_and_its_counts_add_up(name, repository, real_data, prepare):
    data = read_manifest(repository, name).spec.data.to_json_dict()
    sources = data.pop("sources")
    for source in sources:
        source["uri"] = source["uri"].replace("${LLAMERO_DATA:-../../../shared/data}", str(real_data))
        assert source["license"]
    result = prepare(sources, **data).result
    assert result.read == MANIFESTS[name]
    assert result.read == result.kept + sum(result.rejected.values())
    assert result.kept == result.train.records + result.evaluation.records
    assert result.evaluation.records == pytest.approx(0.05 * result.kept, rel=0.35)
    assert not set(result.rejected) & {"malformed", "bad-turns"}
    overall = {r.stage: r.samples for r in result.statistics if r.domain == "overall"}
    assert overall == {"read": result.read, "kept": result.kept}
    if name in ("alpaca", "merged"):
        assert result.rejected["empty-answer"] == 28
    if name == "alpaca":
        assert "duplicate" not in result.rejected or result.rejected["duplicate"] < 30


def test_stack_exchange_answers_are_the_highest_voted_ones_as_markdown(real_data, prepare):
    import xml.etree.ElementTree as ElementTree

    posts = [r.attrib for r in ElementTree.parse(real_data / "se_ai_Posts.xml").getroot()]
    best: dict[int, tuple] = {}
    accepted = {p.get("AcceptedAnswerId") for p in posts}
    for post in posts:
        if post["PostTypeId"] == "2":
            rank = (-int(post["Score"]), post["Id"] not in accepted, int(post["Id"]))
            best[int(post["ParentId"])] = min(best.get(int(post["ParentId"]), rank), rank)
    source = {"uri": str(real_data / "se_ai_Posts.xml"), "format": "stackexchange"}
    prepared = prepare([source], sequence_length=16384, evaluation_fraction=0)
    records = prepared.records("train")
    assert prepared.result.rejected == {"unanswered": 421 - len(records)}
    assert {r["line"]: r["meta"]["answerId"] for r in records} == {k: v[2] for k, v in best.items()}
    first = next(r for r in records if r["line"] == 1)
    assert first["messages"][0]["content"] == 'What is "backprop"?'
    assert first["meta"]["input"].startswith('What does "backprop" mean?')
    assert first["tags"] == ["neural-networks", "definitions"]
    text = json.dumps(records)
    assert "<p>" not in text and "&quot;" not in text and "&amp;" not in text


def test_sharegpt_conversations_are_all_kept(real_data, prepare):
    source = {"uri": str(real_data / "fastchat_dummy_conversation.json"), "format": "sharegpt"}
    result = prepare([source]).result
    assert (result.read, result.kept) == (500, 500)


def test_alpaca_loses_no_code_to_the_search_for_html(real_data, prepare):
    source = {"uri": str(real_data / "alpaca_data.json"), "format": "alpaca"}
    by_html = {html: prepare([source | {"html": html}], html, sequence_length=4096) for html in ("auto", "never")}

    def answers(name: str) -> dict[int, str]:
        return {
            r["line"]: r["messages"][1]["content"]
            for side in ("train", "evaluation")
            for r in by_html[name].records(side)
        }

    auto, never = answers("auto"), answers("never")
    changed = {line for line in auto if auto[line] != never[line]}
    assert len(changed) < 10
    assert not [line for line in changed if "<html" in never[line] or "<form" in never[line]]
