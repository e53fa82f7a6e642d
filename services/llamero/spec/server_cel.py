"""The rules of a ModelServer in CEL, as `server_rules.py` says them in Python; engine options are the operator's alone to check."""

from llamero.spec import names
from llamero.spec.cel import BASE_RULES, ITEMS, CelRule, Place, build_strategy_rules, filled, given

_SPEC: Place = ("spec",)
_MODEL: Place = ("spec", "models", ITEMS)

_ENGINE_RULES = (
    CelRule(
        _SPEC,
        f"self.engine.type != 'cpu' || !{given('self.resources.gpus')} || self.resources.gpus == 0",
        "the cpu engine uses no GPU: remove it, or choose the engine `tgi` or `vllm`",
        field=".resources.gpus",
    ),
    CelRule(
        _SPEC,
        f"self.engine.type != 'cpu' || !{given('self.resources.gpuClass')}",
        "the cpu engine uses no GPU: remove it, or choose the engine `tgi` or `vllm`",
        field=".resources.gpuClass",
    ),
    CelRule(
        ("spec", "engine"),
        f"!{given('self.dtype')} || !((self.type == 'tgi' && self.dtype == 'float32') || (self.type == 'cpu' && self.dtype == 'float16'))",
        expression="'the ' + self.type + ' engine does not serve ' + self.dtype + ': use bfloat16, or remove it'",
        field=".dtype",
    ),
    CelRule(
        ("spec", "engine"),
        f"self.type != 'tgi' || !{given('self.dtype')} || !{given('self.quantization')}",
        "text-generation-inference takes no dtype beside a quantization: remove one of them",
        field=".dtype",
    ),
)

_FIXED_RULES = (
    *(
        CelRule(
            ("spec", "baseModel"),
            f"{given(f'self.{field}')} == {given(f'oldSelf.{field}')} && (!{given(f'self.{field}')} || self.{field} == oldSelf.{field})",
            "the base of a ModelServer never changes: make another ModelServer for the new one",
            field=f".{field}",
        )
        for field in ("name", "uri", "revision")
    ),
    CelRule(
        ("spec", "engine"),
        "self.type == oldSelf.type",
        "the engine of a ModelServer never changes: make another ModelServer for the new one",
        field=".type",
    ),
)

_SCALE_RULES = (
    CelRule(
        ("spec", "autoscaling"),
        "self.minReplicas <= self.maxReplicas",
        expression="'must be at most maxReplicas (' + string(self.maxReplicas) + '), not ' + string(self.minReplicas)",
        field=".minReplicas",
    ),
    CelRule(
        _SPEC,
        f"!{given('self.window')} || self.updateStrategy == 'Recreate'",
        "a window belongs to `updateStrategy: Recreate`, and pods are replaced one beside the other here: remove it, or choose Recreate",
        field=".window",
    ),
)

_NAME_RULES = (
    CelRule(
        _MODEL,
        f"!self.base || !{given('self.adapter')}",
        "`base: true` answers without an adapter: remove one of the two",
        field=".adapter",
    ),
    CelRule(
        _MODEL,
        f"!self.base || !{given('self.promote')}",
        "`base: true` answers without an adapter, and there is none to promote: remove one of the two",
        field=".promote",
    ),
    CelRule(
        _MODEL,
        f"!self.base || !{filled('self.rollback')}",
        "`base: true` answers without an adapter, and there is none to roll back: remove one of the two",
        field=".rollback",
    ),
)

SERVER_RULES: tuple[CelRule, ...] = (
    CelRule(
        (),
        f"self.metadata.name.size() <= {names.MAX_SERVER_NAME} && !self.metadata.name.contains('.')",
        f"the name of a ModelServer has lower-case letters, digits and dashes, at most {names.MAX_SERVER_NAME}: choose a shorter one, "
        "without dots",
    ),
    *BASE_RULES,
    *_ENGINE_RULES,
    *_FIXED_RULES,
    *_SCALE_RULES,
    *_NAME_RULES,
    *build_strategy_rules(("spec", "strategy")),
    *build_strategy_rules((*_MODEL, "strategy")),
)
