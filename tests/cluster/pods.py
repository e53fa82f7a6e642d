"""One pod's life on the node: volumes, init containers, containers with restarts and probes, its status, its end.

What the node itself does (registering, watching, heartbeats, being away) is `node`'s; how containers run is the runtime's.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.api import Access, ApiError, AsyncApi, path_of
from cluster.environment import (
    ConfigurationError,
    Mounts,
    PodFacts,
    Sources,
    build_environment,
    named_sources,
)
from cluster.kubeconfig import write_kubeconfig
from cluster.probes import Reports, ask_http, run_probes
from cluster.reporting import RETRY_SECONDS, UNREACHABLE, Reporter, now_text
from cluster.runtimes import Exit, Launch, LaunchError, Running, Runtime
from cluster.status import ContainerRecord, PodView, Verdict, build_status, phase_of
from cluster.volumes import VolumeError, Volumes, decoded_data

Object = dict[str, Any]
LOG = logging.getLogger("cluster.node")

START_ERROR_CODE = 128
STABLE_SECONDS = 600


@dataclass(frozen=True)
class Host:
    """What every pod of a node shares."""

    api: AsyncApi
    runtime: Runtime
    folder: Path
    ip: str
    allocatable: dict[str, str]
    pod_access: Access
    present: asyncio.Event
    backoff_seconds: tuple[float, float]
    refresh_seconds: float
    missing_images: frozenset[str]
    signal_groups: bool
    on_started: Callable[["Pod"], None] = field(compare=False)
    on_ended: Callable[["Pod"], None] = field(compare=False)


class Pod:
    """A pod that is bound to the node. `begin()` starts it; `terminate()` and `crash()` end it."""

    def __init__(self, pod: Object, ip: str, host: Host, restarts: int = 0) -> None:
        self.object = pod
        self.host = host
        self.ip = ip
        self.namespace: str = pod["metadata"]["namespace"]
        self.name: str = pod["metadata"]["name"]
        self.uid: str = pod["metadata"]["uid"]
        self.path = path_of("v1", "Pod", self.namespace, self.name)
        self.folder = host.folder / "pods" / self.uid
        self.policy: str = pod["spec"].get("restartPolicy", "Always")
        self.init = [ContainerRecord(spec) for spec in pod["spec"].get("initContainers") or []]
        self.main = [ContainerRecord(spec, restarts) for spec in pod["spec"]["containers"]]
        if self.init:
            for record in self.main:
                record.state = {"waiting": {"reason": "PodInitializing"}}
        self.start_time = now_text()
        self.conditions: list[Object] = pod.get("status", {}).get("conditions") or []
        self.verdict: Verdict | None = None
        self.running: dict[str, Running] = {}
        self.facts = PodFacts(pod, ip, host.ip, host.allocatable)
        self.reporter = Reporter(pod, host.api, host.present, self._status)
        self.volumes = Volumes(self.facts, self.folder / "volumes", host.api)
        self._reasons: dict[str, str] = {}
        self._stopping = False
        self._kill_at: float | None = None
        self._sooner = asyncio.Event()
        self._has_started = False
        self._is_lost = False
        self._life: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # From the outside

    def begin(self) -> None:
        """Starts the pod's life; of one that was marked lost only the status is written."""
        if not self._is_lost:
            self._life = self._spawn(self._live())
        self._changed()
        self._spawn(self.reporter.write())

    def terminate(self, grace_seconds: float, remove: bool, verdict: Verdict | None = None) -> "asyncio.Task[None]":
        """Ends the pod: preStop, SIGTERM, SIGKILL after the grace; then its last status; with `remove`, then its object.

        Called again, it can only make the end come sooner.
        """
        kill_at = asyncio.get_running_loop().time() + grace_seconds
        if self._kill_at is None or kill_at < self._kill_at:
            self._kill_at = kill_at
            self._sooner.set()
        if self._end is None:
            self.verdict = self.verdict or verdict
            self._end = self._spawn(self._terminate())
        return self._spawn(self._remove_after(self._end)) if remove else self._end

    async def crash(self) -> None:
        """Everything ends at once and nothing is reported: the machine lost power."""
        self._stopping = True
        self.reporter.forget()
        was_running = list(self.running.values())
        for running in was_running:
            running.kill()
        await asyncio.gather(*(running.wait() for running in was_running))
        await self.close()

    def take_metadata(self, metadata: Object) -> None:
        """Labels and annotations as they are now, for the downward API's volumes."""
        for field_name in ("labels", "annotations"):
            self.object["metadata"][field_name] = metadata.get(field_name) or {}

    def mark_lost(self) -> None:
        """Its containers ended unseen while the node was down, and must not run again."""
        self._is_lost = True
        for record in [*self.init, *self.main]:
            record.end(
                Exit(137, "The container could not be located when the pod was found", "ContainerStatusUnknown"),
                now_text(),
            )

    def forget(self) -> None:
        """The object is gone from the API: nothing is written any more."""
        self.reporter.forget()

    async def close(self) -> None:
        """Ends what still goes on for the pod and kills its processes."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def send(self, container: str | None, signal_number: int, reason: str | None = None) -> None:
        """Sends a signal to a container's main process (the first container by default); `reason`, e.g. OOMKilled, is what
        its status will give. Raises KeyError where it does not run."""
        name = container or self.main[0].name
        if name not in self.running:
            raise KeyError(f"container {name} of pod {self.namespace}/{self.name} does not run")
        if reason:
            self._reasons[name] = reason
        self.running[name].send(signal_number)

    @property
    def phase(self) -> str:
        return phase_of(self._view())

    def log_of(self, container: str, previous: bool = False) -> Path | None:
        """The file of a container's output (of the run before with `previous`); None where there is none."""
        records = {record.name: record for record in [*self.init, *self.main]}
        if container not in records:
            raise KeyError(container)
        number = records[container].restarts - (1 if previous else 0)
        path = self._container_folder(container) / f"{number}.log"
        return path if path.exists() else None

    def clean(self) -> None:
        """Removes the pod's files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # Its life

    async def _live(self) -> None:
        beside = [self._spawn(self._enforce_deadline())] if self._deadline() else []
        try:
            if self.host.runtime.needs_files and not await self._prepare_volumes():
                return
            for record in self.init:
                if not await self._run_to_end(record, always=False):
                    return
            if self._must_refresh():
                beside.append(self._spawn(self._refresh_volumes()))
            await asyncio.gather(*(self._run_to_end(record, always=self.policy == "Always") for record in self.main))
        finally:
            for task in beside:
                task.cancel()
            self.host.on_ended(self)
            self._changed()

    async def _prepare_volumes(self) -> bool:
        attempt = 0
        while not self._stopping:
            try:
                await self.volumes.prepare()
                return True
            except (VolumeError, ApiError, *UNREACHABLE) as error:
                if attempt == 3:
                    await self.reporter.warn("FailedMount", str(error))
                await self._pause(attempt)
                attempt += 1
        return False

    def _must_refresh(self) -> bool:
        return self.host.runtime.needs_files and self.host.refresh_seconds > 0 and self.volumes.are_refreshed

    async def _refresh_volumes(self) -> None:
        while True:
            await asyncio.sleep(self.host.refresh_seconds)
            with contextlib.suppress(VolumeError, ApiError, *UNREACHABLE):
                await self.volumes.refresh()

    def _deadline(self) -> int | None:
        seconds: int | None = self.object["spec"].get("activeDeadlineSeconds")
        return seconds

    async def _enforce_deadline(self) -> None:
        await asyncio.sleep(self._deadline() or 0)
        message = "Pod was active on the node longer than the specified deadline"
        self.terminate(self.grace_seconds, remove=False, verdict=Verdict("DeadlineExceeded", message))

    @property
    def grace_seconds(self) -> float:
        return float(self.object["spec"].get("terminationGracePeriodSeconds", 30))

    async def _run_to_end(self, record: ContainerRecord, always: bool) -> bool:
        """Runs a container again and again as the restart policy says; whether it ended with 0."""
        wait, longest = self.host.backoff_seconds
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            await self._run_once(record)
            self._changed()
            if record.ended is None:
                break
            failed = record.ended["exitCode"] != 0
            if not (always or (failed and self.policy != "Never")):
                return not failed
            if self._stopping:
                break
            if asyncio.get_running_loop().time() - began > STABLE_SECONDS:
                wait = self.host.backoff_seconds[0]
            record.wait("CrashLoopBackOff", f"back-off {wait:g}s restarting failed container={record.name}")
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)
            record.restarts += 1
        return False

    async def _run_once(self, record: ContainerRecord) -> None:
        launch = await self._prepare_launch(record)
        if launch is None:
            return
        try:
            running = await self._start(launch)
        except LaunchError as error:
            record.run(launch.container_id, now_text())
            record.end(Exit(START_ERROR_CODE, str(error), "StartError"), now_text())
            await self.reporter.warn("Failed", f"Error: failed to start container {record.name}: {error}")
            return
        self.running[record.name] = running
        if not self._has_started:
            self._has_started = True
            self.host.on_started(self)
        record.run(launch.container_id, now_text())
        self._changed()
        probes = self._spawn(self._probe(record, running))
        try:
            outcome = await running.wait()
        finally:
            probes.cancel()
            running.kill()
            del self.running[record.name]
        reason = self._reasons.pop(record.name, None)
        record.end(
            outcome if reason is None else Exit(outcome.code, outcome.message, reason, outcome.signal), now_text()
        )

    async def _start(self, launch: Launch) -> Running:
        """Starts a container; where that is cancelled half-way, what was started is killed."""
        starting = asyncio.ensure_future(self.host.runtime.start(launch))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(LaunchError):
                (await starting).kill()
            raise

    async def _prepare_launch(self, record: ContainerRecord) -> Launch | None:
        """Waits until all that the container needs is there; None where the pod is being ended."""
        container_id = f"process://{self.uid}/{record.name}/{record.restarts}"
        folder = self._container_folder(record.name)
        if not self.host.runtime.needs_files:
            return Launch(self.object, record.spec, container_id, record.restarts, folder)
        attempt = 0
        while not self._stopping:
            try:
                if record.spec.get("image") in self.host.missing_images:
                    raise ConfigurationError(f'Back-off pulling image "{record.spec["image"]}"')
                environment = await self._environment(record)
                mounts = Mounts(tuple(self.volumes.mounts_of(record.spec)))
                own = self._node_environment(record)
                return Launch(self.object, record.spec, container_id, record.restarts, folder, environment, mounts, own)
            except ConfigurationError as error:
                pulling = record.spec.get("image") in self.host.missing_images
                record.wait("ImagePullBackOff" if pulling else "CreateContainerConfigError", str(error))
                self._changed()
                if attempt == 0:
                    await self.reporter.warn("Failed", f"Error: {error}")
            except (ApiError, *UNREACHABLE) as error:
                LOG.info("%s/%s: %s; trying again", self.namespace, self.name, error)
            await self._pause(attempt)
            attempt += 1
        return None

    async def _environment(self, record: ContainerRecord) -> dict[str, str]:
        config_maps, secrets = named_sources(record.spec)
        sources = Sources(
            {name: await self._texts("ConfigMap", name) for name in config_maps},
            {name: await self._texts("Secret", name) for name in secrets},
        )
        return build_environment(record.spec, self.facts, sources)

    def _node_environment(self, record: ContainerRecord) -> dict[str, str]:
        token_folder = self.volumes.token_folder(record.spec)
        return {"KUBECONFIG": str(self._write_kubeconfig(record, token_folder))} if token_folder is not None else {}

    async def _texts(self, kind: str, name: str) -> dict[str, str] | None:
        try:
            found = await self.host.api.get(path_of("v1", kind, self.namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return {key: value.decode() for key, value in decoded_data({"kind": kind, **found}).items()}

    def _write_kubeconfig(self, record: ContainerRecord, token_folder: Path) -> Path:
        folder = self._container_folder(record.name)
        folder.mkdir(parents=True, exist_ok=True)
        access = self.host.pod_access
        return write_kubeconfig(
            folder / "kubeconfig",
            access.url,
            access.authority,
            token=(token_folder / "token").read_text(),
            namespace=self.namespace,
        )

    def _container_folder(self, container: str) -> Path:
        return self.folder / "containers" / container

    async def _probe(self, record: ContainerRecord, running: Running) -> None:
        def started() -> None:
            record.started = True
            self._changed()

        def ready(value: bool) -> None:
            record.ready = value and record.ended is None
            self._changed()

        def unhealthy(why: str) -> None:
            LOG.info("%s/%s: container %s is killed: %s", self.namespace, self.name, record.name, why)
            self._spawn(self._end_container(record, running, self.grace_seconds))

        def failed(kind: str, why: str) -> None:
            self._spawn(self.reporter.warn("Unhealthy", f"{kind} probe failed: {why}"))

        if not self.host.runtime.has_probes or record in self.init:
            started()
            ready(record not in self.init)
            return
        await run_probes(record.spec, running, self.ip, Reports(started, ready, unhealthy, failed))

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])

    # Its end

    async def _terminate(self) -> None:
        self._stopping = True
        records = {record.name: record for record in [*self.init, *self.main]}
        ending = [self._end_container(records[name], running, None) for name, running in list(self.running.items())]
        await asyncio.gather(*ending)
        while self.running:  # its life notes the end in the next steps of the loop
            await asyncio.sleep(0)
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        self._changed()
        await self.reporter.flush()

    async def _end_container(self, record: ContainerRecord, running: Running, grace_seconds: float | None) -> None:
        """preStop, SIGTERM, SIGKILL; the time is the pod's own where no grace is given, and may be cut short."""
        loop = asyncio.get_running_loop()
        own_deadline = loop.time() + grace_seconds if grace_seconds is not None else None
        ended = asyncio.create_task(running.wait())
        hook = ((record.spec.get("lifecycle") or {}).get("preStop")) if self.host.runtime.has_probes else None
        asked = asyncio.create_task(self._ask_to_stop(hook, record, running))
        try:
            while not ended.done():
                deadlines = [moment for moment in (own_deadline, self._kill_at) if moment is not None]
                remaining = min(deadlines) - loop.time()
                if remaining <= 0:
                    running.kill()
                    break
                self._sooner.clear()
                sooner = asyncio.create_task(self._sooner.wait())
                await asyncio.wait([ended, sooner], timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
                sooner.cancel()
            await ended
        finally:
            asked.cancel()

    async def _ask_to_stop(self, hook: Object | None, record: ContainerRecord, running: Running) -> None:
        if hook:
            await self._run_hook(hook, record, running)
        self._signal(running)

    def _signal(self, running: Running) -> None:
        if self.host.signal_groups and running.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGTERM)
            return
        running.send(signal.SIGTERM)

    async def _run_hook(self, hook: Object, record: ContainerRecord, running: Running) -> None:
        problem = ""
        if "exec" in hook:
            outcome = await running.execute(hook["exec"]["command"], self.grace_seconds)
            problem = outcome.message if outcome.code else ""
        elif "httpGet" in hook:
            verdict = await ask_http(hook["httpGet"], record.spec, self.ip, self.grace_seconds)
            problem = "" if verdict.ok else verdict.reason
        elif "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        if problem:
            await self.reporter.warn("FailedPreStopHook", problem)

    async def _remove_after(self, end: "asyncio.Task[None]") -> None:
        await asyncio.shield(end)
        attempt = 0
        while not self.reporter.is_gone:
            await self.host.present.wait()
            try:
                await self.host.api.delete(self.path, gracePeriodSeconds=0, preconditions={"uid": self.uid})
                return
            except ApiError as error:
                if error.status in (404, 409):
                    return
            except UNREACHABLE:
                pass
            await self._pause(attempt)
            attempt += 1

    # Its status

    def _view(self) -> PodView:
        return PodView(
            self.object,
            self.init,
            self.main,
            self.ip,
            self.host.ip,
            self.start_time,
            self.conditions,
            self.verdict if not self.running else None,
        )

    def _changed(self) -> None:
        self.reporter.changed()

    def _status(self) -> Object:
        status = build_status(self._view(), now_text())
        self.conditions = status["conditions"]
        return status

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_report)
        return task


def _report(task: "asyncio.Task[Any]") -> None:
    """A fault of the node itself must not pass in silence."""
    if not task.cancelled() and task.exception() is not None:
        LOG.error("the process node failed", exc_info=task.exception())
