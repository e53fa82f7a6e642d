"""What a pod's containers find in their environment: one builder for each concern, and the rules that a job's secrets must keep.

Every path that a pod is to use stands here as a variable of its own, equal to where it is mounted; what a `WorkMessage` says of the
storage's root is the same, and the variable counts.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llamero.spec.asked import list_language_models, show_path
from llamero.spec.job import FineTuneJob, SecretRef
from llamero.spec.status import WorkKind
from llamero.spec.tasks import AttemptId
from llamero_operator.resources.quantities import round_up_cores
from llamero_operator.settings import HubSettings, OperatorSettings, PodSettings

Manifest = dict[str, Any]

REDIS_SECRET = "llamero-redis"
REDIS_KEY = "url"

SCRATCH_PATH = "/llamero/scratch"
TEMPORARY_PATH = "/tmp"
SHARED_MEMORY_PATH = "/dev/shm"
CA_FOLDER = "/llamero/ca"
CA_FILE = "ca.crt"
TERMINATION_PATH = "/dev/termination-log"

_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
"""What Python's ssl, requests, curl and boto read the trusted authorities from."""

# -- secrets of the job --------------------------------------------------------------------------------------------------------

_SECRETS_OF: dict[WorkKind, tuple[str, ...]] = {
    WorkKind.FETCH: ("base",),
    WorkKind.PROBE: ("base", "data"),
    WorkKind.PREPARE: ("base", "data", "models"),  # the probe looks at sources alone: it asks no model
    WorkKind.TRAIN: ("base",),
    WorkKind.EVALUATE: ("base",),
    WorkKind.CLEAN: (),  # must run when the secrets are gone already
    WorkKind.LOGS: (),
}
"""Which of a job's secrets a kind of pod gets."""

_ENV_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
_RESERVED = re.compile(
    # what the pod itself is given
    r"^(LLAMERO_.*|POD_IP|HF_HOME|HF_ENDPOINT|HF_HUB_.*|OMP_NUM_THREADS|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|AWS_CA_BUNDLE"
    r"|(HTTPS?|NO|ALL)_PROXY|(https?|no|all)_proxy"
    # what changes how programs start and what they may see, a node's other GPUs included
    r"|PATH|HOME|USER|TMPDIR|HOSTNAME|LD_.*|PYTHON.*|CELERY_.*|NVIDIA_.*|CUDA_.*)$"
)
_STORAGE_KEYS = re.compile(r"^(AWS|GOOGLE|GCS|AZURE)_")


def list_secret_refs(job: FineTuneJob) -> list[tuple[str, str, SecretRef]]:
    """The job's secretRefs: what they belong to (`base`, `data` or `models`), where they stand in the manifest, and themselves.

    `models` are the language models that data is prepared with.
    """
    refs: list[tuple[str, str, SecretRef]] = []
    if job.spec.base_model.secret_ref is not None:
        refs.append(("base", "spec.baseModel.secretRef", job.spec.base_model.secret_ref))
    for index, source in enumerate(job.spec.data.sources):
        if source.secret_ref is not None:
            refs.append(("data", f"spec.data.sources[{index}].secretRef", source.secret_ref))
    for path, model in list_language_models(job.spec.data):
        if model.secret_ref is not None:
            refs.append(("models", f"{show_path(path)}.secretRef", model.secret_ref))
    return refs


def find_secret_problems(job: FineTuneJob, settings: OperatorSettings) -> tuple[str, ...]:
    """What keeps the job's secrets from being its pods' environment, a sentence each: a name that can't be a variable, or two secrets under one."""
    return tuple(_check_secrets(list_secret_refs(job), settings))


def _check_secrets(refs: list[tuple[str, str, SecretRef]], settings: OperatorSettings) -> Iterator[str]:
    seen: dict[str, tuple[str, str]] = {}
    for _, path, ref in refs:
        if not _ENV_NAME.match(ref.key):
            yield (
                f"{path}.key: `{ref.key}` can't name an environment variable: use letters, digits, dashes, underscores and dots, "
                "beginning with no digit."
            )
            continue
        if _RESERVED.match(ref.key):
            yield f"{path}.key: `{ref.key}` has a meaning of its own in a pod: give the secret's key another name, such as `token`."
            continue
        if settings.storage.secret_name and _STORAGE_KEYS.match(ref.key):
            yield f"{path}.key: `{ref.key}` would take the place of the storage's credentials: give the secret's key another name, such as `token`."
            continue
        other_path, other_secret = seen.setdefault(ref.key, (path, ref.name))
        if other_secret != ref.name:
            yield (
                f"{path}: its key `{ref.key}` is also that of {other_path}, of another secret ({other_secret}), and both would be the "
                "same environment variable: give one of the keys another name."
            )


def build_secret_environment(job: FineTuneJob, kind: WorkKind) -> list[Manifest]:
    """The job's secrets as variables named by their keys, as on a laptop."""
    wanted = _SECRETS_OF[kind]
    by_key = {ref.key: ref.name for owner, _, ref in list_secret_refs(job) if owner in wanted}
    return [variable_from_secret(key, name, key) for key, name in sorted(by_key.items())]


# -- what every pod finds ------------------------------------------------------------------------------------------------------


def build_attempt_environment(attempt: AttemptId, queue: str, settings: OperatorSettings) -> list[Manifest]:
    """Which attempt this is, and where its storage, scratch, queue and answer are."""
    is_celery = attempt.kind in (WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE)
    return [
        *plain_variables(
            {
                "LLAMERO_ATTEMPT": attempt.model_dump_json(by_alias=True),
                "LLAMERO_STORAGE": settings.storage_root,
                "LLAMERO_SCRATCH": SCRATCH_PATH,
                "LLAMERO_TERMINATION_LOG": TERMINATION_PATH,
                "LLAMERO_QUEUE": queue,
                "LLAMERO_IDLE_SECONDS": str(settings.intervals.idle_seconds),
                "LLAMERO_GRACE_SECONDS": str(settings.intervals.grace_seconds),
            }
        ),
        variable_from_field("LLAMERO_POD_UID", "metadata.uid"),
        variable_from_field("LLAMERO_POD_NAME", "metadata.name"),
        variable_from_field("LLAMERO_NODE", "spec.nodeName"),
        variable_from_field("POD_IP", "status.podIP"),
        # A helper works without Redis too: it tells no progress then.
        variable_from_secret("LLAMERO_REDIS_URL", REDIS_SECRET, REDIS_KEY, optional=not is_celery),
    ]


def build_process_environment(pod: PodSettings) -> list[Manifest]:
    """What libraries need on a read-only root, under a uid without a name, within a CPU limit."""
    variables = {"HOME": SCRATCH_PATH, "USER": "llamero", "PYTHONUNBUFFERED": "1"}
    if pod.cpu_limit is not None:
        # Libraries count the node's cores, not the limit's, and would be throttled.
        variables["OMP_NUM_THREADS"] = str(round_up_cores(pod.cpu_limit))
    return plain_variables(variables)


def build_hub_environment(hub: HubSettings) -> list[Manifest]:
    """How the hub is reached: endpoint, offline, authorities, proxy."""
    variables = {"HF_HOME": f"{SCRATCH_PATH}/huggingface", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if hub.endpoint is not None:
        variables["HF_ENDPOINT"] = hub.endpoint
    if hub.offline:
        variables["HF_HUB_OFFLINE"] = "1"
    if hub.ca_config_map is not None:
        variables |= dict.fromkeys(_CA_VARIABLES, f"{CA_FOLDER}/{CA_FILE}")
    proxy = {"HTTP_PROXY": hub.proxy.http, "HTTPS_PROXY": hub.proxy.https, "NO_PROXY": hub.proxy.no_proxy}
    for name, value in proxy.items():
        if value:
            variables |= {name: value, name.lower(): value}  # programs read one or the other
    return plain_variables(variables)


def plain_variables(variables: Mapping[str, str]) -> list[Manifest]:
    """Variables whose values stand in the manifest as they are."""
    return [{"name": name, "value": escape_dollars(value)} for name, value in variables.items()]


def escape_dollars(value: str) -> str:
    """Kubernetes expands `$(NAME)` in values; `$$` is a dollar."""
    return value.replace("$", "$$")


def variable_from_field(name: str, field: str) -> Manifest:
    """A variable with a field of the pod itself (downward API)."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}}


def variable_from_secret(name: str, secret: str, key: str, optional: bool = False) -> Manifest:
    """A variable from a key of a Secret of the pod\'s namespace."""
    reference: Manifest = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}
