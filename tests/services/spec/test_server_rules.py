"""What a ModelServer may say: the rules in Python and CEL agree, and options that would break serving are refused by name."""

from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services.spec.cel import find_refusals
from services.spec.test_crd import REVISION, SERVER_SCHEMA, _without_empty, merge, to_draft_4, with_defaults

from llamero.spec.engine_args import RESERVED, find_wrong_args
from llamero.spec.problems import Severity
from llamero.spec.server import EngineType, ModelServer, ModelServerSpec
from llamero.spec.server_cel import SERVER_RULES
from llamero.spec.validation import validate_server

Raw = dict[str, Any]

MINIMAL: Raw = {
    "apiVersion": "llamero.dev/v1alpha1",
    "kind": "ModelServer",
    "metadata": {"name": "server"},
    "spec": {"baseModel": {"uri": "s3://models/base"}},
}
VALIDATOR = jsonschema.Draft4Validator(to_draft_4(SERVER_SCHEMA))


def manifest(spec: Raw | None = None, name: str = "server") -> Raw:
    merged: Raw = merge(MINIMAL, {"metadata": {"name": name}, "spec": spec or {}})
    return merged


def by_cel(raw: Raw) -> set[str]:
    return {normalise(r.message) for r in find_refusals(SERVER_SCHEMA, with_defaults(SERVER_SCHEMA, raw))}


def by_python(raw: Raw) -> set[str]:
    return {normalise(p.message) for p in validate_server(raw)[1] if p.severity is Severity.ERROR}


def normalise(message: str) -> str:
    """The model tells the steps that it was given; CEL can't format a list."""
    return "steps must rise" if message.startswith("steps must rise") else message


def named(**entry: Any) -> Raw:
    return {"models": [{"name": "tutor", **entry}]}


CASES: dict[str, tuple[Raw, int]] = {
    "a folder": ({}, 0),
    "a pinned hub model": ({"baseModel": {"uri": None, "name": "a/b", "revision": REVISION}}, 0),
    "a hub model without a commit": ({"baseModel": {"uri": None, "name": "a/b"}}, 1),
    "both a hub model and a folder": ({"baseModel": {"name": "a/b", "revision": REVISION}}, 1),
    "neither a hub model nor a folder": ({"baseModel": {"uri": None}}, 1),
    "a range of replicas": ({"autoscaling": {"minReplicas": 2, "maxReplicas": 2}}, 0),
    "a range of replicas upside down": ({"autoscaling": {"minReplicas": 5}}, 1),
    "a window for a recreate": ({"updateStrategy": "Recreate", "window": {"schedule": "0 3 * * *"}}, 0),
    "a window for a rolling update": ({"window": {"schedule": "0 3 * * *"}}, 1),
    "a name answered by the base": (named(base=True), 0),
    "a base with an adapter": (named(base=True, adapter="a"), 1),
    "a base with a promotion": (named(base=True, promote="a"), 1),
    "a base with a rollback": (named(base=True, rollback=["a"]), 1),
    "a base with an empty list of rollbacks": (named(base=True, rollback=[]), 0),
    "a pin": (named(adapter="a", promote="a"), 0),
    "a strategy": ({"strategy": {"steps": [1, 10, 100]}}, 0),
    "no canary": ({"strategy": {"steps": [100]}}, 0),
    "a strategy that ends early": ({"strategy": {"steps": [5, 50]}}, 1),
    "a strategy that falls": ({"strategy": {"steps": [50, 5, 100]}}, 1),
    "a strategy of sixteen steps": ({"strategy": {"steps": [*range(1, 16), 100]}}, 0),
    "a strategy whose last but one is too high": ({"strategy": {"steps": [*range(1, 15), 100, 100]}}, 1),
    "a name's own strategy": (named(strategy={"steps": [100]}), 0),
    "a name's own strategy that stands still": (named(strategy={"steps": [5, 5, 100]}), 1),
    "the cpu engine": ({"engine": {"type": "cpu"}, "resources": {"gpus": 0}}, 0),
    "the cpu engine on a GPU": ({"engine": {"type": "cpu"}, "resources": {"gpus": 1}}, 1),
    "the cpu engine on a class of GPUs": ({"engine": {"type": "cpu"}, "resources": {"gpuClass": "spot"}}, 1),
    "TGI in float32": ({"engine": {"dtype": "float32"}}, 1),
    "TGI in float16": ({"engine": {"dtype": "float16"}}, 0),
    "TGI in float16 and four bits": ({"engine": {"dtype": "float16", "quantization": "nf4"}}, 1),
    "vLLM in bfloat16 and four bits": (
        {"engine": {"type": "vllm", "dtype": "bfloat16", "quantization": "nf4"}},
        0,
    ),
    "the cpu engine in float16": ({"engine": {"type": "cpu", "dtype": "float16"}}, 1),
    "the cpu engine in float32": ({"engine": {"type": "cpu", "dtype": "float32"}}, 0),
}


@pytest.mark.parametrize(("spec", "mistakes"), CASES.values(), ids=CASES.keys())
def test_a_rule_says_in_cel_what_it_says_in_python(spec: Raw, mistakes: int) -> None:
    raw = manifest(spec)
    said = by_cel(raw)
    assert said == by_python(raw)
    assert len(said) == mistakes


HUB: Raw = {"uri": None, "name": "a/b", "revision": REVISION}
CHANGES: dict[str, tuple[Raw, Raw, int]] = {
    "nothing": ({}, {}, 0),
    "another secret": ({"baseModel": HUB}, {"baseModel": {**HUB, "secretRef": {"name": "token", "key": "token"}}}, 0),
    "another folder": ({}, {"baseModel": {"uri": "s3://models/other"}}, 1),
    "a hub model for a folder": ({}, {"baseModel": HUB}, 3),
    "another commit": ({"baseModel": HUB}, {"baseModel": {**HUB, "revision": "b" * 40}}, 1),
    "another engine": ({}, {"engine": {"type": "vllm"}}, 1),
    "other arguments": ({}, {"engine": {"args": ["--trust"]}}, 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_base_and_engine_of_a_server_never_change(change: str) -> None:
    before, after, count = CHANGES[change]
    old, new = (with_defaults(SERVER_SCHEMA, manifest(spec)) for spec in (before, after))
    refusals = [r for r in find_refusals(SERVER_SCHEMA, new, old) if "never changes" in r.message]
    assert len(refusals) == count, refusals


def test_every_rule_on_a_spec_is_broken_by_some_case_of_the_table() -> None:
    broken = {
        message
        for spec, _ in CASES.values()
        for message in (r.message for r in find_refusals(SERVER_SCHEMA, with_defaults(SERVER_SCHEMA, manifest(spec))))
    }
    for rule in SERVER_RULES:
        if rule.message and rule.place and "oldSelf" not in rule.rule:
            assert rule.message in broken, rule
    assert any(m.startswith("must be at most maxReplicas") for m in broken)
    assert any(m.startswith("the tgi engine does not serve float32") for m in broken)


@pytest.mark.parametrize(
    ("name", "is_right"), [("a" * 40, True), ("a" * 41, False), ("with-dashes", True), ("with.dots", False)]
)
def test_a_name_that_pods_can_not_carry_is_refused(name: str, is_right: bool) -> None:
    raw = manifest(name=name)
    assert (not by_cel(raw)) is is_right
    assert (validate_server(raw)[0] is not None) is is_right


def test_a_public_name_stands_in_the_list_once() -> None:
    models = SERVER_SCHEMA["properties"]["spec"]["properties"]["models"]
    assert (models["x-kubernetes-list-type"], models["x-kubernetes-list-map-keys"]) == ("map", ["name"])
    server, problems = validate_server(manifest({"models": [{"name": "tutor"}, {"name": "tutor", "paused": True}]}))
    assert server is None
    assert [(p.path, p.message[:12]) for p in problems] == [(("spec", "models", 1, "name"), "`tutor` stan")]


def test_the_servers_defaults_are_the_models() -> None:
    filled = with_defaults(SERVER_SCHEMA, MINIMAL)
    assert ModelServer.model_validate(filled).spec == ModelServer.model_validate(MINIMAL).spec
    model = ModelServerSpec.model_validate(MINIMAL["spec"]).to_json_dict()
    assert _without_empty(filled["spec"]) == _without_empty(model)


def test_the_minimal_manifest_of_these_tests_is_right_itself() -> None:
    assert not list(VALIDATOR.iter_errors(MINIMAL)) and not by_cel(MINIMAL)
    assert validate_server(MINIMAL) == (ModelServer.model_validate(MINIMAL), [])


STEPS = st.lists(st.sampled_from([1, 5, 50, 99, 100]), min_size=1, max_size=5)


@st.composite
def specs(draw: st.DrawFn) -> Raw:
    """Specs whose fields are right by themselves and fit together or not."""

    def choose(**options: st.SearchStrategy[Any]) -> Raw:
        return {name: draw(option) for name, option in options.items() if draw(st.booleans())}

    names = draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=3, unique=True))
    models = [
        {"name": name}
        | choose(
            base=st.booleans(),
            adapter=st.none() | st.just("x"),
            promote=st.none() | st.just("x"),
            rollback=st.lists(st.just("y"), max_size=1),
            strategy=STEPS.map(lambda steps: {"steps": steps}),
        )
        for name in names
    ]
    return {
        "baseModel": choose(
            name=st.none() | st.just("a/b"), uri=st.none() | st.just("s3://u"), revision=st.none() | st.just(REVISION)
        ),
        "engine": choose(
            type=st.sampled_from(["tgi", "vllm", "cpu"]),
            dtype=st.sampled_from([None, "float32", "float16", "bfloat16"]),
            quantization=st.none() | st.just("nf4"),
        ),
        "resources": choose(gpus=st.none() | st.integers(0, 2), gpuClass=st.none() | st.just("spot")),
        "models": models,
        **choose(
            autoscaling=st.none()
            | st.fixed_dictionaries({}, optional={"minReplicas": st.integers(1, 6), "maxReplicas": st.integers(1, 6)}),
            updateStrategy=st.sampled_from(["RollingUpdate", "Recreate"]),
            window=st.none() | st.just({"schedule": "0 3 * * *"}),
            strategy=STEPS.map(lambda steps: {"steps": steps}),
        ),
    }


@given(specs())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_cel_and_python_judge_any_spec_alike(spec: Raw) -> None:
    raw = {**MINIMAL, "spec": spec}
    assert not list(VALIDATOR.iter_errors(raw))
    assert (not by_cel(raw)) == (not by_python(raw))
    if "steps must rise" not in by_python(raw):  # a rule is not asked about a field that is wrong by itself
        assert by_cel(raw) == by_python(raw)


# -- what only Python says -----------------------------------------------------------------------------------------------------


def problems_of(spec: Raw) -> list[tuple[tuple[str | int, ...], str, Severity]]:
    return [(p.path, p.message, p.severity) for p in validate_server(manifest(spec))[1]]


def test_every_wrong_field_is_told_with_its_place() -> None:
    raw = manifest({"engine": {"typ": "tgi"}, "replicas": -1, "models": [{"name": "no blanks"}]})
    told = {p.path: p.message for p in validate_server(raw)[1]}
    assert told[("spec", "engine", "typ")] == "unknown field `typ`: did you mean `type`?"
    assert told[("spec", "replicas")] == "must be at least 0, not -1"
    assert ("spec", "models", 0, "name") in told


def test_a_manifest_of_another_kind_is_told_what_to_write() -> None:
    told = {p.path: p.message for p in validate_server(MINIMAL | {"kind": "Server", "metadata": {}})[1]}
    assert told[("kind",)].startswith("must be 'ModelServer', not 'Server'")
    assert told[("metadata", "name")] == "`name` is missing"
    server, problems = validate_server([])
    assert server is None and "not a list" in problems[0].message


def test_steps_are_told_without_the_name_of_a_python_exception() -> None:
    ((path, message, _),) = problems_of({"strategy": {"steps": [5, 3]}})
    assert path == ("spec", "strategy")
    assert message == "steps must rise and end with 100, not [5, 3]: such as [5, 25, 50, 100]"


def test_a_base_over_plain_http_or_with_a_password_is_refused() -> None:
    ((path, message, _),) = problems_of({"baseModel": {"uri": "http://models/base"}})
    assert (path, message) == (("spec", "baseModel", "uri"), "http is not encrypted: use https")
    ((_, message, _),) = problems_of({"baseModel": {"uri": "https://user:hunter2@models/base"}})
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("room", "pins", "severity"),
    [(8, 3, None), (3, 2, None), (2, 2, Severity.WARNING), (1, 0, Severity.WARNING), (1, 2, Severity.ERROR)],
)
def test_a_pod_needs_room_for_what_is_pinned_and_for_one_more(room: int, pins: int, severity: Severity | None) -> None:
    models = [{"name": f"m{i}", "adapter": f"a{i}"} for i in range(pins)]
    told = problems_of({"engine": {"maxAdapters": room}, "models": models})
    assert [s for _, _, s in told] == ([severity] if severity else [])


def test_a_retired_name_needs_no_room() -> None:
    models = [{"name": "a", "adapter": "a"}, {"name": "b", "adapter": "b", "retired": True}]
    assert not problems_of({"engine": {"maxAdapters": 2}, "models": models})


def test_a_rollback_that_a_pin_or_a_promotion_contradicts_is_told_and_accepted() -> None:
    told = problems_of(named(adapter="a", rollback=["a"])) + problems_of(named(promote="b", rollback=["b"]))
    assert [s for _, _, s in told] == [Severity.WARNING, Severity.WARNING]
    assert validate_server(manifest(named(adapter="a", rollback=["a"])))[0] is not None


REFUSED: list[tuple[EngineType, list[str], str]] = [
    ("tgi", ["--model-id=other"], "--model-id"),
    ("tgi", ["--max-batch-size=4", "--port", "80"], "--port"),
    ("tgi", ["-p", "80"], "-p"),
    ("tgi", ["-p80"], "-p80"),
    ("tgi", ["--hostname=0.0.0.0"], "--hostname"),
    ("tgi", ["--lora-adapters=a"], "--lora-adapters"),
    ("tgi", ["--trust-remote-code"], "--trust-remote-code"),
    ("tgi", ["--env"], "--env"),
    ("vllm", ["--enable-lora"], "--enable-lora"),
    ("vllm", ["--no-enable-lora"], "--no-enable-lora"),
    ("vllm", ["--max_loras=3"], "--max_loras"),
    ("vllm", ["--max-lora-rank=8"], "--max-lora-rank"),
    ("vllm", ["--model", "other"], "--model"),
    ("vllm", ["--hos=0.0.0.0"], "--hos"),
    ("vllm", ["--ssl-keyfile=k"], "--ssl-keyfile"),
    ("vllm", ["-tp4"], "-tp4"),
    ("vllm", ["--config=file.yaml"], "--config"),
    ("vllm", ["--middleware=my.module"], "--middleware"),
    ("vllm", ["--shutdown-timeout=0"], "--shutdown-timeout"),
    ("cpu", ["--base=/x"], "--base"),
    ("cpu", ["--adapter=a=/x"], "--adapter"),
    ("cpu", ["--ho", "0.0.0.0"], "--ho"),
]


@pytest.mark.parametrize(("engine", "args", "named_option"), REFUSED)
def test_an_option_that_llamero_sets_is_refused_by_name(engine: EngineType, args: list[str], named_option: str) -> None:
    ((path, message, severity),) = problems_of({"engine": {"type": engine, "args": args}})
    assert path[:3] == ("spec", "engine", "args") and severity is Severity.ERROR
    assert message.startswith(f"`{named_option}` can't be set: ")


@pytest.mark.parametrize(
    ("engine", "args"),
    [
        ("tgi", ["--max-batch-prefill-tokens=4096", "--cuda-graphs", "1,2"]),
        ("vllm", ["--gpu-memory-utilization=0.8", "--enforce-eager", "--max-num-seqs", "64"]),
        ("vllm", ["--compilation-config.level", "3"]),
        ("cpu", ["--max-batch=4", "--threads", "2"]),
    ],
)
def test_further_options_of_the_launcher_are_let_through(engine: EngineType, args: list[str]) -> None:
    assert not problems_of({"engine": {"type": engine, "args": args}})


@pytest.mark.parametrize("args", [["other-model"], ["--enforce-eager", "--", "other"]])
def test_what_is_no_option_is_refused(args: list[str]) -> None:
    ((_, message, _),) = problems_of({"engine": {"type": "vllm", "args": args}})
    assert message.startswith(("`other-model` is no option", "`--` ends the options"))


@pytest.mark.parametrize("engine", ["tgi", "vllm", "cpu"])
def test_each_reserved_option_is_refused_as_it_stands_and_with_a_value(engine: EngineType) -> None:
    for option in RESERVED[engine]:
        for arg in (option, f"{option}=1"):
            assert list(find_wrong_args(engine, [arg])), arg
