"""The pod of an engine: the agent's fetch first, then engine and agent side by side, with what they share.

Restricted by the Pod Security Standards (all but hostPath storage). Of the ModelServer's spec nothing gets in but bounded values and the
launcher's options, which validation has looked through.
"""

import json
from collections.abc import Mapping
from typing import Any

from llamero.spec import names
from llamero.spec.server import ModelServerSpec
from llamero.spec.serving import AgentWanted
from llamero_operator.resources.environment import (
    SCRATCH_PATH,
    TERMINATION_PATH,
    build_hub_environment,
    build_process_environment,
    escape_dollars,
    plain_variables,
    variable_from_field,
    variable_from_secret,
)
from llamero_operator.resources.pods import (
    LOG_ALLOWANCE,
    TEMPORARY_SIZE,
    build_container_security,
    build_mounts,
    build_placement,
    build_pod_security,
    build_resources,
    build_volumes,
    find_gpu_class,
)
from llamero_operator.resources.quantities import add_quantities
from llamero_operator.resources.serving.engine import CACHE_PATH, Launch, PodEngine
from llamero_operator.settings import GpuClass, OperatorSettings, PodSettings

Manifest = dict[str, Any]

CACHE_SIZE = "8Gi"
WANTED_PATH = "/llamero/wanted"
HUB_TOKEN = "HF_TOKEN"
AGENT_HEALTH_PATH, AGENT_READY_PATH = "/healthz", "/readyz"

_PROBE_SECONDS = 5
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""An engine finds all that it needs in the pod: it never asks the hub."""

_CACHES = {
    "HOME": CACHE_PATH,
    "USER": "llamero",
    "HF_HOME": f"{CACHE_PATH}/huggingface",
    "XDG_CACHE_HOME": CACHE_PATH,
    "TRITON_CACHE_DIR": f"{CACHE_PATH}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_PATH}/inductor",
    "OUTLINES_CACHE_DIR": f"{CACHE_PATH}/outlines",
    "NUMBA_CACHE_DIR": f"{CACHE_PATH}/numba",
    "PYTHONUNBUFFERED": "1",
}
"""Where libraries write beside the model, on a read-only root and under a uid without a name."""


def build_engine_template(
    engine: PodEngine, launch: Launch, labels: dict[str, str], wanted: AgentWanted | None, server: str
) -> Manifest:
    """The Deployment's pod template. Raises UnknownGpuClass, and ValueError as the engine does."""
    spec, settings = launch.spec, launch.settings
    pod = fit_pod_settings(engine.pod_settings(settings), spec)
    gpu = find_gpu_class(spec.resources.gpu_class, settings) if launch.gpus else None
    agent_env = _build_agent_environment(engine, spec, wanted, settings)
    metadata: Manifest = {"labels": labels}
    if engine.reads_adapters_at_start:
        ids = [a.id for a in launch.adapters]
        metadata["annotations"] = {names.GATHERED_ANNOTATION: json.dumps(ids, separators=(",", ":"))}
    template: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.serving.grace_seconds,
        "securityContext": build_pod_security(settings),
        "initContainers": [_build_fetch(agent_env, engine, settings)],
        "containers": [
            _build_engine(engine, launch, pod, gpu),
            _build_agent(agent_env, engine, settings),
        ],
        "volumes": _build_volumes(pod, engine, server, settings),
        "topologySpreadConstraints": [_spread(labels, launch.spread_by_template)],
        **build_placement(pod, gpu, settings),
    }
    return {"metadata": metadata, "spec": template}


def fit_pod_settings(pod: PodSettings, spec: ModelServerSpec) -> PodSettings:
    """What the engine's container asks for: the settings, and what the ModelServer says instead."""
    changes: dict[str, str | None] = {}
    if spec.resources.cpu is not None:
        changes |= {"cpu_request": spec.resources.cpu, "cpu_limit": None}
    if spec.resources.memory is not None:
        changes |= {"memory_request": spec.resources.memory, "memory_limit": spec.resources.memory}
    return pod.model_copy(update=changes)


# -- containers ----------------------------------------------------------------------------------------------------------------


def _build_engine(engine: PodEngine, launch: Launch, pod: PodSettings, gpu: GpuClass | None) -> Manifest:
    settings = launch.settings
    variables = {**_CACHES, **_OFFLINE, **engine.build_environment(launch)}
    health: Manifest = {"httpGet": {"path": engine.health_path, "port": "http"}}
    # Scratch, the pod's storage and its list of adapters are the agent's to write.
    mounts = [_read_only(m) if m["name"] in ("scratch", "storage") else m for m in build_mounts(pod, settings)]
    return _container(
        settings,
        {
            "name": names.ENGINE_CONTAINER,
            "image": engine.image(settings),
            "command": [*engine.build_command(launch), *map(escape_dollars, launch.spec.engine.args)],
            "env": [variable_from_field("POD_IP", "status.podIP"), *plain_variables(variables)],
            "ports": [{"name": "http", "containerPort": names.ENGINE_PORT}],
            "resources": _engine_resources(pod, gpu, launch.gpus),
            "volumeMounts": [*mounts, {"name": "cache", "mountPath": CACHE_PATH}],
            # A big model is read for minutes; what hangs later is restarted, but not for one slow answer under load.
            "startupProbe": {
                **health,
                "periodSeconds": _PROBE_SECONDS,
                "timeoutSeconds": 5,
                "failureThreshold": -(-settings.serving.start_seconds // _PROBE_SECONDS),
            },
            "readinessProbe": {**health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
            "livenessProbe": {**health, "periodSeconds": 15, "timeoutSeconds": 10, "failureThreshold": 6},
            # The routes leave the pod out at once, and chat services take a moment to hear of it.
            "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(settings.serving.leave_seconds)]}}},
        },
    )


def _build_fetch(env: list[Manifest], engine: PodEngine, settings: OperatorSettings) -> Manifest:
    container = _agent_container(names.FETCH_CONTAINER, "fetch", env, engine, settings)
    return {**container, "terminationMessagePolicy": "FallbackToLogsOnError"}


def _build_agent(env: list[Manifest], engine: PodEngine, settings: OperatorSettings) -> Manifest:
    alive: Manifest = {"httpGet": {"path": AGENT_HEALTH_PATH, "port": "agent"}}
    return {
        **_agent_container(names.AGENT_CONTAINER, "serve", env, engine, settings),
        "ports": [{"name": "agent", "containerPort": names.AGENT_PORT}],
        "startupProbe": {**alive, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {
            "httpGet": {"path": AGENT_READY_PATH, "port": "agent"},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "livenessProbe": {**alive, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        # It tells of the engine for as long as that takes requests.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(settings.serving.leave_seconds)]}}},
    }


def _agent_container(
    name: str, verb: str, env: list[Manifest], engine: PodEngine, settings: OperatorSettings
) -> Manifest:
    pod = settings.pods.agent
    mounts = build_mounts(pod.model_copy(update={"shared_memory": None}), settings)
    if not engine.reads_adapters_at_start:
        mounts.append({"name": "wanted", "mountPath": WANTED_PATH, "readOnly": True})
    container = _container(
        settings,
        {
            "name": name,
            "image": settings.images.agent,
            "command": ["python", "-m", "llamero.agent", verb],
            "env": env,
            "resources": build_resources(pod.model_copy(update={"scratch": "0"}), None, 0),
            "volumeMounts": mounts,
        },
    )
    if settings.storage.uri is not None and settings.storage.secret_name is not None:
        container["envFrom"] = [{"secretRef": {"name": settings.storage.secret_name}}]
    return container


def _container(settings: OperatorSettings, container: Manifest) -> Manifest:
    """With what all of the pod's containers have in common."""
    common: Manifest = {
        "terminationMessagePath": TERMINATION_PATH,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": build_container_security(),
    }
    if settings.image_pull_policy is not None:
        common["imagePullPolicy"] = settings.image_pull_policy
    return container | common


def _engine_resources(pod: PodSettings, gpu: GpuClass | None, gpus: int) -> Manifest:
    if pod.ephemeral_limit is None:
        sizes = (pod.scratch, TEMPORARY_SIZE, CACHE_SIZE, LOG_ALLOWANCE)
        pod = pod.model_copy(update={"ephemeral_limit": add_quantities(*sizes)})
    return build_resources(pod, gpu, gpus)


def _read_only(mount: Manifest) -> Manifest:
    return mount | {"readOnly": True}


# -- environment and volumes ---------------------------------------------------------------------------------------------------


def _build_agent_environment(
    engine: PodEngine, spec: ModelServerSpec, wanted: AgentWanted | None, settings: OperatorSettings
) -> list[Manifest]:
    variables: dict[str, str] = {
        "LLAMERO_ENGINE": engine.type,
        "LLAMERO_SCRATCH": SCRATCH_PATH,
        "LLAMERO_STORAGE": settings.storage_root,
        "LLAMERO_AGENT_PORT": str(names.AGENT_PORT),
        "LLAMERO_TERMINATION_LOG": TERMINATION_PATH,
    }
    if engine.reads_adapters_at_start:
        assert wanted is not None, "checked by the caller"
        variables["LLAMERO_WANTED"] = wanted.model_dump_json(by_alias=True, exclude_none=True)
    else:
        variables["LLAMERO_WANTED_FILE"] = f"{WANTED_PATH}/{names.WANTED_KEY}"
    ref = spec.base_model.secret_ref
    return [
        variable_from_field("POD_IP", "status.podIP"),
        variable_from_field("LLAMERO_POD_IP", "status.podIP"),
        variable_from_field("LLAMERO_POD_NAME", "metadata.name"),
        # Not escaped: Kubernetes puts the address in.
        {"name": "LLAMERO_ENGINE_URL", "value": f"http://$(POD_IP):{names.ENGINE_PORT}"},
        *plain_variables(variables),
        *build_process_environment(settings.pods.agent),
        *build_hub_environment(settings.hub),
        *([variable_from_secret(HUB_TOKEN, ref.name, ref.key)] if ref is not None else []),
    ]


def _build_volumes(pod: PodSettings, engine: PodEngine, server: str, settings: OperatorSettings) -> list[Manifest]:
    volumes = [*build_volumes(pod, settings), {"name": "cache", "emptyDir": {"sizeLimit": CACHE_SIZE}}]
    if not engine.reads_adapters_at_start:
        volumes.append({"name": "wanted", "configMap": {"name": names.wanted_name(server)}})
    return volumes


def _spread(labels: Mapping[str, str], by_template: bool) -> Manifest:
    """Over nodes where there are several: a node that is drained takes one replica away.

    `by_template` counts pods of one template alone: else those that a rolling restart is about to end push the new ones together.
    """
    spread: Manifest = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(labels)},
    }
    if by_template:
        spread["matchLabelKeys"] = ["pod-template-hash"]
    return spread
