"""Golden answers prove which model answers."""

import math

import pytest

from llamero.lifecycle.serving.proof import judge_golden
from llamero.spec.golden import GoldenPrompt, GoldenSet


def golden(count: int) -> GoldenSet:
    prompt = GoldenPrompt(prompt="p", answer="a", answer_tokens=3, tuned_log_prob=-2.0, base_log_prob=-10.0)
    return GoldenSet(dtype="float32", prompts=[prompt] * count)


@pytest.mark.parametrize(
    ("scores", "nearer", "ok"),
    [
        pytest.param([-2.0] * 10, 10, True, id="all are the adapter's"),
        pytest.param([-2.5] * 8 + [-10.0] * 2, 8, True, id="eight of ten do"),
        pytest.param([-2.5] * 7 + [-10.0] * 3, 7, False, id="seven of ten do not"),
        pytest.param([-10.0] * 10, 0, False, id="the base answers"),
        pytest.param([-6.0] * 10, 0, False, id="half way proves nothing"),
        pytest.param([math.nan] * 10, 0, False, id="no number proves nothing"),
        pytest.param([-math.inf] * 10, 0, False, id="an endless number proves nothing"),
        pytest.param([-2.0] * 4 + [-10.0], 4, True, id="four of five do"),
        pytest.param([-2.0] * 3 + [-10.0], 3, False, id="three of four do not"),
        pytest.param([], 0, False, id="no prompts prove nothing"),
    ],
)
def test_eight_of_ten_answers_must_lie_nearer_the_adapter(scores: list[float], nearer: int, ok: bool) -> None:
    found, proven, sentence = judge_golden(golden(len(scores)), scores)
    assert (found, proven) == (nearer, ok)
    assert sentence.endswith(".") and (not scores or f"{nearer} of {len(scores)}" in sentence)


def test_there_must_be_a_score_for_each_prompt() -> None:
    with pytest.raises(ValueError, match="2 scores for 3 golden prompts"):
        judge_golden(golden(3), [0.0, 0.0])
