"""Starts the operator: settings, logs, servers, lease, watches, workers; and ends it in good order.

`python -m llamero_operator [--settings FILE] [--version]`. Exit codes: 0 when told to stop, 2 for wrong settings, 20 when the watches
were silent, 21 when the lease was lost, 22 when kopf ended by itself.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import aiohttp
import kopf

from llamero import __version__
from llamero.kube import Away, ClientOptions, Kube, KubeError, Refused, connect
from llamero.kube.discovery import observe_capabilities, observe_kinds, observe_serving_capabilities
from llamero.kube.events import EventRecorder
from llamero.kube.objects import Resource
from llamero.kube.servers import observe_servers
from llamero.lifecycle.jobs import decide
from llamero.lifecycle.serving.world import ServingCapabilities
from llamero.lifecycle.world import Capabilities
from llamero.spec import names
from llamero.spec.status import JobPhase, WorkKind
from llamero_operator import logs
from llamero_operator.apply import Tools
from llamero_operator.broker import Broker
from llamero_operator.forgetful import NoDifferences, NoProgress
from llamero_operator.handlers import Reconciler, build_registry, split_prefix
from llamero_operator.health import HealthServer, Vitals
from llamero_operator.lease import Lease
from llamero_operator.messages import PLAIN_KINDS
from llamero_operator.metrics import Metrics
from llamero_operator.serving.serve import Serving
from llamero_operator.settings import SETTINGS_VARIABLE, OperatorSettings, load_settings_or_exit
from llamero_operator.store import ALL_KINDS, SELECTORS, Key, Store, watched_kinds
from llamero_operator.watchdog import Audit, Watchdog, audit_for_ever, build_listener
from llamero_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

EXIT_KOPF_ENDED = 22
START_RETRY_SECONDS = 3.0
GAUGE_SECONDS = 5.0
EMPTY_LOOK_SECONDS = 1.0
STOP_SECONDS = 10.0
"""A pass under way when the operator is told to stop gets so long to end."""
INACTIVITY_SECONDS = 70.0
"""Bookmarks come every minute."""
QUEUED_KINDS = frozenset(WorkKind) - PLAIN_KINDS
REQUIRED_KINDS = frozenset({names.PLURAL, names.ADAPTER_PLURAL})
SERVING_REQUIRED_KINDS = REQUIRED_KINDS | {names.SERVER_PLURAL}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the operator until it is told to stop."""
    parser = argparse.ArgumentParser(prog="llamero_operator", description="Runs FineTuneJobs on a Kubernetes cluster.")
    parser.add_argument("--settings", metavar="FILE", help=f"settings file (YAML); by default {SETTINGS_VARIABLE}")
    parser.add_argument("--version", action="version", version=f"llamero_operator {__version__}")
    chosen = parser.parse_args(arguments)
    environment = dict(os.environ) | ({SETTINGS_VARIABLE: chosen.settings} if chosen.settings else {})
    settings = load_settings_or_exit(environment)
    logs.start_logs(settings.logs, settings.redis_url)
    raise SystemExit(asyncio.run(run(settings)))


async def run(settings: OperatorSettings) -> int:
    """Runs the operator. Returns the exit code."""
    vitals = Vitals(watchdog_seconds=settings.intervals.watchdog_seconds)
    metrics = Metrics()
    stop = asyncio.Event()
    _listen_to_signals(stop)
    with _servers(settings, vitals, metrics):
        beat = asyncio.create_task(_beat_for_ever(vitals), name="heartbeat")
        try:
            return await _serve(settings, vitals, metrics, stop)
        except Refused as error:
            logger.error("%s", error)
            return 1
        finally:
            beat.cancel()


async def _serve(settings: OperatorSettings, vitals: Vitals, metrics: Metrics, stop: asyncio.Event) -> int:
    client = settings.client
    options = ClientOptions(
        qps=client.qps,
        burst=client.burst,
        max_concurrent=client.max_concurrent,
        user_agent=f"llamero-operator/{__version__}",
    )
    async with await connect(options, metrics) as kube:
        capabilities = await _unless_stopped(_wait_for_server(kube), stop)
        if capabilities is None:
            return 0
        lease = Lease(kube, settings.lease) if settings.lease.enabled else None
        if lease is not None:
            vitals.stage = "waiting"
            logger.info("waiting for the lease %s", settings.lease.name)
            if await _unless_stopped(_hold(lease), stop) is None:
                return 0
            metrics.forbid_writes_by(lease.fence)
        metrics.leader.set(1)
        try:
            if await _unless_stopped(_wait_for_kinds(kube, settings.serving.enabled), stop) is None:
                return 0
            return await _work(settings, kube, vitals, metrics, capabilities, stop)
        finally:
            metrics.leader.set(0)
            if lease is not None:
                await lease.release()


async def _work(
    settings: OperatorSettings,
    kube: Kube,
    vitals: Vitals,
    metrics: Metrics,
    capabilities: Capabilities,
    stop: asyncio.Event,
) -> int:
    """Watches and works until told to stop."""
    broker, store, queue = Broker(settings.redis_url), Store(), WorkQueue[Key]()
    events = EventRecorder(kube, names.FIELD_MANAGER)
    tools = Tools(kube, broker, store, events, settings, metrics)
    reconciler = Reconciler(tools, queue, vitals, decide, capabilities)
    vitals.oldest_waiting = lambda: queue.oldest_seconds
    store.wake_job = queue.add
    kinds = watched_kinds(settings.serving.enabled)
    vitals.work(kinds)
    serving = None
    if settings.serving.enabled:
        offered = await _unless_stopped(_wait_for_offers(kube), stop)
        if offered is None:
            await broker.close()
            return 0
        # With a throttle of its own: routes must not wait behind what a thousand jobs have to write.
        serving = Serving(await connect(kube.options, metrics), store, settings, metrics, vitals, offered)
    audit = Audit(kube, store, settings.namespaces, queue.add)
    workers = [asyncio.create_task(reconciler.work(), name=f"worker-{n}") for n in range(settings.concurrency)]
    background = [
        asyncio.create_task(audit_for_ever(audit, vitals.watchdog_seconds / 2, vitals), name="audit"),
        asyncio.create_task(_show_for_ever(tools, queue, vitals, serving), name="gauges"),
    ]
    if serving is not None:
        opening = _open_where_nothing_is(reconciler, serving, store, vitals, kube, settings.namespaces)
        background.append(asyncio.create_task(opening, name="opening"))
    sessions: list[aiohttp.ClientSession] = []

    def open_session() -> aiohttp.ClientSession:
        sessions.append(kube.open_watch_session([build_listener(vitals)]))
        return sessions[-1]

    try:
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=_build_registry(reconciler, kinds, serving, kube.server, open_session),
            settings=build_kopf_settings(vitals.watchdog_seconds),
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            stop_flag=stop,
        )
        _listen_to_signals(stop)  # kopf took them for itself, and would not say that it was one that ended it
        await kopf.run_tasks(tasks, ignored=others)
    except Exception:
        if not stop.is_set():
            logger.exception("the watches failed")
    finally:
        vitals.stage = "stopping"
        queue.close()
        reconciler.open_gate()
        for task in background:
            task.cancel()
        _, late = await asyncio.wait(workers, timeout=STOP_SECONDS)
        for task in late:
            task.cancel()
        if serving is not None:
            await serving.close()
        for session in sessions:
            await session.close()
        await broker.close()
    if stop.is_set():
        logger.info("told to stop: the pods go on by themselves")
        return 0
    logger.error("the watches ended by themselves: ending the process, so that it is started afresh")
    return EXIT_KOPF_ENDED


def _listen_to_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


def _build_registry(
    reconciler: Reconciler,
    kinds: Mapping[str, Resource],
    serving: Serving | None,
    server: str,
    open_session: Callable[[], aiohttp.ClientSession],
) -> kopf.OperatorRegistry:
    registry = build_registry(reconciler, kinds, serving.open_gate if serving is not None else lambda: None)

    @kopf.on.login(registry=registry)
    async def login(**_: object) -> kopf.AiohttpSession:
        # A new one each time: kopf asks again when the API server took the last one's credentials for outdated, and closes that.
        return kopf.AiohttpSession(server=server, aiohttp_session=open_session())

    return registry


class EndlessBackoff:
    """Seconds between a watch's tries to reach the API server: for ever, since kopf's own limit would end the watch's task."""

    def __iter__(self) -> Iterator[float]:
        seconds = 0.5
        while True:
            yield seconds * random.uniform(0.7, 1.0)
            seconds = min(seconds * 1.6, 10.0)


def build_kopf_settings(watchdog_seconds: float) -> kopf.OperatorSettings:
    """kopf as a watcher alone: no peering, no events, no annotations, no looking for new kinds and namespaces.

    A watch that shows nothing, not even a bookmark, is opened anew well before the watchdog would bite.
    """
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 600
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = min(INACTIVITY_SECONDS, 0.4 * watchdog_seconds)
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.error_backoffs = EndlessBackoff()
    settings.process.ultimate_exiting_timeout = 60
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 1.0
    settings.persistence.diffbase_storage = NoDifferences()
    settings.persistence.progress_storage = NoProgress()
    for kind, selector in SELECTORS.items():
        settings.watching.label_selectors[(*split_prefix(ALL_KINDS[kind]), kind)] = selector
    return settings


# -- what the start waits for --------------------------------------------------------------------------------------------------


async def _unless_stopped(work, stop: asyncio.Event):  # type: ignore[no-untyped-def]
    """The result, or None where the operator was told to stop first. Raises what the work raises."""
    task, stopped = asyncio.ensure_future(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return None


async def _wait_for_server(kube: Kube) -> Capabilities:
    while True:
        try:
            found = await observe_capabilities(kube)
        except Away as error:
            logger.warning("%s: trying again", error)
            await asyncio.sleep(START_RETRY_SECONDS)
            continue
        logger.info("the API server at %s is of version %d.%d", kube.server, *found.version)
        return found


async def _wait_for_offers(kube: Kube) -> ServingCapabilities:
    while True:
        try:
            return await observe_serving_capabilities(kube)
        except KubeError as error:
            logger.warning("%s: trying again", error)
        await asyncio.sleep(START_RETRY_SECONDS)


async def _open_where_nothing_is(
    reconciler: Reconciler, serving: Serving, store: Store, vitals: Vitals, kube: Kube, namespaces: Sequence[str]
) -> None:
    """Opens the gate in a cluster without a single object, for which kopf calls no handler: chat services wait for the first routes."""
    while not reconciler.is_open:
        await asyncio.sleep(EMPTY_LOOK_SECONDS)
        if not vitals.is_synced or any(store.versions.values()):
            continue
        try:
            # The watches of some namespaces may have begun before those of others have listed theirs.
            where: Sequence[str | None] = namespaces or [None]
            there = [server for namespace in where for server in await observe_servers(kube, namespace)]
        except KubeError as error:
            logger.warning("ModelServers can't be listed: %s: trying again", error)
            continue
        if not there and not reconciler.is_open:
            reconciler.open_gate()
            serving.open_gate()


async def _wait_for_kinds(kube: Kube, serves: bool) -> bool:
    required = SERVING_REQUIRED_KINDS if serves else REQUIRED_KINDS
    while True:
        try:
            missing = required - await observe_kinds(kube)
        except KubeError as error:
            logger.warning("%s: trying again", error)
        else:
            if not missing:
                return True
            wanted = ", ".join(f"{kind}.{names.GROUP}" for kind in sorted(missing))
            logger.warning("the API server does not know %s: install llamero's CRDs; looking again", wanted)
        await asyncio.sleep(START_RETRY_SECONDS)


async def _hold(lease: Lease) -> bool:
    await lease.hold()
    return True


# -- beside the work -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _servers(settings: OperatorSettings, vitals: Vitals, metrics: Metrics) -> Iterator[None]:
    """Health, metrics and the watchdog, each in a thread of its own."""
    health = HealthServer(vitals, settings.health_port) if settings.health_port else None
    exporter = metrics.serve(settings.metrics_port) if settings.metrics_port else None
    watchdog = Watchdog(vitals)
    if health is not None:
        health.start()
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
        if health is not None:
            health.stop()
        if exporter is not None:
            exporter.shutdown()


async def _beat_for_ever(vitals: Vitals) -> None:
    while True:
        vitals.loop_beat = time.monotonic()
        await asyncio.sleep(1.0)


async def _show_for_ever(tools: Tools, queue: WorkQueue[Key], vitals: Vitals, serving: Serving | None) -> None:
    while True:
        try:
            await _show(tools, queue, vitals)
            if serving is not None:
                serving.show()
        except Exception:
            logger.exception("the gauges could not be set")
        await asyncio.sleep(GAUGE_SECONDS)


async def _show(tools: Tools, queue: WorkQueue[Key], vitals: Vitals) -> None:
    metrics, now = tools.metrics, time.monotonic()
    records = list(tools.store.jobs.values())
    metrics.show_jobs(str((r.raw.get("status") or {}).get("phase") or JobPhase.PENDING) for r in records)
    metrics.queue.set(len(queue))
    metrics.delayed.set(queue.delayed)
    for kind, at in vitals.watches.items():
        metrics.event_age.labels(kind).set(now - at)
    if vitals.last_pass is not None:
        metrics.pass_age.set(now - vitals.last_pass)
    queues: dict[str, str] = {}
    for record in records:
        # Read as it stands: validating a thousand statuses every few seconds would hold the loop up.
        status = record.raw.get("status") or {}
        work = status.get("work") or {}
        if work.get("kind") in QUEUED_KINDS:
            name = names.queue_name(record.uid, int(status.get("run", 0)), work["kind"], int(work["attempt"]))
            queues[name] = work["kind"]
    lengths: dict[str, int] = {}
    for name, length in (await tools.broker.queue_lengths(list(queues))).items():
        lengths[queues[name]] = lengths.get(queues[name], 0) + length
    metrics.show_queues(lengths)
    metrics.redis_up.set(tools.broker.problem is None)
