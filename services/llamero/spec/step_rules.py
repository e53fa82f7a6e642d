"""Rules over a manifest's data steps, sources' terms and controls: each a small function, giving where, what and what to do.

Pure, as `rules.py`, whose table holds them; the steps' own fields stand in `steps.py`.
"""

import difflib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from llamero.spec.job import DataSpec, FineTuneJob
from llamero.spec.problems import Path, Problem, Severity
from llamero.spec.profiles import CHOOSING_KINDS, PROFILES, PlannedStep, plan_steps
from llamero.spec.steps import DataStep, Embedding, LanguageModel

_STEPS: Path = ("spec", "data", "steps")
_COMPUTED_SCORES = frozenset({"promptWords", "answerWords", "answerCharacters"})
_SOURCE_SCORES = frozenset({"sourceScore", "questionScore"})
_SET_SCORES = frozenset({"neighbourDistance", "rarity"})


def check_steps(job: FineTuneJob) -> Iterator[Problem]:
    """Each step by itself: one kind, a profile that is known, sources that are there, an embedding that can be made."""
    data = job.spec.data
    for index, step in enumerate(data.steps):
        path: Path = (*_STEPS, index)
        if len(step.kinds) != 1:
            found = f"this one has {' and '.join(f'`{k}`' for k in step.kinds)}" if step.kinds else "this one has none"
            yield Problem(path, f"a step has exactly one kind, and {found}: make a step of each")
            continue
        yield from _check_use(step, path)
        yield from _check_step_sources(step, data, path)
        embedding = getattr(step.options, "embedding", None)
        if isinstance(embedding, Embedding):
            yield from _check_embedding(embedding, (*path, step.kind, "embedding"))


def _check_use(step: DataStep, path: Path) -> Iterator[Problem]:
    if step.use is None:
        if step.models:
            yield Problem((*path, "models"), f"`models` belongs to `use`; a `{step.kind}` step names its own: move it")
        return
    if step.use not in PROFILES:
        near = difflib.get_close_matches(step.use, PROFILES, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(sorted(PROFILES))}"
        yield Problem((*path, "use"), f"`{step.use}` is no profile: {hint}")
        return
    asks = any(options.get("models") == [] for raw in PROFILES[step.use] for options in raw.values())
    if asks and not step.models:
        yield Problem(
            (*path, "models"), f"the profile `{step.use}` asks language models: name at least one in `models`"
        )
    if step.models and not asks:
        yield Problem((*path, "models"), f"the profile `{step.use}` asks no language model: remove `models`")


def _check_step_sources(step: DataStep, data: DataSpec, path: Path) -> Iterator[Problem]:
    names = [source.name for source in data.sources if source.name is not None]
    for number, name in enumerate(step.sources):
        if name not in names:
            known = f"the named ones are {', '.join(names)}" if names else "no source has a `name`"
            yield Problem((*path, "sources", number), f"`{name}` names no source ({known}): give the source this name")


def _check_embedding(embedding: Embedding, path: Path) -> Iterator[Problem]:
    if embedding.kind == "local" and embedding.uri is None:
        yield Problem((*path, "uri"), "an embedding of kind `local` needs the folder of its model in `uri`")
    if embedding.kind == "endpoint" and embedding.model is None:
        yield Problem((*path, "model"), "an embedding of kind `endpoint` needs the endpoint in `model`")


def check_scores(job: FineTuneJob) -> Iterator[Problem]:
    """A score that is asked for must have been made by an earlier step, stand in the source, or be computed from the record."""
    planned = _plan(job)
    made = _COMPUTED_SCORES | _SOURCE_SCORES
    for step in planned:
        for name in _find_wanted_scores(step):
            own = _SET_SCORES if step.kind in ("rank", "mining") else frozenset()
            if name not in made | own:
                yield Problem(
                    _locate(step),
                    f"`{step.kind}` asks for the score `{name}`, which no earlier step makes (there are "
                    f"{', '.join(sorted(made | own))}): put the step that makes it before, or use one of these",
                )
        made = made | _find_made_scores(step)


def _find_wanted_scores(step: PlannedStep) -> list[str]:
    options = step.options
    match step.kind:
        case "threshold":
            return [options.score]
        case "diversity":
            return list(options.scores)
        case "rank":
            return list(options.weights)
        case "mining":
            return list(options.coefficients)
        case "sample":
            return [options.order]
        case "duplicates" | "nearDuplicates":
            return [options.score] if options.keep == "best" and options.score else []
    return []


def _find_made_scores(step: PlannedStep) -> frozenset[str]:
    if step.kind == "judge":
        return frozenset({step.options.score})
    if step.kind == "score":
        return frozenset(step.options.indicators)
    return frozenset()


def check_best(job: FineTuneJob) -> Iterator[Problem]:
    for index, step in enumerate(job.spec.data.steps):
        for kind, options in (("duplicates", step.duplicates), ("nearDuplicates", step.near_duplicates)):
            if options is not None and (options.keep == "best") != (options.score is not None):
                yield Problem(
                    (*_STEPS, index, kind, "score"), "`keep: best` and `score` belong together: give both or none"
                )


def check_counts(job: FineTuneJob) -> Iterator[Problem]:
    """A choice by share or by number: exactly one."""
    for index, step in enumerate(job.spec.data.steps):
        if step.random is not None and (step.random.fraction is None) == (step.random.records is None):
            yield Problem((*_STEPS, index, "random"), "give exactly one of `fraction` and `records`")
        if step.length is not None and step.length.min is None and step.length.max is None:
            yield Problem((*_STEPS, index, "length"), "give `min`, `max` or both")
        if step.threshold is not None and step.threshold.min is None and step.threshold.max is None:
            yield Problem((*_STEPS, index, "threshold"), "give `min`, `max` or both")


def check_controls(job: FineTuneJob) -> Iterator[Problem]:
    controls = job.spec.data.controls
    if controls is None:
        return
    path: Path = ("spec", "data", "controls")
    if not controls.random and not controls.thresholds:
        yield Problem(path, "it asks for no control: set `random: true`, or give `thresholds`")
    if len(set(controls.thresholds)) != len(controls.thresholds):
        yield Problem((*path, "thresholds"), "a threshold stands there twice: give each once")
    if not any(step.kind in CHOOSING_KINDS for step in _plan(job)):
        kinds = ", ".join(f"`{k}`" for k in sorted(CHOOSING_KINDS | {"judge"}))
        yield Problem(
            path, f"controls stand beside a step that chooses ({kinds}), and there is none: add one, or remove it"
        )


def check_asking(job: FineTuneJob) -> Iterator[Problem]:
    """Endpoints: https, unless the manifest allows http or the host is this machine."""
    data = job.spec.data
    for path, model in _list_models(job):
        is_near = model.url.startswith(("http://127.", "http://localhost", "http://[::1]"))
        if not model.url.startswith("https://") and not (
            model.url.startswith("http://") and (data.allow_http or is_near)
        ):
            yield Problem(
                (*path, "url"), "a key and the data would travel in the open: use https://, or set `data.allowHttp`"
            )


def _list_models(job: FineTuneJob) -> Iterator[tuple[Path, LanguageModel]]:
    for index, source in enumerate(job.spec.data.sources):
        if source.generate is not None:
            yield ("spec", "data", "sources", index, "generate", "model"), source.generate.model
    for index, step in enumerate(job.spec.data.steps):
        for number, model in enumerate(step.models):
            yield (*_STEPS, index, "models", number), model
        if len(step.kinds) != 1 or step.use is not None:
            continue
        options, path = step.options, (*_STEPS, index, step.kind)
        own = getattr(options, "model", None)
        if isinstance(own, LanguageModel):
            yield (*path, "model"), own
        for number, model in enumerate(getattr(options, "models", [])):
            yield (*path, "models", number), model
        embedding = getattr(options, "embedding", None)
        if isinstance(embedding, Embedding) and embedding.model is not None:
            yield (*path, "embedding", "model"), embedding.model


def check_terms(job: FineTuneJob) -> Iterator[Problem]:
    """What the job refuses by licence and terms."""
    data = job.spec.data
    allowed = {name.casefold() for name in data.allowed_licenses}
    for index, source in enumerate(data.sources):
        path: Path = ("spec", "data", "sources", index)
        if allowed and (source.license is None or source.license.casefold() not in allowed):
            said = f"`{source.license}`" if source.license else "not stated"
            yield Problem(
                (*path, "license"),
                f"the licence is {said}, and data.allowedLicenses allows {', '.join(data.allowed_licenses)}: "
                "remove the source, state its licence, or allow it",
            )
        for refused in data.refused_terms:
            if source.terms and refused.casefold() in source.terms.casefold():
                yield Problem(
                    (*path, "terms"), f"the terms hold `{refused}`, which data.refusedTerms refuses: remove the source"
                )


def check_templates(job: FineTuneJob) -> Iterator[Problem]:
    if job.spec.data.template_variants and job.spec.data.template != "alpaca":
        yield Problem(
            ("spec", "data", "templateVariants"),
            f"variants are wordings of the template `alpaca`, and this job's is `{job.spec.data.template}`: set `template: alpaca`",
        )


def check_judges_cost(job: FineTuneJob) -> Iterator[Problem]:
    for path, model in _list_models(job):
        has_price = model.price_per_million_input_tokens > 0 or model.price_per_million_output_tokens > 0
        if model.max_cost is not None and not has_price:
            yield Problem(
                (*path, "maxCost"),
                "a cost can't be counted without prices: give pricePerMillionInputTokens and pricePerMillionOutputTokens, or maxTotalTokens",
            )
        if has_price and model.max_cost is None and model.max_total_tokens is None:
            yield Problem(path, "it costs money and has no cap: give maxCost or maxTotalTokens", Severity.WARNING)


def _plan(job: FineTuneJob) -> list[PlannedStep]:
    """The steps that can be planned, each with its place: what stands in the others' way is told by `check_steps`."""
    planned: list[PlannedStep] = []
    for index, step in enumerate(job.spec.data.steps):
        if len(step.kinds) != 1 or (step.use is not None and step.use not in PROFILES):
            continue
        with suppress(ValueError):
            planned += [replace(p, place=f"spec.data.steps[{index}]") for p in plan_steps([step])]
    return planned


def _locate(step: PlannedStep) -> Path:
    index = int(step.place.rpartition("[")[2].rstrip("]"))
    return (*_STEPS, index)
