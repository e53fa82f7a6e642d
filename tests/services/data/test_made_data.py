"""Whole preparations in which models write: sources that are grown, texts that are labelled, answers that are rewritten, prompts worded anew."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from services.data.generating import scripted
from services.data.model_server import ModelServer

from llamero.model.loading import load_tokenizer
from llamero.model.tokens import TokenSet


def answer(body: dict[str, Any]) -> str:
    system, prompt = body["messages"][0]["content"], body["messages"][-1]["content"]
    if "<text>" in prompt and "<question>" in prompt:
        return f"<answer>Gladly. {prompt.split('<text>')[1].split('</text>')[0].strip()}</answer>"
    if "<text>" in prompt:
        return f"<instruction>{scripted.invent_task(prompt)}</instruction>"
    if "Score:" in system:
        return f"It depends.\nScore: {3 + scripted.digest(prompt) % 3}"
    return scripted.babble_sometimes(body)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(answer) as running:
        yield running


@pytest.fixture
def manifest(server: ModelServer, tmp_path: Path) -> dict[str, Any]:
    seeds, texts = tmp_path / "seeds.jsonl", tmp_path / "texts.jsonl"
    rows = [
        {
            "id": f"seed_{n}",
            "instruction": scripted.invent_task(n),
            "instances": [{"input": "", "output": f"It is {n}."}],
            "is_classification": n % 2 == 0,
        }
        for n in range(10)
    ]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    passages = [{"text": f"{scripted.invent_task(('t', n))} And so on."} for n in range(24)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in passages), encoding="utf-8")
    model = {"url": server.url, "model": "writer", "concurrency": 4}
    return {
        "sources": [
            {"name": "made", "uri": str(seeds), "format": "seed-tasks", "generate": {"model": model, "records": 40}},
            {"name": "seeds", "uri": str(seeds), "format": "seed-tasks"},
            {"name": "texts", "uri": str(texts), "format": "records", "columns": {"output": "text"}},
        ],
        "template": "alpaca",
        "template_variants": True,
        "evaluation_fraction": 0.1,
        "steps": [
            {"backTranslate": {"model": model}, "sources": ["texts"]},
            {"rewrite": {"model": model}, "sources": ["made"]},
        ],
    }


def test_what_models_made_is_prepared_with_its_lineage_and_nothing_is_lost(
    prepare: Callable[..., Any], manifest: dict[str, Any], server: ModelServer, random_base: Path, tmp_path: Path
) -> None:
    prepared = prepare(**manifest, workers=1)
    result = prepared.result
    assert result.read == result.kept + sum(result.rejected.values())
    records = prepared.records("train") + prepared.records("evaluation")
    by_source: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_source.setdefault(record["source"], []).append(record)
    made, texts = by_source["made"], by_source["texts"]
    assert {r["meta"]["origin"][0]["operation"] for r in made} == {"generate.self-instruct"}
    assert {r["meta"]["origin"][1]["operation"] for r in made} == {"rewrite.style"}
    assert all(r["messages"][-1]["content"] == f"Gladly. {r['meta']['original']['answer']}" for r in made)
    assert all(r["messages"][0]["content"] and r["meta"]["origin"][0]["score"] >= 4 for r in texts)
    assert not any("unlabelled" in r["meta"] for r in texts)

    rejected = prepared.rejected()
    refused = [row for row in rejected if row["reason"] == "generate"]
    assert {row["rule"] for row in refused} >= {"maxRouge", "blockedWords"}
    assert all(row["value"] > row["threshold"] for row in refused if row["rule"] == "maxRouge")
    unlabelled = [row for row in rejected if row["reason"] == "backTranslate"]
    assert {(row["rule"], row["value"], row["threshold"]) for row in unlabelled} == {("minScore", 3.0, 4.0)}
    assert len(texts) + len(unlabelled) == 24

    counts = next(source for source in result.sources if source.name == "made")
    assert counts.growth.startswith("40 of 40 instructions made in ")
    assert {account.purpose for account in result.asked} == {"generate made", "backTranslate", "rewrite style"}

    asked = len(server.requests)
    # Another run of the job that finds no finished shard, but the answers.
    shutil.copytree(tmp_path / "cache" / "answers", tmp_path / "other" / "answers")
    again = prepare(**manifest, name="again", cache="other", workers=2, shard_records=20)
    assert len(server.requests) == asked
    assert sorted(again.records("train"), key=itemgetter("id")) == sorted(
        prepared.records("train"), key=itemgetter("id")
    )
    assert again.rejected() == rejected

    tokenizer = load_tokenizer(random_base, "alpaca")
    parts = sorted((prepared.folder / "tokens" / "train").glob("part-*"))
    tokens = TokenSet.open(parts)
    prompts = [tokenizer.decode(ids[mask == 0]) for ids, mask in (tokens[i] for i in range(len(tokens)))]
    heads = Counter("alpaca" if p.startswith("Below") else "task" if p.startswith("Task:") else "bare" for p in prompts)
    assert set(heads) == {"alpaca", "task", "bare"}


def test_texts_are_split_by_what_they_say_before_they_have_a_prompt(
    prepare: Callable[..., Any], manifest: dict[str, Any]
) -> None:
    manifest["sources"] = manifest["sources"][2:]
    manifest["steps"] = manifest["steps"][:1]
    manifest["evaluation_fraction"] = 0.4
    prepared = prepare(**manifest, workers=1)
    assert prepared.records("train")
    assert prepared.records("evaluation")
