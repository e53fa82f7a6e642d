"""How the operator scales: many FineTuneJobs against a real API server, beside a bare client that writes the same objects.

    python benchmarks/operator/run.py             # 10, 100 and 1,000 jobs at once; 5 a second for a minute
    python benchmarks/operator/run.py --quick     # a minute: 10 and 50 jobs, no figures to quote

Everything is real (etcd, API server, controllers, scheduler, Redis, the operator's own process) but the pods, which end at once with a
good answer. Prints a table and, as its last line, the marks as JSON. What is counted how stands in ../README.md.
"""

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "tests")]

import psutil  # noqa: E402
from cluster.api import AsyncApi, path_of  # noqa: E402
from cluster.control_plane import ControlPlane  # noqa: E402
from cluster.processes import Daemon  # noqa: E402
from cluster.redis_server import RedisServer  # noqa: E402
from stack.operator_process import OperatorProcess  # noqa: E402
from stack.stack import API_VERSION, JOB_KIND, played_job  # noqa: E402

from llamero.spec.names import FINALIZER, LABEL_JOB, LABEL_UID, child_job_name  # noqa: E402

CONCURRENCY = 32
SETTINGS: dict[str, Any] = {
    "storage": {"hostPath": "/bench"},
    "client": {"qps": 5000, "burst": 5000, "maxConcurrent": CONCURRENCY},
    "concurrency": CONCURRENCY,
    "intervals": {"statusIntervalSeconds": 5, "pollSeconds": 30, "resendSeconds": 30},
}
RATE_MARK, LATENCY_MARK, MEMORY_MARK, LINEAR_MARK = 0.5, 2.0, 250.0, 1.3


@dataclass
class Measured:
    """What one round came to. Seconds, MiB; `latencies` from apply to the first pod, a job each."""

    jobs: int
    seconds: float
    cpu_seconds: float = 0.0
    memory: float = 0.0
    writes: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]


def describe(measured: Measured) -> str:
    """A round's figures on a line."""
    p50, p99 = (percentile(measured.latencies, share) for share in (0.5, 0.99))
    return (
        f"{measured.seconds:7.1f} s, {measured.rate:6.1f} jobs/s, apply -> pod p50 {p50:6.2f} s p99 {p99:6.2f} s, "
        f"CPU {measured.cpu_seconds:6.2f} s ({1000 * measured.cpu_seconds / measured.jobs:5.1f} ms a job), "
        f"{measured.memory:6.1f} MiB, {measured.writes:4.1f} writes a job"
    )


class Bench:
    """The parts that all rounds share."""

    def __init__(self, plane: ControlPlane, redis: RedisServer, folder: Path) -> None:
        self.plane, self.redis, self.folder = plane, redis, folder
        self.rounds = 0

    @contextmanager
    def operator(self, namespace: str):  # type: ignore[no-untyped-def]
        """An operator process of this round's own."""
        settings = {**SETTINGS, "namespaces": [namespace]}
        process = OperatorProcess(
            self.plane.kubeconfig, self.folder, self.redis.url, settings, name=f"operator-{namespace}"
        )
        process.start()
        try:
            yield process
        finally:
            process.kill()

    async def measure_operator(self, jobs: int, per_second: float | None = None) -> Measured:
        """Apply the jobs (all at once, or so many a second) and wait until all have Succeeded."""
        namespace = self.plane.create_namespace(f"bench-{jobs}")
        with self.operator(namespace) as process:
            counted = psutil.Process(process.pid)
            cpu = sum(counted.cpu_times()[:2])
            writes = process.metric("llamero_api_writes_total")
            async with AsyncApi(self.plane.access, connections=128) as api:
                watcher = PodWatcher(api, namespace)
                watching = asyncio.create_task(watcher.run())
                await watcher.ready.wait()
                started = time.monotonic()
                applied = await apply_jobs(api, namespace, jobs, per_second)
                await self.wait_ended(api, namespace, jobs, process)
                seconds = time.monotonic() - started
                watching.cancel()
            measured = Measured(
                jobs,
                seconds,
                sum(counted.cpu_times()[:2]) - cpu,
                counted.memory_info().rss / 2**20,
                (process.metric("llamero_api_writes_total") - writes) / jobs,
                [watcher.seen[name] - at for name, at in applied.items()],
            )
        self.template = await self.take_template(namespace)
        await self.remove(namespace)
        return measured

    async def wait_ended(self, api: AsyncApi, namespace: str, jobs: int, process: OperatorProcess) -> None:
        path = path_of(API_VERSION, JOB_KIND, namespace)
        deadline = time.monotonic() + 60 + jobs * 1.5
        while True:
            items = (await api.request("GET", path, seconds=120))["items"]
            phases = [(i.get("status") or {}).get("phase") for i in items]
            if phases.count("Succeeded") == jobs:
                return
            if "Failed" in phases or time.monotonic() > deadline:
                counts = {p: phases.count(p) for p in set(phases)}
                raise SystemExit(f"The jobs did not all succeed: {counts}\n{process.tail()}")
            await asyncio.sleep(0.1 if jobs <= 100 else 0.5)

    async def take_template(self, namespace: str) -> dict[str, Any]:
        """What one finished job consists of, to be written again by the bare client."""
        async with AsyncApi(self.plane.access) as api:
            job = (await api.get(path_of(API_VERSION, JOB_KIND, namespace)))["items"][0]
            selector = f"{LABEL_JOB}={job['metadata']['name']}"
            children = (await api.get(path_of("batch/v1", "Job", namespace), labelSelector=selector))["items"]
            adapter = await api.get(path_of(API_VERSION, "Adapter", namespace, job["status"]["adapter"]["name"]))
        kept = getattr(self, "template", {}).get("children") or []
        return {"job": job, "children": children or kept, "adapter": adapter}

    async def remove(self, namespace: str) -> None:
        """Delete the round's namespace without its finalizers, so that rounds do not disturb each other."""
        async with AsyncApi(self.plane.access, connections=64) as api:
            path = path_of(API_VERSION, JOB_KIND, namespace)
            for item in (await api.request("GET", path, seconds=120))["items"]:
                await api.patch(f"{path}/{item['metadata']['name']}", {"metadata": {"finalizers": None}})
        self.plane.delete_namespace(namespace)
        await asyncio.sleep(0)

    async def measure_bare(self, jobs: int, statuses: int, children: Sequence[dict[str, Any]]) -> Measured:
        """The same objects and status writes by a client that does nothing else, at the same concurrency; until all Jobs completed."""
        namespace = self.plane.create_namespace(f"bare-{jobs}")
        limit = asyncio.Semaphore(CONCURRENCY)
        async with AsyncApi(self.plane.access, connections=CONCURRENCY) as api:

            async def write(number: int) -> None:
                async with limit:
                    await write_bare(api, namespace, number, statuses, children, self.template)

            started = time.monotonic()
            await asyncio.gather(*(write(n) for n in range(jobs)))
            written = time.monotonic() - started
            path = path_of("batch/v1", "Job", namespace)
            while True:
                items = (await api.request("GET", path, seconds=120))["items"]
                if sum(bool((i.get("status") or {}).get("succeeded")) for i in items) == jobs * len(children):
                    break
                await asyncio.sleep(0.5)
            seconds = time.monotonic() - started
        await self.remove(namespace)
        return Measured(jobs, seconds, written)


class PodWatcher:
    """Notes when the first pod of each job appears."""

    def __init__(self, api: AsyncApi, namespace: str) -> None:
        self.api, self.path = api, path_of("v1", "Pod", namespace)
        self.seen: dict[str, float] = {}
        self.ready = asyncio.Event()

    async def run(self) -> None:
        version = (await self.api.get(self.path))["metadata"]["resourceVersion"]
        self.ready.set()
        async for event in self.api.watch(self.path, version):
            name = event["object"]["metadata"].get("labels", {}).get(LABEL_JOB)
            if name and event["type"] == "ADDED":
                self.seen.setdefault(name, time.monotonic())


async def apply_jobs(api: AsyncApi, namespace: str, jobs: int, per_second: float | None) -> dict[str, float]:
    """Create the jobs; the moment of each."""
    limit = asyncio.Semaphore(CONCURRENCY)
    applied: dict[str, float] = {}
    path = path_of(API_VERSION, JOB_KIND, namespace)

    async def apply(number: int) -> None:
        if per_second:
            await asyncio.sleep(number / per_second)
        async with limit:
            name = f"job-{number:04d}"
            applied[name] = time.monotonic()
            await api.create(path, played_job(name))

    await asyncio.gather(*(apply(n) for n in range(jobs)))
    return applied


async def write_bare(
    api: AsyncApi,
    namespace: str,
    number: int,
    statuses: int,
    children: Sequence[dict[str, Any]],
    template: dict[str, Any],
) -> None:
    name = f"job-{number:04d}"
    path = path_of(API_VERSION, JOB_KIND, namespace)
    job = await api.create(path, played_job(name))
    job = await api.patch(f"{path}/{name}", {"metadata": {"finalizers": [FINALIZER]}})
    uid = job["metadata"]["uid"]
    kinds = ["prepare", "train", "evaluate"]
    for child, kind in zip(children, kinds, strict=False):
        await api.create(path_of("batch/v1", "Job", namespace), rename_child(child, name, uid, kind))
    for count in range(statuses):
        status = {**template["job"]["status"], "attempt": count}
        job = await api.request("PUT", f"{path}/{name}/status", {**job, "status": status})
    adapter = {k: template["adapter"][k] for k in ("apiVersion", "kind", "spec")}
    await api.create(path_of(API_VERSION, "Adapter", namespace), {**adapter, "metadata": {"name": f"{name}-r1"}})


def rename_child(child: dict[str, Any], name: str, uid: str, kind: str) -> dict[str, Any]:
    """The child Job as it was made for another job, for this one."""
    labels = {**child["metadata"]["labels"], LABEL_JOB: name, LABEL_UID: uid}
    spec = json.loads(json.dumps(child["spec"]))
    for drop in ("selector",):
        spec.pop(drop, None)
    spec["template"]["metadata"]["labels"] = labels
    owner = {**child["metadata"]["ownerReferences"][0], "name": name, "uid": uid}
    metadata = {"name": child_job_name(name, uid, 1, kind, 1), "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


async def collect_children(bench: Bench) -> list[dict[str, Any]]:
    """The child Jobs of one job, caught while it runs (finished ones are removed by the operator)."""
    namespace = bench.plane.create_namespace("template")
    caught: dict[str, dict[str, Any]] = {}
    with bench.operator(namespace):
        async with AsyncApi(bench.plane.access) as api:
            path = path_of("batch/v1", "Job", namespace)
            version = (await api.get(path))["metadata"]["resourceVersion"]

            async def follow() -> None:
                async for event in api.watch(path, version):
                    caught.setdefault(event["object"]["metadata"]["name"], event["object"])

            following = asyncio.create_task(follow())
            await api.create(path_of(API_VERSION, JOB_KIND, namespace), played_job("template"))
            job_path = path_of(API_VERSION, JOB_KIND, namespace, "template")
            while ((await api.get(job_path)).get("status") or {}).get("phase") != "Succeeded":
                await asyncio.sleep(0.1)
            following.cancel()
    await bench.remove(namespace)
    return list(caught.values())


async def run(options: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    children = await collect_children(bench)
    rows = []
    for jobs in options.sizes:
        measured = await bench.measure_operator(jobs)
        rows.append(measured)
        print(f"{jobs:>6} jobs at once: {describe(measured)}", flush=True)
    count = int(options.arrivals * options.arrival_seconds)
    steady = await bench.measure_operator(count, options.arrivals)
    print(f"{count:>6} jobs, {options.arrivals:g} a second: {describe(steady)}", flush=True)
    largest = rows[-1]
    statuses = max(
        1, round(largest.writes - 2 - len(children))
    )  # the others are the finalizer, the children and the Adapter
    bare = await bench.measure_bare(largest.jobs, statuses, children)
    print(
        f"{bare.jobs:>6} jobs by the bare client ({statuses} status writes, {len(children)} Jobs, 1 Adapter each): "
        f"written in {bare.cpu_seconds:.1f} s, all pods ended in {bare.seconds:.1f} s, {bare.rate:.1f} jobs/s",
        flush=True,
    )
    costs = [m.cpu_seconds / m.jobs for m in rows[-2:]]
    return {
        "operator_over_bare_client_rate": mark(largest.rate / bare.rate, RATE_MARK, at_least=True),
        "apply_to_pod_p99_seconds_at_5_a_second": mark(percentile(steady.latencies, 0.99), LATENCY_MARK),
        f"memory_mib_at_{largest.jobs}_jobs": mark(largest.memory, MEMORY_MARK),
        "cpu_a_job_largest_over_next": mark(costs[1] / costs[0] if costs[0] else 1.0, LINEAR_MARK),
    }


def mark(value: float, limit: float, at_least: bool = False) -> dict[str, Any]:
    return {"value": round(value, 3), "mark": limit, "met": value >= limit if at_least else value < limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: [int(n) for n in text.split(",")], default=[10, 100, 1000])
    parser.add_argument("--arrivals", type=float, default=5.0, help="jobs a second in the steady round")
    parser.add_argument("--arrival-seconds", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.arrival_seconds = [10, 50], 5.0
    with tempfile.TemporaryDirectory(prefix="llamero-bench-") as name:
        folder = Path(name)
        with (
            ControlPlane(
                crds=sorted((REPOSITORY / "charts" / "llamero" / "crds").glob("*.yaml")),
                qps=5000,
                controller_arguments=["--concurrent-job-syncs=20", "--concurrent-gc-syncs=20"],
            ) as plane,
            RedisServer(folder / "redis") as redis,
        ):
            access = plane.access
            node = Daemon(
                "node",
                [
                    sys.executable,
                    str(Path(__file__).with_name("instant_node.py")),
                    access.url,
                    str(access.authority),
                    access.token,
                    str(folder / "node"),
                    "bench-node",
                ],
                folder / "node.log",
                dict(os.environ),
            )
            node.start()
            node.wait_ready(lambda: "ready" in node.tail(), 30)
            try:
                marks = asyncio.run(run(options, Bench(plane, redis, folder)))
            finally:
                node.kill()
    print(json.dumps({"benchmark": "operator", "marks": {} if options.quick else marks}))


if __name__ == "__main__":
    main()
