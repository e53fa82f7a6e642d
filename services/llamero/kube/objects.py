"""Paths of the objects that llamero reads and writes, and the few requests that every module beside this one repeats."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamero.kube.client import MERGE_PATCH, Kube, Object
from llamero.spec import names


@dataclass(frozen=True)
class Resource:
    """A kind: its API group and version as they stand in a path, its plural, its name for people."""

    prefix: str
    plural: str
    kind: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The collection's path, or an object's, or that of an object's subresource."""
        parts = [self.prefix]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


JOBS = Resource(f"/apis/{names.GROUP}/{names.VERSION}", names.PLURAL, "FineTuneJob")
ADAPTERS = Resource(f"/apis/{names.GROUP}/{names.VERSION}", names.ADAPTER_PLURAL, "Adapter")
BATCH_JOBS = Resource("/apis/batch/v1", "jobs", "Job")
PODS = Resource("/api/v1", "pods", "Pod")
SECRETS = Resource("/api/v1", "secrets", "Secret")
EVENTS = Resource("/api/v1", "events", "Event")


async def read(kube: Kube, resource: Resource, namespace: str, name: str) -> Object:
    """The object. Raises as `Kube.request`."""
    return await kube.request("GET", resource.path(namespace, name), verb="get", kind=resource.kind)


async def create(kube: Kube, resource: Resource, namespace: str, manifest: Mapping[str, Any]) -> Object:
    """The object as it was created. Raises Conflict where there is one of that name."""
    return await kube.request("POST", resource.path(namespace), body=dict(manifest), verb="create", kind=resource.kind)


async def patch(
    kube: Kube, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], seconds: float | None = None
) -> Object:
    """The object after a merge patch (null removes, a list replaces). With metadata.resourceVersion, Conflict where it has changed."""
    return await kube.request(
        "PATCH",
        resource.path(namespace, name),
        body=dict(body),
        content_type=MERGE_PATCH,
        verb="patch",
        kind=resource.kind,
        seconds=seconds,
    )


async def delete(kube: Kube, resource: Resource, namespace: str, name: str, uid: str | None = None) -> Object:
    """Deletes with background propagation; with `uid` only that very object (Conflict where it is another). Raises NotFound."""
    options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    if uid:
        options["preconditions"] = {"uid": uid}
    return await kube.request("DELETE", resource.path(namespace, name), body=options, verb="delete", kind=resource.kind)


def drop_empty_texts(value: Any) -> Any:
    """The value without fields that hold an empty text, which mean the same as absent ones.

    Some API servers (seen with 1.20 built on newer go-openapi) refuse an empty text in a custom resource as if it were null.
    """
    if isinstance(value, dict):
        return {k: drop_empty_texts(v) for k, v in value.items() if v != ""}
    if isinstance(value, list):
        return [drop_empty_texts(v) for v in value]
    return value
