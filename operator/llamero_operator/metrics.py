"""What the operator counts, for Prometheus: names, labels and meaning stand here alone."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from llamero.spec.server import ServedAdapterState, ServerPhase
from llamero.spec.status import JobPhase
from llamero_operator import faultpoints


class Metrics:
    """The operator's metrics, and the witness of its API requests."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.jobs = Gauge("llamero_jobs", "FineTuneJobs by phase.", ["phase"], registry=r)
        self.reconciles = Histogram(
            "llamero_reconcile_seconds",
            "Seconds of a pass over one job.",
            ["outcome"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=r,
        )
        self.requests = Histogram(
            "llamero_api_request_seconds",
            "Seconds of a request to the API server.",
            ["verb", "kind"],
            buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=r,
        )
        self.writes = Counter(
            "llamero_api_writes",
            "Writes to the API server, by what came of them.",
            ["verb", "kind", "code"],
            registry=r,
        )
        self.retries = Counter(
            "llamero_api_retries", "Requests to the API server that were tried again.", ["verb", "kind"], registry=r
        )
        self.sends = Counter("llamero_tasks_sent", "Tasks sent to workers.", ["kind", "outcome"], registry=r)
        self.queue = Gauge("llamero_workqueue_length", "Jobs that wait for a pass.", registry=r)
        self.delayed = Gauge("llamero_workqueue_delayed", "Jobs whose next pass has a time.", registry=r)
        self.redis_queues = Gauge(
            "llamero_redis_queue_length", "Messages that wait in the queues of attempts at hand.", ["kind"], registry=r
        )
        self.redis_up = Gauge("llamero_redis_up", "Whether Redis answered the last time.", registry=r)
        self.servers = Gauge("llamero_servers", "ModelServers by phase.", ["phase"], registry=r)
        self.served_adapters = Gauge(
            "llamero_served_adapters", "Adapters in the engines of ModelServers, by state.", ["state"], registry=r
        )
        self.routes_age = Gauge("llamero_routes_age_seconds", "Seconds since the routes were last written.", registry=r)
        self.rollbacks = Counter("llamero_rollbacks", "Adapters that were rolled back by themselves.", registry=r)
        self.server_passes = Histogram(
            "llamero_server_reconcile_seconds",
            "Seconds of a pass over one ModelServer.",
            ["outcome"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=r,
        )
        self.agent_requests = Counter(
            "llamero_agent_requests", "Questions and words to agents in engine pods.", ["what", "outcome"], registry=r
        )
        self.chat_requests = Counter(
            "llamero_chat_requests", "Questions to chat services' inner ports.", ["outcome"], registry=r
        )
        self.server_queue = Gauge("llamero_server_workqueue_length", "ModelServers that wait for a pass.", registry=r)
        self.leader = Gauge("llamero_leader", "Whether this process leads.", registry=r)
        self.event_age = Gauge(
            "llamero_last_event_age_seconds",
            "Seconds since the watch last showed a sign of life.",
            ["kind"],
            registry=r,
        )
        self.pass_age = Gauge("llamero_last_pass_age_seconds", "Seconds since a pass last ended.", registry=r)
        self._fence: Callable[[], None] = lambda: None

    def forbid_writes_by(self, fence: Callable[[], None]) -> None:
        """`fence` is called before each write; it does not return where this process no longer leads."""
        self._fence = fence

    # As `kube.Witness`

    def before_write(self, verb: str, kind: str) -> None:
        self._fence()
        faultpoints.point("before", verb, kind)

    def after_write(self, verb: str, kind: str) -> None:
        faultpoints.point("after", verb, kind)

    def answered(self, verb: str, kind: str, status: int, seconds: float) -> None:
        self.requests.labels(verb, kind).observe(seconds)
        if verb not in ("get", "list", "watch", "log"):
            self.writes.labels(verb, kind, str(status or "none")).inc()

    def retried(self, verb: str, kind: str, why: str) -> None:
        self.retries.labels(verb, kind).inc()

    # What is looked at from time to time

    def show_jobs(self, phases: Iterable[str]) -> None:
        """Counts the jobs by phase."""
        counts = {str(phase): 0 for phase in JobPhase}
        for phase in phases:
            counts[phase] = counts.get(phase, 0) + 1
        for phase, count in counts.items():
            self.jobs.labels(phase).set(count)

    def show_servers(self, phases: Iterable[str], states: Iterable[str]) -> None:
        """Counts the servers by phase, and their adapters by state."""
        for gauge, words, seen in (
            (self.servers, get_args(ServerPhase), phases),
            (self.served_adapters, get_args(ServedAdapterState), states),
        ):
            counts = dict.fromkeys(words, 0)
            for word in seen:
                counts[word] = counts.get(word, 0) + 1
            for word, count in counts.items():
                gauge.labels(word).set(count)

    def show_queues(self, lengths: Mapping[str, int]) -> None:
        """Messages that wait, by kind of work; a kind without a queue shows none."""
        self.redis_queues.clear()
        for kind, length in lengths.items():
            self.redis_queues.labels(kind).set(length)

    def serve(self, port: int, address: str = "") -> Any:
        """Serves /metrics in a thread of its own; the server's `shutdown()` ends it."""
        server, _thread = start_http_server(port, addr=address or "0.0.0.0", registry=self.registry)
        return server


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
