"""Reads a manifest file: YAML or JSON, with the line of every field, so that each mistake can be shown where it stands.

Also makes the URIs absolute: relative ones belong to the manifest's folder, and `${LLAMERO_X}` or `${LLAMERO_X:-default}` in them
is taken from the environment (names that begin with LLAMERO_ alone, so that a manifest can't carry a secret to a URL of its choice).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llamero.spec.job import FineTuneJob
from llamero.spec.rules import Path as FieldPath
from llamero.spec.rules import Problem, Severity
from llamero.spec.server import SERVER_KIND, ModelServer
from llamero.spec.validation import validate_job, validate_server
from llamero.storage import is_local, local_path

MAX_MANIFEST_BYTES = 1 << 20
VARIABLE_PREFIX = "LLAMERO_"

# Where a manifest holds URIs; `*` stands for any item of a list.
URI_FIELDS: tuple[tuple[str, ...], ...] = (
    ("spec", "baseModel", "uri"),
    ("spec", "data", "sources", "*", "uri"),
    ("spec", "data", "steps", "*", "content", "wordsUri"),
    ("spec", "data", "steps", "*", "decontaminate", "against", "*", "uri"),
    *(("spec", "data", "steps", "*", kind, "embedding", "uri") for kind in ("kCenter", "diversity", "rank", "mining")),
    ("spec", "evaluation", "promptSets", "*", "uri"),
    ("spec", "training", "initFrom"),
)
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


@dataclass(frozen=True)
class LocatedProblem:
    """A problem with the place where it stands: `line` and `column` count from 1."""

    file: Path
    line: int
    column: int
    path: str
    message: str
    severity: Severity

    def __str__(self) -> str:
        at = f" {self.path}:" if self.path else ""
        return f"{self.file}:{self.line}:{self.column}: {self.severity.value}:{at} {self.message}"


@dataclass(frozen=True)
class LoadedManifest:
    """What came of a file: the job or the server (None where there is an error), every problem by line, and the manifest with its variables
    filled in."""

    job: FineTuneJob | None
    problems: list[LocatedProblem]
    raw: Any = None
    server: ModelServer | None = None


def load_manifest(
    file: Path, environment: Mapping[str, str] | None = None, *, for_cluster: bool = False
) -> LoadedManifest:
    """Read, locate and validate a manifest. Never raises for what is in the file, nor for a file that can't be read.

    With `for_cluster` local URIs stay as they are, and those that pods can't see are problems.
    """
    environment = os.environ if environment is None else environment
    text, trouble = _read(file)
    if text is None:
        return LoadedManifest(None, [LocatedProblem(file, 1, 1, "", trouble, Severity.ERROR)])
    try:
        documents = [d for d in yaml.compose_all(text, Loader=yaml.SafeLoader) if d is not None]
        if len(documents) != 1:
            found = "is empty" if not documents else f"holds {len(documents)} documents"
            message = f"the file {found}, where one FineTuneJob or ModelServer is needed"
            return LoadedManifest(None, [LocatedProblem(file, 1, 1, "", message, Severity.ERROR)])
        raw = yaml.load(text, Loader=yaml.SafeLoader)  # the safe loader: builds no objects but plain values
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        return LoadedManifest(
            None, [LocatedProblem(file, line, column, "", f"not readable as YAML: {what}", Severity.ERROR)]
        )
    root = documents[0]
    raw, problems = _resolve_uris(raw, None if for_cluster else file.resolve().parent, environment)
    is_server = isinstance(raw, dict) and raw.get("kind") == SERVER_KIND
    job, found_problems = (None, []) if is_server else validate_job(raw)
    server, server_problems = validate_server(raw) if is_server else (None, [])
    problems = [*_find_doubled_keys(root), *problems, *found_problems, *server_problems]
    located = sorted((_locate(file, root, p) for p in problems), key=lambda p: (p.line, p.column))
    if any(p.severity is Severity.ERROR for p in located):
        job, server = None, None
    return LoadedManifest(job, located, raw, server)


def format_path(path: FieldPath) -> str:
    """`spec.data.sources[0].uri`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _read(file: Path) -> tuple[str | None, str]:
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            return None, f"the file is larger than {MAX_MANIFEST_BYTES >> 20} MiB, which no manifest is"
        return file.read_text(encoding="utf-8-sig"), ""
    except FileNotFoundError:
        return None, "there is no such file"
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 text (byte {error.start}): save it as UTF-8"
    except OSError as error:
        return None, f"can't be read: {error.strerror}"


def _find_doubled_keys(node: Node, path: FieldPath = ()) -> list[Problem]:
    problems: list[Problem] = []
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(getattr(key, "value", ""))
            if name in seen:
                problems.append(Problem((*path, name), f"`{name}` stands here twice: remove one"))
            seen.add(name)
            problems += _find_doubled_keys(value, (*path, name))
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            problems += _find_doubled_keys(item, (*path, index))
    return problems


def _locate(file: Path, root: Node, problem: Problem) -> LocatedProblem:
    mark = root.start_mark
    node: Node | None = root
    for part in problem.path:
        if isinstance(node, MappingNode):
            # the last of doubled keys is the one that counts
            pair = next(
                ((k, v) for k, v in reversed(node.value) if isinstance(k, ScalarNode) and k.value == part), None
            )
            if pair is None:
                break
            mark, node = pair[0].start_mark, pair[1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return LocatedProblem(
        file, mark.line + 1, mark.column + 1, format_path(problem.path), problem.message, problem.severity
    )


def _judge_cluster_path(path: FieldPath, local: Path) -> list[Problem]:
    if local.is_absolute():
        message = f"`{local}` is read in the pods, not on this machine: it must be there on the storage that they have mounted"
        return [Problem(path, message, Severity.WARNING)]
    message = (
        f"`{local}` lies on this machine, where a cluster's pods can't see it: upload it and give its s3://, gs://, hf:// or https:// "
        "address, or its absolute path on the storage that the pods have mounted"
    )
    return [Problem(path, message)]


def resolve_steps(steps: list[Any], folder: Path) -> tuple[list[Any], list[Problem]]:
    """A list of data steps by itself, with its files' URIs made absolute as a manifest's in that folder."""
    raw, problems = _resolve_uris({"spec": {"data": {"steps": steps}}}, folder, os.environ)
    return raw["spec"]["data"]["steps"], problems


def _resolve_uris(raw: Any, folder: Path | None, environment: Mapping[str, str]) -> tuple[Any, list[Problem]]:
    """The manifest with variables filled in and local URIs made absolute; without a folder (for a cluster) those are judged instead."""
    problems: list[Problem] = []

    def visit(value: Any, field: tuple[str, ...], path: FieldPath) -> Any:
        if not field:
            return resolve(value, path) if isinstance(value, str) else value
        head, rest = field[0], field[1:]
        if head == "*" and isinstance(value, list):
            return [visit(item, rest, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, dict) and head in value:
            return {**value, head: visit(value[head], rest, (*path, head))}
        return value

    def resolve(text: str, path: FieldPath) -> str:
        def replace(match: re.Match[str]) -> str:
            if not match["name"].startswith(VARIABLE_PREFIX):
                problems.append(
                    Problem(
                        path,
                        f"only variables that begin with {VARIABLE_PREFIX} are read here, not {match['name']}: rename it",
                    )
                )
                return ""
            value = environment.get(match["name"]) or match["default"]
            if value is None:
                problems.append(
                    Problem(
                        path,
                        f"the environment has no {match['name']}: set it, or write a default as ${{{match['name']}:-...}}",
                    )
                )
            return value or ""

        expanded = _VARIABLE.sub(replace, text)
        if path[-1] == "initFrom" and expanded in ("base", "previous"):
            return expanded
        if not expanded or not is_local(expanded):
            return expanded
        if folder is None:
            problems.extend(_judge_cluster_path(path, local_path(expanded)))
            return expanded
        return str((folder / local_path(expanded)).resolve())

    for field in URI_FIELDS:
        raw = visit(raw, field, ())
    return raw, problems
