"""Writes the files that come from the pydantic models: the CRDs, the manifest's JSON schema and the reference pages.

`--check` writes nothing and ends with 1 where a file is out of date.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from chart_values import ChartValues, build_values_schema
from pydantic import BaseModel

from llamero.cli.main import build_schema
from llamero.spec.adapter import Adapter
from llamero.spec.crd import build_crds
from llamero.spec.server import ModelServer, ModelServerStatus
from llamero.spec.status import JobStatus
from llamero_operator.settings import ENVIRONMENT, SETTINGS_VARIABLE, OperatorSettings

REPOSITORY = Path(__file__).parent.parent
CHART = REPOSITORY / "charts" / "llamero"
CRDS = CHART / "crds"
VALUES_SCHEMA = CHART / "values.schema.json"
REFERENCES = REPOSITORY / "docs" / "reference"
SCHEMA = REFERENCES / "finetunejob.schema.json"

CRD_HEADER = "# Written by `make generate` from services/llamero/spec/; changes belong there.\n"

JOB_INTRODUCTION = """# FineTuneJob: reference

Every field of the manifest, its type, default and bounds. Written by `make generate` from `services/llamero/spec/job.py`; the JSON
schema beside it (`llamero schema` prints the same) makes editors complete and check a manifest:

```yaml
# yaml-language-server: $schema=finetunejob.schema.json
```

Fields marked *cluster* are served by the operator; a run on a laptop says that they have no effect there. What the operator writes
into `status` has [a page of its own](finetunejob-status.md).
"""

STATUS_INTRODUCTION = """# FineTuneJob's status: reference

What the operator writes and `kubectl get ftj -o yaml` shows. Written by `make generate` from `services/llamero/spec/status.py`.
Figures are text, since a status holds no floating-point numbers; times are RFC 3339 in UTC.
"""

ADAPTER_INTRODUCTION = """# Adapter: reference

What a run publishes. It belongs to no job: deleting the job leaves it. Its `spec` is never changed once it is written. Written by
`make generate` from `services/llamero/spec/adapter.py`.
"""

SERVER_INTRODUCTION = """# ModelServer: reference

A base model on an engine, with the adapters that its public names need. Written by `make generate` from
`services/llamero/spec/server.py`. What the operator writes into `status` has [a page of its own](modelserver-status.md).
"""

SERVER_STATUS_INTRODUCTION = """# ModelServer's status: reference

What the operator writes and `kubectl get ms -o yaml` shows. Written by `make generate` from `services/llamero/spec/server.py`.
"""

SETTINGS_INTRODUCTION = f"""# The operator's settings: reference

A YAML file that `{SETTINGS_VARIABLE}` names, read once when the operator starts; the chart writes it from `settings` in its values.
Environment variables take the place of: {", ".join(f"`{field}` (`{variable}`)" for variable, field in ENVIRONMENT.items())}.
Written by `make generate` from `operator/llamero_operator/settings.py`.
"""

VALUES_INTRODUCTION = """# The chart's values: reference

Every field of `charts/llamero/values.yaml`, where the defaults stand. What goes under `settings` has [a page of its own](settings.md).
Written by `make generate` from `scripts/chart_values.py`.
"""


def build_reference(
    introduction: str, name: str, schema: dict[str, Any], elsewhere: frozenset[str] = frozenset()
) -> str:
    """A page: a table of fields for the model and each of its parts, in the order in which they are met, but those `elsewhere`."""
    definitions = schema.get("$defs", {})
    pages = [introduction]
    queue: list[tuple[str, dict[str, Any]]] = [(name, schema)]
    seen = {name, *elsewhere}
    while queue:
        title, part = queue.pop(0)
        pages.append(f"\n## {title}\n\n{part.get('description', '').strip()}\n")
        if "enum" in part:
            pages.append("One of " + ", ".join(f"`{v}`" for v in part["enum"]) + ".\n")
            continue
        pages.append("| field | type | default | what it is |\n|---|---|---|---|")
        for name, field in part.get("properties", {}).items():
            for reference in _find_references(field):
                if reference not in seen:
                    seen.add(reference)
                    queue.append((reference, definitions[reference]))
            pages.append(_build_row(name, field, name in part.get("required", ()), definitions))
    return "\n".join(pages) + "\n"


def _build_row(name: str, field: dict[str, Any], is_required: bool, definitions: dict[str, Any]) -> str:
    # A description that repeats that of the part it names is left out of the schema: the part's own stands for it.
    description = field.get("description") or next(
        (definitions[r].get("description", "") for r in _find_references(field)), ""
    )
    if field.get("x-llamero-served-by") == "cluster":
        description += " *cluster*"
    default = "**required**" if is_required else _describe_default(field)
    return f"| `{name}` | {_describe_type(field, definitions)} | {default} | {description} |"


def _describe_default(field: dict[str, Any]) -> str:
    value = field.get("default")
    return "" if value is None or value in ([], {}) or isinstance(value, dict) else f"`{json.dumps(value)}`"


def _describe_type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_describe_type(f, definitions) for f in field["anyOf"] if f.get("type") != "null")
    if "allOf" in field:
        return _describe_type(field["allOf"][0], definitions)
    if "enum" in field:
        return ", ".join(f"`{v}`" for v in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_describe_type(field.get('items', {}), definitions)}{_describe_bounds(field)}"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"mapping to {_describe_type(field['additionalProperties'], definitions)}"
    return f"{field.get('type', 'any')}{_describe_bounds(field)}"


BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minItems": "≥ {} items",
    "maxItems": "≤ {} items",
    "maxLength": "≤ {} characters",
}


def _describe_bounds(field: dict[str, Any]) -> str:
    bounds = [text.format(f"{field[key]:,}") for key, text in BOUNDS.items() if key in field]
    return f" ({', '.join(bounds)})" if bounds else ""


def _find_references(field: Any) -> list[str]:
    if isinstance(field, dict):
        own = [field["$ref"].rsplit("/", 1)[-1]] if "$ref" in field else []
        return own + [name for value in field.values() for name in _find_references(value)]
    return [name for value in field for name in _find_references(value)] if isinstance(field, list) else []


def format_crd(manifest: dict[str, Any]) -> str:
    """A CRD as it stands in the chart."""
    return CRD_HEADER + yaml.safe_dump(manifest, sort_keys=False, width=120, allow_unicode=True)


def build_files() -> dict[Path, str]:
    """Every generated file with its text."""
    schema = build_schema()
    files = {CRDS / f"{plural}.yaml": format_crd(manifest) for plural, manifest in build_crds().items()}
    files[VALUES_SCHEMA] = json.dumps(build_values_schema(), indent=2, ensure_ascii=False) + "\n"
    files[SCHEMA] = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    pages = {
        "finetunejob.md": build_reference(JOB_INTRODUCTION, "FineTuneJob", schema),
        "finetunejob-status.md": build_reference(STATUS_INTRODUCTION, "JobStatus", _schema_of(JobStatus)),
        "adapter.md": build_reference(ADAPTER_INTRODUCTION, "Adapter", _schema_of(Adapter)),
        "modelserver.md": build_reference(SERVER_INTRODUCTION, "ModelServer", _schema_of(ModelServer)),
        "modelserver-status.md": build_reference(
            SERVER_STATUS_INTRODUCTION, "ModelServerStatus", _schema_of(ModelServerStatus)
        ),
        "values.md": build_reference(
            VALUES_INTRODUCTION, "ChartValues", _schema_of(ChartValues), elsewhere=frozenset({"OperatorSettings"})
        ),
        "settings.md": build_reference(SETTINGS_INTRODUCTION, "OperatorSettings", _schema_of(OperatorSettings)),
    }
    return files | {REFERENCES / name: page for name, page in pages.items()}


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def main(arguments: list[str]) -> int:
    wanted = build_files()
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(REPOSITORY)} is out of date: run `make generate`.", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path])
        print(f"wrote {path.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
