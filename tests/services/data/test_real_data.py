"""The real data sets: what is known of them must come out, to the record."""

import json
from pathlib import Path

import pytest
import yaml

from llamero.data.normalise import normalise_draft
from llamero.data.readers.alpaca import parse_alpaca
from llamero.spec.job import FineTuneJob

MANIFESTS = {"alpaca": 52_002, "stackexchange": 421, "gsm8k": 8_792, "dailydialog": 13_118, "merged": 65_120}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard cache, so that the merged set reuses what its parts have made."""
    return tmp_path_factory.mktemp("shards")


def read_manifest(repository: Path, name: str) -> FineTuneJob:
    return FineTuneJob.model_validate(yaml.safe_load((repository / "benchmarks" / "real" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifest_reads_the_known_number_of_records_and_its_counts_add_up(
    name, repository, real_data, prepare, shared_cache
):
    data = read_manifest(repository, name).spec.data.to_json_dict()
    sources = data.pop("sources")
    for source in sources:
        source["uri"] = source["uri"].replace("${LLAMERO_DATA:-../../../shared/data}", str(real_data))
        assert source["license"]
    result = prepare(sources, cache=str(shared_cache), **data).result
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


def test_alpaca_loses_no_code_to_the_search_for_html(real_data):
    changed = []
    for row in json.loads((real_data / "alpaca_data.json").read_text()):
        draft = parse_alpaca(row)
        auto, never = normalise_draft(draft, "auto"), normalise_draft(draft, "never")
        if (auto.messages, auto.input) != (never.messages, never.input):
            changed.append(row["output"])
    # Line breaks of poems, a square metre, and pictures alone; none of the hundreds of answers that show HTML.
    assert len(changed) < 10
    assert not [text for text in changed if "<html" in text or "<form" in text or "<table" in text]
