"""The rules of a FineTuneJob in CEL, as `rules.py` says them in Python."""

from collections.abc import Iterator

from llamero.spec.cel import BASE_RULES, ITEMS, CelRule, Place, build_strategy_rules, filled, given, quote
from llamero.spec.rules import REFUSE_RSLORA_SCALE, SERVABLE_MODULES
from llamero.spec.steps import NO_KINDS, DataStep

MAX_JOB_NAME = 40

_SOURCE: Place = ("spec", "data", "sources", ITEMS)
_TRAINING: Place = ("spec", "training")
_TWINS = (
    f"self.sources.filter(a, {given('a.name')} ?"
    f" self.sources.filter(b, {given('b.name')} ? b.name == a.name : false).size() > 1 : false)"
)

# A source that is texts alone, and a step that writes their instructions.
_IS_TEXT = (
    f"s.format == 'records' && {given('s.columns')} && !{given('s.columns.messages')} && {filled('s.columns.output')}"
    f" && !{filled('s.columns.instruction')} && !{filled('s.columns.input')}"
)
_IS_LABELLED = (
    f"{given('self.steps')} && self.steps.exists(t, {given('t.backTranslate')} &&"
    f" (!{filled('t.sources')} || ({given('s.name')} && s.name in t.sources)))"
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
        f"self.format != 'records' || {given('self.columns')}",
        "format `records` needs `columns` with `instruction` and `output`, or `messages`",
        field=".columns",
    ),
    CelRule(
        _SOURCE,
        f"self.format == 'records' || !{given('self.columns')}",
        expression="'only format `records` has columns to map; `' + self.format + '` has fixed ones: remove it'",
        field=".columns",
    ),
    CelRule(
        _SOURCE,
        f"self.format != 'records' || !{given('self.columns')} || !{given('self.columns.messages')} || "
        f"!({filled('self.columns.instruction')} || {filled('self.columns.input')} || {filled('self.columns.output')})",
        "give either `messages`, or `instruction`, `input` and `output`",
        field=".columns",
    ),
    CelRule(
        _SOURCE,
        f"self.format != 'records' || !{given('self.columns')} || {given('self.columns.messages')} || "
        f"({filled('self.columns.output')} && ({filled('self.columns.instruction')} || !{filled('self.columns.input')}))",
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
        f"[{', '.join(given(f'self.{kind}') for kind in _STEP_KINDS)}].filter(k, k).size() == 1",
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
        f"{filled('self.prompts')} != {given('self.uri')}",
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
    ("modulesToSave", filled(f"{_LORA}.modulesToSave"), "modules saved in full", False),
    ("newTokens", filled(f"{_LORA}.newTokens"), "trained embeddings", False),
    ("rankPattern", filled(f"{_LORA}.rankPattern"), "ranks that differ between modules", True),
    ("alphaPattern", filled(f"{_LORA}.alphaPattern"), "alphas that differ between modules", True),
    ("layers", given(f"{_LORA}.layers"), "a module type that is missing in some layer", True),
)
"""Field of the adapter's shape, CEL for "it is set", what the engine drops, and whether TGI alone does (see rules.check_servable)."""


def _build_servable_rules() -> Iterator[CelRule]:
    for field, is_set, noun, tgi_alone in _UNSERVABLE:
        bound = f" || !({_IS_TGI})" if tgi_alone else ""
        yield CelRule(
            ("spec",),
            f"{_SERVES_ALL}{bound} || !{is_set}",
            expression=f"{_DROPS} + {quote(' ' + noun)} + ({_IS_TGI} ? ' without a word' : '') + {quote(': ' + _REMEDY)}",
            field=f".training.lora.{field}",
        )
    pattern = rf"^(.*[.])?({'|'.join(sorted(SERVABLE_MODULES))})$"
    unserved = f"{_LORA}.targetModules.filter(m, !m.matches({quote(pattern)}))"
    known = f"` (it serves {', '.join(sorted(SERVABLE_MODULES))}): {_REMEDY}"
    yield CelRule(
        ("spec",),
        f"{_SERVES_ALL} || ({given(f'{_LORA}.targetModules')} ? {unserved}.size() == 0 : true)",
        expression=f"{_DROPS} + ' adapters of `' + {unserved}[0] + {quote(known)}",
        field=".training.lora.targetModules",
    )


JOB_RULES: tuple[CelRule, ...] = (
    CelRule(
        (),
        f"self.metadata.name.size() <= {MAX_JOB_NAME} && !self.metadata.name.contains('.')",
        f"the name of a FineTuneJob has lower-case letters, digits and dashes, at most {MAX_JOB_NAME}: choose a shorter one, without dots",
    ),
    *BASE_RULES,
    *_DATA_RULES,
    *_STEP_RULES,
    *_TRAINING_RULES,
    *_build_servable_rules(),
    *_EVALUATION_RULES,
    *build_strategy_rules(("spec", "rollout", "strategy")),
)
