"""Counters, gauges and histograms in Prometheus' text format, and the engine's own set under TGI's names. No prompt, no text.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import bisect
import threading
from collections.abc import Callable, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

BASE_LABEL = ""
"""The label `adapter` of requests to the base alone."""

Labels = tuple[tuple[str, str], ...]


class Counter:
    """A number that only grows, per set of labels."""

    kind = "counter"

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def forget(self, **labels: str) -> None:
        """Drop what is counted under labels that won't come again."""
        gone = set(labels.items())
        with self._lock:
            self._values = {k: v for k, v in self._values.items() if not gone <= set(k)}

    def lines(self) -> list[str]:
        with self._lock:
            values = dict(self._values) or {(): 0.0}
        return [f"{self.name}{_labels(k)} {_number(v)}" for k, v in values.items()]


class Gauge:
    """A number as it is now, asked for when the metrics are read."""

    kind = "gauge"

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self.name, self.text, self._read = name, text, read

    def lines(self) -> list[str]:
        return [f"{self.name} {_number(self._read())}"]


class Histogram:
    """How observations are spread over buckets."""

    kind = "histogram"

    def __init__(self, name: str, text: str, edges: Sequence[float]) -> None:
        self.name, self.text, self._edges = name, text, tuple(edges)
        self._counts = [0] * (len(self._edges) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        with self._lock:
            self._counts[bisect.bisect_left(self._edges, value)] += 1
            self._sum += value

    def lines(self) -> list[str]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines, running = [], 0
        for edge, count in zip((*self._edges, float("inf")), counts, strict=True):
            running += count
            lines.append(f'{self.name}_bucket{{le="{_number(edge)}"}} {running}')
        return [*lines, f"{self.name}_sum {_number(total)}", f"{self.name}_count {running}"]


Metric = Counter | Gauge | Histogram


def render(metrics: Sequence[Metric]) -> str:
    """Prometheus' text format."""
    out: list[str] = []
    for metric in metrics:
        out += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
    return "\n".join(out) + "\n"


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((k, v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for k, v in labels)
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped) + "}"


class EngineMetrics:
    """What TGI's dashboards read, where this engine has it, and a few of its own (`llamero_`)."""

    def __init__(self) -> None:
        self.requests = Counter("tgi_request_count", "Requests that came in.")
        self.successes = Counter("tgi_request_success", "Requests that were answered.")
        self.failures = Counter("tgi_request_failure", "Requests that were not answered, by kind of error.")
        self.cancelled = Counter("llamero_request_cancelled", "Requests whose caller went away.")
        self.steps = Counter("tgi_batch_inference_count", "Forward passes, by method (prefill, decode).")
        self.tokens = Counter("llamero_generated_tokens", "Tokens generated.")
        self.adapter_requests = Counter("llamero_adapter_requests", "Requests that came in, by adapter.")
        self.adapter_successes = Counter("llamero_adapter_successes", "Requests that were answered, by adapter.")
        self.adapter_failures = Counter("llamero_adapter_failures", "Requests that were not answered, by adapter.")
        self.adapter_tokens = Counter("llamero_adapter_generated_tokens", "Tokens of answers, by adapter.")
        self.duration = Histogram("tgi_request_duration", "Seconds from arrival to the last token.", SECONDS)
        self.queue_duration = Histogram("tgi_request_queue_duration", "Seconds in the queue.", SECONDS)
        self.inference_duration = Histogram("tgi_request_inference_duration", "Seconds of inference.", SECONDS)
        self.token_duration = Histogram(
            "tgi_request_mean_time_per_token_duration", "Seconds of inference per token, by request.", SECONDS
        )
        self.first_token = Histogram("llamero_request_time_to_first_token", "Seconds to the first token.", SECONDS)
        self.input_length = Histogram("tgi_request_input_length", "Prompt tokens.", TOKENS)
        self.generated_tokens = Histogram("tgi_request_generated_tokens", "Tokens of the answer.", TOKENS)
        self.max_new_tokens = Histogram("tgi_request_max_new_tokens", "Tokens asked for at most.", TOKENS)
        self.gauges: list[Gauge] = []

    def forget_adapter(self, adapter: str) -> None:
        """Tell of an adapter no longer: its name is never used again."""
        for counter in (self.adapter_requests, self.adapter_successes, self.adapter_failures, self.adapter_tokens):
            counter.forget(adapter=adapter)

    def add_gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a number that is read from the engine's state."""
        self.gauges.append(Gauge(name, text, read))

    def render(self) -> str:
        """All of them as text."""
        own = [m for m in vars(self).values() if isinstance(m, Counter | Histogram)]
        return render([*own, *self.gauges])
