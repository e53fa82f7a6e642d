"""FineTuneJobs: status, finalizer, deletion for the operator; list, watch, change for the command line."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from llamero.kube import objects
from llamero.kube.client import Kube, Object
from llamero.kube.errors import Away, KubeError, NotFound, build_error
from llamero.kube.objects import JOBS
from llamero.spec import names


async def observe_job(kube: Kube, namespace: str, name: str) -> Object:
    """The FineTuneJob as the API server has it now. Raises NotFound."""
    return await objects.read(kube, JOBS, namespace, name)


async def observe_jobs(kube: Kube, namespace: str | None = None, selector: str | None = None) -> list[Object]:
    """The FineTuneJobs of a namespace, or of all."""
    query = {"labelSelector": selector} if selector else None
    answer = await kube.request("GET", JOBS.path(namespace), query=query, verb="list", kind=JOBS.kind)
    return list(answer.get("items") or [])


async def ensure_status(kube: Kube, job: Mapping[str, Any], status: Mapping[str, Any]) -> Object:
    """Writes the status of the job as it was read (its resourceVersion goes with it). Raises Conflict where it has changed since."""
    return await objects.write_status(kube, JOBS, job, status)


async def ensure_finalizer(kube: Kube, job: Mapping[str, Any], finalizer: str = names.FINALIZER) -> Object:
    """Adds the finalizer; the job as it is then. Raises Conflict where it has changed since it was read."""
    return await objects.add_finalizer(kube, JOBS, job, finalizer)


async def delete_finalizer(kube: Kube, job: Mapping[str, Any], finalizer: str = names.FINALIZER) -> Object | None:
    """Takes the finalizer away; None where the job is gone already. Raises Conflict where it has changed since it was read."""
    return await objects.take_finalizer(kube, JOBS, job, finalizer)


async def delete_job(kube: Kube, namespace: str, name: str, uid: str | None = None) -> bool:
    """Asks for the job's deletion; False where there is none (or, with `uid`, where another has its name)."""
    try:
        await objects.delete(kube, JOBS, namespace, name, uid)
    except NotFound:
        return False
    return True


async def create_job(kube: Kube, namespace: str, manifest: Mapping[str, Any]) -> Object:
    """Creates a FineTuneJob. Raises Conflict where there is one of that name."""
    return await objects.create(kube, JOBS, namespace, manifest)


async def apply_job(kube: Kube, namespace: str, manifest: Mapping[str, Any], manager: str = "llamero") -> Object:
    """Creates the job or changes it to what the manifest says (server-side apply)."""
    return await objects.apply(kube, JOBS, namespace, manifest, manager)


async def patch_spec(kube: Kube, namespace: str, name: str, spec: Mapping[str, Any]) -> Object:
    """Changes fields of the spec (a merge patch: null removes)."""
    return await objects.patch(kube, JOBS, namespace, name, {"spec": dict(spec)})


async def annotate_job(kube: Kube, namespace: str, name: str, annotations: Mapping[str, str | None]) -> Object:
    """Sets annotations; None takes one away."""
    return await objects.patch(kube, JOBS, namespace, name, {"metadata": {"annotations": dict(annotations)}})


@dataclass(frozen=True)
class JobEvent:
    """What a watch tells: the job as it is now, or as it was when it went."""

    job: Object
    is_deleted: bool = False


async def watch_jobs(
    kube: Kube, namespace: str | None = None, name: str | None = None, since: Object | None = None
) -> AsyncIterator[JobEvent]:
    """Every job as it is now, then each change, for as long as one listens; a lost connection is taken up again by itself.

    `since` is a job as it was read before: only what became of it after that is told, be it that it is gone.

    Raises Refused (no right to it) and Away where the API server can't be reached at the beginning.
    """
    selection = {"fieldSelector": f"metadata.name={name}"} if name else {}
    known: dict[tuple[str, str], Object] = {}
    if since is not None:
        known[since["metadata"]["namespace"], since["metadata"]["name"]] = since
    while True:
        answer = await kube.request("GET", JOBS.path(namespace), query=selection, verb="list", kind=JOBS.kind)
        listed = {(j["metadata"]["namespace"], j["metadata"]["name"]): j for j in answer.get("items") or []}
        for key in [k for k in known if k not in listed]:
            yield JobEvent(known.pop(key), is_deleted=True)
        for key, job in listed.items():
            if known.get(key, {}).get("metadata", {}).get("resourceVersion") != job["metadata"]["resourceVersion"]:
                known[key] = job
                yield JobEvent(job)
        version = str(answer["metadata"]["resourceVersion"])
        async for event in _changes(kube, namespace, selection, version):
            key = (event.job["metadata"]["namespace"], event.job["metadata"]["name"])
            if event.is_deleted:
                known.pop(key, None)
            else:
                known[key] = event.job
            yield event


async def _changes(
    kube: Kube, namespace: str | None, selection: Mapping[str, str], version: str
) -> AsyncIterator[JobEvent]:
    """The changes since a version, until the stream ends: the caller lists anew, which also serves a version that is too old."""
    query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "300"}
    try:
        async with kube.stream(
            JOBS.path(namespace), query={**query, **selection}, verb="watch", kind=JOBS.kind
        ) as lines:
            async for line in lines:
                if not line.strip():
                    continue
                event = json.loads(line)
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    yield JobEvent(event["object"], event["type"] == "DELETED")
                elif event["type"] == "ERROR":
                    raise build_error(
                        int(event["object"].get("code", 500)), {}, json.dumps(event["object"]).encode(), "watch"
                    )
    except Away:
        return
    except KubeError as error:
        if getattr(error, "status", None) != 410:
            raise
