"""What a round looks at while it runs: when the first pod of a job appeared, which jobs have Succeeded, which batch Jobs came and went.

The same watches run beside the operator and beside the bare client, so that they cost both alike.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cluster.api import ApiError, AsyncApi, path_of
from stack.stack import API_VERSION, JOB_KIND

from llamero.spec.names import LABEL_JOB

Object = dict[str, Any]
GONE = 410
KINDS = {JOB_KIND: API_VERSION, "Job": "batch/v1", "Pod": "v1"}


class RoundFailed(SystemExit):
    """Jobs failed, or the time was over; the message tells how far the round came."""


class Observer:
    """Watches one namespace. Use as `async with Observer(api, namespace) as observer`; a watch that fails ends the round."""

    def __init__(self, api: AsyncApi, namespace: str, on_completed: Callable[[str], None] | None = None) -> None:
        self._api, self._namespace = api, namespace
        self._on_completed = on_completed
        self.first_pod: dict[str, float] = {}  # when the first pod of a job was seen, by the job's name
        self.phases: dict[str, str] = {}  # of FineTuneJobs, by name
        self._telling: set[str] = set()
        self.children: dict[str, Object] = {}  # every batch Job as it was first seen, by name
        self.completed: set[str] = set()
        self.gone: set[str] = set()
        self._news = asyncio.Event()

    async def __aenter__(self) -> "Observer":
        versions = {kind: await self._version(kind) for kind in KINDS}
        self._tasks = [asyncio.create_task(self._watch(kind, version)) for kind, version in versions.items()]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def succeeded(self) -> int:
        return sum(phase == "Succeeded" for phase in self.phases.values())

    @property
    def telling(self) -> int:
        """FineTuneJobs whose progress shows a step."""
        return len(self._telling)

    @property
    def failed(self) -> list[str]:
        return sorted(name for name, phase in self.phases.items() if phase == "Failed")

    async def wait(self, is_done: Callable[[], bool], what: str, seconds: float) -> None:
        """Until it is so. Raises RoundFailed after `seconds`, and at once where a FineTuneJob failed or a watch ended."""
        deadline = time.monotonic() + seconds
        while not is_done():
            self._news.clear()
            for task in self._tasks:
                if task.done():
                    raise RoundFailed(f"a watch ended while waiting for {what}: {task.exception()}")
            if self.failed:
                raise RoundFailed(f"{len(self.failed)} FineTuneJobs failed, {self.failed[0]} first")
            left = deadline - time.monotonic()
            if left <= 0:
                raise RoundFailed(f"waited {seconds:.0f} s for {what}: {self.describe()}")
            try:
                async with asyncio.timeout(min(left, 1.0)):
                    await self._news.wait()
            except TimeoutError:
                continue

    def describe(self) -> str:
        """How far the round has come."""
        return (
            f"{self.succeeded} of {len(self.phases)} FineTuneJobs succeeded, {len(self.first_pod)} have had a pod, "
            f"{len(self.completed)} of {len(self.children)} batch Jobs completed, {len(self.gone)} are gone"
        )

    async def _version(self, kind: str) -> str:
        return str((await self._api.get(self._path(kind)))["metadata"]["resourceVersion"])

    def _path(self, kind: str) -> str:
        return path_of(KINDS[kind], kind, self._namespace)

    async def _watch(self, kind: str, version: str) -> None:
        """Follows the kind for ever: the API server ends the watch of whoever is slow, and forgets old versions."""
        take = {JOB_KIND: self._take_job, "Job": self._take_child, "Pod": self._take_pod}[kind]
        while True:
            try:
                async for event in self._api.watch(self._path(kind), version, timeoutSeconds="3600"):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        take(event)
                        self._news.set()
            except ApiError as error:
                if error.status != GONE:
                    raise
                version = await self._list_anew(kind, take)

    async def _list_anew(self, kind: str, take: Callable[[Object], None]) -> str:
        """Takes in everything that there is now. Returns its version."""
        listed = await self._api.request("GET", self._path(kind), seconds=120)
        for item in listed["items"]:
            take({"type": "ADDED", "object": item})
        if kind == "Job":
            self.gone |= set(self.children) - {item["metadata"]["name"] for item in listed["items"]}
        self._news.set()
        return str(listed["metadata"]["resourceVersion"])

    def _take_job(self, event: Object) -> None:
        job, status = event["object"], event["object"].get("status") or {}
        self.phases[job["metadata"]["name"]] = status.get("phase") or "Pending"
        if (status.get("progress") or {}).get("step"):
            self._telling.add(job["metadata"]["name"])

    def _take_child(self, event: Object) -> None:
        child, name = event["object"], event["object"]["metadata"]["name"]
        self.children.setdefault(name, child)
        if (child.get("status") or {}).get("succeeded") and name not in self.completed:
            self.completed.add(name)
            if self._on_completed is not None:
                self._on_completed(name)
        if event["type"] == "DELETED":
            self.gone.add(name)

    def _take_pod(self, event: Object) -> None:
        name = (event["object"]["metadata"].get("labels") or {}).get(LABEL_JOB)
        if name and event["type"] == "ADDED":
            self.first_pod.setdefault(name, time.monotonic())
