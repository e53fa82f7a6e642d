"""Every name, label and path of llamero, each built in exactly one function.

Paths are `pathlib.PurePosixPath`-like joins on URIs or local folders; nothing here touches a disk.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLayout:
    """Where the files of one run lie: `<workdir>/<job>/r<run>/…`."""

    workdir: Path
    job: str
    run: int

    @property
    def job_folder(self) -> Path:
        return self.workdir / self.job

    @property
    def folder(self) -> Path:
        return self.job_folder / run_name(self.run)

    @property
    def state(self) -> Path:
        """Where the run stands (`spec.run.RunState`)."""
        return self.folder / "run.json"

    @property
    def manifest(self) -> Path:
        """The manifest that the run was started with, as JSON."""
        return self.folder / "job.json"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def report_html(self) -> Path:
        return self.folder / "report.html"

    @property
    def report_json(self) -> Path:
        return self.folder / "report.json"

    @property
    def shard_cache(self) -> Path:
        """Finished data shards, keyed by content, shared by the runs of a job."""
        return self.job_folder / "shards"

    @property
    def lock(self) -> Path:
        """Held by the one process that works on the job."""
        return self.job_folder / ".lock"

    @property
    def routes(self) -> Path:
        """The routes file (`spec.routes.Routes`) that the chat service reads."""
        return self.job_folder / "routes.json"


MANIFEST_NAME = "manifest.json"
"""A folder's manifest (names, sizes, sha256), written last: what has none does not exist."""


ARMS_FOLDER = "arms"
"""Below a run's data and its tokens: the training sets of `data.controls`, a folder each."""

ARM_RANDOM, ARM_THRESHOLD = "random", "at-"


def arm_name(threshold: float | None) -> str:
    """The folder of a control's training set: `random`, or `at-4.5`."""
    return ARM_RANDOM if threshold is None else f"{ARM_THRESHOLD}{threshold:g}"


def run_name(run: int) -> str:
    """`r3` for run 3."""
    return f"r{run}"


def parse_run_name(name: str) -> int | None:
    """3 for `r3`; None where the name is not a run's."""
    return int(name[1:]) if name.startswith("r") and name[1:].isdigit() else None


def adapter_resource_name(job: str, run: int) -> str:
    """The Adapter resource of a run: `<job>-r<run>`."""
    return f"{job}-{run_name(run)}"


def served_adapter_id(namespace: str, job: str, run: int, digest: str) -> str:
    """The id that an engine serves an adapter under, never reused: `<namespace>-<job>-r<run>-<digest8>`.

    `digest` is the adapter's sha256 in hex.
    """
    return f"{namespace}-{adapter_resource_name(job, run)}-{digest[:8]}"


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after optimiser step `step`: `step-00000120`."""
    return f"step-{step:08d}"


def parse_checkpoint_name(name: str) -> int | None:
    """120 for `step-00000120`; None where the name is not a checkpoint's."""
    return int(name[5:]) if name.startswith("step-") and name[5:].isdigit() else None


def shard_name(index: int) -> str:
    """`part-00007` for shard 7."""
    return f"part-{index:05d}"


# -- on a cluster --------------------------------------------------------------------------------------------------------------

GROUP = "llamero.dev"
VERSION = "v1alpha1"
PLURAL = "finetunejobs"
ADAPTER_PLURAL = "adapters"
SERVER_PLURAL = "modelservers"
FINALIZER = f"{GROUP}/cleanup"
FIELD_MANAGER = "llamero-operator"

READ_LOGS_ANNOTATION = f"{GROUP}/read-logs"
"""Asks for a pod that prints kept logs: `spec.tasks.LogRequest` as JSON, set and taken away by `llamero logs`."""

LABEL_UID = f"{GROUP}/job-uid"
LABEL_JOB = f"{GROUP}/job"
LABEL_RUN = f"{GROUP}/run"
LABEL_KIND = f"{GROUP}/work"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_SERVER = f"{GROUP}/server"
LABEL_SERVER_UID = f"{GROUP}/server-uid"
SERVED_FINALIZER = f"{GROUP}/served"
"""On an Adapter while engines have it, so that its deletion waits until no request can go to it."""
SERVES_ANNOTATION = f"{GROUP}/serves"
"""On a ModelServer's Deployment: the engine and base that it was made for."""
GATHERED_ANNOTATION = f"{GROUP}/gathered"
"""On the pods of an engine that reads its adapters at start: the served ids that they were started with, a JSON list."""
ROUTES_NAME = "llamero-routes"
"""The ConfigMap with the routes, in the operator's namespace; its one key is ROUTES_KEY."""
ROUTES_KEY = "routes.json"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

MAX_NAME = 63
UID_DIGITS = 8


def child_labels(job: str, uid: str, run: int, kind: str, attempt: int) -> dict[str, str]:
    """The labels of a child Job and its pods, by which they are found again."""
    return {
        "app.kubernetes.io/name": "llamero",
        "app.kubernetes.io/component": kind,
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
        LABEL_JOB: job[:MAX_NAME].rstrip("-."),  # a job whose name is refused may have to be cleaned up all the same
        LABEL_UID: uid,
        LABEL_RUN: str(run),
        LABEL_KIND: kind,
        LABEL_ATTEMPT: str(attempt),
    }


def child_job_name(job: str, uid: str, run: int, kind: str, attempt: int) -> str:
    """`<job>-r<run>-<kind>-<attempt>-<uid5>`: the same for the same attempt, and never that of a job made again under an old name."""
    tail = f"-{run_name(run)}-{kind}-{attempt}-{uid.replace('-', '')[:5]}"
    return job[: MAX_NAME - len(tail)].rstrip("-.") + tail


def queue_name(uid: str, run: int, kind: str, attempt: int) -> str:
    """The Celery queue of one attempt alone."""
    return f"llamero.{uid}.{run_name(run)}.{kind}.{attempt}"


def task_id(uid: str, run: int, kind: str, attempt: int) -> str:
    """The Celery task id of an attempt: a doubled message carries the same."""
    return f"{uid}.{run_name(run)}.{kind}.{attempt}"


def progress_key(uid: str, run: int, kind: str, attempt: int) -> str:
    """The Redis key of an attempt's progress (`spec.tasks.ProgressReport`)."""
    return f"llamero:progress:{uid}:{run_name(run)}:{kind}:{attempt}"


def redis_patterns(uid: str) -> tuple[str, ...]:
    """Patterns of every Redis key that belongs to a job: queues, kombu's bindings of them, progress."""
    return (
        f"llamero.{uid}.*",
        f"_kombu.binding.llamero.{uid}.*",
        f"_kombu.binding_permanent.llamero.{uid}.*",
        f"llamero:progress:{uid}:*",
    )


@dataclass(frozen=True)
class JobStorage:
    """Where a job's files lie on a cluster, as URIs below the storage's root. Every pod writes to a prefix of its own."""

    root: str
    namespace: str
    job: str
    uid: str

    @property
    def prefix(self) -> str:
        """All that belongs to the job and goes with it."""
        return f"{self.root.rstrip('/')}/jobs/{self.namespace}/{self.job}-{self.uid.replace('-', '')[:UID_DIGITS]}"

    @property
    def shards(self) -> str:
        """Finished data shards, keyed by content, shared by the job's runs and attempts."""
        return f"{self.prefix}/shards"

    def run(self, run: int) -> str:
        return f"{self.prefix}/{run_name(run)}"

    def attempts(self, run: int, kind: str) -> str:
        """The folder of all attempts at a kind of work."""
        return f"{self.run(run)}/{kind}"

    def attempt(self, run: int, kind: str, attempt: int, pod_uid: str) -> str:
        """A pod's own prefix; no other pod ever writes there."""
        return f"{self.attempts(run, kind)}/a{attempt}-{pod_uid.replace('-', '')[:UID_DIGITS]}"

    def logs(self, run: int) -> str:
        return f"{self.run(run)}/logs"

    def log(self, run: int, kind: str, attempt: int, pod_name: str) -> str:
        """A worker's log, kept after its pod is gone."""
        return f"{self.logs(run)}/{kind}-a{attempt}-{pod_name}.log"

    @property
    def adapters(self) -> str:
        """Where the job's adapters lie, published or not; outside of the job's prefix, since published ones outlive it."""
        return f"{self.root.rstrip('/')}/adapters/{self.namespace}"

    def adapter(self, run: int, sha256: str) -> str:
        """An adapter's immutable folder."""
        return f"{self.adapters}/{adapter_resource_name(self.job, run)}/{sha256}"


@dataclass(frozen=True)
class AttemptFolder:
    """What lies in a pod's own prefix (`JobStorage.attempt`); each part has a manifest of its own, written last."""

    prefix: str

    @property
    def data(self) -> str:
        return f"{self.prefix}/data"

    @property
    def checkpoints(self) -> str:
        return f"{self.prefix}/checkpoints"

    def checkpoint(self, step: int) -> str:
        return f"{self.checkpoints}/{checkpoint_name(step)}"

    @property
    def training_result(self) -> str:
        """Written after everything else of a training: where it stands, the training is done."""
        return f"{self.checkpoints}/result.json"

    @property
    def adapter(self) -> str:
        return f"{self.prefix}/adapter"

    @property
    def merged(self) -> str:
        return f"{self.prefix}/merged"

    @property
    def evaluation(self) -> str:
        return f"{self.prefix}/evaluation"

    @property
    def report_html(self) -> str:
        return f"{self.prefix}/report.html"

    @property
    def report_json(self) -> str:
        return f"{self.prefix}/report.json"

    @property
    def coordinator(self) -> str:
        """The beat of the pod that coordinates a preparation, and how it ended."""
        return f"{self.prefix}/coordinator.json"


def parse_attempt_folder(name: str) -> int | None:
    """3 for `a3-1f0c2d4e`; None where the name is not that of a pod's prefix."""
    number, dash, _ = name.removeprefix("a").partition("-")
    return int(number) if name.startswith("a") and dash and number.isdigit() else None


def parse_log_name(name: str) -> tuple[str, int, str] | None:
    """Kind, attempt and pod of a kept log's name (`train-a2-some-pod.log`); None where it is not one."""
    kind, dash, rest = name.removesuffix(".log").partition("-a")
    attempt, second, pod = rest.partition("-")
    is_log = name.endswith(".log") and dash and second and attempt.isdigit()
    return (kind, int(attempt), pod) if is_log else None


def base_storage(root: str, key: str) -> str:
    """Where a fetched base model lies, shared by all jobs; `key` names base and revision."""
    return f"{root.rstrip('/')}/models/{key}"


def base_key(name: str, revision: str) -> str:
    """The folder of a fetched base: `meta-llama--Llama-3.2-1B@<revision>`; of one with a long URI the end alone."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '--', name)[-120:].strip('-')}@{revision}"


# -- serving -------------------------------------------------------------------------------------------------------------------

ENGINE_PORT, AGENT_PORT = 8080, 8090
ENGINE_CONTAINER, AGENT_CONTAINER, FETCH_CONTAINER = "engine", "agent", "fetch"
WANTED_KEY = "wanted.json"
ENGINE_BASE_NAME = "tgi"
"""What each engine calls its base model in requests: TGI knows no other name for it."""
MAX_SERVER_NAME = 40


def engine_component() -> str:
    """The component label of an engine's pods."""
    return "engine"


def server_labels(server: str, uid: str) -> dict[str, str]:
    """The labels of all that belongs to a ModelServer, by which it is found again."""
    return {
        "app.kubernetes.io/name": "llamero",
        "app.kubernetes.io/component": engine_component(),
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
        LABEL_SERVER: server,
        LABEL_SERVER_UID: uid,
    }


def engine_name(server: str) -> str:
    """The name of a ModelServer's Deployment, Service, PodDisruptionBudget and HorizontalPodAutoscaler: `<server>-engine`."""
    return f"{server}-engine"


def wanted_name(server: str) -> str:
    """The ConfigMap with the adapters that its pods start with (`spec.serving.AgentWanted`): `<server>-wanted`."""
    return f"{server}-wanted"


def serves_mark(engine: str, base: str, revision: str | None) -> str:
    """What a ModelServer's Deployment was made for, which never changes: `tgi meta-llama/Llama-3.2-1B@<revision>`."""
    return f"{engine} {base}" + (f"@{revision}" if revision else "")


def server_key(namespace: str, server: str) -> str:
    """How routes call a ModelServer: `<namespace>/<server>`."""
    return f"{namespace}/{server}"


def default_server_name(base: str, revision: str | None, engine: str) -> str:
    """The ModelServer that is made for a base and an engine where a job names none: `llama-3-2-1b-tgi-1f0c2`."""
    slug = re.sub(r"[^a-z0-9]+", "-", base.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-") or "base"
    mark = hashlib.sha256(f"{base}@{revision or ''}".encode()).hexdigest()[:5]
    tail = f"-{engine}-{mark}"
    return slug[: MAX_SERVER_NAME - len(tail)].rstrip("-") + tail


def engine_base_path(scratch: str) -> str:
    """Where an engine's pod sees its base model: a link that the agent's fetch makes."""
    return f"{scratch.rstrip('/')}/base"


def engine_adapter_path(scratch: str, served_id: str) -> str:
    """Where an engine's pod sees an adapter: no `,`, `=` or `@` may stand in it."""
    return f"{scratch.rstrip('/')}/adapters/{served_id}"


def imported_adapter_id(namespace: str, name: str, digest: str) -> str:
    """The served id of an adapter that no run made: `<namespace>-<name>-<digest8>`."""
    return f"{namespace}-{name}-{digest[:8]}"


def golden_name(sha256: str) -> str:
    """The file of golden prompts beside an adapter's files: `golden-1f0c2d4e.json`."""
    return f"golden-{sha256[:8]}.json"
