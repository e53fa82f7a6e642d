"""The pod of every kind of work: its command, volumes, resources and security, as a template for a batch Job.

Restricted by the Pod Security Standards (all but hostPath storage). Nothing of it comes from the job's manifest but bounded values.
"""

from collections.abc import Sequence
from typing import Any

from llamero.spec.status import WorkKind
from llamero_operator.resources import environment
from llamero_operator.resources.quantities import add_quantities
from llamero_operator.settings import GpuClass, OperatorSettings, PodSettings, Toleration

Manifest = dict[str, Any]

CONTAINER = "worker"
TEMPORARY_SIZE = "2Gi"
LOG_ALLOWANCE = "1Gi"
DEFAULT_GPU_CLASS = "default"

_CELERY = (
    "python", "-m", "celery", "-A", "llamero.worker", "worker", "--pool", "solo", "--concurrency", "1", "--without-gossip",
    "--without-mingle", "--loglevel", "INFO",
)  # fmt: skip
_PLAIN = ("python", "-m", "llamero.pods")

# A GPU pod that is moved loses what it did since its checkpoint: autoscalers are asked to leave it.
_STAY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


class UnknownGpuClass(ValueError):
    """A GPU class that the settings do not name."""


def build_command(kind: WorkKind, queue: str) -> list[str]:
    """What the container runs: a Celery worker on the attempt's queue, or the helper itself."""
    if kind in (WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE):
        return [*_CELERY, "-Q", queue, "-n", f"{kind}@%h"]
    return [*_PLAIN]


def build_pod_template(
    kind: WorkKind,
    labels: dict[str, str],
    command: list[str],
    env: list[Manifest],
    settings: OperatorSettings,
    gpu_class: str | None = None,
    gpus: int = 0,
) -> Manifest:
    """A Job's pod template. Raises UnknownGpuClass."""
    pod = settings_of_pod(kind, settings)
    gpu = find_gpu_class(gpu_class, settings) if gpus else None
    is_training = kind is WorkKind.TRAIN
    container: Manifest = {
        "name": CONTAINER,
        "image": settings.images.trainer if kind in (WorkKind.TRAIN, WorkKind.EVALUATE) else settings.images.data,
        "command": command,
        "env": env,
        "resources": build_resources(pod, gpu, gpus),
        "volumeMounts": build_mounts(pod, settings),
        "terminationMessagePath": environment.TERMINATION_PATH,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": build_container_security(),
    }
    if settings.image_pull_policy is not None:
        container["imagePullPolicy"] = settings.image_pull_policy
    if settings.storage.uri is not None and settings.storage.secret_name is not None:
        container["envFrom"] = [{"secretRef": {"name": settings.storage.secret_name}}]
    metadata: Manifest = {"labels": labels}
    if is_training:
        metadata["annotations"] = dict(_STAY)
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.intervals.grace_seconds,
        "securityContext": build_pod_security(settings),
        "containers": [container],
        "volumes": build_volumes(pod, settings),
        **build_placement(pod, gpu, settings),
    }
    return {"metadata": metadata, "spec": spec}


def find_gpu_class(name: str | None, settings: OperatorSettings) -> GpuClass:
    """The class of that name; without a name `default`, or any node with an NVIDIA GPU. Raises UnknownGpuClass."""
    if name is None:
        anywhere = GpuClass(tolerations=[Toleration(key="nvidia.com/gpu", operator="Exists")])
        return settings.gpu_classes.get(DEFAULT_GPU_CLASS, anywhere)
    if name not in settings.gpu_classes:
        known = ", ".join(settings.gpu_classes) or "none"
        raise UnknownGpuClass(
            f"the GPU class `{name}` is not in the operator's settings (there: {known}): name one of those"
        )
    return settings.gpu_classes[name]


def settings_of_pod(kind: WorkKind, settings: OperatorSettings) -> PodSettings:
    match kind:
        case WorkKind.PREPARE:
            return settings.pods.data
        case WorkKind.TRAIN:
            return settings.pods.training
        case WorkKind.EVALUATE:
            return settings.pods.evaluation
        case _:
            return settings.pods.helper


def build_resources(pod: PodSettings, gpu: GpuClass | None, gpus: int) -> Manifest:
    # The node counts scratch, /tmp and the log as the pod's ephemeral storage.
    ephemeral = pod.ephemeral_limit or add_quantities(pod.scratch, TEMPORARY_SIZE, LOG_ALLOWANCE)
    requests = {"cpu": pod.cpu_request, "memory": pod.memory_request, "ephemeral-storage": pod.ephemeral_request}
    limits = {"ephemeral-storage": ephemeral}
    if pod.cpu_limit is not None:
        limits["cpu"] = pod.cpu_limit
    if pod.memory_limit is not None:
        limits["memory"] = pod.memory_limit
    if gpu is not None:
        requests[gpu.resource] = limits[gpu.resource] = str(gpus)
    return {"requests": requests, "limits": limits}


def build_volumes(pod: PodSettings, settings: OperatorSettings) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": "scratch", "emptyDir": {"sizeLimit": pod.scratch}},
        {"name": "tmp", "emptyDir": {"sizeLimit": TEMPORARY_SIZE}},
    ]
    if pod.shared_memory is not None:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shared_memory}})
    storage = settings.storage
    if storage.claim is not None:
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": storage.claim}})
    elif storage.host_path is not None:
        volumes.append({"name": "storage", "hostPath": {"path": storage.host_path, "type": "DirectoryOrCreate"}})
    ca = settings.hub.ca_config_map
    if ca is not None:
        items = [{"key": ca.key, "path": environment.CA_FILE}]
        volumes.append({"name": "ca", "configMap": {"name": ca.name, "items": items}})
    return volumes


def build_mounts(pod: PodSettings, settings: OperatorSettings) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "scratch", "mountPath": environment.SCRATCH_PATH},
        {"name": "tmp", "mountPath": environment.TEMPORARY_PATH},
    ]
    if pod.shared_memory is not None:
        mounts.append({"name": "shm", "mountPath": environment.SHARED_MEMORY_PATH})
    if settings.storage.uri is None:
        mounts.append({"name": "storage", "mountPath": settings.storage.mount_path})
    if settings.hub.ca_config_map is not None:
        mounts.append({"name": "ca", "mountPath": environment.CA_FOLDER, "readOnly": True})
    return mounts


def build_container_security() -> Manifest:
    """A container without rights, as the Pod Security Standards' `restricted` wants it, on a root that it can't write to."""
    return {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def build_pod_security(settings: OperatorSettings) -> Manifest:
    ids = {
        "runAsUser": settings.security.uid,
        "runAsGroup": settings.security.gid,
        "fsGroup": settings.security.fs_group,
    }
    context: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    context |= {name: value for name, value in ids.items() if value is not None}
    if settings.security.fs_group is not None:
        context["fsGroupChangePolicy"] = "OnRootMismatch"  # a big volume is not walked at each start
    return context


def build_placement(pod: PodSettings, gpu: GpuClass | None, settings: OperatorSettings) -> Manifest:
    """Where the pod may run and under whose name; only what is set, so that the API server's defaults stay."""
    selector = dict(pod.node_selector) | (dict(gpu.node_selector) if gpu else {})
    tolerations = _tolerations([*pod.tolerations, *(gpu.tolerations if gpu else [])])
    optional: Manifest = {
        "nodeSelector": selector,
        "tolerations": tolerations,
        "runtimeClassName": gpu.runtime_class if gpu else None,
        "priorityClassName": settings.priority_class_name,
        "serviceAccountName": settings.service_account_name,
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
    }
    return {name: value for name, value in optional.items() if value}


def _tolerations(tolerations: Sequence[Toleration]) -> list[Manifest]:
    return [dict(t.to_json_dict()) for t in tolerations]
