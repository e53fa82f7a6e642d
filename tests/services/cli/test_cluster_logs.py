"""`llamero logs` against pods that run for real as processes; of those that are gone the real reader pod prints what was kept."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster.api import ApiError
from cluster.waiting import until

from llamero.cli.joblogs import Attempt, LogChoice, LogError, build_request, choose_attempt
from llamero.spec.names import READ_LOGS_ANNOTATION, JobStorage, child_job_name, child_labels
from llamero.spec.status import WorkKind
from llamero.spec.tasks import AttemptId, LogRequest, WorkMessage
from llamero.spec.validation import validate_job

Object = dict[str, Any]


def start_pod(cluster: Any, job: Object, kind: str, attempt: int, script: str, run: int = 1, tail: str = "x") -> str:
    """A pod as the operator's child Jobs make them, running a shell script."""
    uid = job["metadata"]["uid"]
    name = f"{child_job_name('tuned', uid, run, kind, attempt)}-{tail}"
    container = {"name": "main", "image": "none", "command": ["sh", "-c", script]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "labels": child_labels("tuned", uid, run, kind, attempt),
        },
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]},
    }
    cluster.plane.api.create(pod)
    until(lambda: phase_of(cluster, name) not in ("Pending", None), f"pod {name} to start")
    return name


def phase_of(cluster: Any, name: str) -> str | None:
    pod = cluster.plane.api.find(f"/api/v1/namespaces/{cluster.namespace}/pods/{name}")
    return (pod or {}).get("status", {}).get("phase")


def wait_ended(cluster: Any, *names: str) -> None:
    for name in names:
        until(lambda name=name: phase_of(cluster, name) in ("Succeeded", "Failed"), f"pod {name} to end")  # type: ignore[misc]


class TestLivePods:
    def test_the_newest_attempts_lines_are_printed(self, cluster: Any) -> None:
        job = cluster.submit()
        first = start_pod(cluster, job, "train", 1, "echo first; echo two")
        wait_ended(cluster, first)
        wait_ended(cluster, start_pod(cluster, job, "train", 2, "echo second"))
        assert cluster.llamero("logs", "tuned").stdout == "second\n"
        assert cluster.llamero("logs", "tuned", "--previous").stdout == "first\ntwo\n"
        assert cluster.llamero("logs", "tuned", "--attempt", "1").stdout == "first\ntwo\n"

    def test_kinds_and_runs_are_chosen(self, cluster: Any) -> None:
        job = cluster.submit()
        names = [
            start_pod(cluster, job, kind, 1, f"echo {kind} {run}", run=run)
            for run in (1, 2)
            for kind in ("prepare", "train")
        ]
        wait_ended(cluster, *names)
        assert cluster.llamero("logs", "tuned", "--work", "prepare").stdout == "prepare 2\n"
        assert cluster.llamero("logs", "tuned", "--run", "1", "--work", "train").stdout == "train 1\n"

    def test_lines_of_several_pods_carry_their_pods_names(self, cluster: Any) -> None:
        job = cluster.submit()
        names = [start_pod(cluster, job, "prepare", 1, f"echo {tail}", tail=tail) for tail in ("a", "b")]
        wait_ended(cluster, *names)
        assert set(cluster.llamero("logs", "tuned").stdout.splitlines()) == {f"[{n}] {n[-1]}" for n in names}

    def test_following_prints_lines_as_they_come_and_ends_with_the_pod(self, cluster: Any) -> None:
        job = cluster.submit()
        go = cluster.folder / "go"
        start_pod(cluster, job, "train", 1, f"echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo done")
        process = cluster.start("logs", "tuned", "--follow")
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        assert process.poll() is None
        go.touch()
        assert process.communicate(timeout=30)[0] == "done\n"
        assert process.returncode == 0

    def test_previous_and_attempt_exclude_each_other(self, cluster: Any) -> None:
        result = cluster.llamero("logs", "tuned", "--previous", "--attempt", "1")
        assert result.exit_code == 2 and "leave one out" in result.stderr


@contextmanager
def played_operator(cluster: Any, storage: Path, requests: list[LogRequest]) -> Iterator[None]:
    """Answers a log request as the operator does: one reader pod of a request, which runs the real program."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(0.05):
            job = cluster.job()
            text = (job["metadata"].get("annotations") or {}).get(READ_LOGS_ANNOTATION)
            if text and not any(r.number == LogRequest.model_validate_json(text).number for r in requests):
                requests.append(LogRequest.model_validate_json(text))
                cluster.plane.api.create(build_reader(cluster, job, requests[-1], storage))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join()


def build_reader(cluster: Any, job: Object, request: LogRequest, storage: Path) -> Object:
    uid, number = job["metadata"]["uid"], request.number
    attempt = AttemptId(namespace=cluster.namespace, job="tuned", uid=uid, run=0, kind=WorkKind.LOGS, attempt=number)
    manifest, _ = validate_job({k: v for k, v in job.items() if k != "status"})
    assert manifest is not None
    message = WorkMessage(id=attempt, storage=str(storage), manifest=manifest, logs=request)
    environment = {
        "LLAMERO_ATTEMPT": attempt.model_dump_json(by_alias=True),
        "LLAMERO_MESSAGE": message.model_dump_json(by_alias=True, exclude_none=True),
        "LLAMERO_STORAGE": str(storage),
        "LLAMERO_SCRATCH": str(storage.parent),
        "LLAMERO_TERMINATION_LOG": "/dev/termination-log",
        "LLAMERO_POD_UID": "11111111-2222-3333-4444-555555555555",
        "LLAMERO_POD_NAME": "reader",
    }
    container = {
        "name": "main",
        "image": "none",
        "command": ["python", "-m", "llamero.pods"],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{child_job_name('tuned', uid, 0, 'logs', number)}-r",
            "namespace": cluster.namespace,
            "labels": child_labels("tuned", uid, 0, "logs", number),
        },
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }


class TestKeptLogs:
    @pytest.fixture
    def storage(self, cluster: Any, tmp_path: Path) -> Path:
        """Logs as workers keep them: of run 1's preparation and of two attempts at its training."""
        job = cluster.submit()
        root = tmp_path / "storage"
        places = JobStorage(str(root), cluster.namespace, "tuned", job["metadata"]["uid"])
        for kind, attempt, text in (("prepare", 1, "prepared"), ("train", 1, "torn off"), ("train", 2, "trained")):
            file = Path(places.log(1, kind, attempt, "some-pod"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return root

    def test_logs_of_pods_that_are_gone_come_from_the_storage(self, cluster: Any, storage: Path) -> None:
        requests: list[LogRequest] = []
        with played_operator(cluster, storage, requests):
            result = cluster.llamero("logs", "tuned")
        assert result.exit_code == 0, result.output
        lines = [line for line in result.stdout.splitlines() if not line.startswith("==>")]
        assert lines == ["prepared", "trained"]
        assert "a reader pod is asked for the kept logs" in result.stderr
        assert READ_LOGS_ANNOTATION not in (cluster.job()["metadata"].get("annotations") or {})
        assert len(requests) == 1

    def test_what_is_asked_for_reaches_the_reader(self, cluster: Any, storage: Path) -> None:
        requests: list[LogRequest] = []
        cluster.set_status(run=1, phase="Succeeded")
        with played_operator(cluster, storage, requests):
            result = cluster.llamero("logs", "tuned", "--run", "1", "--work", "train", "--attempt", "1")
        assert result.stdout.splitlines()[-1] == "torn off"
        (request,) = requests
        assert (request.run, request.kind, request.attempt) == (1, WorkKind.TRAIN, 1)

    def test_without_an_operator_it_gives_up_with_a_sentence_and_takes_its_request_back(
        self, cluster: Any, storage: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llamero.cli.joblogs.READER_SECONDS", 1.0)
        result = cluster.llamero("logs", "tuned")
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1] == "No reader pod came within 1 s: is the operator running?"
        assert READ_LOGS_ANNOTATION not in (cluster.job()["metadata"].get("annotations") or {})


def test_the_played_operator_speaks_of_a_job_that_is_there(cluster: Any) -> None:
    with pytest.raises(ApiError):
        cluster.job("missing")


ATTEMPTS = [
    Attempt(1, "prepare", 1, "2026-01-01T00:00:00Z", ("p1",)),
    Attempt(1, "train", 1, "2026-01-01T00:01:00Z", ("t1",)),
    Attempt(1, "train", 2, "2026-01-01T00:02:00Z", ("t2",)),
    Attempt(2, "prepare", 1, "2026-01-01T00:03:00Z", ("p2",)),
]


@pytest.mark.parametrize(
    ("choice", "pods"),
    [
        (LogChoice(), ("p2",)),
        (LogChoice(previous=True), ("t2",)),
        (LogChoice(run=1), ("t2",)),
        (LogChoice(run=1, previous=True), ("t1",)),
        (LogChoice(kind=WorkKind.TRAIN), ("t2",)),
        (LogChoice(kind=WorkKind.PREPARE, previous=True), ("p1",)),
        (LogChoice(attempt=1, kind=WorkKind.TRAIN), ("t1",)),
        (LogChoice(run=3), None),
        (LogChoice(run=2, previous=True), None),
    ],
)
def test_the_newest_fitting_attempt_is_chosen(choice: LogChoice, pods: tuple[str, ...] | None) -> None:
    chosen = choose_attempt(ATTEMPTS, choice)
    assert (chosen.pods if chosen else None) == pods


def build_job(**status: Any) -> Object:
    return {"metadata": {"name": "tuned", "uid": "u"}, "status": json.loads(json.dumps(status))}


WORK = {"kind": "train", "attempt": 3, "job": "x", "startedAt": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("choice", "request_fields"),
    [
        (LogChoice(), {}),
        (LogChoice(run=1, kind=WorkKind.TRAIN), {"run": 1, "kind": "train"}),
        (LogChoice(previous=True), {"run": 2, "kind": "train", "attempt": 2}),
    ],
)
def test_a_request_says_what_was_asked_for_and_leaves_out_the_rest(
    choice: LogChoice, request_fields: dict[str, Any]
) -> None:
    request = build_request(build_job(run=2, attempt=3, work=WORK), choice, 7)
    assert request.model_dump(mode="json", exclude_none=True) == {"number": 7, **request_fields}


def test_previous_of_a_first_attempt_is_refused() -> None:
    with pytest.raises(LogError, match="has had one attempt only"):
        build_request(build_job(run=2, attempt=1, work={**WORK, "attempt": 1}), LogChoice(previous=True), 7)
