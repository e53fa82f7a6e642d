"""One llamero on a real control plane: Redis, a node, the operator's process, a namespace, and words for what a story asks of them."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.api import ApiError, path_of
from cluster.control_plane import ControlPlane
from cluster.node import NodeOptions, NodeThread
from cluster.redis_server import RedisServer
from cluster.runtimes import Runtime, SimulatedRuntime
from cluster.waiting import until

from llamero.spec.names import LABEL_UID, redis_patterns
from llamero.spec.status import JobStatus
from stack.fork_server import ForkServer
from stack.operator_process import OperatorProcess
from stack.protocol_worker import ProtocolWorker, Script

API_VERSION = "llamero.dev/v1alpha1"
JOB_KIND = "FineTuneJob"
STACK_LABEL = "llamero.dev/stack"
POD_KINDS = ("data", "training", "evaluation", "helper", "cpu", "tgi", "vllm")
ENDED = ("Succeeded", "Failed")
NOTHING_SERVED = {"enabled": False}
"""Stories of jobs alone; those of servers set `serving` themselves."""

Object = dict[str, Any]


class Stack:
    """Everything but the control plane. With a `script`, pods are played by a ProtocolWorker; without, they are real processes
    (`runtime`: started otherwise than a node does by itself).

    Use as a context manager; `operator` is started unless `start_operator` is False.
    """

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        *,
        script: Script | None = None,
        settings: Mapping[str, Any] | None = None,
        node: NodeOptions | None = None,
        start_operator: bool = True,
        redis_password: str | None = "the-password",
        kubeconfig: Path | None = None,
        fork_server: ForkServer | None = None,
        storage: Path | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.plane = plane
        self.folder = folder
        self._fork_server = fork_server
        self.storage = storage or folder / "storage"
        self.storage.mkdir(parents=True, exist_ok=True)
        self.redis = RedisServer(folder / "redis", password=redis_password, append_only=True)
        self.worker = ProtocolWorker(self.redis.url, script) if script is not None else None
        self._runtime = SimulatedRuntime(self.worker) if self.worker is not None else runtime
        self._node_options = node or NodeOptions()
        self._settings = {
            "storage": {"hostPath": str(self.storage), "mountPath": str(self.storage)},
            **(settings or {}),
        }
        self._start_operator = start_operator
        self._kubeconfig = kubeconfig or plane.kubeconfig
        self._nodes = contextlib.ExitStack()
        self._numbers = iter(range(1, 1000))
        self.nodes: list[NodeThread] = []
        self.namespace = ""
        self.operator: OperatorProcess

    def __enter__(self) -> Self:
        try:
            self.redis.start()
            self.namespace = self.plane.create_namespace("story")
            self.add_node()
            self.operator = self.build_operator("operator")
            if self._start_operator:
                self.operator.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.describe(), file=sys.stderr)
        if hasattr(self, "operator"):
            self.operator.kill()
        if self.namespace:
            self._release_jobs()
            self.plane.delete_namespace(self.namespace)
        self._nodes.close()
        self.redis.close()

    # -- parts -----------------------------------------------------------------------------------------------------------------

    def build_operator(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        kubeconfig: Path | None = None,
    ) -> OperatorProcess:
        """A further operator process for the same namespace, not started."""
        merged = {"namespaces": [self.namespace], "serving": NOTHING_SERVED, **self._settings, **(settings or {})}
        # A control plane may have other nodes: pods of this stack run on its own alone, where their workers know its Redis.
        mine = {"nodeSelector": {STACK_LABEL: self.namespace}}
        pods = merged.get("pods") or {}
        merged["pods"] = {kind: {**(pods.get(kind) or {}), **mine} for kind in POD_KINDS}
        return OperatorProcess(
            kubeconfig or self._own_kubeconfig(),
            self.folder,
            self.redis.url,
            merged,
            name=name,
            environment=environment,
            fork_server=self._fork_server,
        )

    def _own_kubeconfig(self) -> Path:
        """As the control plane's, where none was given, with this stack's namespace as the operator's own: routes are written there."""
        if self._kubeconfig != self.plane.kubeconfig:
            return self._kubeconfig
        content = json.loads(self.plane.kubeconfig.read_text())
        for context in content["contexts"]:
            context["context"]["namespace"] = self.namespace
        path = self.folder / "operator.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))
        return path

    def add_node(self, options: NodeOptions | None = None) -> NodeThread:
        """A further node with the same kind of pods."""
        name = f"{self.namespace}-{next(self._numbers)}"
        chosen = options or self._node_options
        chosen = replace(chosen, labels={**(chosen.labels or {}), STACK_LABEL: self.namespace})
        node = NodeThread(
            self.plane.access,
            self.plane.folder / "nodes" / name,
            name,
            runtime=self._runtime,
            options=chosen,
            claims_folder=self.folder / "claims",
        )
        self._nodes.enter_context(node)
        self.nodes.append(node)
        return node

    @property
    def node(self) -> NodeThread:
        """The first node."""
        return self.nodes[0]

    # -- jobs ------------------------------------------------------------------------------------------------------------------

    def path(self, name: str = "", kind: str = JOB_KIND, version: str = API_VERSION) -> str:
        return path_of(version, kind, self.namespace, name or None)

    def submit(self, manifest: Object) -> str:
        """Create the job; returns its uid."""
        created = self.plane.api.create({**manifest, "metadata": {**manifest["metadata"], "namespace": self.namespace}})
        return str(created["metadata"]["uid"])

    def get(self, name: str) -> Object:
        return self.plane.api.get(self.path(name))

    def status(self, name: str) -> JobStatus:
        return JobStatus.model_validate(self.get(name).get("status") or {})

    def patch(self, name: str, spec: Object) -> None:
        """A merge patch of the job's spec."""
        self.plane.kubectl(
            "patch",
            "ftj",
            name,
            "--type=merge",
            "-p",
            json.dumps({"spec": spec}),
            namespace=self.namespace,
        )

    def delete(self, name: str) -> None:
        self.plane.api.delete(self.path(name))

    def wait(self, name: str, condition: Callable[[JobStatus], Any], what: str, seconds: float = 60) -> JobStatus:
        """The status once the condition holds; tells the job and the operator's log where it does not in time."""

        def holds() -> JobStatus | None:
            status = self.status(name)
            return status if condition(status) else None

        try:
            found = until(holds, f"job {name}: {what}", seconds, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from error
        assert found is not None
        return found

    def wait_phase(self, name: str, *phases: str, seconds: float = 60) -> JobStatus:
        return self.wait(name, lambda s: s.phase in phases, f"phase {' or '.join(phases)}", seconds)

    def wait_gone(self, name: str, seconds: float = 60) -> None:
        """Until the job's resource is gone."""
        try:
            until(lambda: self.plane.api.find(self.path(name)) is None, f"job {name} to go", seconds, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from error

    # -- what is there ---------------------------------------------------------------------------------------------------------

    def children(self, uid: str) -> list[Object]:
        """The job's batch Jobs."""
        return self.plane.api.items(path_of("batch/v1", "Job", self.namespace) + f"?labelSelector={LABEL_UID}%3D{uid}")

    def pods(self, uid: str) -> list[Object]:
        return self.plane.api.items(path_of("v1", "Pod", self.namespace) + f"?labelSelector={LABEL_UID}%3D{uid}")

    def adapters(self) -> dict[str, Object]:
        return {a["metadata"]["name"]: a for a in self.plane.api.items(self.path(kind="Adapter"))}

    def redis_keys(self, uid: str) -> list[str]:
        """The job's keys in Redis."""
        with self.redis.client as client:
            return [str(key) for pattern in redis_patterns(uid) for key in client.keys(pattern)]

    def stored(self, pattern: str = "**/*") -> list[Path]:
        """Files of the storage, relative to its root."""
        return sorted(p.relative_to(self.storage) for p in self.storage.glob(pattern) if p.is_file())

    def remains(self, name: str, uid: str) -> list[str]:
        """What is left of a job: Jobs, pods, keys, files; published Adapters aside."""
        left = [f"Job {c['metadata']['name']}" for c in self.children(uid)]
        left += [f"pod {p['metadata']['name']}" for p in self.pods(uid)]
        left += [f"key {key}" for key in self.redis_keys(uid)]
        left += [f"file {p}" for p in self.stored(f"jobs/{self.namespace}/{name}-*/**/*")]
        return left

    def wait_nothing_left(self, name: str, uid: str, seconds: float = 60) -> None:
        """Until nothing is left of a deleted job; says what is, where it stays."""
        try:
            until(lambda: not self.remains(name, uid), f"nothing to be left of {name}", seconds, 0.2)
        except AssertionError as error:
            raise AssertionError(f"left of {name}: {self.remains(name, uid)}\n{self.describe()}") from error

    def describe(self) -> str:
        """Jobs, pods, events and the operator's last words, for a failed story."""
        parts: list[str] = []
        with contextlib.suppress(Exception):
            for job in self.plane.api.items(self.path()):
                parts.append(f"--- {job['metadata']['name']}\n{json.dumps(job.get('status'), indent=1)}")
            parts.append(self.plane.describe(self.namespace))
        with contextlib.suppress(Exception):
            parts.append(f"--- operator\n{self.operator.tail()}")
        return "\n".join(parts)

    def _release_jobs(self) -> None:
        """Take the finalizers away, so that the namespace can go when no operator lives."""
        with contextlib.suppress(ApiError, OSError):
            for job in self.plane.api.items(self.path()):
                with contextlib.suppress(ApiError):
                    self.plane.kubectl(
                        "patch",
                        "ftj",
                        job["metadata"]["name"],
                        "--type=merge",
                        "-p",
                        '{"metadata":{"finalizers":null}}',
                        namespace=self.namespace,
                        check=False,
                    )


@contextlib.contextmanager
def running(plane: ControlPlane, folder: Path, **options: Any) -> Iterator[Stack]:
    """`with running(plane, folder) as stack`."""
    with Stack(plane, folder, **options) as stack:
        yield stack


def played_job(name: str, **spec: Any) -> Object:
    """A small valid manifest for played workers: its files need not exist."""
    return {
        "apiVersion": API_VERSION,
        "kind": JOB_KIND,
        "metadata": {"name": name},
        "spec": {
            "baseModel": {"uri": "/played/base"},
            "data": {"sources": [{"uri": "/played/data.json", "format": "alpaca"}], "workers": 1},
            "training": {"resources": {"gpus": 0}},
            **spec,
        },
    }
