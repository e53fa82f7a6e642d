"""The CustomResourceDefinitions of FineTuneJob and Adapter, made from the pydantic models.

Knows what a structural schema may hold and which rules over several fields can be said in CEL; the fields themselves stand in
`job.py`, `status.py` and `adapter.py`, the sentences of the rules in `rules.py` (a test holds the two together). Servers before
1.25 drop the CEL rules, so the operator validates again in any case.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from llamero.spec import names
from llamero.spec.adapter import ADAPTER_KIND, AdapterResourceStatus, AdapterSpec
from llamero.spec.job import KIND, FineTuneJobSpec
from llamero.spec.rules import REFUSE_RSLORA_SCALE, SERVABLE_MODULES
from llamero.spec.status import JobStatus
from llamero.spec.steps import NO_KINDS, DataStep

Schema = dict[str, Any]
Place = tuple[str, ...]

ITEMS = "*"
"""Stands in a place for any item of a list."""

MAX_JOB_NAME = 40

NOT_SERVED: frozenset[Place] = frozenset()
"""Fields of the models without effect so far: the API does not know them. `nodes` stays, at its one value: were it unknown, a
server would take `nodes: 2` away without a word and train on one."""

SHORT_NAMES = {KIND: "ftj", ADAPTER_KIND: "adp"}


# -- rules over several fields -------------------------------------------------------------------------------------------------


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


def _given(path: str) -> str:
    """CEL: the optional field is there. A null counts as absent (apiextensions/v1, ValidationRule)."""
    return f"has({path})"


def _filled(path: str) -> str:
    """CEL: the optional text or list is there and not empty."""
    return f"({_given(path)} && {path}.size() > 0)"


def _quote(text: str) -> str:
    """A CEL string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SOURCE: Place = ("spec", "data", "sources", ITEMS)
_TRAINING: Place = ("spec", "training")
_TWINS = (
    f"self.sources.filter(a, {_given('a.name')} ?"
    f" self.sources.filter(b, {_given('b.name')} ? b.name == a.name : false).size() > 1 : false)"
)

# A source that is texts alone, and a step that writes their instructions.
_IS_TEXT = (
    f"s.format == 'records' && {_given('s.columns')} && !{_given('s.columns.messages')} && {_filled('s.columns.output')}"
    f" && !{_filled('s.columns.instruction')} && !{_filled('s.columns.input')}"
)
_IS_LABELLED = (
    f"{_given('self.steps')} && self.steps.exists(t, {_given('t.backTranslate')} &&"
    f" (!{_filled('t.sources')} || ({_given('s.name')} && s.name in t.sources)))"
)

_BASE_RULES = (
    CelRule(
        ("spec", "baseModel"),
        f"{_given('self.name')} != {_given('self.uri')}",
        "give exactly one of `name` (a hub id) and `uri` (a folder)",
    ),
    CelRule(
        ("spec", "baseModel"),
        f"!{_given('self.name')} || {_given('self.revision')}",
        "a hub model must be pinned: give the commit's 40 hex digits, so that the run can be repeated",
        field=".revision",
    ),
)

_DATA_RULES = (
    CelRule(
        ("spec", "data"),
        f"{_TWINS}.size() == 0",
        expression=f"'`' + {_TWINS}[0].name + '` names another source already: choose another name'",
        field=".sources",
    ),
    CelRule(
        ("spec", "data"),
        f"self.sources.all(s, !({_IS_TEXT}) || ({_IS_LABELLED}))",
        "`output` alone is a text without an instruction: name the column of `instruction`, or add a `backTranslate` step that writes it",
        field=".sources",
    ),
    CelRule(
        ("spec", "data"),
        "self.evaluationFraction > 0.0",
        "0 holds nothing out, and the gate needs something to measure on: give a share above 0, such as 0.05",
        field=".evaluationFraction",
    ),
    CelRule(
        _SOURCE,
        f"self.format != 'records' || {_given('self.columns')}",
        "format `records` needs `columns` with `instruction` and `output`, or `messages`",
        field=".columns",
    ),
    CelRule(
        _SOURCE,
        f"self.format == 'records' || !{_given('self.columns')}",
        expression="'only format `records` has columns to map; `' + self.format + '` has fixed ones: remove it'",
        field=".columns",
    ),
    CelRule(
        _SOURCE,
        f"self.format != 'records' || !{_given('self.columns')} || !{_given('self.columns.messages')} || "
        f"!({_filled('self.columns.instruction')} || {_filled('self.columns.input')} || {_filled('self.columns.output')})",
        "give either `messages`, or `instruction`, `input` and `output`",
        field=".columns",
    ),
    CelRule(
        _SOURCE,
        f"self.format != 'records' || !{_given('self.columns')} || {_given('self.columns.messages')} || "
        f"({_filled('self.columns.output')} && ({_filled('self.columns.instruction')} || !{_filled('self.columns.input')}))",
        "name the columns of `instruction` and `output`, or of `messages`",
        field=".columns",
    ),
    CelRule(
        _SOURCE,
        "self.profile != 'first-turn' || self.format == 'dialog'",
        expression="'`first-turn` belongs to format `dialog`, and this source is `' + self.format + '`: remove it'",
        field=".profile",
    ),
)

_STEP_KINDS = [info.alias or name for name, info in DataStep.model_fields.items() if name not in NO_KINDS]

_STEP_RULES = (
    CelRule(
        ("spec", "data", "steps", ITEMS),
        f"[{', '.join(_given(f'self.{kind}') for kind in _STEP_KINDS)}].filter(k, k).size() == 1",
        "a step has exactly one kind: make a step of each",
    ),
)

_TRAINING_RULES = (
    CelRule(
        (*_TRAINING, "lora"),
        # alpha / sqrt(rank) <= limit without a square root, which CEL has not; both sides are positive.
        f"!self.rslora || self.alpha * self.alpha <= {REFUSE_RSLORA_SCALE**2!r} * double(self.rank)",
        f"alpha at this rank scales the update by more than {REFUSE_RSLORA_SCALE:g} (alpha / sqrt(rank)), which diverges: "
        f"with rsLoRA keep alpha at or below {REFUSE_RSLORA_SCALE:g} * sqrt(rank), or set `rslora: false`",
        field=".alpha",
    ),
    CelRule(
        (*_TRAINING, "lora"),
        "!self.useDora || self.init != 'pissa'",
        "DoRA and `init: pissa` can't be combined: keep one of them",
        field=".useDora",
    ),
    CelRule(
        _TRAINING,
        "self.lora.init != 'pissa' || self.method == 'lora'",
        "`pissa` changes the base's weights and fails on 4-bit ones: use `method: lora`, or `init: eva`",
        field=".lora.init",
    ),
    CelRule(
        _TRAINING,
        "self.lora.init == 'default' || self.initFrom == 'base'",
        expression="'`' + self.lora.init + '` starts an adapter anew, and `initFrom: ' + self.initFrom + '` goes on from one: keep one of them'",
        field=".lora.init",
    ),
)

_EVALUATION_RULES = (
    CelRule(
        ("spec", "evaluation", "promptSets", ITEMS),
        f"{_filled('self.prompts')} != {_given('self.uri')}",
        "give either `prompts` or `uri`",
    ),
)

_LORA = "self.training.lora"
_REMEDY = "remove it, set `training.merge: true` to serve merged weights, or set `rollout.engine: cpu`"
_IS_TGI = "self.rollout.engine == 'tgi'"
_DROPS = f"({_IS_TGI} ? 'text-generation-inference drops' : 'vLLM refuses')"
_SERVES_ALL = "self.rollout.engine == 'cpu' || self.training.merge"
_UNSERVABLE: tuple[tuple[str, str, str, bool], ...] = (
    ("useDora", f"{_LORA}.useDora", "DoRA's magnitudes", False),
    ("modulesToSave", _filled(f"{_LORA}.modulesToSave"), "modules saved in full", False),
    ("newTokens", _filled(f"{_LORA}.newTokens"), "trained embeddings", False),
    ("rankPattern", _filled(f"{_LORA}.rankPattern"), "ranks that differ between modules", True),
    ("alphaPattern", _filled(f"{_LORA}.alphaPattern"), "alphas that differ between modules", True),
    ("layers", _given(f"{_LORA}.layers"), "a module type that is missing in some layer", True),
)
"""Field of the adapter's shape, CEL for "it is set", what the engine drops, and whether TGI alone does (see rules.check_servable)."""


def _build_servable_rules() -> Iterator[CelRule]:
    for field, is_set, noun, tgi_alone in _UNSERVABLE:
        bound = f" || !({_IS_TGI})" if tgi_alone else ""
        yield CelRule(
            ("spec",),
            f"{_SERVES_ALL}{bound} || !{is_set}",
            expression=f"{_DROPS} + {_quote(' ' + noun)} + ({_IS_TGI} ? ' without a word' : '') + {_quote(': ' + _REMEDY)}",
            field=f".training.lora.{field}",
        )
    pattern = rf"^(.*[.])?({'|'.join(sorted(SERVABLE_MODULES))})$"
    unserved = f"{_LORA}.targetModules.filter(m, !m.matches({_quote(pattern)}))"
    known = f"` (it serves {', '.join(sorted(SERVABLE_MODULES))}): {_REMEDY}"
    yield CelRule(
        ("spec",),
        f"{_SERVES_ALL} || ({_given(f'{_LORA}.targetModules')} ? {unserved}.size() == 0 : true)",
        expression=f"{_DROPS} + ' adapters of `' + {unserved}[0] + {_quote(known)}",
        field=".training.lora.targetModules",
    )


JOB_RULES: tuple[CelRule, ...] = (
    CelRule(
        (),
        f"self.metadata.name.size() <= {MAX_JOB_NAME} && !self.metadata.name.contains('.')",
        f"the name of a FineTuneJob has lower-case letters, digits and dashes, at most {MAX_JOB_NAME}: choose a shorter one, without dots",
    ),
    *_BASE_RULES,
    *_DATA_RULES,
    *_STEP_RULES,
    *_TRAINING_RULES,
    *_build_servable_rules(),
    *_EVALUATION_RULES,
)

ADAPTER_RULES: tuple[CelRule, ...] = (
    CelRule(
        ("spec",),
        "self == oldSelf",
        "an Adapter is never changed once it is written: publish another under a new name",
    ),
)


# -- manifests -----------------------------------------------------------------------------------------------------------------


def build_crds() -> dict[str, Schema]:
    """The CustomResourceDefinitions by their resource's plural."""
    return {names.PLURAL: build_job_crd(), names.ADAPTER_PLURAL: build_adapter_crd()}


def build_job_crd() -> Schema:
    """finetunejobs.llamero.dev."""
    schema = _build_root(
        "A job that takes raw data to a measured, served adapter of a base model.",
        FineTuneJobSpec,
        JobStatus,
        JOB_RULES,
    )
    # All servers know this bound, also those that know no CEL.
    schema["properties"]["metadata"]["properties"] = {"name": {"type": "string", "maxLength": MAX_JOB_NAME}}
    columns = (
        _column("Phase", ".status.phase", "Where the job stands."),
        _column("Progress", ".status.progress.percent", "Percent of the phase that is done.", "integer"),
        _column("Loss", ".status.progress.loss", "Loss of the last step."),
        _column("Adapter", ".status.adapter.name", "The newest published Adapter."),
        _column("Run", ".status.run", "The run at hand.", "integer", priority=1),
        _column("Attempt", ".status.attempt", "The attempt at the phase.", "integer", priority=1),
        _column("Remaining", ".status.progress.estimatedRemainingSeconds", "Seconds to the phase's end.", "integer", 1),
        _column("Ready", '.status.conditions[?(@.type=="Ready")].reason', "Why it is ready or not.", priority=1),
        _column("Age", ".metadata.creationTimestamp", "", "date"),
    )
    # In `all` besides: whoever lists or deletes `all` meets the job with its batch Jobs and pods, which it would make again.
    return _build_crd(KIND, names.PLURAL, ("all", "llamero"), columns, schema)


def build_adapter_crd() -> Schema:
    """adapters.llamero.dev. Its spec is immutable."""
    schema = _build_root(
        "A trained adapter that a run published; it belongs to no job and outlives it.",
        AdapterSpec,
        AdapterResourceStatus,
        ADAPTER_RULES,
    )
    columns = (
        _column("Model", ".spec.model", "The public model name that it was made for."),
        _column("Base", ".spec.base", "The base model."),
        _column("Perplexity", ".spec.figures.tunedTokenPerplexity", "Token perplexity on held-out records."),
        _column("Base-Perplexity", ".spec.figures.baseTokenPerplexity", "The base's, on the same records."),
        _column("Job", ".spec.source.job", "The job that made it.", priority=1),
        _column("Run", ".spec.source.run", "The job's run that made it.", "integer", priority=1),
        _column("Digest", ".spec.sha256", "sha256 over its files.", priority=1),
        _column("URI", ".spec.uri", "Folder of its files.", priority=1),
        _column("Age", ".metadata.creationTimestamp", "", "date"),
    )
    # Not in `all`: `kubectl delete all --all` must never take a published adapter away.
    return _build_crd(ADAPTER_KIND, names.ADAPTER_PLURAL, ("llamero",), columns, schema)


def _column(name: str, path: str, description: str, kind: str = "string", priority: int = 0) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    if priority:
        column["priority"] = priority
    return column


def _build_crd(
    kind: str, plural: str, categories: tuple[str, ...], columns: tuple[Schema, ...], schema: Schema
) -> Schema:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}", "labels": {"app.kubernetes.io/name": "llamero"}},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [SHORT_NAMES[kind]],
                "categories": list(categories),
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [dict(c) for c in columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _build_root(description: str, spec: type[BaseModel], status: type[BaseModel], rules: tuple[CelRule, ...]) -> Schema:
    root: Schema = {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"`{names.GROUP}/{names.VERSION}`."},
            "kind": {"type": "string", "description": "The resource's kind."},
            "metadata": {"type": "object"},
            "spec": build_structural_schema(spec, ("spec",)),
            "status": relax_status(build_structural_schema(status, ("status",))),
        },
    }
    for rule in rules:
        part = find_part(root, rule.place)
        part.setdefault("x-kubernetes-validations", []).append(rule.to_manifest())
    return root


def find_part(schema: Schema, place: Place) -> Schema:
    """The part of a structural schema at a place."""
    for step in place:
        schema = schema["items"] if step == ITEMS else schema["properties"][step]
    return schema


# -- structural schemas --------------------------------------------------------------------------------------------------------

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
    match schema["type"]:
        case "integer":
            result["format"] = "int64"
        case "array":
            result["items"] = _convert(schema["items"], definitions, (*place, ITEMS))
        case "object" if "properties" in schema:
            result["properties"] = {
                name: _convert(field, definitions, (*place, name))
                for name, field in schema["properties"].items()
                if (*place, name) not in NOT_SERVED
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
