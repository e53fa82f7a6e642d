"""The gate: each limit from both sides, and the reason it gives."""

import math

import pytest

from llamero.lifecycle.gate import GateFigures, judge_gate
from llamero.spec.job import GateSpec


@pytest.mark.parametrize(
    ("gate", "base", "tuned", "unfinished", "passed", "says"),
    [
        ({}, 10.0, 9.0, 0, True, "from 10.000 to 9.000 (-10.0%)"),
        ({}, 10.0, 10.0, 0, True, "+0.0%"),
        ({}, 10.0, 10.1, 0, False, "at least 0.0%"),
        ({"min_perplexity_improvement": 0.3}, 10.0, 7.0, 0, True, "-30.0%"),
        ({"min_perplexity_improvement": 0.3}, 10.0, 7.01, 0, False, "at least 30.0%"),
        ({"max_token_perplexity": 5.0}, 10.0, 5.0, 0, True, ""),
        ({"max_token_perplexity": 5.0}, 10.0, 5.01, 0, False, "upper bound is 5.000"),
        ({"max_unfinished_fraction": 0.5}, 10.0, 5.0, 2, True, ""),
        ({"max_unfinished_fraction": 0.5}, 10.0, 5.0, 3, False, "3 of 4 answers ran on"),
        ({}, None, None, 0, False, "No held-out record"),
        ({}, 10.0, math.nan, 0, False, "nan"),
        ({"min_perplexity_improvement": -5}, 10.0, math.inf, 0, False, "inf"),
    ],
)
def test_the_first_missed_limit_is_the_reason(
    gate: dict[str, float], base: float | None, tuned: float | None, unfinished: int, passed: bool, says: str
) -> None:
    verdict = judge_gate(GateSpec(**gate), GateFigures(base, tuned, 4, unfinished))  # type: ignore[arg-type]
    assert verdict.passed is passed
    assert says in verdict.reason
    assert verdict.reason[0].isupper() or verdict.reason[0].isdigit()
    assert verdict.reason.endswith(".")
