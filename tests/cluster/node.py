"""A node of the cluster that runs pods on this machine: registers, heartbeats, takes the pods bound to it, can vanish.

`ProcessNode` belongs to the event loop it is started in; `NodeThread` gives it a loop of its own and plain methods.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.api import Access, ApiError, AsyncApi, path_of
from cluster.containers import ProcessRuntime
from cluster.kubelet import KubeletServer
from cluster.pods import Host, Pod
from cluster.reporting import UNREACHABLE, now_text
from cluster.runs import PodRun
from cluster.runtimes import Runtime
from cluster.status import Verdict
from cluster.storage import FolderProvisioner
from cluster.threads import LoopThread

Object = dict[str, Any]
LOG = logging.getLogger("cluster.node")

HOST_IP = "127.0.0.1"
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class NodeOptions:
    """What a node offers and how it behaves.

    `heartbeat_seconds` is how often its Lease is renewed. `backoff_seconds` are the first and the longest pause before a restart.
    `orphan_grace_seconds` is what a pod gets whose object is gone. `refresh_seconds` is how often mounted ConfigMaps and
    Secrets are read again (0: never). Pods with an image in `missing_images` stay in ImagePullBackOff. A kubelet sends SIGTERM
    to a container's first process alone; `signal_groups` sends it to the process group. `pod_access` is the API server that
    pods are told of (e.g. a fault proxy) where it is not the node's own.
    """

    cpu: str = "32"
    memory: str = "64Gi"
    pods: int = 5000
    ephemeral_storage: str = "500Gi"
    gpus: int = 0
    labels: Mapping[str, str] | None = None
    taints: tuple[Mapping[str, str], ...] = ()
    heartbeat_seconds: float = 1.0
    backoff_seconds: tuple[float, float] = (0.2, 5.0)
    orphan_grace_seconds: float = 2.0
    refresh_seconds: float = 1.0
    missing_images: frozenset[str] = frozenset()
    signal_groups: bool = False
    provisions_volumes: bool = True
    pod_access: Access | None = None


class ProcessNode:
    """One node; use as `async with ProcessNode(access, folder)`, or `NodeThread` without asyncio."""

    def __init__(
        self,
        access: Access,
        folder: Path,
        name: str = "node-a",
        *,
        runtime: Runtime | None = None,
        options: NodeOptions | None = None,
        claims_folder: Path | None = None,
    ) -> None:
        self.access = access
        self.folder = folder
        self.name = name
        self.options = options or NodeOptions()
        self.runtime: Runtime = runtime or ProcessRuntime()
        self.claims_folder = claims_folder or folder.parent / "claims"
        self.runs: list[PodRun] = []
        self.pods: dict[str, Pod] = {}
        self._runs_by_uid: dict[str, PodRun] = {}
        self._crashed: set[str] = set()
        self._addresses = _addresses()
        self._path = path_of("v1", "Node", name=name)
        self._lease = path_of("coordination.k8s.io/v1", "Lease", "kube-node-lease", name)
        self._tasks: list[asyncio.Task[None]] = []
        self._ends: set[asyncio.Task[None]] = set()
        self._present = asyncio.Event()
        self._synced = asyncio.Event()

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Registers the node and takes its pods; returns when it is Ready and has listed them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.api = AsyncApi(self.access)
        # Its own connections: heartbeats must not wait behind a thousand pods' statuses.
        self._heart = AsyncApi(self.access, connections=4)
        await self.api.__aenter__()
        await self._heart.__aenter__()
        self.server = KubeletServer(self.folder, self._find_log, self._is_running)
        allocatable = self._capacity()
        self.host = Host(
            self.api,
            self.runtime,
            self.folder,
            HOST_IP,
            allocatable,
            self.options.pod_access or self.access,
            self._present,
            self.options.backoff_seconds,
            self.options.refresh_seconds,
            self.options.missing_images,
            self.options.signal_groups,
            self._note_start,
            self._note_end,
        )
        await self._appear()

    async def stop(self, remove: bool = True) -> None:
        """Kills every pod's processes and (with `remove`) takes the node's object away."""
        await self._disappear()
        await asyncio.gather(*(pod.crash() for pod in self.pods.values()))
        for task in list(self._ends):
            task.cancel()
        await asyncio.gather(*self._ends, return_exceptions=True)
        if remove:
            for path in (self._path, self._lease):
                with contextlib.suppress(ApiError, *UNREACHABLE):
                    await self.api.request("DELETE", path, {}, seconds=2)
        for pod in self.pods.values():
            pod.clean()
        self.pods.clear()
        await self.api.__aexit__(None, None, None)
        await self._heart.__aexit__(None, None, None)

    # Faults

    async def vanish(self, kill: bool = True) -> None:
        """The node falls silent: no heartbeat, no status, no logs. Its processes are killed, or go on as zombies."""
        await self._disappear()
        if kill:
            await asyncio.gather(*(pod.crash() for pod in self.pods.values()))
            self._crashed = set(self.pods)
            self.pods.clear()

    async def return_(self) -> None:
        """The node is back. Pods whose objects are gone are ended; those killed by `vanish` have Failed or are started anew."""
        await self._appear()

    async def evict(
        self,
        name: str,
        namespace: str,
        message: str = "The node was low on resource: memory.",
        grace_seconds: float | None = None,
    ) -> None:
        """Ends a pod as a kubelet under pressure does: phase Failed, reason Evicted; its object stays."""
        pod = self.pod(name, namespace)
        grace = pod.grace_seconds if grace_seconds is None else grace_seconds
        await asyncio.shield(pod.terminate(grace, remove=False, verdict=Verdict("Evicted", message)))

    async def preempt(self, name: str, namespace: str, grace_seconds: int | None = None) -> None:
        """Deletes a pod with its grace, as a spot reclaim or a higher priority does; returns when it was asked."""
        pod = self.pod(name, namespace)
        options = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        await self.api.delete(pod.path, **options)

    async def kill_container(
        self, name: str, namespace: str, container: str | None = None, signal_number: int = 9, reason: str | None = None
    ) -> None:
        """Sends a signal to a container's first process; `reason="OOMKilled"` is what its status then says."""
        self.pod(name, namespace).send(container, signal_number, reason)

    # What is known

    def pod(self, name: str, namespace: str) -> Pod:
        """A pod of this node. Raises KeyError where it has none of that name."""
        for pod in list(self.pods.values()):
            if (pod.name, pod.namespace) == (name, namespace):
                return pod
        raise KeyError(f"{self.name} has no pod {namespace}/{name}")

    def pids(self, name: str, namespace: str) -> dict[str, int | None]:
        """The process ids of a pod's running containers."""
        return {container: running.pid for container, running in self.pod(name, namespace).running.items()}

    # Being there

    async def _appear(self) -> None:
        await self.server.start()
        await self._register()
        self._present.set()
        self._synced.clear()
        self._tasks = [asyncio.create_task(self._heartbeat()), asyncio.create_task(self._follow_pods())]
        if self.options.provisions_volumes:
            self._tasks.append(asyncio.create_task(self._follow_claims()))
        for task in self._tasks:
            task.add_done_callback(_report)
        await asyncio.wait_for(self._synced.wait(), 60)

    async def _disappear(self) -> None:
        self._present.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self.server.stop()

    def _capacity(self) -> dict[str, str]:
        options = self.options
        capacity = {
            "cpu": options.cpu,
            "memory": options.memory,
            "pods": str(options.pods),
            "ephemeral-storage": options.ephemeral_storage,
        }
        return {**capacity, GPU: str(options.gpus)} if options.gpus else capacity

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            **(self.options.labels or {}),
        }
        node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "spec": {"taints": [dict(taint) for taint in self.options.taints]},
            "status": self._node_status(),
        }
        lease: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": self._lease_spec(),
        }
        for manifest, patched in ((lease, {"spec": lease["spec"]}), (node, {"status": node["status"]})):
            where = manifest["metadata"].get("namespace")
            path = path_of(manifest["apiVersion"], manifest["kind"], where)
            try:
                await self.api.create(path, manifest)
            except ApiError as error:
                if error.status != 409:
                    raise
                suffix = "/status" if "status" in patched else ""
                await self.api.patch(f"{path}/{self.name}{suffix}", patched)

    def _node_status(self) -> Object:
        now = now_text()
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "the process node is posting ready status",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        capacity = self._capacity()
        return {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": HOST_IP}, {"type": "Hostname", "address": self.name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.server.port}},
            "nodeInfo": {
                "kubeletVersion": "v1.20.2",
                "kubeProxyVersion": "",
                "containerRuntimeVersion": "process://1",
                "operatingSystem": "linux",
                "architecture": "amd64",
                "osImage": "",
                "kernelVersion": "",
                "machineID": self.name,
                "systemUUID": self.name,
                "bootID": self.name,
            },
        }

    def _lease_spec(self) -> Object:
        renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": renewed}

    async def _heartbeat(self) -> None:
        """Renews the Lease; writes Ready again where the controllers took it away; registers anew where the object is gone."""
        while True:
            try:
                await self._heart.request(
                    "PATCH", self._lease, {"spec": self._lease_spec()}, "application/merge-patch+json", 5
                )
                node = await self._heart.request("GET", self._path, seconds=5)
                ready = [c["status"] for c in node["status"].get("conditions", []) if c["type"] == "Ready"]
                if ready != ["True"]:
                    await self._heart.patch(self._path + "/status", {"status": self._node_status()})
            except ApiError as error:
                if error.status == 404:
                    with contextlib.suppress(ApiError, *UNREACHABLE):
                        await self._register()
            except UNREACHABLE:
                pass
            await asyncio.sleep(self.options.heartbeat_seconds)

    # Pods

    async def _follow_pods(self) -> None:
        selector = f"spec.nodeName={self.name}"
        async for kind, found in self._follow(path_of("v1", "Pod"), fieldSelector=selector):
            if kind == "LISTED":
                self._compare(found["items"])
                self._synced.set()
            elif kind == "DELETED":
                self._take_leave(found["metadata"]["uid"])
            else:
                self._meet(found)

    async def _follow_claims(self) -> None:
        provisioner = FolderProvisioner(self.api, self.claims_folder)
        async for kind, found in self._follow(path_of("v1", "PersistentVolumeClaim")):
            claims = found["items"] if kind == "LISTED" else [found]
            for claim in claims:
                with contextlib.suppress(ApiError, *UNREACHABLE):
                    await provisioner.handle(kind, claim)

    async def _follow(self, path: str, **parameters: str) -> AsyncIterator[tuple[str, Object]]:
        """Lists, then watches, for ever: ("LISTED", the list), then (event type, object). Starts over after any fault."""
        attempt = 0
        while True:
            try:
                listed = await self.api.get(path, **parameters)
                yield "LISTED", listed
                version = listed["metadata"]["resourceVersion"]
                attempt = 0
                while True:
                    async for event in self.api.watch(path, version, **parameters):
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            yield event["type"], event["object"]
            except (ApiError, *UNREACHABLE) as error:
                LOG.debug("%s: watching %s: %s", self.name, path, error)
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1

    def _compare(self, items: list[Object]) -> None:
        """After a list: pods whose objects are gone are ended, the others met."""
        known = {item["metadata"]["uid"] for item in items}
        for uid in set(self.pods) - known:
            self._take_leave(uid)
        for item in items:
            self._meet(item)
        self._crashed.clear()

    def _meet(self, found: Object) -> None:
        uid, phase = found["metadata"]["uid"], found.get("status", {}).get("phase")
        pod = self.pods.get(uid)
        if pod is None:
            pod = self._adopt(found, was_killed=uid in self._crashed)
            if "deletionTimestamp" not in found["metadata"] and phase not in ("Succeeded", "Failed"):
                pod.begin()
        pod.take_metadata(found["metadata"])
        if "deletionTimestamp" in found["metadata"]:
            self._keep(pod.terminate(found["metadata"].get("deletionGracePeriodSeconds") or 0, remove=True))

    def _adopt(self, found: Object, was_killed: bool) -> Pod:
        before = found.get("status", {}).get("containerStatuses") or []
        restarts = max((status["restartCount"] for status in before), default=0)
        pod = Pod(found, next(self._addresses), self.host, restarts + (1 if was_killed else 0))
        self.pods[pod.uid] = pod
        if was_killed and pod.policy == "Never":
            pod.mark_lost()
        return pod

    def _take_leave(self, uid: str) -> None:
        pod = self.pods.get(uid)
        if pod is None:
            return
        pod.forget()
        self._keep(asyncio.create_task(self._end_orphan(pod)))

    async def _end_orphan(self, pod: Pod) -> None:
        await pod.terminate(self.options.orphan_grace_seconds if pod.running else 0, remove=False)
        await pod.close()
        self.pods.pop(pod.uid, None)
        await asyncio.to_thread(pod.clean)

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    def _note_start(self, pod: Pod) -> None:
        metadata = pod.object["metadata"]
        owner = next(iter(metadata.get("ownerReferences") or []), {"kind": "", "name": ""})
        labels = dict(metadata.get("labels") or {})
        run = PodRun(pod.namespace, pod.name, pod.uid, labels, owner["kind"], owner["name"], time.monotonic())
        self.runs.append(run)
        self._runs_by_uid[pod.uid] = run

    def _note_end(self, pod: Pod) -> None:
        run = self._runs_by_uid.get(pod.uid)
        if run is not None and run.ended is None:
            run.ended = time.monotonic()

    # What the kubelet's endpoint asks

    def _find_log(self, namespace: str, name: str, container: str, previous: bool) -> Path | None:
        return self.pod(name, namespace).log_of(container, previous)

    def _is_running(self, namespace: str, name: str, container: str) -> bool:
        with contextlib.suppress(KeyError):
            return container in self.pod(name, namespace).running
        return False


class NodeThread:
    """A node on an event loop in a thread of its own, for plain tests; a context manager. `node` is for reading only."""

    def __init__(
        self,
        access: Access,
        folder: Path,
        name: str = "node-a",
        *,
        runtime: Runtime | None = None,
        options: NodeOptions | None = None,
        claims_folder: Path | None = None,
    ) -> None:
        self._thread = LoopThread(f"node {name}")
        self.name = name
        self.node = ProcessNode(access, folder, name, runtime=runtime, options=options, claims_folder=claims_folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """As `ProcessNode.start`."""
        self._thread.run(self.node.start())

    def stop(self, remove: bool = True) -> None:
        """As `ProcessNode.stop`; ends the thread."""
        try:
            self._thread.run(self.node.stop(remove))
        finally:
            self._thread.stop()

    def vanish(self, kill: bool = True) -> None:
        """As `ProcessNode.vanish`."""
        self._thread.run(self.node.vanish(kill))

    def return_(self) -> None:
        """As `ProcessNode.return_`."""
        self._thread.run(self.node.return_())

    def evict(
        self,
        name: str,
        namespace: str,
        message: str = "The node was low on resource: memory.",
        grace_seconds: float | None = None,
    ) -> None:
        """As `ProcessNode.evict`."""
        self._thread.run(self.node.evict(name, namespace, message, grace_seconds), 120)

    def preempt(self, name: str, namespace: str, grace_seconds: int | None = None) -> None:
        """As `ProcessNode.preempt`."""
        self._thread.run(self.node.preempt(name, namespace, grace_seconds))

    def kill_container(
        self, name: str, namespace: str, container: str | None = None, signal_number: int = 9, reason: str | None = None
    ) -> None:
        """As `ProcessNode.kill_container`."""
        self._thread.run(self.node.kill_container(name, namespace, container, signal_number, reason))

    def pids(self, name: str, namespace: str) -> dict[str, int | None]:
        """As `ProcessNode.pids`."""
        return self.node.pids(name, namespace)

    @property
    def runs(self) -> list[PodRun]:
        """The pods started so far."""
        return list(self.node.runs)


def _addresses() -> Iterator[str]:
    """Addresses in 127.0.0.0/8 one after another, from a random start, so that two test runs hardly meet."""
    start = random.SystemRandom().randrange(1 << 16, 1 << 24)
    size = (1 << 24) - (1 << 16)
    number = start - (1 << 16)
    while True:
        number = (number + 1) % size
        value = number + (1 << 16)
        if value & 0xFF not in (0, 255):
            yield f"127.{value >> 16}.{(value >> 8) & 0xFF}.{value & 0xFF}"


def _report(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        LOG.error("the process node failed", exc_info=task.exception())
