"""All that a ModelServer has in the cluster, from what was seen of it, what was decided, and the operator's settings. Pure.

Each builder takes the same three and needs a server whose spec is right; whether a thing is wanted at all (`deploy`, what discovery
serves) is the caller's to ask.
"""

from collections.abc import Mapping
from typing import Any

from llamero.lifecycle.serving.world import ServerDecision, ServerWorld
from llamero.spec import names
from llamero.spec.job import API_VERSION
from llamero.spec.server import SERVER_KIND, EngineType, ModelServerSpec
from llamero_operator.resources.pods import UnknownGpuClass, find_gpu_class
from llamero_operator.resources.serving.cpu import CpuPod
from llamero_operator.resources.serving.engine import Launch, PodEngine
from llamero_operator.resources.serving.pod import build_engine_template
from llamero_operator.resources.serving.tgi import TgiPod
from llamero_operator.resources.serving.vllm import VllmPod
from llamero_operator.settings import OperatorSettings

Manifest = dict[str, Any]

ENGINES: Mapping[EngineType, PodEngine] = {"tgi": TgiPod(), "vllm": VllmPod(), "cpu": CpuPod()}

KEPT_REVISIONS = 2
SCALE_DOWN_SECONDS = 300


def find_server_problems(world: ServerWorld, settings: OperatorSettings) -> tuple[str, ...]:
    """What in a valid ModelServer can't be served in pods, a sentence each: for `ServerWorld.problems`."""
    if world.server is None:
        return ()
    spec = world.server.spec
    try:
        if count_gpus(spec):
            find_gpu_class(spec.resources.gpu_class, settings)
    except UnknownGpuClass as error:
        return (f"spec.resources.gpuClass: {error}.",)
    return ()


def count_gpus(spec: ModelServerSpec) -> int:
    """GPUs of a pod: what the ModelServer says, else 1, and 0 for the cpu engine."""
    if spec.resources.gpus is not None:
        return spec.resources.gpus
    return 0 if spec.engine.type == "cpu" else 1


def build_deployment(world: ServerWorld, decision: ServerDecision, settings: OperatorSettings) -> Manifest:
    """The engine's pods. Where an autoscaler chooses their number, `replicas` is left out, but for 0.

    Raises UnknownGpuClass, and ValueError where the spec is wrong or an engine that reads adapters at start is told of no list.
    """
    spec = _spec_of(world)
    engine = ENGINES[spec.engine.type]
    if engine.reads_adapters_at_start and decision.wanted is None:
        raise ValueError(f"{spec.engine.type} reads its adapters at start, and the decision has no list of them")
    adapters = tuple(decision.wanted.adapters) if decision.wanted is not None else ()
    launch = Launch(spec, adapters, count_gpus(spec), settings, world.capabilities.spread_by_template)
    template = build_engine_template(engine, launch, _labels(world), decision.wanted, world.name)
    deployment: Manifest = {
        "selector": {"matchLabels": _selector(world)},
        "strategy": _build_strategy(spec),
        "progressDeadlineSeconds": settings.serving.start_seconds + 60,
        "revisionHistoryLimit": KEPT_REVISIONS,
        "template": template,
    }
    if not (is_autoscaled(world) and decision.replicas > 0):
        deployment["replicas"] = decision.replicas
    manifest = _object(world, "apps/v1", "Deployment", names.engine_name(world.name), {"spec": deployment})
    base = spec.base_model
    mark = names.serves_mark(spec.engine.type, base.name or base.uri or "", base.revision)
    manifest["metadata"]["annotations"] = {names.SERVES_ANNOTATION: mark}
    return manifest


def is_autoscaled(world: ServerWorld) -> bool:
    """Whether a HorizontalPodAutoscaler chooses the number of pods: one is asked for, and the server knows its version."""
    return world.server is not None and world.server.spec.autoscaling is not None and world.capabilities.autoscaling


def _build_strategy(spec: ModelServerSpec) -> Manifest:
    if spec.update_strategy == "Recreate":
        return {"type": "Recreate"}
    # A new pod beside the old ones, and none of them ends before it is ready.
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def build_service(world: ServerWorld, decision: ServerDecision, settings: OperatorSettings) -> Manifest:
    """A name for the engine, for people and metrics. Chat services go to pods by the routes: not each pod has each adapter."""
    spec = {
        "type": "ClusterIP",
        "selector": _selector(world),
        "ports": [{"name": "http", "port": names.ENGINE_PORT, "targetPort": "http", "protocol": "TCP"}],
    }
    return _object(world, "v1", "Service", names.engine_name(world.name), {"spec": spec})


def build_disruption_budget(world: ServerWorld, decision: ServerDecision, settings: OperatorSettings) -> Manifest:
    """Drains of nodes take one pod at a time; a single one may go, or its node could never be drained. Needs policy/v1."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": _selector(world)}}
    return _object(world, "policy/v1", "PodDisruptionBudget", names.engine_name(world.name), {"spec": spec})


def build_autoscaler(world: ServerWorld, decision: ServerDecision, settings: OperatorSettings) -> Manifest | None:
    """More pods while requests queue; None where none is asked for. Needs autoscaling/v2, and the metric by pod from a metrics adapter."""
    spec = _spec_of(world)
    if spec.autoscaling is None:
        return None
    name = names.engine_name(world.name)
    metric = {
        "metric": {"name": ENGINES[spec.engine.type].queue_metric},
        "target": {"type": "AverageValue", "averageValue": str(spec.autoscaling.queue_depth)},
    }
    autoscaler = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": spec.autoscaling.min_replicas,
        "maxReplicas": spec.autoscaling.max_replicas,
        "metrics": [{"type": "Pods", "pods": metric}],
        # A pod that goes takes its cache of prompts along, and a new one reads the model for minutes.
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": SCALE_DOWN_SECONDS}},
    }
    return _object(world, "autoscaling/v2", "HorizontalPodAutoscaler", name, {"spec": autoscaler})


def build_wanted_config_map(world: ServerWorld, decision: ServerDecision, settings: OperatorSettings) -> Manifest:
    """The adapters that pods start with (`spec.serving.AgentWanted`). Raises ValueError where the decision has no list."""
    if decision.wanted is None:
        raise ValueError("the decision has no list of adapters")
    text = decision.wanted.model_dump_json(by_alias=True, exclude_none=True)
    return _object(world, "v1", "ConfigMap", names.wanted_name(world.name), {"data": {names.WANTED_KEY: text}})


# -- what all of them have -----------------------------------------------------------------------------------------------------


def _spec_of(world: ServerWorld) -> ModelServerSpec:
    if world.server is None:
        raise ValueError(
            f"the spec of {names.server_key(world.namespace, world.name)} is wrong: nothing is built from it"
        )
    return world.server.spec


def _labels(world: ServerWorld) -> dict[str, str]:
    return names.server_labels(world.name, world.uid)


def _selector(world: ServerWorld) -> dict[str, str]:
    """By the uid: a server made again under an old name must not take the old one's pods for its own."""
    labels = _labels(world)
    return {key: labels[key] for key in ("app.kubernetes.io/component", names.LABEL_SERVER_UID)}


def _object(world: ServerWorld, version: str, kind: str, name: str, body: Manifest) -> Manifest:
    owner = {
        "apiVersion": API_VERSION,
        "kind": SERVER_KIND,
        "name": world.name,
        "uid": world.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {"name": name, "namespace": world.namespace, "labels": _labels(world), "ownerReferences": [owner]}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **body}
