"""How the operator scales: many FineTuneJobs against a real API server, beside a bare client that writes the same objects.

    python benchmarks/operator/run.py             # 10, 100 and 1,000 jobs at once; 5 a second for a minute
    python benchmarks/operator/run.py --quick     # 10 and 50 jobs: does it work; no figures to quote

Everything is real (etcd, API server, controllers, scheduler, Redis, the operator's own process) but the pods, which end at once with a
good answer. Prints a table and, as its last line, the marks as JSON. What is counted how stands in ../README.md.
"""

import argparse
import asyncio
import atexit
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(Path(__file__).parent)]

import psutil  # noqa: E402
from bare_client import BareClient, Template  # noqa: E402
from cluster.api import AsyncApi, path_of  # noqa: E402
from cluster.control_plane import ControlPlane  # noqa: E402
from cluster.leftovers import make_folder  # noqa: E402
from cluster.processes import Daemon  # noqa: E402
from cluster.redis_server import RedisServer  # noqa: E402
from stack.operator_process import OperatorProcess  # noqa: E402
from stack.stack import API_VERSION, JOB_KIND, played_job  # noqa: E402
from watching import Observer, RoundFailed  # noqa: E402

CONCURRENCY = 32
SETTINGS: dict[str, Any] = {
    "serving": {"enabled": False},  # jobs alone are measured
    "storage": {"hostPath": "/bench"},
    "client": {"qps": 5000, "burst": 5000, "maxConcurrent": CONCURRENCY},
    "concurrency": CONCURRENCY,
    "intervals": {"statusIntervalSeconds": 5, "pollSeconds": 30, "resendSeconds": 30},
}
RATE_MARK, LATENCY_MARK, MEMORY_MARK, LINEAR_MARK = 0.5, 2.0, 250.0, 1.3
SAMPLE_SECONDS = 0.5
MIB = 2**20


@dataclass
class Measured:
    """What one round came to. `written` is when the bare client had written everything, `latencies` are from apply to a job's first pod."""

    jobs: int
    seconds: float
    latencies: list[float]
    written: float | None = None
    cpu_seconds: float = 0.0
    memory_mib: float = 0.0
    writes: dict[str, float] = field(default_factory=dict)  # a job, by verb and kind
    passes: float = 0.0  # a job
    idle_cpu: float = 0.0  # CPU-seconds a second once all is done
    idle_requests: float = 0.0  # in that time
    redis_mib: float = 0.0  # at most, above what it was before
    etcd_mib: float = 0.0  # by which its file grew

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds

    @property
    def cost(self) -> float:
        """The operator's CPU-seconds a job."""
        return self.cpu_seconds / self.jobs


@dataclass(frozen=True)
class Running:
    """What running jobs cost, each a second: CPU-seconds, status writes, passes."""

    jobs: int
    cpu: float
    writes: float
    passes: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Bench:
    """The parts that all rounds share."""

    def __init__(
        self, plane: ControlPlane, redis: RedisServer, folder: Path, idle_seconds: float, clears: bool = True
    ) -> None:
        self.plane, self.redis, self.folder = plane, redis, folder
        self.idle_seconds, self.clears = idle_seconds, clears
        self.template: Template | None = None

    # -- the operator ----------------------------------------------------------------------------------------------------------

    async def measure_operator(self, jobs: int, per_second: float | None = None) -> Measured:
        """Apply the jobs (all at once, or so many a second); until all have Succeeded and their batch Jobs are gone."""
        namespace = await asyncio.to_thread(self.plane.create_namespace, f"bench-{jobs}")
        with self._operator(namespace) as process:
            async with AsyncApi(self.plane.access, connections=CONCURRENCY + 8) as api:
                before = Reading.take(process)
                etcd = self._etcd_bytes()
                async with Observer(api, namespace) as observer, self._sampled_redis() as sampled:
                    started = time.monotonic()
                    applied = await apply_jobs(api, namespace, jobs, per_second)
                    try:
                        await observer.wait(
                            lambda: observer.succeeded == jobs and observer.gone >= set(observer.children),
                            "the operator's jobs",
                            60 + 1.5 * jobs,
                        )
                    except RoundFailed as error:
                        raise RoundFailed(f"{error}\n{process.tail()}") from error
                    seconds = time.monotonic() - started
                after = await take_when_quiet(process)
                etcd_mib = (self._etcd_bytes() - etcd) / MIB
                memory = read_peak_memory(process.pid)
                idle = await self._measure_idle(process)
                self.template = await self._take_template(api, namespace, observer, after.writes_since(before), jobs)
        return Measured(
            jobs=jobs,
            seconds=seconds,
            latencies=[observer.first_pod[name] - at for name, at in applied.items() if name in observer.first_pod],
            cpu_seconds=after.cpu - before.cpu,
            memory_mib=memory,
            writes={what: count / jobs for what, count in after.writes_since(before).items()},
            passes=(after.passes - before.passes) / jobs,
            idle_cpu=idle[0],
            idle_requests=idle[1],
            redis_mib=sampled[0] / MIB,
            etcd_mib=etcd_mib,
        )

    @contextmanager
    def _operator(self, namespace: str) -> Iterator[OperatorProcess]:
        """An operator process of this round's own, of this namespace alone."""
        settings = {**SETTINGS, "namespaces": [namespace]}
        name = f"operator-{namespace}"
        process = OperatorProcess(self.plane.kubeconfig, self.folder, self.redis.url, settings, name=name)
        process.start()
        try:
            yield process
        finally:
            process.kill()

    async def _measure_idle(self, process: OperatorProcess) -> tuple[float, float]:
        """CPU-seconds a second and API requests of an operator whose jobs have all ended."""
        await asyncio.sleep(1.0)
        before = Reading.take(process)
        await asyncio.sleep(self.idle_seconds)
        after = Reading.take(process)
        return (after.cpu - before.cpu) / self.idle_seconds, after.requests - before.requests

    async def _take_template(
        self, api: AsyncApi, namespace: str, observer: Observer, writes: Mapping[str, float], jobs: int
    ) -> Template:
        """What one finished job consists of, to be written again by the bare client."""
        job = await api.get(path_of(API_VERSION, JOB_KIND, namespace, "job-0000"))
        uid = job["metadata"]["uid"]
        own = [c for c in observer.children.values() if c["metadata"]["ownerReferences"][0]["uid"] == uid]
        adapter = await api.get(path_of(API_VERSION, "Adapter", namespace, job["status"]["adapter"]["name"]))
        return Template(
            status=job["status"],
            children=own,
            adapter=adapter,
            statuses=round(writes.get("update-status FineTuneJob", 0) / jobs),
            events=round((writes.get("create Event", 0) + writes.get("patch Event", 0)) / jobs),
            deletes=round(writes.get("delete Job", 0) / jobs),
        )

    async def measure_running(self, jobs: int, seconds: float) -> "Running":
        """Jobs whose trainings go on and tell a step each second: what the operator spends on them."""
        namespace = await asyncio.to_thread(self.plane.create_namespace, f"bench-running-{jobs}")
        with self._operator(namespace) as process:
            async with (
                AsyncApi(self.plane.access, connections=CONCURRENCY + 8) as api,
                Observer(api, namespace) as observer,
            ):
                await apply_jobs(api, namespace, jobs, None, "long")

                def all_train() -> bool:
                    return list(observer.phases.values()).count("Training") == jobs and observer.telling == jobs

                await observer.wait(all_train, "all jobs to train", 60 + jobs)
                before, began = Reading.take(process), time.monotonic()
                await asyncio.sleep(seconds)
                after, took = Reading.take(process), time.monotonic() - began
        return Running(
            jobs,
            (after.cpu - before.cpu) / took,
            after.writes_since(before).get("update-status FineTuneJob", 0) / took,
            (after.passes - before.passes) / took,
        )

    # -- the bare client -------------------------------------------------------------------------------------------------------

    async def measure_bare(self, jobs: int) -> Measured:
        """The same writes by a client that does nothing else; until all batch Jobs have completed and are gone."""
        assert self.template is not None
        namespace = await asyncio.to_thread(self.plane.create_namespace, f"bare-{jobs}")
        template, applied = self.template, {}
        async with AsyncApi(self.plane.access, connections=CONCURRENCY + 8) as api:
            client = BareClient(api, namespace, template, CONCURRENCY)
            async with Observer(api, namespace, client.completed) as observer:
                started = time.monotonic()
                applied = {f"job-{n:04d}": started for n in range(jobs)}
                await asyncio.gather(*(client.write(n) for n in range(jobs)))
                written = time.monotonic() - started
                every = jobs * len(template.children)
                await observer.wait(lambda: len(observer.gone) == every, "the bare client's Jobs", 60 + 1.5 * jobs)
                await client.finish()
                seconds = time.monotonic() - started
        latencies = [observer.first_pod[name] - at for name, at in applied.items() if name in observer.first_pod]
        return Measured(jobs, seconds, latencies, written)

    # -- around a round --------------------------------------------------------------------------------------------------------

    async def clear(self) -> None:
        """Deletes what the last rounds left, and waits until it is gone, so that rounds do not disturb each other."""
        if not self.clears:
            return
        async with AsyncApi(self.plane.access, connections=CONCURRENCY) as api:
            found = (await api.get(path_of("v1", "Namespace")))["items"]
            own = [n["metadata"]["name"] for n in found if n["metadata"]["name"].startswith(("bench-", "bare-"))]
            limit = asyncio.Semaphore(CONCURRENCY)

            async def release(path: str) -> None:
                async with limit:
                    await api.patch(path, {"metadata": {"finalizers": None}})

            for namespace in own:
                path = path_of(API_VERSION, JOB_KIND, namespace)
                items = (await api.request("GET", path, seconds=120))["items"]
                await asyncio.gather(*(release(f"{path}/{i['metadata']['name']}") for i in items))
                await api.delete(path_of("v1", "Namespace", name=namespace))
            deadline = time.monotonic() + 300
            while own and time.monotonic() < deadline:
                found = (await api.get(path_of("v1", "Namespace")))["items"]
                own = [n for n in own if n in {f["metadata"]["name"] for f in found}]
                await asyncio.sleep(0.5)

    def _etcd_bytes(self) -> int:
        return sum(f.stat().st_size for f in (self.plane._etcd_folder or self.folder).rglob("snap/db"))

    def _sampled_redis(self) -> "RedisSampler":
        return RedisSampler(self.redis)


class RedisSampler:
    """The most that Redis held meanwhile, above what it held before."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self._most = [0.0]

    async def __aenter__(self) -> list[float]:
        self._client = self._redis.client
        self._before = self._used()
        self._task = asyncio.create_task(self._sample())
        return self._most

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        self._client.close()

    def _used(self) -> float:
        return float(self._client.info("memory")["used_memory"])  # type: ignore[index]

    async def _sample(self) -> None:
        while True:
            self._most[0] = max(self._most[0], self._used() - self._before)
            await asyncio.sleep(SAMPLE_SECONDS)


@dataclass(frozen=True)
class Reading:
    """What the operator's process and its metrics say at a moment."""

    cpu: float
    passes: float
    requests: float
    writes: dict[str, float]

    @classmethod
    def take(cls, process: OperatorProcess) -> "Reading":
        times = psutil.Process(process.pid).cpu_times()
        sorts = ["patch FineTuneJob", "update-status FineTuneJob", "create Job", "delete Job", "create Adapter"]
        sorts += ["create Event", "patch Event", "create Secret", "patch Secret"]
        writes = {s: process.metric("llamero_api_writes_total", verb=s.split()[0], kind=s.split()[1]) for s in sorts}
        rest = process.metric("llamero_api_writes_total") - sum(writes.values())
        return cls(
            times.user + times.system,
            process.metric("llamero_reconcile_seconds_count"),
            process.metric("llamero_api_request_seconds_count"),
            {**writes, "other": rest},
        )

    def writes_since(self, before: "Reading") -> dict[str, float]:
        found = {what: count - before.writes[what] for what, count in self.writes.items()}
        return {what: count for what, count in found.items() if count}


async def take_when_quiet(process: OperatorProcess) -> Reading:
    """The reading once no more is written: Events follow the status, and the last deletions the Events."""
    before = Reading.take(process)
    while True:
        await asyncio.sleep(0.3)
        after = Reading.take(process)
        if after.requests == before.requests:
            return after
        before = after


def read_peak_memory(pid: int) -> float:
    """The process's largest resident memory so far, MiB (VmHWM)."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


async def apply_jobs(
    api: AsyncApi, namespace: str, jobs: int, per_second: float | None, prefix: str = "job"
) -> dict[str, float]:
    """Create the jobs; the moment at which each was sent off."""
    limit = asyncio.Semaphore(CONCURRENCY)
    applied: dict[str, float] = {}
    path = path_of(API_VERSION, JOB_KIND, namespace)

    async def apply(number: int) -> None:
        if per_second:
            await asyncio.sleep(number / per_second)
        async with limit:
            name = f"{prefix}-{number:04d}"
            applied[name] = time.monotonic()
            await api.create(path, played_job(name))

    await asyncio.gather(*(apply(n) for n in range(jobs)))
    return applied


# -- the story -----------------------------------------------------------------------------------------------------------------


async def run(options: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    print("load average", *(f"{x:.1f}" for x in os.getloadavg()), flush=True)
    await bench.measure_operator(1)  # the first pods of a control plane take longer
    rows: list[tuple[Measured, Measured]] = []
    for jobs in options.sizes[:-1]:
        rows.append(await measure_size(bench, jobs))
    await bench.clear()
    count = max(1, int(options.arrivals * options.arrival_seconds))
    steady = await bench.measure_operator(count, options.arrivals)
    print(f"{count} jobs, {options.arrivals:g} a second: {describe(steady)}", flush=True)
    await bench.clear()
    running = await bench.measure_running(options.running, options.running_seconds)
    print(
        f"{running.jobs} jobs that train and tell steps: {100 * running.cpu:.1f}% CPU, {running.writes:.1f} status writes a second, "
        f"{running.passes:.1f} passes a second",
        flush=True,
    )
    rows.append(await measure_size(bench, options.sizes[-1]))
    print("\n" + build_table(rows), flush=True)
    print("load average", *(f"{x:.1f}" for x in os.getloadavg()), flush=True)
    if options.output:
        rounds = [{"operator": asdict(own), "bare": asdict(bare)} for own, bare in rows]
        options.output.write_text(
            json.dumps({"at_once": rounds, "arriving": asdict(steady), "running": asdict(running)}, indent=1)
        )
    (largest, bare), (next_largest, _) = rows[-1], rows[-2]
    return {
        "operator_over_bare_client_rate": mark(largest.rate / bare.rate, RATE_MARK, at_least=True),
        "apply_to_pod_p99_seconds_at_5_a_second": mark(percentile(steady.latencies, 0.99), LATENCY_MARK),
        f"memory_mib_at_{largest.jobs}_jobs": mark(largest.memory_mib, MEMORY_MARK),
        "cpu_a_job_largest_over_next": mark(largest.cost / next_largest.cost, LINEAR_MARK),
    }


async def measure_size(bench: Bench, jobs: int) -> tuple[Measured, Measured]:
    """A round with the operator, then one with the bare client."""
    await bench.clear()
    measured = await bench.measure_operator(jobs)
    print(f"{jobs} jobs at once: {describe(measured)}", flush=True)
    await bench.clear()
    bare = await bench.measure_bare(jobs)
    assert bench.template is not None
    print(
        f"{jobs} jobs by the bare client: {bare.seconds:.1f} s, {bare.rate:.2f} jobs/s; all written after {bare.written:.1f} s "
        f"({jobs / (bare.written or 1):.1f} jobs/s); {bench.template.writes} writes a job",
        flush=True,
    )
    return measured, bare


def describe(measured: Measured) -> str:
    """A round of the operator in a few lines."""
    p50, p99 = (percentile(measured.latencies, share) for share in (0.5, 0.99))
    writes = ", ".join(f"{count:.2f} {what}" for what, count in sorted(measured.writes.items()))
    return (
        f"{measured.seconds:.1f} s, {measured.rate:.2f} jobs/s; apply -> pod p50 {p50:.2f} s, p99 {p99:.2f} s\n"
        f"    operator: CPU {measured.cpu_seconds:.2f} s ({1000 * measured.cost:.1f} ms a job), {measured.memory_mib:.0f} MiB at most, "
        f"{measured.passes:.1f} passes a job; when all is done {100 * measured.idle_cpu:.1f}% CPU, {measured.idle_requests:.0f} requests\n"
        f"    API writes a job: {sum(measured.writes.values()):.2f} ({writes})\n"
        f"    Redis at most +{measured.redis_mib:.2f} MiB, etcd +{measured.etcd_mib:.1f} MiB"
    )


def build_table(rows: Sequence[tuple[Measured, Measured]]) -> str:
    """The curve over sizes, as Markdown."""
    lines = [
        "| jobs at once | operator, jobs/s | bare client, jobs/s | bare client, writes alone | operator / bare | apply → pod p50, s | p99, s "
        "| CPU ms a job | peak MiB | passes a job | writes a job |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for own, bare in rows:
        p50, p99 = (percentile(own.latencies, share) for share in (0.5, 0.99))
        lines.append(
            f"| {own.jobs:,} | {own.rate:.2f} | {bare.rate:.2f} | {bare.jobs / (bare.written or 1):.1f} | {own.rate / bare.rate:.2f} | {p50:.2f} "
            f"| {p99:.2f} | {1000 * own.cost:.1f} | {own.memory_mib:.0f} | {own.passes:.1f} | {sum(own.writes.values()):.1f} |"
        )
    return "\n".join(lines)


def mark(value: float, limit: float, at_least: bool = False) -> dict[str, Any]:
    return {"value": round(value, 3), "mark": limit, "met": value >= limit if at_least else value < limit}


@contextmanager
def instant_node(plane: ControlPlane, redis: RedisServer, folder: Path) -> Iterator[Daemon]:
    """The node, as a process of its own."""
    access, script = plane.access, str(Path(__file__).with_name("instant_node.py"))
    command = [sys.executable, script, access.url, str(access.authority), access.token, str(folder / "node")]
    node = Daemon("node", [*command, "bench-node", redis.url], folder / "node.log", dict(os.environ))
    node.start()
    try:
        node.wait_ready(lambda: "ready" in node.tail(), 60)
        yield node
    finally:
        node.kill()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[10, 100, 1000],
        help="how many jobs at once, smallest first",
    )
    parser.add_argument("--arrivals", type=float, default=5.0, help="jobs a second in the steady round")
    parser.add_argument("--arrival-seconds", type=float, default=60.0, help="how long they arrive")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="how long a finished round is watched")
    parser.add_argument("--running", type=int, default=100, help="how many jobs train in the round of running jobs")
    parser.add_argument("--running-seconds", type=float, default=30.0, help="how long they are watched")
    parser.add_argument("--quick", action="store_true", help="10 and 50 jobs, 5 s of arrivals, no marks")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write every figure of every round there, as JSON")
    options = parser.parse_args()
    if options.quick and options.sizes == parser.get_default("sizes"):
        options.sizes = [10, 50]
    if options.quick:
        options.arrival_seconds, options.idle_seconds = min(options.arrival_seconds, 5.0), 1.0
        options.running, options.running_seconds = min(options.running, 5), 6.0
    if len(options.sizes) < 2:
        parser.error("--sizes takes two sizes at least")
    return options


def main() -> None:
    options = parse_options()
    folder = make_folder("bench")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    crds = sorted((REPOSITORY / "charts" / "llamero" / "crds").glob("*.yaml"))
    with (
        # A busy machine may starve the node's heartbeat: it is not to be taken for dead.
        ControlPlane(crds=crds, qps=5000, node_grace_seconds=120) as plane,
        RedisServer(folder / "redis") as redis,
        instant_node(plane, redis, folder),
    ):
        bench = Bench(plane, redis, folder, options.idle_seconds, clears=not options.quick)
        marks = asyncio.run(run(options, bench))
    print(json.dumps({"benchmark": "operator", "marks": {} if options.quick else marks}), flush=True)


if __name__ == "__main__":
    main()
