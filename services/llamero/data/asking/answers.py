"""Strict reading of answers that must be JSON: one object with the named fields, alone or in one fence. Nothing is repaired by guessing."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

_FENCE = re.compile(r"\A```(?:json|JSON)?[ \t]*\r?\n(?P<inside>.*)\r?\n```\Z", re.DOTALL)


def parse_object(text: str, fields: Sequence[str]) -> dict[str, Any]:
    """The JSON object that an answer is. It has the named fields, and may have others.

    Raises ValueError for anything else: prose around it, two objects, a field missing or twice, NaN. The message holds nothing of the answer.
    """
    stripped = text.strip()
    fenced = _FENCE.match(stripped)
    inside = fenced["inside"] if fenced else stripped
    try:
        value = json.loads(inside, object_pairs_hook=_build_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        raise ValueError("the answer is not one JSON object") from None
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("the answer is JSON, but not an object")
    missing = [name for name in fields if name not in value]
    if missing:
        raise ValueError(f"the answer's object lacks {', '.join(f'`{name}`' for name in missing)}")
    return value


def parse_score(text: str, scale: float, field: str = "score") -> tuple[float, str]:
    """A score between 0 and `scale`, and the `reason` given for it.

    Raises ValueError: a score is a JSON number, neither a text nor true, and in range.
    """
    value = parse_object(text, [field, "reason"])
    score, reason = value[field], value["reason"]
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise ValueError(f"`{field}` is no number")
    if not math.isfinite(score) or not 0 <= score <= scale:
        raise ValueError(f"`{field}` is not between 0 and {scale:g}")
    if not isinstance(reason, str):
        raise ValueError("`reason` is no text")
    return float(score), reason


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        raise ValueError("the answer's object has a field twice")
    return built


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
