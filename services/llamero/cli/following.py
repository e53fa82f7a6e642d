"""Where a job on a cluster stands, for someone who waits for it: its status as progress, and how waiting ends. Pure but for `follow_job`."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from rich.markup import escape

from llamero.cli.display import Display
from llamero.cli.run import ExitCode
from llamero.spec.progress import Progress
from llamero.spec.status import ConditionType, JobPhase, JobStatus

if TYPE_CHECKING:
    from llamero.kube import Kube
    from llamero.kube.jobs import JobEvent

Object = dict[str, Any]
REFUSED_SPEC = frozenset({"InvalidSpec", "BaseNotAllowed", "UnknownGpuClass"})
"""Reasons for which the operator will not run a job as it stands."""
GATE_REFUSED = "GateRefused"
PATIENCE_SECONDS = 600.0
HEALTHY_SECONDS = 60.0
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Ended:
    """How a job ended, for the one who waited: the command's exit code and a sentence."""

    code: ExitCode
    sentence: str


def read_status(job: Object) -> JobStatus:
    """The status; what a newer operator writes and this version does not know is read past."""
    raw = dict(job.get("status") or {})
    known = {str(kind) for kind in ConditionType}
    raw["conditions"] = [c for c in raw.get("conditions") or [] if c.get("type") in known]
    try:
        return JobStatus.model_validate(raw)
    except ValueError:
        phase = raw.get("phase")
        return JobStatus(phase=JobPhase(phase) if phase in set(JobPhase) else JobPhase.PENDING)


def judge_end(job: Object) -> Ended | None:
    """How the job ended; None while it goes on, or while the status speaks of an older spec."""
    status = read_status(job)
    name = job["metadata"]["name"]
    if status.observed_generation < job["metadata"].get("generation", 0):
        return None
    if status.phase == JobPhase.SUCCEEDED:
        adapter = f", adapter {status.adapter.name}" if status.adapter else ""
        return Ended(ExitCode.DONE, f"Job {name} run {status.run}: Succeeded{adapter}.{_gate_sentence(status)}")
    if status.phase != JobPhase.FAILED:
        return None
    reasons = {c.reason for c in status.conditions if c.type in (ConditionType.FAILED, ConditionType.STALLED)}
    message = next((c.message for kind in _TELLING if (c := status.condition(kind)) and c.message), "")
    sentence = f"Job {name} run {status.run}: Failed. {message}".rstrip()
    if reasons & REFUSED_SPEC:
        return Ended(ExitCode.BAD_MANIFEST, f"Job {name}: its spec is refused. {message}".rstrip())
    if GATE_REFUSED in reasons:
        return Ended(ExitCode.GATE_REFUSED, sentence)
    return Ended(ExitCode.TRAINING_FAILED, sentence)


_TELLING = (ConditionType.FAILED, ConditionType.STALLED, ConditionType.READY)


def _gate_sentence(status: JobStatus) -> str:
    return f" {status.evaluation.reason}" if status.evaluation and status.evaluation.reason else ""


def to_progress(status: JobStatus) -> Progress:
    """The status as an event for the display that `llamero run` shows too: steps where they are counted, else percent."""
    progress = status.progress
    if progress is None:
        return Progress(status.phase, "waiting")
    values: dict[str, Any] = {}
    if progress.loss is not None:
        values["loss"] = _number(progress.loss)
    if progress.tokens_per_second is not None:
        values["tokensPerSecond"] = _number(progress.tokens_per_second)
    activity = progress.activity or "working"
    if progress.step is not None and progress.total_steps:
        return Progress(status.phase, activity, progress.step, progress.total_steps, "steps", values=values)
    if progress.percent is not None:
        return Progress(status.phase, activity, progress.percent, 100, "%", values=values)
    return Progress(status.phase, activity, values=values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def find_wait(status: JobStatus) -> tuple[str, str]:
    """Why nothing moves, or only a person can go on from here: a reason and its sentence; empty while all goes its way."""
    scheduled = status.condition(ConditionType.SCHEDULED)
    if scheduled is not None and scheduled.status == "False":
        return scheduled.reason, scheduled.message
    if status.phase == JobPhase.SUSPENDED:
        return "Suspended", "`llamero resume` lets it go on."
    ready = status.condition(ConditionType.READY)
    if ready is None or ready.status != "False" or ready.reason.startswith("Reconciling"):
        return "", ""
    return ready.reason, ready.message


def describe_wait(status: JobStatus) -> str:
    """The same as one line."""
    reason, sentence = find_wait(status)
    return f"{reason}: {sentence}" if reason and sentence else reason or sentence


async def _changes(kube: "Kube", job: Object, tell: Callable[[str], None]) -> "AsyncGenerator[JobEvent, None]":
    """What becomes of the job. An API server that is away is waited for, since a job goes on without it. Raises Away after minutes."""
    from llamero.kube import Away
    from llamero.kube.jobs import watch_jobs

    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    away_since: float | None = None
    while True:
        began = time.monotonic()
        changes = cast("AsyncGenerator[JobEvent, None]", watch_jobs(kube, namespace, name, since=job))
        try:
            async with aclosing(changes):
                async for event in changes:
                    job, away_since = event.job, None
                    yield event
        except Away:
            now = time.monotonic()
            if away_since is None or now - began > HEALTHY_SECONDS:  # a watch that lasted had its answers
                away_since = now
                tell("The cluster does not answer; still trying ...")
            if now - away_since > PATIENCE_SECONDS:
                raise
            await asyncio.sleep(RETRY_SECONDS)


async def follow_job(kube: "Kube", job: Object, display: Display) -> Ended:
    """Shows the job's progress, from how it was read, until it ends."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    shown = _Shown(display)
    if ended := shown.show(job):
        return ended
    async with aclosing(_changes(kube, job, display.say)) as events:
        async for event in events:
            if event.is_deleted or event.job["metadata"]["uid"] != uid:
                return Ended(ExitCode.TRAINING_FAILED, f"Job {name} was deleted.")
            if ended := shown.show(event.job):
                return ended
    raise AssertionError("a watch ends only when its reader does")


async def wait_until_gone(kube: "Kube", job: Object, tell: Callable[[str], None]) -> None:
    """Returns when the job, as it was read, is deleted and cleared up."""
    uid = job["metadata"]["uid"]
    async with aclosing(_changes(kube, job, tell)) as events:
        async for event in events:
            if event.is_deleted or event.job["metadata"]["uid"] != uid:
                return


class _Shown:
    """What was shown of a job so far, so that only what is new is said."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._heading = self._said = ""

    def show(self, job: Object) -> Ended | None:
        status = read_status(job)
        heading = f"Job {job['metadata']['name']} run {status.run}, attempt {status.attempt}" if status.run else ""
        if heading and heading != self._heading:
            self._display.say(escape(heading))
        self._heading = heading
        if ended := judge_end(job):
            return ended
        sentence = describe_wait(status) or status.tries.message  # why it waits, or why the last attempt ended
        if sentence and sentence != self._said:
            self._display.say(escape(sentence))
        self._said = sentence
        self._display.show(to_progress(status))
        return None
