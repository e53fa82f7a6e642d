"""Whether the operator is alive and ready: signs of life, the rule that judges them, and the HTTP server that tells.

The server runs in a thread of its own, so that it answers, and says so, also when the event loop hangs.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOOP_SECONDS = 60.0
"""The event loop must have turned within this time."""


@dataclass
class Vitals:
    """Signs of life, as times of `time.monotonic()`. Written by the loop, read by threads: single assignments alone."""

    watchdog_seconds: float = 180.0
    started: float = field(default_factory=time.monotonic)
    loop_beat: float = field(default_factory=time.monotonic)
    watches: dict[str, float] = field(default_factory=dict)
    """When each watch last showed a sign of life: an event, a bookmark, an answer to a new request."""
    last_pass: float | None = None
    oldest_waiting: Callable[[], float] = lambda: 0.0
    """Seconds that the key at the queue's head has waited."""
    last_server_pass: float | None = None
    oldest_server_waiting: Callable[[], float] = lambda: 0.0
    """The same of the servers' queue."""
    stage: str = "starting"  # starting, waiting (for the lease), working, stopping
    expected: frozenset[str] = frozenset()
    """The kinds that are watched."""
    streaming: set[str] = field(default_factory=set)
    """The kinds whose watch has begun, after everything was listed."""

    @property
    def is_synced(self) -> bool:
        """Whether everything was listed once."""
        return self.streaming >= self.expected

    def work(self, kinds: Iterable[str]) -> None:
        """The work begins: from now on each watch must show signs of life."""
        self.expected = frozenset(kinds)
        self.watches = dict.fromkeys(self.expected, time.monotonic())
        self.stage = "working"

    def beat(self, kind: str, is_watch: bool = False) -> None:
        """The watch of a kind shows a sign of life."""
        self.watches[kind] = time.monotonic()
        if is_watch:
            self.streaming.add(kind)

    def report(self, now: float) -> dict[str, Any]:
        """Ages in seconds, for /healthz."""
        return {
            "stage": self.stage,
            "loopAgeSeconds": round(now - self.loop_beat, 1),
            "lastEventAgeSeconds": {kind: round(now - at, 1) for kind, at in sorted(dict(self.watches).items())},
            "lastPassAgeSeconds": None if self.last_pass is None else round(now - self.last_pass, 1),
            "oldestWaitingSeconds": round(self.oldest_waiting(), 1),
            "oldestServerWaitingSeconds": round(self.oldest_server_waiting(), 1),
        }


def find_problems(vitals: Vitals, now: float) -> list[str]:
    """Why the process should be started afresh, a sentence each; none where it is well."""
    problems = []
    if now - vitals.loop_beat > LOOP_SECONDS:
        problems.append(f"the event loop has not turned for {now - vitals.loop_beat:.0f} s")
    if vitals.stage != "working":
        return problems
    limit = vitals.watchdog_seconds
    for kind, at in sorted(dict(vitals.watches).items()):
        if now - at > limit:
            problems.append(f"the watch of {kind} has shown no sign of life for {now - at:.0f} s")
    for thing, waited, last in (
        ("job", vitals.oldest_waiting(), vitals.last_pass),
        ("server", vitals.oldest_server_waiting(), vitals.last_server_pass),
    ):
        since = last if last is not None else vitals.started
        if waited > limit and now - since > limit:
            problems.append(
                f"a {thing} has waited {waited:.0f} s for its pass, and none has ended for {now - since:.0f} s"
            )
    return problems


def find_unready(vitals: Vitals, now: float) -> list[str]:
    """Why it is not ready, a sentence each. One that waits for the lease is ready: it stands by."""
    if vitals.stage == "waiting":
        return []
    problems = find_problems(vitals, now)
    if vitals.stage != "working":
        problems.append(f"the operator is {vitals.stage}")
    elif not vitals.is_synced:
        problems.append("the watches have not listed everything yet")
    return problems


class HealthServer:
    """/healthz and /readyz: 200 or 503, with the ages and the problems as JSON."""

    def __init__(self, vitals: Vitals, port: int, address: str = "") -> None:
        checks = {"/healthz": find_problems, "/readyz": find_unready}

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                check = checks.get(self.path.partition("?")[0])
                now = time.monotonic()
                problems = check(vitals, now) if check else ["there are /healthz and /readyz"]
                body = json.dumps({"problems": problems, **vitals.report(now)}).encode()
                self.send_response(404 if check is None else 503 if problems else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer((address or "0.0.0.0", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
