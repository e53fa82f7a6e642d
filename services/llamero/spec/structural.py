"""Structural schemas of Kubernetes, made from the pydantic models: one type each, no references, defaults also of whole parts.

Knows what such a schema may hold; the fields stand in the models, the resources in `crd.py`.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from llamero.spec.cel import ITEMS, Place, Schema


def find_part(schema: Schema, place: Place) -> Schema:
    """The part of a structural schema at a place."""
    for step in place:
        schema = schema["items"] if step == ITEMS else schema["properties"][step]
    return schema


_KEPT = (
    "type",
    "description",
    "enum",
    "format",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    "required",
)
"""What a structural schema says as JSON schema does; the rest of pydantic's is turned into something else or dropped."""


def build_structural_schema(model: type[BaseModel], place: Place = ()) -> Schema:
    """The model as a structural schema of Kubernetes: no references, no unions, defaults also of whole parts.

    A server fills a part that is left out from the defaults of its fields, as pydantic does; empty texts, lists and maps are left out,
    since absent and empty mean the same.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    structural = _convert(schema, schema.get("$defs", {}), place)
    structural.pop("default", None)
    return structural


def _convert(raw: Mapping[str, Any], definitions: Mapping[str, Any], place: Place) -> Schema:
    schema, nullable = _resolve(raw, definitions)
    if "const" in schema:
        schema["enum"] = [schema["const"]]
        schema.setdefault("type", {str: "string", int: "integer"}[type(schema["const"])])
    if "type" not in schema:
        raise TypeError(f"{'.'.join(place)}: a structural schema needs one type, and the model gives {raw}")
    result: Schema = {key: copy.deepcopy(schema[key]) for key in _KEPT if key in schema}
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            result |= {plain: schema[bound], bound: True}
    if nullable:
        result["nullable"] = True
        if "enum" in result and schema["type"] == "string":
            # A server asks a list of words about a null too, and before 1.23 knows no null in one (kubernetes#104969).
            words = result.pop("enum")
            result |= {"pattern": f"^({'|'.join(map(re.escape, words))})$", "maxLength": max(map(len, words))}
    match schema["type"]:
        case "integer":
            result["format"] = "int64"
        case "array":
            result["items"] = _convert(schema["items"], definitions, (*place, ITEMS))
        case "object" if "properties" in schema:
            result["properties"] = {
                name: _convert(field, definitions, (*place, name)) for name, field in schema["properties"].items()
            }
        case "object":
            result["additionalProperties"] = _convert(schema["additionalProperties"], definitions, (*place, ITEMS))
    _add_default(result, schema, place)
    return result


def _resolve(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Schema, bool]:
    """The schema with its reference put in place and its one alternative besides null, and whether it may be null."""
    schema, nullable = dict(raw), False
    while "$ref" in schema or "anyOf" in schema or "allOf" in schema:
        if "$ref" in schema:
            inner = definitions[schema.pop("$ref").rsplit("/", 1)[-1]]
        elif "allOf" in schema:
            (inner,) = schema.pop("allOf")
        else:
            branches = schema.pop("anyOf")
            nullable = nullable or any(b.get("type") == "null" for b in branches)
            (inner,) = (b for b in branches if b.get("type") != "null")
        schema = {**inner, **schema}
    return schema, nullable


def _add_default(result: Schema, schema: Mapping[str, Any], place: Place) -> None:
    default = schema.get("default")
    if default is not None and default not in ("", [], {}):
        result["default"] = copy.deepcopy(default)
        return
    # A part made by a default_factory has no default in pydantic's schema: it is the defaults of its fields.
    is_field = place[-1:] != (ITEMS,)
    if "properties" in result and is_field and not result.get("nullable") and not result.get("required"):
        result["default"] = {}


def relax_status(schema: Schema) -> Schema:
    """A status' schema: no defaults, since the operator writes it whole; no fixed words and bounds but those of structure.

    Helm does not replace CRDs when it upgrades, and a server that knew only yesterday's phases would refuse every write of
    today's operator.
    """
    return _relax(schema, ())


def _relax(schema: Schema, place: Place) -> Schema:
    relaxed = {k: v for k, v in schema.items() if k not in ("default", "required")}
    words = relaxed.get("enum")
    if words and place[-3:] != ("conditions", ITEMS, "status"):
        relaxed["description"] = f"{relaxed.get('description', '')} One of {', '.join(words)}.".strip()
        del relaxed["enum"]
    if "items" in relaxed:
        relaxed["items"] = _relax(relaxed["items"], (*place, ITEMS))
    if "properties" in relaxed:
        relaxed["properties"] = {name: _relax(part, (*place, name)) for name, part in relaxed["properties"].items()}
    if place[-1:] == ("conditions",):
        relaxed |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        relaxed["items"]["required"] = ["type", "status", "reason", "lastTransitionTime"]
    return relaxed
