"""llamero's serving side as a whole: a Stack whose pods are engines, a chat service that follows its routes, and words for stories.

Engines are real processes in the test's nodes: llamero's own CPU engine, and the stand-ins of tests/standins.
"""

import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.api import path_of
from cluster.containers import ProcessRuntime
from cluster.control_plane import ControlPlane
from cluster.node import NodeOptions, NodeThread
from cluster.processes import Daemon, free_port
from cluster.waiting import until
from stack.stack import API_VERSION, Stack

from llamero.spec.adapter import AdapterResourceStatus
from llamero.spec.names import LABEL_SERVER, ROUTES_KEY, ROUTES_NAME, server_key
from llamero.spec.routes import Routes
from llamero.spec.server import ModelServerStatus, NameStatus
from llamero.spec.serving import AGENT_REPORT_PATH, CHAT_REPORT_PATH, AgentReport, ChatReport
from serving.makers import STOP, TinyAdapter

Object = dict[str, Any]

STAND_INS = Path(__file__).parents[1] / "standins" / "bin"
ADAPTER_KIND, SERVER_KIND = "Adapter", "ModelServer"
START_SECONDS = 90

SERVING = {
    "pollSeconds": 1,
    "busyPollSeconds": 0.3,
    "timeoutSeconds": 2,
    "reportSeconds": 6,
    "drainSeconds": 15,
    "settleSeconds": 2,
    "gatherSeconds": 0.5,
    "startSeconds": 60,
    "leaveSeconds": 3,
    "finishSeconds": 20,
}
"""Times for tests: the same behaviour, sooner."""

STRATEGY = {
    "steps": [50, 100],
    "intervalSeconds": 1,
    "maxStepSeconds": 60,
    "analysis": {"minRequests": 16, "minVotes": 4},
}
SMALL = {"cpuRequest": "100m", "memoryRequest": "100Mi", "memoryLimit": "4Gi", "sharedMemory": "64Mi", "scratch": "1Gi"}
ENGINE_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


class ServingWorld:
    """Use `running(...)`. `base` is the tiny base's folder, a copy of which lies in the stack's storage."""

    def __init__(self, stack: Stack, base: Path, chat: Daemon, url: str, inner_url: str) -> None:
        self.stack = stack
        self.base = base
        self.chat = chat
        self.url = url
        self.inner_url = inner_url
        self.words: dict[str, str] = {}  # adapter resources and what they answer with

    @property
    def namespace(self) -> str:
        return self.stack.namespace

    # -- resources -------------------------------------------------------------------------------------------------------------

    def create_server(
        self, name: str, engine: str, replicas: int = 1, strategy: Mapping[str, Any] | None = None, **spec: Any
    ) -> None:
        """A ModelServer of the tiny base, without a GPU."""
        self._create(
            SERVER_KIND,
            name,
            {
                "baseModel": {"uri": str(self.base)},
                "engine": {"type": engine},
                "replicas": replicas,
                "resources": {"gpus": 0},
                "strategy": dict(strategy or STRATEGY),
                **spec,
            },
        )

    def publish(self, adapter: TinyAdapter, name: str, model: str, server: str) -> float:
        """An Adapter resource over a copy of the folder in the storage; returns when (`time.monotonic`)."""
        folder = self.stack.storage / "adapters" / self.namespace / name / adapter.sha256
        shutil.copytree(adapter.folder, folder)
        self.words[name] = adapter.word
        manifest = json.loads((folder / "manifest.json").read_text())
        spec = {
            "uri": str(folder),
            "sha256": adapter.sha256,
            "base": str(self.base),
            "baseSha256": manifest["baseSha256"],
            "template": "base",
            "stopTokens": [STOP],
            "model": model,
            "server": server,
            "figures": {"records": 0},
        }
        if adapter.golden_sha256 is not None:
            spec["goldenSha256"] = adapter.golden_sha256
        self._create(ADAPTER_KIND, name, spec)
        return time.monotonic()

    def patch(self, kind: str, name: str, spec: Object) -> None:
        """A merge patch of a resource's spec."""
        body = json.dumps({"spec": spec})
        self.stack.plane.kubectl("patch", kind.lower(), name, "--type=merge", "-p", body, namespace=self.namespace)

    def delete(self, kind: str, name: str) -> None:
        self.stack.plane.api.delete(self.stack.path(name, kind))

    def _create(self, kind: str, name: str, spec: Object) -> None:
        metadata = {"name": name, "namespace": self.namespace}
        self.stack.plane.api.create({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec})

    # -- what is told ----------------------------------------------------------------------------------------------------------

    def server_status(self, name: str) -> ModelServerStatus:
        return ModelServerStatus.model_validate(
            self.stack.plane.api.get(self.stack.path(name, SERVER_KIND)).get("status") or {}
        )

    def name_status(self, server: str, model: str) -> NameStatus | None:
        return next((m for m in self.server_status(server).models if m.name == model), None)

    def adapter_status(self, name: str) -> AdapterResourceStatus:
        return AdapterResourceStatus.model_validate(
            self.stack.plane.api.get(self.stack.path(name, ADAPTER_KIND)).get("status") or {}
        )

    def routes(self) -> Routes:
        found = self.stack.plane.api.find(path_of("v1", "ConfigMap", self.namespace, ROUTES_NAME))
        return Routes.model_validate_json(found["data"][ROUTES_KEY]) if found else Routes()

    def chat_report(self) -> ChatReport:
        return ChatReport.model_validate_json(read(f"{self.inner_url}{CHAT_REPORT_PATH}"))

    def agent_report(self, pod: Object) -> AgentReport | None:
        """None where the pod's agent does not answer."""
        try:
            return AgentReport.model_validate_json(read(f"http://{pod['status']['podIP']}:8090{AGENT_REPORT_PATH}"))
        except (OSError, KeyError, ValueError):
            return None

    def pods(self, server: str) -> list[Object]:
        """The server's pods that are not being deleted."""
        path = path_of("v1", "Pod", self.namespace) + f"?labelSelector={LABEL_SERVER.replace('/', '%2F')}%3D{server}"
        return [p for p in self.stack.plane.api.items(path) if "deletionTimestamp" not in p["metadata"]]

    def node_of(self, pod: Object) -> NodeThread:
        return next(n for n in self.stack.nodes if n.name == pod["spec"]["nodeName"])

    # -- waiting ---------------------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> float:
        """When the condition held (`time.monotonic`); tells everything where it does not in time."""
        try:
            until(condition, what, seconds, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe()}") from error
        return time.monotonic()

    def wait_served(self, server: str, model: str, adapter: str, seconds: float = START_SECONDS) -> float:
        """Until the name is served by the adapter alone and the chat service works by it."""

        def holds() -> bool:
            status = self.name_status(server, model)
            return (
                status is not None and status.adapter == adapter and status.canary is None and status.state == "Serving"
            )

        self.wait(holds, f"{model} to be served by {adapter} alone", seconds)
        return self.wait_taken_in(server, model, 1)

    def wait_taken_in(self, server: str, model: str, targets: int) -> float:
        """Until the routes give the name so many targets, and the chat service works by those routes."""

        def holds() -> bool:
            table = self.routes()
            route = next(
                (r for r in table.routes if r.model == model and r.server == server_key(self.namespace, server)), None
            )
            found = [t for t in route.targets if t.weight > 0] if route else []
            return len(found) == targets and self.chat_report().revision == table.revision

        return self.wait(holds, f"the chat service to work by routes with {targets} target(s) for {model}")

    def wait_pods(self, server: str, count: int, adapters: int = 0, seconds: float = START_SECONDS) -> float:
        """Until so many pods are ready, each with at least so many adapters, and stand in the chat service's routes."""

        def holds() -> bool:
            status = self.server_status(server)
            ready = [p for p in status.pods if p.ready and len(p.adapters) >= adapters]
            table = self.routes()
            backends = table.servers.get(server_key(self.namespace, server), [])
            listed = [b for b in backends if len(b.adapters) >= adapters]
            return len(ready) == len(listed) == count and self.chat_report().revision == table.revision

        return self.wait(holds, f"{count} pod(s) of {server} to be ready with {adapters} adapter(s)", seconds)

    # -- faults ----------------------------------------------------------------------------------------------------------------

    def drain(self, node: str) -> None:
        """`kubectl drain`, as an administrator types it."""
        self.stack.plane.kubectl(
            "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s", seconds=90
        )

    def cordon(self, node: str) -> None:
        self.stack.plane.kubectl("cordon", node)

    def uncordon(self, node: str) -> None:
        self.stack.plane.kubectl("uncordon", node)

    def describe(self) -> str:
        """Statuses, routes, events, pods' logs and the operator's last words."""
        parts = []
        for kind in (SERVER_KIND, ADAPTER_KIND):
            for item in self.stack.plane.api.items(self.stack.path(kind=kind)):
                parts.append(
                    f"--- {kind} {item['metadata']['name']}\n{json.dumps(item.get('status'), indent=1)[:4000]}"
                )
        parts.append(f"--- routes\n{self.routes().model_dump_json(indent=1)[:3000]}")
        parts.append(f"--- chat\n{self.chat.tail(15)}")
        for node in self.stack.nodes:
            folder = self.stack.plane.folder / "nodes" / node.name
            for log in sorted((folder / "pods").glob("*/containers/*/*.log")):
                tail = log.read_text(errors="replace").splitlines()[-12:]
                parts.append(f"--- {log.parts[-4][:8]} {log.parts[-2]}/{log.name}\n" + "\n".join(tail))
        parts.append(self.stack.describe())
        return "\n".join(parts)

    def _release(self) -> None:
        """Take finalizers away, so that the namespace can go when no operator lives."""
        for kind in (SERVER_KIND, ADAPTER_KIND):
            for item in self.stack.plane.api.items(self.stack.path(kind=kind)):
                self.stack.plane.kubectl(
                    "patch",
                    kind.lower(),
                    item["metadata"]["name"],
                    "--type=merge",
                    "-p",
                    '{"metadata":{"finalizers":null}}',
                    namespace=self.namespace,
                    check=False,
                )


@contextmanager
def running(
    plane: ControlPlane,
    folder: Path,
    base: Path,
    *,
    nodes: int = 1,
    serving: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServingWorld]:
    """A serving side with so many nodes; `serving` are settings of the operator, `environment` is every container's."""
    folder.mkdir(parents=True, exist_ok=True)
    port, inner = free_port(), free_port()
    pods = dict.fromkeys(("cpu", "tgi", "vllm"), SMALL) | {
        "agent": {"cpuRequest": "50m", "memoryRequest": "50Mi", "memoryLimit": "1Gi"}
    }
    settings = {"serving": {**SERVING, "chats": [f"127.0.0.1:{inner}"], **(serving or {})}, "pods": pods}
    runtime = ProcessRuntime([STAND_INS], {**ENGINE_ENVIRONMENT, **(environment or {})})
    stack = Stack(plane, folder, settings=settings, node=NodeOptions(), runtime=runtime, start_operator=False)
    with stack:
        stored = stack.storage / "models" / "tiny"
        shutil.copytree(base, stored)
        for _ in range(nodes - 1):
            stack.add_node()
        stack.operator = stack.build_operator("operator", environment={"POD_NAMESPACE": stack.namespace})
        stack.operator.start()
        chat = _start_chat(plane, folder, stack.namespace, port, inner)
        world = ServingWorld(stack, stored, chat, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{inner}")
        try:
            yield world
        finally:
            chat.kill()
            stack.operator.kill()
            world._release()


def _start_chat(plane: ControlPlane, folder: Path, namespace: str, port: int, inner: int) -> Daemon:
    words = ["--routes-config-map", f"{namespace}/{ROUTES_NAME}", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "KUBECONFIG": str(plane.kubeconfig),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    command = [sys.executable, "-m", "llamero.chat", *words, "--inner-port", str(inner)]
    chat = Daemon("chat", command, folder / "chat.log", environment, folder)
    chat.start()
    chat.wait_ready(lambda: _answers(f"http://127.0.0.1:{inner}{CHAT_REPORT_PATH}"), START_SECONDS)
    return chat


def _answers(url: str) -> bool:
    try:
        read(url)
    except OSError:
        return False
    return True


def read(url: str, seconds: float = 3) -> bytes:
    with urllib.request.urlopen(url, timeout=seconds) as response:
        content: bytes = response.read()
        return content
