"""Vectors of records by each kind of embedding, as the choosing steps get them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from services.data.model_server import ModelServer, hash_vector
from services.data.set_runner import SetRunner, make_record

from llamero.data.choosing.parts import VECTORS_FILE
from llamero.data.choosing.tables import PLACES_FILE
from llamero.data.errors import DataError
from llamero.data.shards import Shard
from llamero.data.steps import diversity
from llamero.data.steps.embedding import plan_vectors
from llamero.data.steps.record import Record
from llamero.data.steps.view import Plan, SetContext
from llamero.spec.steps import DiversityStep, Embedding

RECORDS = [
    make_record(i, f"What is {w}?", f"{w.title()} is a thing of {v}." * n)
    for i, (w, v, n) in enumerate(
        [
            ("iron", "metal", 1),
            ("rain", "water", 3),
            ("a fugue", "music", 1),
            ("bread", "flour and water", 9),
            ("law", "", 1),
        ]
    )
]


class Vectors:
    """A set step that only makes vectors, so that they can be looked at."""

    def __init__(self, embedding: Embedding) -> None:
        self.embedding = embedding
        self.made: list[Shard] = []

    def plan(self, context: SetContext) -> Plan:
        self.made = yield from plan_vectors(self.embedding, context)
        return []


def embed(tmp_path: Path, embedding: Embedding, records: Sequence[Record], shards: int) -> NDArray[np.float16]:
    """The records' vectors in the records' order."""
    step = Vectors(embedding)
    SetRunner(tmp_path, doubled=True).run(step, records, shards=shards)
    places = [np.load(s.folder / PLACES_FILE) for s in step.made]
    assert [len(p) for p in places] == [s.summary["records"] for s in step.made]
    vectors = [np.load(s.folder / VECTORS_FILE) for s in step.made if s.summary["records"]]
    found = np.concatenate(vectors)
    assert found.dtype == np.float16
    assert np.linalg.norm(found.astype(float), axis=1) == pytest.approx(np.ones(len(records)), abs=2e-3)
    return found


def test_hashed_vectors_are_the_same_bytes_however_the_records_are_cut(tmp_path: Path) -> None:
    embedding = Embedding(dimensions=8)
    whole = embed(tmp_path / "a", embedding, RECORDS * 5, 1)
    assert embed(tmp_path / "b", embedding, RECORDS * 5, 6).tobytes() == whole.tobytes()
    assert whole.shape == (25, 8)
    assert whole[:5].tolist() == whole[5:10].tolist()


def test_a_local_models_vectors_do_not_hang_on_the_records_beside(tmp_path: Path, random_base: Path) -> None:
    embedding = Embedding(kind="local", uri=str(random_base))
    whole = embed(tmp_path / "a", embedding, RECORDS, 1)
    assert embed(tmp_path / "b", embedding, RECORDS, 5).tobytes() == whole.tobytes()
    assert whole.shape == (5, 64)
    assert embed(tmp_path / "c", embedding, RECORDS[2:3], 1).tobytes() == whole[2:3].tobytes()


def test_a_local_models_vector_is_the_mean_of_its_last_layer(tmp_path: Path, random_base: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    found = embed(tmp_path, Embedding(kind="local", uri=str(random_base)), RECORDS, 2)
    tokenizer = AutoTokenizer.from_pretrained(random_base)
    model = AutoModel.from_pretrained(random_base, dtype=torch.float32)
    for record, vector in zip(RECORDS, found, strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(record.text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        assert vector == pytest.approx(hidden / np.linalg.norm(hidden), abs=2e-3)


def test_an_endpoint_is_asked_for_each_text_once_and_its_vectors_get_norm_one(tmp_path: Path) -> None:
    with ModelServer(embed=lambda text: [3 * x for x in hash_vector(text)]) as server:
        embedding = Embedding.model_validate({"kind": "endpoint", "model": {"url": server.url, "model": "vectors"}})
        step = Vectors(embedding)
        SetRunner(tmp_path).run(step, RECORDS, shards=2)
    accounts = [account for shard in step.made for account in shard.summary["asked"]]
    assert sum(account["answered"] for account in accounts) == len(RECORDS)
    vectors = np.concatenate([np.load(s.folder / VECTORS_FILE) for s in step.made])
    for record, vector in zip(RECORDS, vectors, strict=True):
        plain = np.array(hash_vector(record.text))
        assert vector == pytest.approx(plain / np.linalg.norm(plain), abs=2e-3)
    asked = [text for seen in server.requests for text in _texts(seen.body)]
    assert sorted(asked) == sorted(r.text for r in RECORDS)


def _texts(body: dict[str, Any]) -> list[str]:
    given = body["input"]
    return [given] if isinstance(given, str) else list(given)


def test_a_data_pod_without_torch_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    step = diversity.build(
        DiversityStep.model_validate({"scores": ["answerWords"], "embedding": {"kind": "local", "uri": "x"}})
    )
    with pytest.raises(DataError, match=r"needs torch.*install the `training` extra"):
        SetRunner(tmp_path).run(step, RECORDS)


def test_a_folder_without_a_model_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    embedding = Embedding(kind="local", uri=str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"empty can't be loaded"):
        embed(tmp_path, embedding, RECORDS, 1)
