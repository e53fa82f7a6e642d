"""What is sent to a cluster, and what sending it changes: reads manifests from files, compares a job before with the job after. No I/O besides."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llamero.cli.manifest import LoadedManifest, LocatedProblem, load_manifest
from llamero.spec.digest import data_recipe, inputs_digest, training_recipe
from llamero.spec.job import KIND, FineTuneJob
from llamero.spec.rules import Severity

Object = dict[str, Any]
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Submission:
    """A job to be sent, and the namespace that its manifest names (None: it names none)."""

    file: Path
    job: FineTuneJob
    manifest: Object
    namespace: str | None


@dataclass(frozen=True)
class ReadSubmissions:
    """What a file or a folder holds: jobs, problems by file and line, and files that are something else."""

    submissions: list[Submission]
    problems: list[LocatedProblem]
    others: list[Path]

    @property
    def has_error(self) -> bool:
        return any(p.severity is Severity.ERROR for p in self.problems)


def read_submissions(path: Path, environment: Mapping[str, str] | None = None) -> ReadSubmissions:
    """One manifest, or every FineTuneJob among a folder's YAML and JSON files. Never raises for what stands there."""
    submissions: list[Submission] = []
    problems: list[LocatedProblem] = []
    others: list[Path] = []
    files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and f.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir() and not _is_job(file):
            others.append(file)
            continue
        loaded = load_manifest(file, environment, for_cluster=True)
        problems += loaded.problems
        if loaded.job is not None:
            submissions.append(_to_submission(file, loaded, loaded.job))
        elif loaded.server is not None:
            message = "jobs are submitted; send a ModelServer with `kubectl apply -f`"
            problems.append(LocatedProblem(file, 1, 1, "kind", message, Severity.ERROR))
    if not submissions and not problems:
        message = f"the folder holds no FineTuneJob ({', '.join(SUFFIXES)})"
        problems.append(LocatedProblem(path, 1, 1, "", message, Severity.ERROR))
    return ReadSubmissions(submissions, [*problems, *_find_doubles(submissions)], others)


def _is_job(file: Path) -> bool:
    """Whether it is, or may be meant as, a FineTuneJob: what can't be read is not passed over in silence."""
    try:
        documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, yaml.YAMLError):
        return True
    return any(isinstance(d, dict) and d.get("kind") == KIND for d in documents)


def _to_submission(file: Path, loaded: LoadedManifest, job: FineTuneJob) -> Submission:
    manifest = {key: value for key, value in loaded.raw.items() if key != "status"}
    return Submission(file, job, manifest, loaded.raw["metadata"].get("namespace"))


def _find_doubles(submissions: list[Submission]) -> list[LocatedProblem]:
    seen: dict[tuple[str | None, str], Path] = {}
    problems = []
    for one in submissions:
        key = (one.namespace, one.job.metadata.name)
        if key in seen:
            message = f"{seen[key]} describes the job `{key[1]}` already: give one of them another name"
            problems.append(LocatedProblem(one.file, 1, 1, "metadata.name", message, Severity.ERROR))
        seen.setdefault(key, one.file)
    return problems


def describe_change(before: Object | None, after: Object) -> str:
    """`created: …`, `configured: …` or `unchanged`, and what follows from it."""
    name = after["metadata"]["name"]
    rest = f"; it is suspended until `llamero resume {name}`" if after["spec"].get("suspend") else ""
    if before is None:
        return f"created: run 1 starts{rest}" if not rest else f"created{rest}"
    if before["metadata"].get("resourceVersion") == after["metadata"].get("resourceVersion"):
        return f"unchanged{rest}"
    if before["spec"] == after["spec"]:
        return f"configured: labels or annotations changed, the run at hand goes on{rest}"
    old, new = FineTuneJob.model_validate(_plain(before)), FineTuneJob.model_validate(_plain(after))
    if inputs_digest(old.spec) == inputs_digest(new.spec):
        changed = sorted(k for k in {*before["spec"], *after["spec"]} if before["spec"].get(k) != after["spec"].get(k))
        return f"configured: {join_words(changed)} changed, which takes effect on the run at hand{rest}"
    run = (before.get("status") or {}).get("run") or 0
    return f"configured: run {run + 1} starts because {join_words(_changed_inputs(old, new))} changed{rest}"


def _plain(job: Object) -> Object:
    return {key: value for key, value in job.items() if key != "status"}


def _changed_inputs(old: FineTuneJob, new: FineTuneJob) -> list[str]:
    parts = {
        "baseModel": old.spec.base_model != new.spec.base_model,
        "data": data_recipe(old.spec) != data_recipe(new.spec),
        "training": training_recipe(old.spec) != training_recipe(new.spec),
    }
    # training.sequenceLength belongs to the data's recipe too: where training changed, it alone may be the cause.
    if parts["training"] and old.spec.data == new.spec.data:
        parts["data"] = False
    return [name for name, changed in parts.items() if changed]


def join_words(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
