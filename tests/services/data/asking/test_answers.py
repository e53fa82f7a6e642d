"""What counts as a JSON answer, and what does not."""

import pytest

from llamero.data.asking.answers import parse_object, parse_score

GOOD = '{"score": 4.5, "reason": "right"}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n  {GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"```JSON \r\n{GOOD}\r\n```\n",
        '{"reason": "right", "score": 4.5, "more": [1, {"a": null}]}',
        '{\n "score":\n 4.5, "reason": "right"}',
    ],
)
def test_one_object_alone_or_in_one_fence_is_an_answer(text: str) -> None:
    assert parse_score(text, 5) == (4.5, "right")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not one JSON object"),
        ("4.5", "not an object"),
        ("[4.5]", "not an object"),
        ("null", "not an object"),
        ("Score: 4.5", "not one JSON object"),
        (f"Here it is: {GOOD}", "not one JSON object"),
        (f"{GOOD} I hope this helps.", "not one JSON object"),
        (f"{GOOD}\n{GOOD}", "not one JSON object"),
        (f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```", "not one JSON object"),
        (f"So:\n```json\n{GOOD}\n```", "not one JSON object"),
        (GOOD[:-1], "not one JSON object"),
        ("{'score': 4.5, 'reason': 'right'}", "not one JSON object"),
        ('{"score": 4.5, "reason": "right",}', "not one JSON object"),
        ('{"score": NaN, "reason": "x"}', "NaN is no JSON"),
        ('{"score": Infinity, "reason": "x"}', "Infinity is no JSON"),
        ('{"score": 1, "score": 5, "reason": "x"}', "a field twice"),
        ('{"reason": "x"}', "lacks `score`"),
        ('{"score": 3}', "lacks `reason`"),
        ('{"score": "4.5", "reason": "x"}', "`score` is no number"),
        ('{"score": true, "reason": "x"}', "`score` is no number"),
        ('{"score": null, "reason": "x"}', "`score` is no number"),
        ('{"score": [4], "reason": "x"}', "`score` is no number"),
        ('{"score": 4, "reason": 4}', "`reason` is no text"),
        ('{"score": 5.01, "reason": "x"}', "not between 0 and 5"),
        ('{"score": -0.1, "reason": "x"}', "not between 0 and 5"),
        ('{"score": 1e999, "reason": "x"}', "not between 0 and 5"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_anything_else_is_refused_and_never_repaired(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_score(text, 5)


@pytest.mark.parametrize("score", [0, 5, 5.0, 2.5])
def test_both_ends_of_the_scale_are_scores(score: float) -> None:
    assert parse_score(f'{{"score": {score}, "reason": ""}}', 5) == (score, "")


def test_a_refusal_repeats_nothing_of_the_answer() -> None:
    for text in ("canary is no JSON", '{"canary": 1}', '{"score": "canary", "reason": ""}', '{"a": canary}'):
        with pytest.raises(ValueError) as caught:
            parse_object(text, ["score"]) if "score" not in text else parse_score(text, 5)
        assert "canary" not in str(caught.value) and caught.value.__cause__ is None
