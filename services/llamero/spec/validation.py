"""From a raw manifest to a FineTuneJob or a ModelServer, or to every mistake in it: where, what, what to do.

Takes and gives values; reading the file and finding the lines is the CLI's part.
"""

import copy
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llamero.spec.job import API_VERSION, FineTuneJob
from llamero.spec.rules import RULES, Path, Problem, Severity
from llamero.spec.server import ModelServer
from llamero.spec.server_rules import SERVER_CHECKS

Manifest = TypeVar("Manifest", bound=BaseModel)


def validate_job(raw: Any) -> tuple[FineTuneJob | None, list[Problem]]:
    """The job where there is no error (there may be warnings), and all problems found, in the manifest's order of fields."""
    return _validate(raw, FineTuneJob, RULES)


def validate_server(raw: Any) -> tuple[ModelServer | None, list[Problem]]:
    """The ModelServer where there is no error (there may be warnings), and all problems found, in the manifest's order of fields."""
    return _validate(raw, ModelServer, SERVER_CHECKS)


def _validate(
    raw: Any, model: type[Manifest], rules: Sequence[Callable[[Manifest], Iterable[Problem]]]
) -> tuple[Manifest | None, list[Problem]]:
    if not isinstance(raw, dict):
        return None, [
            Problem((), f"a manifest is a mapping with apiVersion, kind, metadata and spec, not {_describe(raw)}")
        ]
    manifest, problems = _read_fields(raw, model)
    if manifest is not None:
        ruled = [problem for rule in rules for problem in rule(manifest)]
        # A field that was wrong stands at its default by now: what a rule says of it would mislead.
        wrong = [p.path for p in problems]
        problems += [
            r for r in ruled if not any(r.path[: len(path)] == path or path[: len(r.path)] == r.path for path in wrong)
        ]
    has_error = any(p.severity is Severity.ERROR for p in problems)
    return (None if has_error else manifest), problems


def _read_fields(raw: dict[str, Any], model: type[Manifest]) -> tuple[Manifest | None, list[Problem]]:
    """The manifest with the wrong fields left out, where that can be done, so that the rules can speak of the others at once."""
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        problems = explain_errors(error, model)
    pruned = copy.deepcopy(raw)
    for path in sorted({p.path for p in problems}, key=lambda path: [str(part) for part in path], reverse=True):
        _remove(pruned, path)
    try:
        return model.model_validate(pruned), problems
    except ValidationError:
        return None, problems


def explain_errors(
    error: ValidationError, model: type[BaseModel], patterns: Mapping[str, str] | None = None
) -> list[Problem]:
    """A problem for each of pydantic's complaints about `model`'s fields: where, what, and what to do.

    `patterns` puts into words what a text must look like, by its regular expression.
    """
    return [_explain(detail, model, patterns or {}) for detail in error.errors(include_url=False)]


def _remove(tree: Any, path: Path) -> None:
    for part in path[:-1]:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return
    # Items of lists stay, so that the paths of their neighbours do.
    if isinstance(tree, dict) and path:
        tree.pop(path[-1], None)


def _explain(detail: ErrorDetails, model: type[BaseModel], patterns: Mapping[str, str]) -> Problem:
    path: Path = tuple(part for part in detail["loc"] if _is_in_manifest(part))
    value, context, kind = detail.get("input"), detail.get("ctx", {}), detail["type"]
    field = str(path[-1]) if path else ""
    match kind:
        case "extra_forbidden":
            message = f"unknown field `{field}`{_suggest(field, _known_fields(path[:-1], model))}"
        case "missing":
            message = f"`{field}` is missing{_hint_missing(path, model)}"
        case "literal_error" | "enum":
            message = f"must be {context['expected']}, not {_describe(value)}{_suggest(str(value), _options(context['expected']), False)}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            word = {
                "greater_than": "above",
                "greater_than_equal": "at least",
                "less_than": "below",
                "less_than_equal": "at most",
            }[kind]
            bound = next(iter(v for k, v in context.items() if k in ("gt", "ge", "lt", "le")))
            message = f"must be {word} {bound}, not {_describe(value)}"
        case "string_pattern_mismatch":
            wanted = patterns.get(context["pattern"]) or _describe_pattern(path, context["pattern"])
            message = f"{_describe(value)} does not fit {wanted}"
        case "value_error":
            message = str(context["error"])
        case "too_long" | "too_short" | "string_too_long" | "string_too_short":
            message = f"{detail['msg'][0].lower()}{detail['msg'][1:]}"
        case _:
            message = f"{detail['msg'][0].lower()}{detail['msg'][1:]}, not {_describe(value)}"
    return Problem(path, message)


def _is_in_manifest(part: int | str) -> bool:
    # pydantic adds the branch of a union to the path, such as `function-after[...]` or `constrained-str`
    return not (isinstance(part, str) and any(c in part for c in "[]()"))


def _describe(value: Any) -> str:
    text = repr(value) if not isinstance(value, (dict, list)) else {dict: "a mapping", list: "a list"}[type(value)]
    return text if len(text) <= 60 else text[:57] + "..."


def _options(expected: str) -> list[str]:
    return [o.strip(" '") for o in expected.replace(" or ", ", ").split(",")]


def _suggest(word: str, known: list[str], list_known: bool = True) -> str:
    by_case = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower().replace("_", "").replace("-", ""), by_case, n=1, cutoff=0.6)
    if close:
        return f": did you mean `{by_case[close[0]]}`?"
    return f" (known: {', '.join(known)})" if list_known and known else ""


def _hint_missing(path: Path, model: type[BaseModel]) -> str:
    hints: dict[tuple[str, ...], str] = {
        ("apiVersion",): f": write `apiVersion: {API_VERSION}`",
        ("kind",): f": write `kind: {model.__name__}`",
        ("metadata",): ": write `metadata: {name: ...}`",
    }
    return hints.get(tuple(str(p) for p in path), "")


def _describe_pattern(path: Path, pattern: str) -> str:
    match path[-1] if path else "":
        case "revision":
            return "a commit: 40 hex digits"
        case "name" if path[-2:] != ("baseModel", "name"):
            return "a name: lower-case letters, digits and dashes, beginning and ending with a letter or digit"
        case "name":
            return "a hub id, such as `organisation/model`"
    return f"the pattern {pattern}"


def _known_fields(path: Path, root: type[BaseModel]) -> list[str]:
    """The field names of the model that a path leads to."""
    model: Any = root
    is_map = False
    for part in path:
        if isinstance(part, int) or is_map:
            is_map = False
            continue
        annotation = next((f.annotation for n, f in model.model_fields.items() if part in (f.alias, n)), None)
        is_map = get_origin(annotation) is dict
        model = next(_models_in(annotation), None)
        if model is None:
            return []
    return [f.alias or n for n, f in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
