"""The CustomResourceDefinitions of FineTuneJob, Adapter and ModelServer, made from the pydantic models.

Knows names, columns and which rules go with which resource; the schemas are `structural.py`'s, the rules `job_cel.py`'s and
`server_cel.py`'s. Servers before 1.25 drop the CEL rules, so the operator validates again in any case.
"""

from pydantic import BaseModel

from llamero.spec import names
from llamero.spec.adapter import ADAPTER_KIND, AdapterResourceStatus, AdapterSpec
from llamero.spec.cel import CelRule, Schema
from llamero.spec.job import KIND, FineTuneJobSpec
from llamero.spec.job_cel import JOB_RULES, MAX_JOB_NAME
from llamero.spec.server import SERVER_KIND, ModelServerSpec, ModelServerStatus
from llamero.spec.server_cel import SERVER_RULES
from llamero.spec.status import JobStatus
from llamero.spec.structural import build_structural_schema, find_part, relax_status

SHORT_NAMES = {KIND: "ftj", ADAPTER_KIND: "adp", SERVER_KIND: "ms"}

ADAPTER_RULES: tuple[CelRule, ...] = (
    CelRule(
        ("spec",),
        "self == oldSelf",
        "an Adapter is never changed once it is written: publish another under a new name",
    ),
)


def build_crds() -> dict[str, Schema]:
    """The CustomResourceDefinitions by their resource's plural."""
    return {
        names.PLURAL: build_job_crd(),
        names.ADAPTER_PLURAL: build_adapter_crd(),
        names.SERVER_PLURAL: build_server_crd(),
    }


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
        _column("Ready", _condition("Ready", "reason"), "Why it is ready or not.", priority=1),
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
        _column("Serving", ".status.weight", "Percent of its public name's callers that it answers.", "integer"),
        _column("Verified", _condition("Verified", "status"), "Whether it loads and answers as it was trained to."),
        _column("Perplexity", ".spec.figures.tunedTokenPerplexity", "Token perplexity on held-out records."),
        _column("Base-Perplexity", ".spec.figures.baseTokenPerplexity", "The base's, on the same records."),
        _column("Job", ".spec.source.job", "The job that made it.", priority=1),
        _column("Run", ".spec.source.run", "The job's run that made it.", "integer", priority=1),
        _column("Server", ".status.server", "The ModelServer that serves it.", priority=1),
        _column("Digest", ".spec.sha256", "sha256 over its files.", priority=1),
        _column("URI", ".spec.uri", "Folder of its files.", priority=1),
        _column("Age", ".metadata.creationTimestamp", "", "date"),
    )
    # Not in `all`: `kubectl delete all --all` must never take a published adapter away.
    return _build_crd(ADAPTER_KIND, names.ADAPTER_PLURAL, ("llamero",), columns, schema)


def build_server_crd() -> Schema:
    """modelservers.llamero.dev."""
    schema = _build_root(
        "A base model that is served on an engine, with the adapters that its public names need.",
        ModelServerSpec,
        ModelServerStatus,
        SERVER_RULES,
    )
    schema["properties"]["metadata"]["properties"] = {"name": {"type": "string", "maxLength": names.MAX_SERVER_NAME}}
    # Servers without CEL know this too, and who applies one name's entry leaves the others' alone.
    find_part(schema, ("spec", "models")).update(
        {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    )
    columns = (
        _column("Phase", ".status.phase", "Where the server stands."),
        _column("Engine", ".spec.engine.type", "The inference server."),
        _column("Ready", ".status.readyReplicas", "Pods that take requests.", "integer"),
        _column("Replicas", ".status.replicas", "Pods that exist.", "integer"),
        _column("Model", ".status.models[*].name", "The first public name that is served."),
        _column("Base", ".spec.baseModel.name", "The base model.", priority=1),
        _column("Why", _condition("Ready", "reason"), "Why it is ready or not.", priority=1),
        _column("Age", ".metadata.creationTimestamp", "", "date"),
    )
    # Not in `all`: `kubectl delete all --all` must not take what chats are answered by.
    return _build_crd(SERVER_KIND, names.SERVER_PLURAL, ("llamero",), columns, schema)


def _condition(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


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
