"""Evaluates a CRD's CEL rules as an API server does, with cel-python; servers before 1.25 know no CEL."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import celpy
from celpy import celtypes

Schema = dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """A rule that does not hold: the place of its object and field, and the message that a user reads."""

    place: str
    message: str


def find_refusals(schema: Schema, value: Any, old: Any = None) -> list[Refusal]:
    """Every rule of the schema and its parts that the value breaks; rules on `oldSelf` are asked where `old` is given."""
    return list(_walk(schema, value, old, ""))


def _walk(schema: Schema, value: Any, old: Any, place: str) -> Iterator[Refusal]:
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        bindings = {"self": to_cel(schema, value), "oldSelf": to_cel(schema, old)}
        if not evaluate(rule["rule"], bindings):
            message = rule.get("message") or str(evaluate(rule["messageExpression"], bindings))
            yield Refusal(place + rule.get("fieldPath", ""), message)
    for name, part in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            before = old.get(name) if isinstance(old, dict) else None
            yield from _walk(part, value[name], before, f"{place}.{name}")
    if schema.get("type") == "array":
        for index, item in enumerate(value):
            yield from _walk(schema["items"], item, None, f"{place}[{index}]")


def evaluate(expression: str, bindings: dict[str, Any]) -> Any:
    """The value of an expression. Raises CELEvalError where it has none, which an API server takes for a refusal."""
    result = _compile(expression).evaluate(bindings)
    if isinstance(result, celpy.CELEvalError):
        raise result
    return result


@cache
def _compile(expression: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def to_cel(schema: Schema, value: Any) -> Any:
    """A JSON value as CEL sees it by the schema: `number` is a double, also where it is written without a point."""
    if value is None:
        return None
    match schema.get("type"):
        case "number":
            return celtypes.DoubleType(value)
        case "integer":
            return celtypes.IntType(value)
        case "boolean":
            return celtypes.BoolType(value)
        case "string":
            return celtypes.StringType(value)
        case "array":
            return celtypes.ListType([to_cel(schema["items"], item) for item in value])
    parts = schema.get("properties", {})
    rest = schema.get("additionalProperties", {"type": "string"})
    # A null counts as absent, and what the schema does not name is not there (apiextensions/v1, ValidationRule).
    known = {k: v for k, v in value.items() if v is not None and (k in parts or not parts)}
    return celtypes.MapType({celtypes.StringType(k): to_cel(parts.get(k, rest), v) for k, v in known.items()})
