"""Rules over several fields in CEL, as an API server evaluates them: their form, and the rules that several resources share.

The sentences stand in `rules.py` and `server_rules.py`, which say the same in Python (tests hold the two together).
"""

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
Place = tuple[str, ...]

ITEMS = "*"
"""Stands in a place for any item of a list."""


@dataclass(frozen=True)
class CelRule:
    """A rule in CEL at a place of the schema. Exactly one of `message` and `expression` (CEL that yields the message).

    `field` is the field below the place that the mistake belongs to, as a JSON path (`.revision`).
    """

    place: Place
    rule: str
    message: str = ""
    expression: str = ""
    field: str = ""

    def to_manifest(self) -> Schema:
        """The entry of `x-kubernetes-validations`."""
        manifest: Schema = {"rule": self.rule}
        if self.message:
            manifest["message"] = self.message
        if self.expression:
            manifest["messageExpression"] = self.expression
        if self.field:
            manifest["fieldPath"] = self.field
        return manifest


def given(path: str) -> str:
    """CEL: the optional field is there. A null counts as absent (apiextensions/v1, ValidationRule)."""
    return f"has({path})"


def filled(path: str) -> str:
    """CEL: the optional text or list is there and not empty."""
    return f"({given(path)} && {path}.size() > 0)"


def quote(text: str) -> str:
    """A CEL string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


BASE_RULES = (
    CelRule(
        ("spec", "baseModel"),
        f"{given('self.name')} != {given('self.uri')}",
        "give exactly one of `name` (a hub id) and `uri` (a folder)",
    ),
    CelRule(
        ("spec", "baseModel"),
        f"!{given('self.name')} || {given('self.revision')}",
        "a hub model must be pinned: give the commit's 40 hex digits, so that the run can be repeated",
        field=".revision",
    ),
)

_PAIRS = ", ".join(str(index) for index in range(15))  # a strategy has 16 steps at most, and CEL knows no range


def build_strategy_rules(place: Place) -> tuple[CelRule, ...]:
    """What a rollout's strategy at a place must keep (`rollout.StrategySpec`)."""
    rises = f"[{_PAIRS}].all(i, i + 1 >= self.steps.size() || self.steps[i] < self.steps[i + 1])"
    return (
        CelRule(
            place,
            f"self.steps[self.steps.size() - 1] == 100 && {rises}",
            "steps must rise and end with 100: such as [5, 25, 50, 100]",
            field=".steps",
        ),
    )
