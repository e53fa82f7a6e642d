"""The choice of the next token."""

from collections import Counter

import pytest
import torch

from llamero.engine.requests import Sampling
from llamero.engine.sampling import TokenChooser

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -20.0])


def draw(sampling: Sampling, count: int = 3000) -> Counter[int]:
    chooser = TokenChooser(sampling, (), drawn_seed=1)
    return Counter(chooser.choose(LOGITS) for _ in range(count))


def test_greedy_takes_the_largest_and_needs_no_seed() -> None:
    chooser = TokenChooser(Sampling(), (), drawn_seed=1)
    assert chooser.is_plain and chooser.seed is None
    assert chooser.choose(LOGITS) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_distribution(temperature: float) -> None:
    counts = draw(Sampling(do_sample=True, temperature=temperature))
    expected = (LOGITS / temperature).softmax(-1)
    assert [counts[i] / 3000 for i in range(5)] == pytest.approx(expected.tolist(), abs=0.04)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(do_sample=True, top_k=2), {0, 1}),
        (Sampling(do_sample=True, top_p=0.5), {0}),
        (Sampling(do_sample=True, top_p=0.7), {0, 1}),
        (Sampling(do_sample=True, top_k=3, top_p=0.999), {0, 1, 2}),
        (Sampling(do_sample=True, temperature=0.01), {0}),
    ],
)
def test_top_k_and_top_p_bound_the_choice(sampling: Sampling, allowed: set[int]) -> None:
    assert set(draw(sampling)) == allowed


def test_penalties_lower_what_was_said_before() -> None:
    repeated = TokenChooser(Sampling(repetition_penalty=3.0), (0,), drawn_seed=1)
    assert repeated.choose(LOGITS) == 1
    frequent = TokenChooser(Sampling(frequency_penalty=0.6), (0, 0, 0), drawn_seed=1)
    assert frequent.choose(LOGITS) == 0, "a prompt does not count"
    frequent.accept(0)
    assert frequent.choose(LOGITS) == 0
    frequent.accept(0)
    assert frequent.choose(LOGITS) == 1
    present = TokenChooser(Sampling(presence_penalty=1.5), (), drawn_seed=1)
    present.accept(0)
    assert present.choose(LOGITS) == 1


def test_the_nucleus_of_a_flat_distribution_over_a_large_vocabulary_is_whole() -> None:
    chooser = TokenChooser(Sampling(do_sample=True, top_p=0.9, seed=1), (), drawn_seed=0)
    drawn = {chooser.choose(torch.zeros(5000)) for _ in range(2000)}
    assert len(drawn) > 1400, "ids beyond the quick look's size must come up too"
