"""Pods of one job as processes on this machine: real workers on a real Redis, a tiny base, a storage folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery
from cluster.redis_server import RedisServer
from cluster.waiting import until

from llamero.spec.names import AttemptFolder, JobStorage, progress_key, queue_name, task_id
from llamero.spec.status import WorkKind
from llamero.spec.tasks import AttemptId, Outcome, ProgressReport, TaskName, WorkMessage

CELERY_KINDS = {WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE}
POD_SECONDS = 120


def make_spec(repository: Path, **changes: Any) -> dict[str, Any]:
    """The spec of a job on the tiny base that is done in seconds; `a__b=1` changes field b of a."""
    spec: dict[str, Any] = {
        "baseModel": {"uri": str(repository / "examples" / "tiny-base")},
        "data": {"sources": [{"uri": "data.json", "format": "alpaca", "license": "MIT"}], "evaluationFraction": 0.2},
        "training": {"maxSteps": 3, "sequenceLength": 128, "resources": {"gpus": 0}},
        "evaluation": {"maxNewTokens": 4, "maxRecords": 4, "promptSets": [{"prompts": ["Hello?"]}]},
        "rollout": {"engine": "cpu"},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = spec
        for part in parents:
            node = node[part]
        node[last] = value
    return spec


@dataclass
class PodProcess:
    """One pod: its process, its folder, and what it answered."""

    id: AttemptId
    folder: Path
    process: "subprocess.Popen[bytes]"
    uid: str
    own: AttemptFolder

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def wait(self, seconds: float = POD_SECONDS) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # stacks, by faulthandler
            self.process.wait(10)
            raise AssertionError(f"the pod did not end in {seconds} s:\n{self.log[-6000:]}") from None

    def outcome(self, code: int = 0) -> Outcome:
        """The answer of the ended pod, whose exit code and message agree and are as expected."""
        assert self.wait() == code, self.log[-6000:]
        found = Outcome.from_termination_message((self.folder / "termination").read_text())
        assert found is not None, self.log
        assert (found.exit_code, found.id, found.pod) == (code, self.id, self.uid)
        return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def find_child(self, module: str) -> psutil.Process:
        """The phase's process, as soon as there is one."""

        def find() -> psutil.Process | None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return next((c for c in children if module in c.cmdline()), None)

        return until(find, f"a process of {module}", 60)

    def wait_for_log(self, text: str, seconds: float = 60) -> None:
        until(lambda: text in self.log or self.process.poll() is not None, f"{text!r} in the log", seconds)
        assert text in self.log, self.log[-4000:]


@dataclass
class Job:
    """A job under test: its manifest and everything that it takes to run pods for it."""

    folder: Path
    storage: str
    redis: RedisServer
    manifest: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    pods: list[PodProcess] = field(default_factory=list)

    @property
    def places(self) -> JobStorage:
        return JobStorage(self.storage, "team", "small", self.uid)

    def identify(self, kind: WorkKind, attempt: int = 1, run: int | None = None) -> AttemptId:
        number = run if run is not None else 1 if kind in CELERY_KINDS else 0
        return AttemptId(namespace="team", job="small", uid=self.uid, run=number, kind=kind, attempt=attempt)

    def message(self, id: AttemptId, **fields: Any) -> dict[str, Any]:
        values = {"id": id, "storage": self.storage, "manifest": self.manifest, **fields}
        return WorkMessage.model_validate(values).to_json_dict()

    def send(self, id: AttemptId, message: Any, name: str = TaskName.WORK.value) -> None:
        with Celery(broker=self.redis.url, set_as_current=False) as app:
            app.send_task(
                name,
                args=[message],
                queue=queue_name(id.uid, id.run, id.kind, id.attempt),
                task_id=task_id(id.uid, id.run, id.kind, id.attempt),
            )

    def start(self, id: AttemptId, message: dict[str, Any] | None = None, **environment: str) -> PodProcess:
        """Start a pod of an attempt; a worker gets its message by `send`, another pod has it from here."""
        uid = str(uuid.uuid4())
        number = len(self.pods)
        folder = self.folder / f"pod-{number}-{id.kind}"
        folder.mkdir(parents=True)
        queue = queue_name(id.uid, id.run, id.kind, id.attempt)
        told = {
            "LLAMERO_ATTEMPT": id.model_dump_json(by_alias=True),
            "LLAMERO_STORAGE": self.storage,
            "LLAMERO_SCRATCH": str(folder / "scratch"),
            "LLAMERO_TERMINATION_LOG": str(folder / "termination"),
            "LLAMERO_POD_UID": uid,
            "LLAMERO_POD_NAME": f"pod-{number}",
            "LLAMERO_NODE": "node-a",
            "LLAMERO_REDIS_URL": self.redis.url,
            "LLAMERO_QUEUE": queue,
            "LLAMERO_GRACE_SECONDS": "60",
        }
        if id.kind in CELERY_KINDS:
            arguments = f"celery -A llamero.worker worker --pool solo --concurrency 1 --without-gossip --without-mingle -Q {queue}"
            arguments += f" -n {id.kind}@%h --loglevel INFO"
        else:
            arguments = "llamero.pods"
            told["LLAMERO_MESSAGE"] = json.dumps(message)
        with (folder / "log").open("wb") as log, (folder / "out").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments.split()],
                stdin=subprocess.DEVNULL,
                stdout=out if id.kind is WorkKind.LOGS else log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **told, **self.environment, **environment},
            )
        place = AttemptFolder(self.places.attempt(id.run, id.kind, id.attempt, uid))
        pod = PodProcess(id, folder, process, uid, place)
        self.pods.append(pod)
        return pod

    def run(self, kind: WorkKind, attempt: int = 1, run: int | None = None, **fields: Any) -> PodProcess:
        """Start a pod and give it its message."""
        id = self.identify(kind, attempt, run)
        environment = fields.pop("environment", {})
        message = self.message(id, **fields)
        if kind in CELERY_KINDS:
            self.send(id, message)
        return self.start(id, message, **environment)

    def progress(self, id: AttemptId) -> ProgressReport | None:
        with self.redis.client as client:
            text = client.get(progress_key(id.uid, id.run, id.kind, id.attempt))
        return ProgressReport.model_validate_json(str(text)) if text else None

    def wait_for_step(self, id: AttemptId, step: int) -> None:
        until(lambda: (p := self.progress(id)) is not None and (p.step or 0) >= step, f"step {step}", 90)

    def close(self) -> None:
        for pod in self.pods:
            if pod.process.poll() is None:
                for process in [*psutil.Process(pod.process.pid).children(recursive=True), pod.process]:
                    process.kill()
                pod.process.wait()


MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def pod_redis() -> Iterator[RedisServer]:
    """A Redis for tests that leave it alone."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def make_job(
    repository: Path, pod_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeJob]:
    """Makes jobs with a storage folder of their own that holds their data."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository / "services"), str(repository / "operator")]))
    jobs: list[Job] = []

    def make(redis: RedisServer | None = None, storage: str | None = None, rows: int = 60, **changes: Any) -> Job:
        folder = tmp_path / f"job-{len(jobs)}"
        near = folder / "storage"
        near.mkdir(parents=True)
        write_rows(near / "data.json", rows)
        manifest = {
            "apiVersion": "llamero.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "small", "namespace": "team"},
            "spec": make_spec(repository, **changes),
        }
        job = Job(folder, storage or str(near), redis or pod_redis, manifest)
        jobs.append(job)
        return job

    yield make
    for job in jobs:
        job.close()


def write_rows(path: Path, count: int) -> None:
    rows = [
        {"instruction": f"What is {n} plus {n}?", "input": "", "output": f"The answer is {n + n}."}
        for n in range(count)
    ]
    path.write_text(json.dumps(rows))


@pytest.fixture(scope="session")
def prepared(
    repository: Path, pod_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Job, Outcome]]:
    """A job whose data is prepared, once; tests go on from copies of its storage."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "storage").mkdir()
    write_rows(folder / "storage" / "data.json", 60)
    manifest = {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "small", "namespace": "team"},
        "spec": make_spec(repository),
    }
    path = os.pathsep.join([str(repository / "services"), str(repository / "operator")])
    job = Job(folder, str(folder / "storage"), pod_redis, manifest, {"PYTHONPATH": path})
    try:
        yield job, job.run(WorkKind.PREPARE).outcome()
    finally:
        job.close()


@pytest.fixture
def prepared_job(make_job: MakeJob, prepared: tuple[Job, Outcome]) -> Callable[..., tuple[Job, dict[str, Any]]]:
    """Makes jobs whose data is prepared already: the job, and the fields of messages that go on from there."""

    def make(redis: RedisServer | None = None, **changes: Any) -> tuple[Job, dict[str, Any]]:
        first, outcome = prepared
        job = make_job(redis, **changes)
        assert outcome.data is not None
        shutil.rmtree(job.storage)
        shutil.copytree(first.storage, job.storage)
        Path(first.places.prefix.replace(first.storage, job.storage)).rename(job.places.prefix)
        uri = outcome.data.uri.replace(first.places.prefix, job.places.prefix)
        return job, {"base": outcome.base, "data": outcome.data.model_copy(update={"uri": uri})}

    return make
