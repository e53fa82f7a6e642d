"""Which logs `llamero logs` prints and where they come from: live pods through the API server, those that are gone through a reader pod.

The reader is asked for by an annotation with a `LogRequest`; the operator makes the pod, this prints what it says and takes the
annotation away again.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamero.cli.following import read_status
from llamero.spec.names import LABEL_ATTEMPT, LABEL_KIND, LABEL_RUN, LABEL_UID, READ_LOGS_ANNOTATION
from llamero.spec.status import WorkKind
from llamero.spec.tasks import LogRequest, Outcome

if TYPE_CHECKING:
    from llamero.kube import Kube

Object = dict[str, Any]
READER_SECONDS = 180.0
POLL_SECONDS = 0.5


class LogError(Exception):
    """Why there is nothing to print, as a sentence."""


@dataclass(frozen=True)
class LogChoice:
    """What was asked for; None leaves it to what is newest."""

    run: int | None = None
    kind: WorkKind | None = None
    attempt: int | None = None
    previous: bool = False


@dataclass(frozen=True)
class Attempt:
    """An attempt that has pods: (run, kind, attempt) with the pods' names, oldest first."""

    run: int
    kind: str
    attempt: int
    created: str
    pods: tuple[str, ...]


def list_attempts(pods: list[Object]) -> list[Attempt]:
    """The attempts that have started pods, oldest first; readers of logs are none."""
    grouped: dict[tuple[int, str, int], list[Object]] = {}
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        kind = labels.get(LABEL_KIND)
        if kind in (None, WorkKind.LOGS) or not _has_started(pod):
            continue
        key = (int(labels.get(LABEL_RUN, 0)), str(kind), int(labels.get(LABEL_ATTEMPT, 1)))
        grouped.setdefault(key, []).append(pod)
    attempts = []
    for (run, kind, attempt), found in grouped.items():
        found.sort(key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
        names = tuple(pod["metadata"]["name"] for pod in found)
        attempts.append(Attempt(run, kind, attempt, found[0]["metadata"]["creationTimestamp"], names))
    return sorted(attempts, key=lambda one: (one.created, one.run, one.attempt))


def _has_started(pod: Object) -> bool:
    states = [c.get("state") or {} for c in (pod.get("status") or {}).get("containerStatuses") or []]
    return any("running" in state or "terminated" in state for state in states)


def choose_attempt(attempts: list[Attempt], choice: LogChoice) -> Attempt | None:
    """The newest of those that fit, with `previous` the one before it; None where its pods are gone (or there never were any)."""
    fitting = [
        one
        for one in attempts
        if choice.run in (None, one.run)
        and (one.kind == choice.kind if choice.kind is not None else True)
        and choice.attempt in (None, one.attempt)
    ]
    wanted = 2 if choice.previous else 1
    return fitting[-wanted] if len(fitting) >= wanted else None


def build_request(job: Object, choice: LogChoice, number: int) -> LogRequest:
    """What the reader pod is asked for. `previous` is the attempt before the one that the status names."""
    status = read_status(job)
    run, kind, attempt = choice.run, choice.kind, choice.attempt
    if choice.previous:
        kind = kind or (status.work.kind if status.work else WorkKind.TRAIN)
        run = run or status.run or None
        newest = status.work.attempt if status.work and status.work.kind == kind else status.attempt + 1
        if newest < 2:
            raise LogError(f"{kind} has had one attempt only: leave out --previous to read it.")
        attempt = newest - 1
    return LogRequest(number=number, run=run, kind=kind, attempt=attempt)


async def print_logs(
    kube: "Kube",
    job: Object,
    choice: LogChoice,
    follow: bool,
    write: Callable[[str], None],
    tell: Callable[[str], None],
) -> None:
    """Writes the chosen attempt's lines; `tell` gets sentences for the person. Raises LogError."""
    from llamero.kube.children import observe_pods

    namespace, uid = job["metadata"]["namespace"], job["metadata"]["uid"]
    attempts = list_attempts(await observe_pods(kube, namespace, f"{LABEL_UID}={uid}"))
    attempt = choose_attempt(attempts, choice)
    if attempt is not None:
        await _print_live(kube, namespace, attempt, follow, write)
    else:
        await _print_kept(kube, job, choice, write, tell)


async def _print_live(
    kube: "Kube", namespace: str, attempt: Attempt, follow: bool, write: Callable[[str], None]
) -> None:
    from llamero.kube.children import stream_log

    async def print_pod(name: str) -> None:
        prefix = f"[{name}] " if len(attempt.pods) > 1 else ""
        async for line in stream_log(kube, namespace, name, follow=follow):
            write(prefix + line.rstrip("\n"))

    if follow:
        async with asyncio.TaskGroup() as group:
            for name in attempt.pods:
                group.create_task(print_pod(name))
        return
    for name in attempt.pods:
        await print_pod(name)


async def _print_kept(
    kube: "Kube", job: Object, choice: LogChoice, write: Callable[[str], None], tell: Callable[[str], None]
) -> None:
    from llamero.kube.children import stream_log
    from llamero.kube.jobs import annotate_job

    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    request = build_request(job, choice, int(time.time()))
    tell("The pods are gone: a reader pod is asked for the kept logs ...")
    text = request.model_dump_json(by_alias=True, exclude_none=True)
    await annotate_job(kube, namespace, name, {READ_LOGS_ANNOTATION: text})
    try:
        pod = await _wait_for_reader(kube, job, request.number)
        async for line in stream_log(kube, namespace, pod["metadata"]["name"]):
            write(line.rstrip("\n"))
        if sentence := _reader_trouble(pod):
            raise LogError(sentence)
    finally:
        await annotate_job(kube, namespace, name, {READ_LOGS_ANNOTATION: None})


async def _wait_for_reader(kube: "Kube", job: Object, number: int) -> Object:
    """The reader pod of this request, once it has ended. Its attempt is the request's number."""
    from llamero.kube.children import observe_pods

    namespace, uid = job["metadata"]["namespace"], job["metadata"]["uid"]
    selector = f"{LABEL_UID}={uid},{LABEL_KIND}={WorkKind.LOGS},{LABEL_ATTEMPT}={number}"
    deadline = time.monotonic() + READER_SECONDS
    pods: list[Object] = []
    while time.monotonic() < deadline:
        pods = await observe_pods(kube, namespace, selector)
        if ended := [pod for pod in pods if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")]:
            return ended[-1]
        await asyncio.sleep(POLL_SECONDS)
    if not pods:
        raise LogError(f"No reader pod came within {READER_SECONDS:.0f} s: is the operator running?")
    raise LogError(
        f"The reader pod {pods[-1]['metadata']['name']} has not ended within {READER_SECONDS:.0f} s: `kubectl describe pod` says why."
    )


def _reader_trouble(pod: Object) -> str:
    """What the reader says went wrong; empty where nothing did."""
    if (pod.get("status") or {}).get("phase") == "Succeeded":
        return ""
    for container in pod["status"].get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        outcome = Outcome.from_termination_message(ended.get("message"))
        if outcome is not None and outcome.message:
            return outcome.message
    return f"The reader pod {pod['metadata']['name']} failed: `kubectl describe pod` says why."
