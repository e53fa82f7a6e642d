"""Long records: cut on turn pairs so that nothing vanishes without a word."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamero.data.chunks import cut_record
from llamero.data.readers.draft import RowError
from llamero.model.loading import load_tokenizer
from llamero.model.templates import Encoded, encode_conversations
from llamero.spec.records import Message


@pytest.fixture(scope="module")
def encode(random_base: Path):
    tokenizer = load_tokenizer(random_base, "chatml")

    def run(pieces) -> list[Encoded]:
        return encode_conversations(tokenizer, [(piece, None) for piece in pieces])

    return run


def talk(lengths: list[int], system: str = "") -> tuple[Message, ...]:
    turns = [
        m
        for i, n in enumerate(lengths)
        for m in (Message("user", f"q{i}"), Message("assistant", f"{i} " + "word " * n))
    ]
    return (Message("system", system), *turns) if system else tuple(turns)


def cut(messages, limit, policy, encode):
    return cut_record(messages, encode([messages])[0], limit, policy, encode)


def test_a_record_that_fits_is_one_example(encode):
    messages = talk([1, 2])
    assert [e.messages for e in cut(messages, 512, "chunk", encode).examples] == [messages]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=8),
    st.integers(60, 250),
    st.sampled_from(["", "Be brief and kind."]),
)
def test_chunks_hold_every_pair_that_fits_once_and_in_order(encode, lengths, limit, system):
    messages = talk(lengths, system)
    head = 1 if system else 0
    pairs = [messages[head + 2 * i : head + 2 * i + 2] for i in range(len(lengths))]
    fitting = [p for p in pairs if len(encode([messages[:head] + p])[0].ids) <= limit]
    try:
        result = cut(messages, limit, "chunk", encode)
    except RowError as error:
        assert error.reason == "too-long"
        assert fitting == []
        return
    kept = [m for e in result.examples for m in e.messages[head:]]
    assert kept == [m for p in fitting for m in p]
    assert result.dropped_pairs == len(pairs) - len(fitting)
    for example in result.examples:
        assert len(example.encoded.ids) <= limit
        assert example.messages[:head] == messages[:head]
        assert messages[head + example.first_turn] == example.messages[head]


def test_neighbours_share_a_chunk_and_a_pair_too_long_parts_them(encode):
    result = cut(talk([5, 5, 500, 5, 5]), 200, "chunk", encode)
    assert [[m.content for m in e.messages if m.role == "user"] for e in result.examples] == [
        ["q0", "q1"],
        ["q3", "q4"],
    ]
    assert [e.first_turn for e in result.examples] == [0, 6]
    assert result.dropped_pairs == 1


def test_a_last_pair_that_does_not_fit_with_the_others_starts_a_chunk(encode):
    one = len(encode([talk([20])])[0].ids)
    result = cut(talk([20, 20, 20]), one + 5, "chunk", encode)
    assert len(result.examples) == 3


@pytest.mark.parametrize("policy", ["chunk", "reject"])
def test_a_single_pair_that_is_too_long_is_rejected(encode, policy):
    with pytest.raises(RowError) as caught:
        cut(talk([500]), 100, policy, encode)
    assert caught.value.reason == "too-long"
    assert "sequenceLength (100)" in caught.value.detail


def test_reject_rejects_what_chunk_would_cut(encode):
    with pytest.raises(RowError):
        cut(talk([50, 50]), 100, "reject", encode)


def test_truncate_keeps_the_beginning_unless_the_prompt_fills_it(encode):
    example = cut(talk([500]), 100, "truncate", encode).examples[0]
    assert len(example.encoded.ids) == 100
    assert example.encoded.mask[-1] == 1
    assert example.is_truncated
    long_prompt = (Message("user", "word " * 500), Message("assistant", "yes"))
    with pytest.raises(RowError, match="prompt alone fills"):
        cut(long_prompt, 100, "truncate", encode)
