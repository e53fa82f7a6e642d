"""The CRDs accept and refuse what the models and rules do, with the same sentences, and fill in the same defaults."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from services.spec.cel import find_refusals

from llamero.spec.adapter import AdapterSpec
from llamero.spec.cel import ITEMS
from llamero.spec.crd import build_adapter_crd, build_crds, build_job_crd, build_server_crd
from llamero.spec.job import FineTuneJob, FineTuneJobSpec
from llamero.spec.job_cel import JOB_RULES
from llamero.spec.problems import Severity
from llamero.spec.server import ModelServer, ModelServerSpec
from llamero.spec.validation import validate_job

Schema = dict[str, Any]

MINIMAL: dict[str, Any] = {
    "apiVersion": "llamero.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "job"},
    "spec": {"baseModel": {"uri": "base"}, "data": {"sources": [{"uri": "a.json", "format": "alpaca"}]}},
}
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def schema_of(crd: Schema) -> Schema:
    schema: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


JOB_SCHEMA = schema_of(build_job_crd())
ADAPTER_SCHEMA = schema_of(build_adapter_crd())
SERVER_SCHEMA = schema_of(build_server_crd())
BY_KIND = {"FineTuneJob": (JOB_SCHEMA, FineTuneJob), "ModelServer": (SERVER_SCHEMA, ModelServer)}
ALL = {"job": JOB_SCHEMA, "adapter": ADAPTER_SCHEMA, "server": SERVER_SCHEMA}


def parts(schema: Schema, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Schema]]:
    yield place, schema
    for name, part in schema.get("properties", {}).items():
        yield from parts(part, (*place, name))
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from parts(schema[key], (*place, ITEMS))


def to_draft_4(schema: Schema) -> Schema:
    """The structural schema for a JSON schema validator: it says `nullable` by a type."""
    plain = copy.deepcopy(schema)
    for _, part in parts(plain):
        if part.pop("nullable", False):
            part["type"] = [part["type"], "null"]
    return plain


JOB_VALIDATOR = jsonschema.Draft4Validator(to_draft_4(JOB_SCHEMA))


def with_defaults(schema: Schema, value: Any) -> Any:
    """What an API server makes of a value: fields left out, or null where they can't be, get their defaults."""
    if isinstance(value, list):
        return [with_defaults(schema["items"], item) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    filled = dict(value)
    for name, part in schema["properties"].items():
        is_absent = name not in filled or (filled[name] is None and not part.get("nullable"))
        if "default" in part and is_absent:
            filled[name] = copy.deepcopy(part["default"])
        if name in filled:
            filled[name] = with_defaults(part, filled[name])
    return filled


def merge(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return copy.deepcopy(changes)
    return {k: merge(base.get(k), changes[k]) if k in changes else copy.deepcopy(base[k]) for k in {**base, **changes}}


def manifest(spec: dict[str, Any] | None = None, name: str = "job") -> dict[str, Any]:
    return merge(MINIMAL, {"metadata": {"name": name}, "spec": spec or {}})


def refuse_by_cel(raw: dict[str, Any]) -> set[str]:
    return {normalise(r.message) for r in find_refusals(JOB_SCHEMA, with_defaults(JOB_SCHEMA, raw))}


def refuse_by_rules(raw: dict[str, Any]) -> set[str]:
    return {normalise(p.message) for p in validate_job(raw)[1] if p.severity is Severity.ERROR}


def normalise(message: str) -> str:
    """The scale's sentence carries figures where Python says it, a step's its kinds and a strategy's its steps: CEL can't format them."""
    if message.startswith("a step has exactly one kind"):
        return "a step's kinds"
    if message.startswith("steps must rise"):
        return "steps must rise"
    return "rsLoRA scale" if "alpha / sqrt(rank)" in message else message


# -- structure -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ALL.values(), ids=ALL.keys())
def test_every_part_has_one_type_and_only_words_of_a_structural_schema(schema: Schema) -> None:
    allowed = {
        "type", "description", "enum", "format", "pattern", "minLength", "maxLength", "minItems", "maxItems", "minProperties",
        "maxProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "required", "default", "nullable",
        "properties", "additionalProperties", "items", "x-kubernetes-validations", "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    }  # fmt: skip
    for place, part in parts(schema):
        assert isinstance(part["type"], str), place
        assert set(part) <= allowed, place
        assert not ("properties" in part and "additionalProperties" in part), place


@pytest.mark.parametrize("schema", ALL.values(), ids=ALL.keys())
def test_every_text_list_and_map_of_a_spec_is_bounded_so_that_rules_have_a_cost(schema: Schema) -> None:
    for place, part in parts(schema["properties"]["spec"]):
        if part["type"] == "string":
            assert "maxLength" in part or "enum" in part or _has_fixed_length(part), place
        if part["type"] == "array":
            assert "maxItems" in part, place
        if "additionalProperties" in part:
            assert "maxProperties" in part, place


def _has_fixed_length(part: Schema) -> bool:
    return bool(re.search(r"\{\d+\}\$$", part.get("pattern", "")))


@pytest.mark.parametrize("schema", ALL.values(), ids=ALL.keys())
def test_every_field_of_a_spec_is_described(schema: Schema) -> None:
    for place, part in parts(schema["properties"]["spec"]):
        if place and place[-1] != ITEMS:
            assert part.get("description"), place


@pytest.mark.parametrize("schema", ALL.values(), ids=ALL.keys())
def test_a_status_has_no_numbers_with_a_point_no_defaults_and_no_words_that_tomorrow_adds_to(schema: Schema) -> None:
    for place, part in parts(schema["properties"]["status"]):
        assert part["type"] != "number", place
        assert "default" not in part, place
        assert "enum" not in part or place == ("conditions", ITEMS, "status"), place


@pytest.mark.parametrize("schema", ALL.values(), ids=ALL.keys())
def test_conditions_are_a_map_by_type(schema: Schema) -> None:
    conditions = schema["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert "type" in conditions["items"]["required"]


def test_the_api_offers_no_method_and_no_number_of_nodes_that_nothing_serves() -> None:
    training = JOB_SCHEMA["properties"]["spec"]["properties"]["training"]["properties"]
    assert training["method"]["enum"] == ["qlora", "lora"]
    # Were the field unknown, a server would take `nodes: 2` away without a word and train on one.
    assert training["resources"]["properties"]["nodes"]["enum"] == [1]


def test_every_field_of_the_models_is_known_to_the_api() -> None:
    # A field that the schema lacks would be taken away without a word.
    for model, schema in (
        (FineTuneJobSpec, JOB_SCHEMA),
        (AdapterSpec, ADAPTER_SCHEMA),
        (ModelServerSpec, SERVER_SCHEMA),
    ):
        assert field_places(model) <= {place for place, _ in parts(schema["properties"]["spec"])}


def field_places(model: type[BaseModel], place: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The places of a model's fields and those of its parts, from the models themselves."""
    places = set()
    for name, info in model.model_fields.items():
        here = (*place, info.alias or name)
        places.add(here)
        for part, is_item in models_in(info.annotation):
            places |= field_places(part, (*here, ITEMS) if is_item else here)
    return places


def models_in(annotation: Any, is_item: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_item
    for inner in get_args(annotation):
        yield from models_in(inner, is_item or get_origin(annotation) in (list, dict))


def test_no_printer_column_takes_the_last_condition() -> None:
    for crd in build_crds().values():
        columns = crd["spec"]["versions"][0]["additionalPrinterColumns"]
        assert columns[-1]["name"] == "Age"
        assert not [c for c in columns if "conditions[-1" in c["jsonPath"]]


def test_each_printer_column_names_a_field_that_there_is() -> None:
    for crd in build_crds().values():
        places = {place for place, _ in parts(schema_of(crd))}
        for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]:
            steps = tuple(s for s in re.sub(r"\[(\?.*?|\*)\]", ".*", column["jsonPath"]).split(".") if s)
            assert steps in places or steps[0] == "metadata", column


@pytest.mark.parametrize("crd", [build_adapter_crd(), build_server_crd()], ids=["adapter", "server"])
def test_deleting_all_of_a_namespace_never_means_what_chats_are_answered_by(crd: Schema) -> None:
    assert "all" not in crd["spec"]["names"]["categories"]


# -- the same as the models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_accepted(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    schema, _ = BY_KIND[raw["kind"]]
    filled = with_defaults(schema, raw)
    assert not list(jsonschema.Draft4Validator(to_draft_4(schema)).iter_errors(filled))
    assert not find_refusals(schema, filled)


@pytest.mark.parametrize(
    "raw", [MINIMAL, *(yaml.safe_load(p.read_text()) for p in EXAMPLES)], ids=["minimal", *(p.stem for p in EXAMPLES)]
)
def test_the_servers_defaults_are_the_models(raw: dict[str, Any]) -> None:
    schema, model = BY_KIND[raw["kind"]]
    filled = model.model_validate(with_defaults(schema, raw))
    assert filled.spec == model.model_validate(raw).spec


def test_parts_that_are_left_out_are_filled_to_their_leaves() -> None:
    filled = with_defaults(JOB_SCHEMA, MINIMAL)
    model = FineTuneJobSpec.model_validate(MINIMAL["spec"]).to_json_dict()
    assert _without_empty(filled["spec"]) == _without_empty(model)


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_empty(v) for k, v in value.items() if v not in ({}, [], "")}
    return [_without_empty(v) for v in value] if isinstance(value, list) else value


def _sample(schema: Schema, place: tuple[str, ...]) -> Any:
    """A value of a part on the way to a field: what must be there."""
    given_values: dict[tuple[str, ...], Any] = {
        ("spec", "baseModel"): {"uri": "base"},
        ("spec", "data"): {"sources": [{"uri": "a", "format": "alpaca"}]},
    }
    if place in given_values:
        return copy.deepcopy(given_values[place])
    if schema["type"] == "object":
        return {n: _sample(schema["properties"][n], (*place, n)) for n in schema.get("required", ())}
    return {"string": schema.get("enum", ["alpaca"])[0], "array": [], "integer": 1, "number": 1.0, "boolean": False}[
        schema["type"]
    ]


def _set_at(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A minimal manifest with the value at a place; lists and maps on the way get one item."""
    root = manifest()
    node: Any = root
    schema = JOB_SCHEMA
    for index, step in enumerate(place):
        is_last = index == len(place) - 1
        schema = (
            schema["properties"][step]
            if "properties" in schema
            else schema.get("items") or schema["additionalProperties"]
        )
        key: Any = step
        if isinstance(node, list):
            key = 0
            if not node:
                node.append(None)
        elif step == ITEMS:
            key = "key"
        if is_last:
            node[key] = value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = _sample(schema, place[: index + 1])
            elif isinstance(node, list) and node[0] is None:
                node[0] = _sample(schema, place[: index + 1])
            node = node[key]
    return root


def _wrong_values(part: Schema) -> Iterator[Any]:
    match part["type"]:
        case "integer" | "number":
            step = 1 if part["type"] == "integer" else 0.001
            if "minimum" in part:
                yield part["minimum"] - (0 if part.get("exclusiveMinimum") else step)
            if "maximum" in part:
                yield part["maximum"] + (0 if part.get("exclusiveMaximum") else step)
            yield "a word"
        case "string":
            if "maxLength" in part:
                yield "a" * (part["maxLength"] + 1)
            if part.get("minLength"):
                yield ""
            if "enum" in part or "pattern" in part:
                yield "!nonsense!"
            yield 3
        case "array":
            if "maxItems" in part and part["items"]["type"] == "string":
                yield ["a"] * (part["maxItems"] + 1)
            if part.get("minItems"):
                yield []
            yield "a word"
        case "object":
            if "maxProperties" in part:
                yield {f"k{i}": _sample(part["additionalProperties"], ()) for i in range(part["maxProperties"] + 1)}
            yield "a word"


WRONG = [
    pytest.param(place, value, id=f"{'.'.join(place)}={json.dumps(value)[:20]}")
    for place, part in parts(JOB_SCHEMA["properties"]["spec"], ("spec",))
    for value in _wrong_values(part)
]


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_what_a_bound_refuses_schema_and_model_refuse(place: tuple[str, ...], value: Any) -> None:
    raw = _set_at(place, value)
    assert list(JOB_VALIDATOR.iter_errors(raw))
    job, problems = validate_job(raw)
    assert job is None and problems


def test_the_minimal_manifest_of_these_tests_is_right_itself() -> None:
    assert not list(JOB_VALIDATOR.iter_errors(MINIMAL)) and not refuse_by_cel(MINIMAL)
    assert validate_job(MINIMAL) == (FineTuneJob.model_validate(MINIMAL), [])


# -- rules ---------------------------------------------------------------------------------------------------------------------

REVISION = "0" * 40


def source(**fields: Any) -> dict[str, Any]:
    return {"data": {"sources": [{"uri": "a", "format": "alpaca", **fields}]}}


def lora(**fields: Any) -> dict[str, Any]:
    return {"training": {"lora": fields}}


def steps(*given: dict[str, Any]) -> dict[str, Any]:
    source = {"uri": "a.json", "format": "alpaca"}
    return {"data": {"sources": [source], "steps": list(given)}}


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "a folder": ({}, 0),
    "a pinned hub model": ({"baseModel": {"uri": None, "name": "a/b", "revision": REVISION}}, 0),
    "a hub model without a commit": ({"baseModel": {"uri": None, "name": "a/b"}}, 1),
    "both a hub model and a folder": ({"baseModel": {"name": "a/b", "revision": REVISION}}, 1),
    "neither a hub model nor a folder": ({"baseModel": {"uri": None}}, 1),
    "two sources of one name": (
        {"data": {"sources": [{"uri": u, "format": "alpaca", "name": "x"} for u in "ab"]}},
        1,
    ),
    "two sources without names": ({"data": {"sources": [{"uri": u, "format": "alpaca"} for u in "ab"]}}, 0),
    "nothing held out": ({"data": {"evaluationFraction": 0}}, 1),
    "records without columns": (source(format="records"), 1),
    "records with a pair": (source(format="records", columns={"instruction": "q", "output": "a"}), 0),
    "records with messages": (source(format="records", columns={"messages": "m"}), 0),
    "records with both": (source(format="records", columns={"messages": "m", "input": "i"}), 1),
    "records with half a pair": (source(format="records", columns={"instruction": "q"}), 1),
    "records that are texts, and nobody labels them": (source(format="records", columns={"output": "a"}), 1),
    "records that are texts, labelled by a step": (
        {
            "data": {
                "sources": [{"uri": "a.jsonl", "format": "records", "columns": {"output": "a"}}],
                "steps": [{"backTranslate": {"model": {"url": "https://a/v1", "model": "m"}}}],
            }
        },
        0,
    ),
    "records that are texts, and another source is labelled": (
        {
            "data": {
                "sources": [
                    {"uri": "a.jsonl", "format": "records", "columns": {"output": "a"}, "name": "texts"},
                    {"uri": "b.json", "format": "alpaca", "name": "pairs"},
                ],
                "steps": [{"backTranslate": {"model": {"url": "https://a/v1", "model": "m"}}, "sources": ["pairs"]}],
            }
        },
        1,
    ),
    "records with an input and no instruction": (source(format="records", columns={"input": "i", "output": "a"}), 1),
    "records with an empty name of a column": (source(format="records", columns={"instruction": "q", "output": ""}), 1),
    "columns of another format": (source(columns={"instruction": "q", "output": "a"}), 1),
    "no columns, said as null": (source(columns=None), 0),
    "first turns of dialogs": (source(format="dialog", profile="first-turn"), 0),
    "first turns of another format": (source(profile="first-turn"), 1),
    "a scale of 32 by alpha / rank": (lora(rank=8, alpha=256), 0),
    "an rsLoRA scale of 90": (lora(rank=8, alpha=256, rslora=True), 1),
    "an rsLoRA scale of 64 and no more": (lora(rank=16, alpha=256, rslora=True), 0),
    "an rsLoRA scale just above 64": (lora(rank=16, alpha=256.5, rslora=True), 1),
    "PiSSA on 4 bits": (lora(init="pissa"), 1),
    "PiSSA on 16 bits": ({"training": {"method": "lora", "lora": {"init": "pissa"}}}, 0),
    "EVA going on from an adapter": ({"training": {"initFrom": "previous", "lora": {"init": "eva"}}}, 1),
    "DoRA and PiSSA for the CPU": (
        {"training": {"method": "lora", "lora": {"init": "pissa", "useDora": True}}, "rollout": {"engine": "cpu"}},
        1,
    ),
    "DoRA for TGI": (lora(useDora=True), 1),
    "DoRA for vLLM": (lora(useDora=True) | {"rollout": {"engine": "vllm"}}, 1),
    "DoRA for the CPU": (lora(useDora=True) | {"rollout": {"engine": "cpu"}}, 0),
    "DoRA merged": ({"training": {"merge": True, "lora": {"useDora": True}}}, 0),
    "saved modules for TGI": (lora(modulesToSave=["lm_head"]), 1),
    "no saved modules, said as an empty list": (lora(modulesToSave=[]), 0),
    "new tokens for TGI": (lora(newTokens=["<x>"]), 1),
    "a rank pattern for TGI": (lora(rankPattern={"q_proj": 4}), 1),
    "a rank pattern for vLLM": (lora(rankPattern={"q_proj": 4}) | {"rollout": {"engine": "vllm"}}, 0),
    "an alpha pattern for TGI": (lora(alphaPattern={"q_proj": 4}), 1),
    "some layers for TGI": (lora(layers=[0]), 1),
    "modules that TGI serves": (lora(targetModules=["q_proj", "model.layers.0.mlp.c_fc"]), 0),
    "a module that TGI drops": (lora(targetModules=["q_proj", "model.query_key_value"]), 1),
    "a module whose name ends like a served one": (lora(targetModules=["my_q_proj"]), 1),
    "a step of one kind": (steps({"quality": {}}), 0),
    "a profile": (steps({"use": "vicuna"}), 0),
    "a step of no kind": (steps({"sources": []}), 1),
    "a step of two kinds": (steps({"quality": {}}, {"quality": {}, "repetition": {}}), 1),
    "a canary's steps": ({"rollout": {"strategy": {"steps": [1, 50, 100]}}}, 0),
    "no canary": ({"rollout": {"strategy": {"steps": [100]}}}, 0),
    "steps that end early": ({"rollout": {"strategy": {"steps": [5, 50]}}}, 1),
    "steps that stand still": ({"rollout": {"strategy": {"steps": [5, 5, 100]}}}, 1),
    "steps that fall": ({"rollout": {"strategy": {"steps": [50, 5, 100]}}}, 1),
    "prompts": ({"evaluation": {"promptSets": [{"prompts": ["a"]}]}}, 0),
    "prompts and a file": ({"evaluation": {"promptSets": [{"prompts": ["a"], "uri": "b"}]}}, 1),
    "neither prompts nor a file": ({"evaluation": {"promptSets": [{"prompts": []}]}}, 1),
}


@pytest.mark.parametrize(("changes", "mistakes"), CASES.values(), ids=CASES.keys())
def test_a_rule_says_in_cel_what_it_says_in_python(changes: dict[str, Any], mistakes: int) -> None:
    raw = manifest(changes)
    said = refuse_by_cel(raw)
    assert said == refuse_by_rules(raw)
    assert len(said) == mistakes


def test_every_rule_on_a_spec_is_broken_by_some_case_of_the_table() -> None:
    broken = {
        normalise(r.message)
        for changes, _ in CASES.values()
        for r in find_refusals(JOB_SCHEMA, with_defaults(JOB_SCHEMA, manifest(changes)))
    }
    for rule in JOB_RULES:
        if rule.message and rule.place:
            assert normalise(rule.message) in broken, rule
    assert sum(1 for r in JOB_RULES if r.expression) <= len(broken)


@pytest.mark.parametrize(
    ("name", "is_right"),
    [("a" * 40, True), ("a" * 41, False), ("with-dashes", True), ("with.dots", False)],
)
def test_a_name_that_pods_can_not_carry_is_refused(name: str, is_right: bool) -> None:
    raw = manifest(name=name)
    assert (not refuse_by_cel(raw)) is is_right
    assert (validate_job(raw)[0] is not None) is is_right


def test_an_adapter_is_never_changed() -> None:
    spec = {"uri": "s3://a", "sha256": "0" * 64, "base": "b", "baseSha256": "c", "model": "m", "stopTokens": ["</s>"]}
    same = find_refusals(ADAPTER_SCHEMA, {"spec": spec}, {"spec": dict(spec)})
    changed = find_refusals(ADAPTER_SCHEMA, {"spec": spec | {"model": "other"}}, {"spec": spec})
    assert not same and len(changed) == 1 and "never changed" in changed[0].message


TEXTS = st.sampled_from([None, "", "x"])
MODULES = st.lists(st.sampled_from(["q_proj", "a.v_proj", "lm_head", "wq", ".c_fc", "q_proj."]), min_size=1, max_size=3)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Specs whose fields are right by themselves and fit together or not."""

    def choose(**options: st.SearchStrategy[Any]) -> dict[str, Any]:
        return {name: draw(option) for name, option in options.items() if draw(st.booleans())}

    formats = st.sampled_from(["alpaca", "dialog", "records"])
    columns = st.none() | st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("instruction", "input", "output", "messages"), TEXTS)
    )
    sources = [
        {"uri": "a", "format": draw(formats)}
        | choose(
            name=st.sampled_from([None, "x", "y"]),
            columns=columns,
            profile=st.sampled_from(["first-turn", "all-turns"]),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    shape = choose(
        rank=st.integers(1, 64),
        alpha=st.integers(1, 600) | st.floats(0.5, 600, width=32),
        rslora=st.booleans(),
        init=st.sampled_from(["default", "eva", "pissa"]),
        useDora=st.booleans(),
        modulesToSave=st.lists(st.just("lm_head"), max_size=1),
        newTokens=st.lists(st.just("<x>"), max_size=1),
        rankPattern=st.dictionaries(st.just("q"), st.just(4), max_size=1),
        alphaPattern=st.dictionaries(st.just("q"), st.just(4.5), max_size=1),
        layers=st.sampled_from([None, [0]]),
        targetModules=st.none() | MODULES,
    )
    return {
        "baseModel": choose(
            name=st.sampled_from([None, "a/b"]),
            uri=st.sampled_from([None, "u"]),
            revision=st.sampled_from([None, REVISION]),
        ),
        "data": {"sources": sources} | choose(evaluationFraction=st.sampled_from([0, 0.1, 0.5])),
        "training": {"lora": shape}
        | choose(
            method=st.sampled_from(["qlora", "lora"]),
            merge=st.booleans(),
            initFrom=st.sampled_from(["base", "previous"]),
        ),
        "rollout": choose(engine=st.sampled_from(["tgi", "vllm", "cpu"])),
        "evaluation": {
            "promptSets": [choose(prompts=st.lists(st.just("p"), max_size=1), uri=st.sampled_from([None, "u"]))]
        },
    }


@given(specs())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_cel_and_python_judge_any_spec_alike(spec: dict[str, Any]) -> None:
    raw = {**MINIMAL, "spec": spec}
    assert not list(JOB_VALIDATOR.iter_errors(raw))
    by_cel, by_rules = refuse_by_cel(raw), refuse_by_rules(raw)
    assert by_cel <= by_rules
    # Of several unserved modules or twins CEL names the first.
    assert {_without_names(m) for m in by_cel} == {_without_names(m) for m in by_rules}


def _without_names(message: str) -> str:
    message = re.sub(r"adapters of `[^`]*`", "adapters of a module", message)
    return re.sub(r"^`[^`]*` names another", "names another", message)
