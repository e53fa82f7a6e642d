"""When the process counts as well, and what it tells over HTTP."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from llamero_operator.health import HealthServer, Vitals, find_problems, find_unready
from llamero_operator.watchdog import EXIT_WATCH_SILENT, Watchdog, compare, find_kind

START = 1000.0


def make_vitals(**changes: object) -> Vitals:
    vitals = Vitals(watchdog_seconds=100, started=START, loop_beat=START)
    vitals.work(["pods", "jobs"])
    vitals.watches = {"pods": START, "jobs": START}
    vitals.streaming = {"pods", "jobs"}
    for name, value in changes.items():
        setattr(vitals, name, value)
    return vitals


CASES: dict[str, tuple[Callable[[], Vitals], float, str | None]] = {
    "all well": (make_vitals, START + 30, None),
    "a quiet hour without jobs": (
        lambda: make_vitals(loop_beat=START + 3600, watches={"pods": START + 3590, "jobs": START + 3590}),
        START + 3600,
        None,
    ),
    "a silent watch": (
        lambda: make_vitals(loop_beat=START + 120, watches={"pods": START, "jobs": START + 119}),
        START + 120,
        "the watch of pods has shown no sign of life for 120 s",
    ),
    "a silent watch before the work begins": (
        lambda: make_vitals(loop_beat=START + 120, stage="waiting"),
        START + 120,
        None,
    ),
    "a loop that hangs": (make_vitals, START + 70, "the event loop has not turned for 70 s"),
    "a job that waits while no pass ends": (
        lambda: make_vitals(
            loop_beat=START + 150,
            watches={"pods": START + 149, "jobs": START + 149},
            last_pass=START + 5,
            oldest_waiting=lambda: 120.0,
        ),
        START + 150,
        "a job has waited 120 s for its pass, and none has ended for 145 s",
    ),
    "a job that waits while others get their passes": (
        lambda: make_vitals(
            loop_beat=START + 150,
            watches={"pods": START + 149, "jobs": START + 149},
            last_pass=START + 149,
            oldest_waiting=lambda: 120.0,
        ),
        START + 150,
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_process_is_judged_by_its_signs_of_life(name: str) -> None:
    make, now, expected = CASES[name]
    assert find_problems(make(), now) == ([] if expected is None else [expected])


def test_it_is_ready_when_everything_was_listed_or_while_it_stands_by() -> None:
    vitals = make_vitals(streaming={"pods"})
    assert find_unready(vitals, START) == ["the watches have not listed everything yet"]
    vitals.beat("jobs", is_watch=True)
    assert find_unready(vitals, START) == []
    vitals.stage = "waiting"
    assert find_unready(vitals, START) == []
    vitals.stage = "starting"
    assert find_unready(vitals, START) == ["the operator is starting"]


@contextmanager
def serving(vitals: Vitals) -> Iterator[str]:
    server = HealthServer(vitals, 0, "127.0.0.1")
    server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()


def test_healthz_tells_ages_and_answers_503_with_the_reason_when_a_watch_is_silent() -> None:
    vitals = Vitals(watchdog_seconds=100)
    vitals.work(["pods"])
    with serving(vitals) as url:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            told = json.load(answer)
        assert told["problems"] == [] and told["lastEventAgeSeconds"]["pods"] < 5
        vitals.watches = {"pods": time.monotonic() - 101}
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/healthz", timeout=5)
        assert refused.value.code == 503
        assert "the watch of pods" in json.load(refused.value)["problems"][0]
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(f"{url}/nothing", timeout=5)
        assert missing.value.code == 404


def test_the_watchdog_ends_the_process_when_a_watch_is_silent() -> None:
    vitals, ended, codes = Vitals(watchdog_seconds=100), threading.Event(), list[int]()
    vitals.work(["pods"])
    vitals.watches = {"pods": time.monotonic() - 200}

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    watchdog = Watchdog(vitals, end)
    watchdog.start()
    assert ended.wait(20)
    watchdog.stop()
    assert codes == [EXIT_WATCH_SILENT]


PATHS = {
    "/apis/llamero.dev/v1alpha1/finetunejobs": "finetunejobs",
    "/apis/llamero.dev/v1alpha1/namespaces/team-a/adapters": "adapters",
    "/apis/batch/v1/jobs": "jobs",
    "/api/v1/namespaces/team-a/pods": "pods",
    "/api/v1/namespaces/team-a/pods/one": None,
    "/api/v1/namespaces/pods": None,
    "/apis/batch/v1": None,
    "/api/v1/events": None,
}


@pytest.mark.parametrize("path", PATHS)
def test_a_watch_is_known_by_its_path(path: str) -> None:
    assert find_kind(path) == PATHS[path]


def test_a_store_is_compared_with_a_list_by_versions() -> None:
    known = {("a", "same"): ("1", 5), ("a", "old"): ("2", 5), ("a", "gone"): ("3", 6), ("a", "newer"): ("4", 12)}
    listed = {("a", "same"): ("1", 5), ("a", "old"): ("2", 8), ("a", "missing"): ("5", 9)}
    assert compare(known, listed, listed_at=10) == ({("a", "old"): 8, ("a", "missing"): 9}, {("a", "gone")})
