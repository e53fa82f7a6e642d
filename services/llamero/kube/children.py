"""What belongs to a FineTuneJob: batch Jobs, their pods' logs, Adapters, the Secret with Redis' address.

AlreadyExists and NotFound are success here: what was asked for is so.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from llamero.kube import objects
from llamero.kube.client import Kube, Object
from llamero.kube.errors import Conflict, NotFound, Refused
from llamero.kube.objects import ADAPTERS, BATCH_JOBS, PODS, SECRETS
from llamero.spec import names


async def ensure_child(kube: Kube, manifest: Mapping[str, Any]) -> Object | None:
    """Creates a batch Job; None where it was there. Raises Refused with the API server's sentence (quota, policy)."""
    try:
        return await objects.create(kube, BATCH_JOBS, manifest["metadata"]["namespace"], manifest)
    except Conflict as error:
        if not error.is_there:
            raise
        return None


async def delete_child(kube: Kube, namespace: str, name: str, uid: str | None = None) -> None:
    """Deletes a batch Job; its pods follow with their grace. Raises Conflict where it was refused and the Job is still there."""
    try:
        await objects.delete(kube, BATCH_JOBS, namespace, name, uid)
    except NotFound:
        return
    except Conflict:
        # Either another Job has the name by now, so that ours is gone, or the server could not do it at this moment.
        if await _is_there(kube, namespace, name, uid):
            raise


async def _is_there(kube: Kube, namespace: str, name: str, uid: str | None) -> bool:
    try:
        found = await objects.read(kube, BATCH_JOBS, namespace, name)
    except NotFound:
        return False
    return uid is None or found["metadata"]["uid"] == uid


async def ensure_adapter(kube: Kube, manifest: Mapping[str, Any]) -> Object:
    """Creates an Adapter; one that is there already must have the same sha256. Raises Refused where it has another."""
    metadata, spec = manifest["metadata"], manifest["spec"]
    namespace, name = metadata["namespace"], metadata["name"]
    try:
        return await objects.create(kube, ADAPTERS, namespace, {**manifest, "spec": objects.drop_empty_texts(spec)})
    except Conflict as error:
        if not error.is_there:
            raise
        found = await objects.read(kube, ADAPTERS, namespace, name)
    there = found.get("spec", {}).get("sha256")
    if there != spec["sha256"]:
        raise Refused(
            f"Adapter {namespace}/{name} is there already with other files (sha256 {str(there)[:12]}, not {spec['sha256'][:12]}): "
            "adapters never change, so delete it if nothing serves it, or give the job another name",
            409,
            "AdapterDiffers",
        )
    return found


async def ensure_secret(kube: Kube, manifest: Mapping[str, Any]) -> None:
    """Makes the Secret hold what the manifest says, by creating or patching: reading it is no right of ours.

    Raises Conflict where it could be neither created nor patched at this moment, NotFound where the namespace is gone.
    """
    namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    try:
        await objects.create(kube, SECRETS, namespace, manifest)
    except Conflict as error:
        if not error.is_there:
            raise
        try:
            await objects.patch(kube, SECRETS, namespace, name, {"data": manifest["data"]})
        except NotFound:  # of the Secret, which was removed meanwhile, or of the namespace: the next answer tells
            await objects.create(kube, SECRETS, namespace, manifest)


async def observe_children(kube: Kube, namespace: str, uid: str) -> list[Object]:
    """The batch Jobs of a FineTuneJob, by its uid."""
    return await _list(kube, BATCH_JOBS, namespace, f"{names.LABEL_UID}={uid}")


async def observe_pods(kube: Kube, namespace: str, selector: str) -> list[Object]:
    """The pods that a label selector chooses."""
    return await _list(kube, PODS, namespace, selector)


async def observe_adapters(kube: Kube, namespace: str | None = None, selector: str | None = None) -> list[Object]:
    """The Adapters of a namespace, or of all."""
    return await _list(kube, ADAPTERS, namespace, selector)


async def stream_log(
    kube: Kube, namespace: str, pod: str, *, follow: bool = False, container: str | None = None, tail: int | None = None
) -> AsyncIterator[str]:
    """A pod's log by lines. Raises NotFound, or Refused while its container has not started."""
    query = {"follow": "true" if follow else "false"}
    if container:
        query["container"] = container
    if tail is not None:
        query["tailLines"] = str(tail)
    path = PODS.path(namespace, pod, "log")
    async with kube.stream(path, query=query, accept="*/*", verb="log", kind=PODS.kind) as lines:
        async for line in lines:
            yield line.decode(errors="replace")


async def _list(kube: Kube, resource: objects.Resource, namespace: str | None, selector: str | None) -> list[Object]:
    query = {"labelSelector": selector} if selector else None
    answer = await kube.request("GET", resource.path(namespace), query=query, verb="list", kind=resource.kind)
    return list(answer.get("items") or [])
