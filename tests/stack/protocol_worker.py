"""A worker that keeps the storage protocol without training, for the fault suite and the benchmarks.

It stands in for a pod's process inside the node (`cluster.runtimes.SimulatedRuntime`): it takes its task from the attempt's real Redis
queue, writes below its own prefix with the manifest last, checkpoints and resumes steps, tells progress, obeys SIGTERM, and answers by
termination message. What it did is kept in a ledger, so that a suite can count doubled work and lost steps.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis.asyncio
from cluster.runtimes import KILLED, TERMINATED_BY_SIGKILL

from llamero.lifecycle.failures import PhaseExit
from llamero.spec.names import MANIFEST_NAME, JobStorage, progress_key, queue_name
from llamero.spec.status import BaseStatus, DataStatus, EvaluationStatus, TrainingStatus, WorkKind
from llamero.spec.tasks import AttemptId, Outcome, ProgressReport, TaskName, WorkMessage

REDIS_ERRORS = (redis.asyncio.RedisError, OSError)


@dataclass
class Entry:
    """One pod's work: the steps that it did, in order, and how it ended."""

    id: AttemptId
    pod: str
    started: float
    steps: list[int] = field(default_factory=list)
    stepped: list[float] = field(default_factory=list)
    """When each step was done, as of `time.monotonic`."""
    messages: int = 0
    ended: float | None = None
    exit_code: int | None = None

    @property
    def has_worked(self) -> bool:
        """Whether it was given its work: a pod whose attempt's only task another one took has not."""
        return (
            self.messages > 0
            or bool(self.steps)
            or self.id.kind not in (WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE)
        )


class Halt:
    """A place at which played pods wait until they are told to go on: `started`, `taken`, `step 7`, `answering`.

    The first pod that comes to it holds; later ones pass once it was released.
    """

    def __init__(self, kind: WorkKind, moment: str, job: str | None = None, attempt: int | None = None) -> None:
        self.kind, self.moment, self.job, self.attempt = kind, moment, job, attempt
        self.reached = threading.Event()
        self.released = threading.Event()
        self.entry: Entry | None = None

    def matches(self, entry: Entry, moment: str) -> bool:
        same = (self.kind, self.moment) == (entry.id.kind, moment)
        return same and self.job in (None, entry.id.job) and self.attempt in (None, entry.id.attempt)

    def wait_reached(self, seconds: float = 60) -> Entry:
        """The pod that holds. Raises AssertionError where none comes in time."""
        assert self.reached.wait(seconds), f"no pod came to `{self.moment}` of {self.kind} in {seconds:g} s"
        assert self.entry is not None
        return self.entry

    def release(self) -> None:
        self.released.set()


@dataclass
class Script:
    """How long and how well the played work goes. `steps` of training, `step_seconds` each; `save_every` steps a checkpoint."""

    steps: int = 6
    step_seconds: float = 0.05
    prepare_seconds: float = 0.1
    evaluate_seconds: float = 0.1
    save_every: int = 2
    idle_seconds: float = 20.0
    tuned_perplexity: str = "2.500"
    data_digest: str = hashlib.sha256(b"data").hexdigest()


class ProtocolWorker:
    """Plays every pod of a node. Call it as a `SimulatedRuntime`'s script."""

    def __init__(self, redis_url: str, script: Script | None = None) -> None:
        self.redis_url = redis_url
        self.script = script or Script()
        self.ledger: list[Entry] = []
        self.halts: list[Halt] = []

    @contextlib.contextmanager
    def halt(self, kind: WorkKind, moment: str, job: str | None = None, attempt: int | None = None) -> Iterator[Halt]:
        """Pods wait there, from now until the block's end at the latest. Names of jobs are used once."""
        halt = Halt(kind, moment, job, attempt)
        self.halts.append(halt)
        try:
            yield halt
        finally:
            halt.release()
            self.halts.remove(halt)

    async def _pass(self, entry: Entry, moment: str) -> None:
        for halt in [h for h in self.halts if h.matches(entry, moment)]:
            if not halt.reached.is_set():
                halt.entry = entry
                halt.reached.set()
            while not halt.released.is_set():
                await asyncio.sleep(0.02)

    async def __call__(self, pod: dict[str, Any], container: dict[str, Any]) -> tuple[int, str]:
        environment = {e["name"]: e.get("value", "") for e in container.get("env", [])}
        attempt = AttemptId.model_validate_json(environment["LLAMERO_ATTEMPT"].replace("$$", "$"))
        entry = Entry(attempt, pod["metadata"]["uid"], time.monotonic())
        self.ledger.append(entry)
        connection = redis.asyncio.from_url(self.redis_url, socket_timeout=5, socket_connect_timeout=2)
        try:
            outcome = await self._work(entry, environment, connection)
        except asyncio.CancelledError as error:
            if KILLED in error.args:
                entry.exit_code = TERMINATED_BY_SIGKILL
                raise
            outcome = self._answer(entry, PhaseExit.INTERRUPTED, "SIGTERM came.")
        except OSError as error:
            outcome = self._answer(entry, PhaseExit.STORAGE, f"The storage can't be written: {error}")
        finally:
            entry.ended = time.monotonic()
            with contextlib.suppress(Exception):
                await connection.aclose()
        entry.exit_code = outcome.exit_code
        return outcome.exit_code, outcome.to_termination_message()

    def _answer(self, entry: Entry, code: PhaseExit, message: str = "", **fields: Any) -> Outcome:
        return Outcome(id=entry.id, pod=entry.pod, exit_code=int(code), message=message, **fields)

    async def _work(self, entry: Entry, environment: dict[str, str], connection: redis.asyncio.Redis) -> Outcome:
        if "LLAMERO_MESSAGE" in environment:
            message = WorkMessage.model_validate_json(environment["LLAMERO_MESSAGE"])
        else:
            await self._pass(entry, "started")
            try:
                taken = await self._take(entry, connection)
            except ValueError as error:
                return self._answer(entry, PhaseExit.BAD_CONFIG, f"This worker was sent what it does not know: {error}")
            if taken is None:
                return self._answer(entry, PhaseExit.IDLE, "No task came.")
            message = taken
            await self._pass(entry, "taken")
        storage = JobStorage(message.storage, entry.id.namespace, entry.id.job, entry.id.uid)
        played = {
            WorkKind.FETCH: self._fetch,
            WorkKind.PROBE: self._probe,
            WorkKind.PREPARE: self._prepare,
            WorkKind.TRAIN: self._train,
            WorkKind.EVALUATE: self._evaluate,
            WorkKind.CLEAN: self._clean,
        }[entry.id.kind]
        outcome = await played(entry, message, storage, connection)
        await self._pass(entry, "answering")
        return outcome

    # -- Redis ---------------------------------------------------------------------------------------------------------------

    async def _take(self, entry: Entry, connection: redis.asyncio.Redis) -> WorkMessage | None:
        """The task from the attempt's own queue, in kombu's form; None where none comes in time.

        One for another attempt is passed over, as the real worker does. Raises ValueError for what is no task that it knows.
        """
        queue = queue_name(entry.id.uid, entry.id.run, entry.id.kind, entry.id.attempt)
        deadline = time.monotonic() + self.script.idle_seconds
        while time.monotonic() < deadline:
            try:
                found = await connection.brpop([queue], timeout=1)
            except REDIS_ERRORS:
                await asyncio.sleep(0.2)
                continue
            if found is None:
                continue
            entry.messages += 1
            message = _read_message(found[1])
            if message.id == entry.id:
                return message
        return None

    async def _tell(
        self, entry: Entry, connection: redis.asyncio.Redis, phase: str, activity: str, **fields: Any
    ) -> None:
        identity = entry.id
        report = ProgressReport(
            id=identity, pod=entry.pod, at=datetime.now(UTC), phase=phase, activity=activity, **fields
        )
        key = progress_key(identity.uid, identity.run, identity.kind, identity.attempt)
        with contextlib.suppress(*REDIS_ERRORS):
            await connection.set(key, report.model_dump_json(by_alias=True, exclude_none=True), ex=3600)

    # -- the kinds of work -----------------------------------------------------------------------------------------------------

    async def _fetch(
        self, entry: Entry, message: WorkMessage, storage: JobStorage, connection: redis.asyncio.Redis
    ) -> Outcome:
        base = BaseStatus(uri=f"{message.storage}/models/played", digest=hashlib.sha256(b"base").hexdigest())
        return self._answer(entry, PhaseExit.DONE, base=base)

    async def _probe(
        self, entry: Entry, message: WorkMessage, storage: JobStorage, connection: redis.asyncio.Redis
    ) -> Outcome:
        return self._answer(entry, PhaseExit.DONE, data_digest=self.script.data_digest)

    async def _prepare(
        self, entry: Entry, message: WorkMessage, storage: JobStorage, connection: redis.asyncio.Redis
    ) -> Outcome:
        await self._tell(entry, connection, "Preparing", "reading sources", done=0, total=100, unit="records")
        folder = self._own(entry, storage) / "data"
        if self._find_committed(storage, entry, WorkKind.PREPARE, "data") is None:
            await asyncio.sleep(self.script.prepare_seconds)
            _commit(folder, {"records.jsonl": "{}\n"})
        await self._tell(entry, connection, "Preparing", "writing examples", done=100, total=100, unit="records")
        data = DataStatus(
            uri=str(folder),
            digest=self.script.data_digest,
            read=100,
            kept=90,
            rejected=10,
            reasons={"empty-answer": 10},
            train_examples=80,
            evaluation_examples=10,
            tokens=8000,
        )
        return self._answer(entry, PhaseExit.DONE, data=data)

    async def _train(
        self, entry: Entry, message: WorkMessage, storage: JobStorage, connection: redis.asyncio.Redis
    ) -> Outcome:
        done = max((step for step in self._checkpoints(storage, entry)), default=0)
        resumed_from = done or None
        total, saved = self.script.steps, done
        try:
            while done < total:
                await asyncio.sleep(self.script.step_seconds)
                done += 1
                entry.steps.append(done)
                entry.stepped.append(time.monotonic())
                await self._tell(
                    entry,
                    connection,
                    "Training",
                    "training",
                    done=done,
                    total=total,
                    unit="steps",
                    step=done,
                    loss=1 / done,
                )
                if done % self.script.save_every == 0 or done == total:
                    _commit(self._own(entry, storage) / f"step-{done}", {"weights": str(done)})
                    saved = done
                await self._pass(entry, f"step {done}")
        except asyncio.CancelledError as error:
            if done > saved and KILLED not in error.args:
                _commit(self._own(entry, storage) / f"step-{done}", {"weights": str(done)})
            raise
        training = TrainingStatus(
            uri=str(self._own(entry, storage)),
            steps=total,
            tokens=8000,
            first_loss="1.000",
            last_loss=f"{1 / total:.3f}",
            tokens_per_second="1000.0",
            adapter_sha256=hashlib.sha256(entry.id.uid.encode()).hexdigest(),
        )
        return self._answer(entry, PhaseExit.DONE, training=training, resumed_from=resumed_from)

    async def _evaluate(
        self, entry: Entry, message: WorkMessage, storage: JobStorage, connection: redis.asyncio.Redis
    ) -> Outcome:
        await self._tell(entry, connection, "Evaluating", "measuring", done=0, total=10, unit="records")
        await asyncio.sleep(self.script.evaluate_seconds)
        assert message.training is not None
        sha256 = message.training.adapter_sha256
        folder = Path(storage.adapter(entry.id.run, sha256))
        _commit(folder, {"adapter_model.safetensors": sha256})
        evaluation = EvaluationStatus(
            uri=str(self._own(entry, storage)),
            records=10,
            base_token_perplexity="10.000",
            tuned_token_perplexity=self.script.tuned_perplexity,
            answers=3,
        )
        return self._answer(
            entry,
            PhaseExit.DONE,
            evaluation=evaluation,
            adapter_uri=str(folder),
            adapter_spec={
                "sha256": sha256,
                "model": entry.id.job,
                "base": "played",
                "baseSha256": "b" * 64,
                "template": "base",
                "stopTokens": ["</s>"],
                "recipeDigest": "r" * 64,
                "dataDigest": self.script.data_digest,
            },
        )

    async def _clean(
        self, entry: Entry, message: WorkMessage, storage: JobStorage, connection: redis.asyncio.Redis
    ) -> Outcome:
        shutil.rmtree(storage.prefix, ignore_errors=True)
        for folder in Path(storage.adapters).glob(f"{entry.id.job}-r*/*"):
            if folder.name not in message.keep_adapters:
                shutil.rmtree(folder, ignore_errors=True)
        return self._answer(entry, PhaseExit.DONE)

    # -- storage ---------------------------------------------------------------------------------------------------------------

    def _own(self, entry: Entry, storage: JobStorage) -> Path:
        return Path(storage.attempt(entry.id.run, entry.id.kind, entry.id.attempt, entry.pod))

    def _find_committed(self, storage: JobStorage, entry: Entry, kind: WorkKind, name: str) -> Path | None:
        folders = Path(storage.attempts(entry.id.run, kind))
        found = sorted(folders.glob(f"*/{name}/{MANIFEST_NAME}")) if folders.is_dir() else []
        return found[-1].parent if found else None

    def _checkpoints(self, storage: JobStorage, entry: Entry) -> Iterator[int]:
        folder = Path(storage.attempts(entry.id.run, WorkKind.TRAIN))
        for manifest in folder.glob(f"*/step-*/{MANIFEST_NAME}"):
            with contextlib.suppress(ValueError, OSError):
                row = json.loads(manifest.read_text())
                if all((manifest.parent / n).read_text() == t for n, t in row.items()):
                    yield int(manifest.parent.name.removeprefix("step-"))


def _read_message(content: bytes) -> WorkMessage:
    """The message in kombu's envelope. Raises ValueError for anything else."""
    envelope = json.loads(content)
    try:
        task, body = envelope["headers"]["task"], envelope["body"]
    except (TypeError, KeyError) as error:
        raise ValueError("a message that is no Celery task") from error
    if task != TaskName.WORK:
        raise ValueError(f"the task {task}")
    args, kwargs, _ = json.loads(base64.b64decode(body))
    inner = args[0] if args else next(iter(kwargs.values()))
    return WorkMessage.model_validate_json(inner) if isinstance(inner, str) else WorkMessage.model_validate(inner)


def _commit(folder: Path, files: dict[str, str]) -> None:
    """Files first, their manifest last, each renamed into place."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in [*files.items(), (MANIFEST_NAME, json.dumps(files))]:
        partial = folder / f".{name}.partial"
        partial.write_text(text)
        partial.replace(folder / name)
