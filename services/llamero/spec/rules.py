"""Rules that span several fields of a FineTuneJob: each a small function, listed in a table, giving where, what and what to do.

A rule is pure: job in, problems out. `validation.py` runs them after the fields themselves are right.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from llamero.spec import address_rules, step_rules
from llamero.spec.job import SERVED_BY, BaseModelRef, DataFormat, DataSource, FineTuneJob
from llamero.spec.problems import Path as Path
from llamero.spec.problems import Problem as Problem
from llamero.spec.problems import Severity as Severity

WARN_SCALE = 16.0
REFUSE_RSLORA_SCALE = 64.0

# What text-generation-inference and vLLM load from an adapter; everything else TGI drops without a word.
SERVABLE_MODULES = frozenset(
    {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "qkv_proj",
        "gate_up_proj",
        "c_proj",
        "c_fc",
    }
)


def lora_scale(alpha: float, rank: int, rslora: bool) -> float:
    """The factor on the adapter's update: alpha / rank, with rsLoRA alpha / sqrt(rank)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def check_base(job: FineTuneJob) -> Iterator[Problem]:
    return check_base_model(job.spec.base_model, ("spec", "baseModel"))


def check_base_model(base: BaseModelRef, path: Path) -> Iterator[Problem]:
    """A base model is one thing, and a hub model pinned; for any manifest that names one."""
    if (base.name is None) == (base.uri is None):
        yield Problem(path, "give exactly one of `name` (a hub id) and `uri` (a folder)")
    if base.name is not None and base.revision is None:
        yield Problem(
            (*path, "revision"),
            "a hub model must be pinned: give the commit's 40 hex digits, so that the run can be repeated",
        )


def check_sources(job: FineTuneJob) -> Iterator[Problem]:
    names: set[str] = set()
    for index, source in enumerate(job.spec.data.sources):
        path: Path = ("spec", "data", "sources", index)
        if source.name is not None:
            if source.name in names:
                yield Problem((*path, "name"), f"`{source.name}` names another source already: choose another name")
            names.add(source.name)
        if source.format is DataFormat.RECORDS:
            yield from _check_columns(source.columns, path, _is_labelled_later(source, job))
        elif source.columns is not None:
            yield Problem(
                (*path, "columns"),
                f"only format `records` has columns to map; `{source.format}` has fixed ones: remove it",
            )
        if source.profile == "first-turn" and source.format is not DataFormat.DIALOG:
            yield Problem(
                (*path, "profile"),
                f"`first-turn` belongs to format `dialog`, and this source is `{source.format}`: remove it",
            )


def _is_labelled_later(source: DataSource, job: FineTuneJob) -> bool:
    """Whether a step writes the instructions of the source's texts."""
    steps = (s for s in job.spec.data.steps if s.back_translate is not None)
    return any(not s.sources or source.name in s.sources for s in steps)


def _check_columns(columns: Any, path: Path, is_labelled_later: bool) -> Iterator[Problem]:
    if columns is None:
        yield Problem(
            (*path, "columns"), "format `records` needs `columns` with `instruction` and `output`, or `messages`"
        )
        return
    if columns.messages is not None and (columns.instruction or columns.input or columns.output):
        yield Problem((*path, "columns"), "give either `messages`, or `instruction`, `input` and `output`")
    has_text = columns.output and not (columns.instruction or columns.input)
    if columns.messages is None and has_text and not is_labelled_later:
        yield Problem(
            (*path, "columns"),
            "`output` alone is a text without an instruction: name the column of `instruction`, or add a `backTranslate` step that writes it",
        )
        return
    if columns.messages is None and not has_text and not (columns.instruction and columns.output):
        yield Problem((*path, "columns"), "name the columns of `instruction` and `output`, or of `messages`")


def check_lora_scale(job: FineTuneJob) -> Iterator[Problem]:
    lora = job.spec.training.lora
    scale = lora_scale(lora.alpha, lora.rank, lora.rslora)
    path = ("spec", "training", "lora", "alpha")
    formula = "alpha / sqrt(rank)" if lora.rslora else "alpha / rank"
    figures = f"alpha {lora.alpha:g} at rank {lora.rank} scales the update by {scale:.4g} ({formula})"
    if lora.rslora and scale > REFUSE_RSLORA_SCALE:
        limit = REFUSE_RSLORA_SCALE * math.sqrt(lora.rank)
        yield Problem(
            path, f"{figures}, which diverges: with rsLoRA keep alpha at or below {limit:.4g}, or set `rslora: false`"
        )
    elif scale > WARN_SCALE:
        yield Problem(
            path,
            f"{figures}; above {WARN_SCALE:g} training is often unstable: lower alpha or the learning rate if the loss jumps",
            Severity.WARNING,
        )


def check_initialisation(job: FineTuneJob) -> Iterator[Problem]:
    training = job.spec.training
    if training.lora.init == "pissa" and training.method != "lora":
        yield Problem(
            ("spec", "training", "lora", "init"),
            "`pissa` changes the base's weights and fails on 4-bit ones: use `method: lora`, or `init: eva`",
        )
    if training.lora.init != "default" and training.init_from != "base":
        yield Problem(
            ("spec", "training", "lora", "init"),
            f"`{training.lora.init}` starts an adapter anew, and `initFrom: {training.init_from}` goes on from one: keep one of them",
        )
    if training.lora.use_dora and training.lora.init == "pissa":
        yield Problem(
            ("spec", "training", "lora", "useDora"), "DoRA and `init: pissa` can't be combined: keep one of them"
        )


def check_servable(job: FineTuneJob) -> Iterator[Problem]:
    """What the engine would drop in silence, said before a GPU hour is spent (DESIGN: engines)."""
    engine = job.spec.rollout.engine
    if engine == "cpu" or job.spec.training.merge:
        return
    lora = job.spec.training.lora
    path: Path = ("spec", "training", "lora")
    remedy = "remove it, set `training.merge: true` to serve merged weights, or set `rollout.engine: cpu`"
    what = {"tgi": "text-generation-inference drops", "vllm": "vLLM refuses"}[engine]
    unservable: list[tuple[str, bool, str]] = [
        ("useDora", lora.use_dora, "DoRA's magnitudes"),
        ("modulesToSave", bool(lora.modules_to_save), "modules saved in full"),
        ("newTokens", bool(lora.new_tokens), "trained embeddings"),
        ("rankPattern", bool(lora.rank_pattern) and engine == "tgi", "ranks that differ between modules"),
        ("alphaPattern", bool(lora.alpha_pattern) and engine == "tgi", "alphas that differ between modules"),
        ("layers", lora.layers is not None and engine == "tgi", "a module type that is missing in some layer"),
    ]
    for field, is_set, noun in unservable:
        if is_set:
            yield Problem((*path, field), f"{what} {noun}{' without a word' if engine == 'tgi' else ''}: {remedy}")
    for index, module in enumerate(lora.target_modules or []):
        if module.rsplit(".", 1)[-1] not in SERVABLE_MODULES:
            yield Problem(
                (*path, "targetModules", index),
                f"{what} adapters of `{module}` (it serves {', '.join(sorted(SERVABLE_MODULES))}): {remedy}",
            )


def check_prompt_sets(job: FineTuneJob) -> Iterator[Problem]:
    for index, prompts in enumerate(job.spec.evaluation.prompt_sets):
        if bool(prompts.prompts) == (prompts.uri is not None):
            yield Problem(("spec", "evaluation", "promptSets", index), "give either `prompts` or `uri`")


def check_evaluation(job: FineTuneJob) -> Iterator[Problem]:
    if job.spec.data.evaluation_fraction == 0:
        yield Problem(
            ("spec", "data", "evaluationFraction"),
            "0 holds nothing out, and the gate needs something to measure on: give a share above 0, such as 0.05",
        )


def check_resources(job: FineTuneJob) -> Iterator[Problem]:
    training = job.spec.training
    if training.optimizer != "adamw" and training.resources.gpus == 0:
        yield Problem(
            ("spec", "training", "optimizer"),
            f"`{training.optimizer}` needs a GPU; on CPU `adamw` is used instead",
            Severity.WARNING,
        )


RULES: tuple[Callable[[FineTuneJob], Iterator[Problem]], ...] = (
    check_base,
    check_sources,
    check_lora_scale,
    check_initialisation,
    check_servable,
    check_prompt_sets,
    check_evaluation,
    check_resources,
    address_rules.check_addresses,
    step_rules.check_steps,
    step_rules.check_scores,
    step_rules.check_best,
    step_rules.check_counts,
    step_rules.check_controls,
    step_rules.check_asking,
    step_rules.check_judges_cost,
    step_rules.check_terms,
    step_rules.check_templates,
)


def find_cluster_only_fields(job: FineTuneJob) -> list[str]:
    """Fields that are set and that only the operator serves, as dotted paths."""

    def walk(model: Any, prefix: str) -> Iterator[str]:
        for name, info in type(model).model_fields.items():
            if name not in model.model_fields_set:
                continue
            path = f"{prefix}.{info.alias or name}"
            if isinstance(info.json_schema_extra, dict) and SERVED_BY in info.json_schema_extra:
                yield path
            elif hasattr(type(getattr(model, name)), "model_fields"):
                yield from walk(getattr(model, name), path)

    return list(walk(job.spec, "spec"))
