"""The limit that the operator is held against: a client that knows beforehand what to write, and decides nothing.

It makes, at the operator's concurrency, the very writes that an operator's round made of a job (their counts come from the operator's
metrics, the objects from what it wrote): FineTuneJob, finalizer, batch Jobs, status, Adapter, Events; and deletes each batch Job
once it has completed. Unlike the operator it does not wait for one phase before it writes the next.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.api import ApiError, AsyncApi, path_of
from stack.stack import API_VERSION, JOB_KIND, played_job

from llamero.spec.names import FINALIZER, LABEL_JOB, LABEL_KIND, LABEL_UID, child_job_name

Object = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """One job as the operator left it, and how many writes of which sort it made for it."""

    status: Object
    children: Sequence[Object]
    adapter: Object
    statuses: int
    events: int
    deletes: int

    @property
    def writes(self) -> int:
        """API writes a job, without the FineTuneJob itself."""
        return 1 + len(self.children) + self.statuses + 1 + self.events + self.deletes


class BareClient:
    """Writes jobs after the template; `completed` is to be called with the name of each batch Job that has completed."""

    def __init__(self, api: AsyncApi, namespace: str, template: Template, concurrency: int) -> None:
        self._api, self._namespace, self._template = api, namespace, template
        self._limit = asyncio.Semaphore(concurrency)
        self._deletions: set[asyncio.Task[None]] = set()

    async def write(self, number: int) -> None:
        """All that one job consists of."""
        template, namespace, name = self._template, self._namespace, f"job-{number:04d}"
        path = path_of(API_VERSION, JOB_KIND, namespace)
        async with self._limit:
            job = await self._api.create(path, played_job(name))
            uid = job["metadata"]["uid"]
            job = await self._api.patch(f"{path}/{name}", {"metadata": {"finalizers": [FINALIZER]}})
            for child in template.children:
                await self._api.create(path_of("batch/v1", "Job", namespace), rename_child(child, name, uid))
            for count in range(template.statuses):
                status = {**template.status, "attempt": count}
                job = await self._api.request("PUT", f"{path}/{name}/status", {**job, "status": status})
            adapter = {k: template.adapter[k] for k in ("apiVersion", "kind", "spec")}
            adapter["metadata"] = {"name": f"{name}-r1", "labels": {LABEL_JOB: name, LABEL_UID: uid}}
            await self._api.create(path_of(API_VERSION, "Adapter", namespace), adapter)
            for count in range(template.events):
                await self._api.create(path_of("v1", "Event", namespace), build_event(job, count))

    def completed(self, name: str) -> None:
        """Deletes the batch Job, as the operator does when it has read the answer."""
        if self._template.deletes:
            task = asyncio.create_task(self._delete(name))
            self._deletions.add(task)
            task.add_done_callback(self._deletions.discard)

    async def finish(self) -> None:
        """Until every deletion has been answered."""
        await asyncio.gather(*self._deletions)

    async def _delete(self, name: str) -> None:
        async with self._limit:
            path = path_of("batch/v1", "Job", self._namespace, name)
            with contextlib.suppress(ApiError):  # seen twice by a watch that was taken up again
                await self._api.delete(path, propagationPolicy="Background")


def rename_child(child: Object, name: str, uid: str) -> Object:
    """The batch Job as it was made for another job, for this one."""
    kind = child["metadata"]["labels"][LABEL_KIND]
    labels = {**child["metadata"]["labels"], LABEL_JOB: name, LABEL_UID: uid}
    spec = json.loads(json.dumps(child["spec"]))
    spec.pop("selector", None)
    spec["template"]["metadata"]["labels"] = labels
    for variable in spec["template"]["spec"]["containers"][0]["env"]:
        if variable["name"] == "LLAMERO_ATTEMPT":
            attempt = {**json.loads(variable["value"]), "job": name, "uid": uid}
            variable["value"] = json.dumps(attempt, separators=(",", ":"))
    owner = {**child["metadata"]["ownerReferences"][0], "name": name, "uid": uid}
    metadata = {"name": child_job_name(name, uid, 1, kind, 1), "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def build_event(job: Mapping[str, Any], number: int) -> Object:
    """An Event about the job, of the size of the operator's."""
    metadata = job["metadata"]
    about = {k: metadata[k] for k in ("name", "namespace", "uid", "resourceVersion")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{number:016x}", "namespace": metadata["namespace"]},
        "involvedObject": {"apiVersion": job["apiVersion"], "kind": job["kind"], **about},
        "reason": "Succeeded",
        "message": "Run 1 has succeeded: Held-out token perplexity went from 10.000 to 2.500 (-75.0%).",
        "type": "Normal",
        "source": {"component": "llamero"},
        "count": 1,
    }
