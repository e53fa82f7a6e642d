"""The embeddings call: in the texts' order, in batches, cached, and what is done with texts that are too long."""

from typing import Any

import numpy as np
import pytest
from services.data.model_server import ModelServer, hash_vector

from llamero.data.asking.asker import BudgetSpent
from llamero.data.errors import DataError

from .conftest import MakeAsker


def test_vectors_come_in_the_texts_order_and_equal_texts_are_asked_once(
    server: ModelServer, make_asker: MakeAsker
) -> None:
    texts = [f"text {n % 150}" for n in range(160)]
    with make_asker() as asker:
        vectors = asker.embed(texts)
        assert vectors.dtype == np.float32 and vectors.shape == (160, 8)
        np.testing.assert_array_equal(vectors, np.array([hash_vector(t) for t in texts], np.float32))
        assert sorted(len(seen.body["input"]) for seen in server.requests) == [22, 64, 64]
        assert (asker.account.asked, asker.account.answered, asker.account.input_tokens) == (160, 150, 300)
        again = asker.embed(texts[:70])
    np.testing.assert_array_equal(again, vectors[:70])
    assert len(server.requests) == 3


def test_long_texts_make_smaller_batches(server: ModelServer, make_asker: MakeAsker) -> None:
    with make_asker() as asker:
        asker.embed([f"{n} " + "x" * 40_000 for n in range(5)])
    assert sorted(len(seen.body["input"]) for seen in server.requests) == [1, 2, 2]


def test_a_text_that_is_too_long_is_sent_at_half_its_length(server: ModelServer, make_asker: MakeAsker) -> None:
    def refuse_long(body: dict[str, Any]) -> str | None:
        return "400" if any(len(text) > 300 for text in body["input"]) else None

    server.trouble = refuse_long
    long = "word " * 200
    with make_asker() as asker:
        vectors = asker.embed(["short", long, "also short", ""])
    expected = [hash_vector(text) for text in ("short", long[:250], "also short", " ")]
    np.testing.assert_array_equal(vectors, np.array(expected, np.float32))
    with make_asker() as asker:
        np.testing.assert_array_equal(asker.embed([long]), vectors[1:2])
        assert asker.account.cached == 1


@pytest.mark.parametrize("trouble", ["429:0", "500", "cut", "html", "no-data", "truncated"])
def test_trouble_that_passes_is_waited_out(server: ModelServer, make_asker: MakeAsker, trouble: str) -> None:
    server.misbehave(trouble, trouble)
    with make_asker() as asker:
        assert asker.embed(["a", "b"]).shape == (2, 8)
        assert asker.account.retries == 2


@pytest.mark.parametrize(
    "vector",
    [[], [float("nan"), 1.0], [float("inf"), 1.0], ["a", 1.0], "no list"],
    ids=["empty", "nan", "inf", "text", "no list"],
)
def test_vectors_that_are_none_are_no_answer(server: ModelServer, make_asker: MakeAsker, vector: Any) -> None:
    server.embed = lambda text: vector
    with make_asker(retries=1) as asker, pytest.raises(DataError, match="answered something else than the API says"):
        asker.embed(["a"])


def test_vectors_of_several_lengths_are_refused(server: ModelServer, make_asker: MakeAsker) -> None:
    with make_asker(model="mixed") as asker:
        asker.embed(["a"])
        server.embed = lambda text: [1.0, 2.0]
        with pytest.raises(DataError, match="vectors of different lengths"):
            asker.embed(["a", "b"])


def test_what_is_refused_even_when_short_ends_the_step(server: ModelServer, make_asker: MakeAsker) -> None:
    server.trouble = lambda body: "400"
    with make_asker() as asker, pytest.raises(DataError, match="embeds not even 62 characters"):
        asker.embed(["x" * 1000])


def test_no_texts_make_no_request(server: ModelServer, make_asker: MakeAsker) -> None:
    with make_asker() as asker:
        assert asker.embed([]).shape == (0, 0)
    assert not server.requests


def test_embeddings_keep_to_the_budget(server: ModelServer, make_asker: MakeAsker) -> None:
    with make_asker(max_total_tokens=64, concurrency=1) as asker, pytest.raises(BudgetSpent):
        asker.embed([f"text{n}" for n in range(200)])
    assert len(server.requests) == 1
