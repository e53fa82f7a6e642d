"""Paths of the objects that llamero reads and writes, and the few requests that every module beside this one repeats."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamero.kube.client import APPLY_PATCH, MERGE_PATCH, Kube, Object
from llamero.kube.errors import NotFound
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
SERVERS = Resource(f"/apis/{names.GROUP}/{names.VERSION}", names.SERVER_PLURAL, "ModelServer")
BATCH_JOBS = Resource("/apis/batch/v1", "jobs", "Job")
PODS = Resource("/api/v1", "pods", "Pod")
SECRETS = Resource("/api/v1", "secrets", "Secret")
EVENTS = Resource("/api/v1", "events", "Event")
CONFIG_MAPS = Resource("/api/v1", "configmaps", "ConfigMap")
SERVICES = Resource("/api/v1", "services", "Service")
DEPLOYMENTS = Resource("/apis/apps/v1", "deployments", "Deployment")
DISRUPTION_BUDGETS = Resource("/apis/policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")
AUTOSCALERS = Resource("/apis/autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")


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


async def apply(
    kube: Kube, resource: Resource, namespace: str, manifest: Mapping[str, Any], manager: str = names.FIELD_MANAGER
) -> Object:
    """Creates the object or changes it to what the manifest says (server-side apply): what others set beside that stays."""
    return await kube.request(
        "PATCH",
        resource.path(namespace, manifest["metadata"]["name"]),
        query={"fieldManager": manager, "force": "true"},
        body=dict(manifest),
        content_type=APPLY_PATCH,
        verb="apply",
        kind=resource.kind,
    )


async def replace(kube: Kube, resource: Resource, thing: Mapping[str, Any]) -> Object:
    """Writes the whole object. Raises Conflict where it has changed since it was read, NotFound where it is gone."""
    metadata = thing["metadata"]
    return await kube.request(
        "PUT",
        resource.path(metadata["namespace"], metadata["name"]),
        body=dict(thing),
        verb="update",
        kind=resource.kind,
    )


async def write_status(kube: Kube, resource: Resource, thing: Mapping[str, Any], status: Mapping[str, Any]) -> Object:
    """Writes the status of the object as it was read (its resourceVersion goes with it). Raises Conflict where it has changed since."""
    metadata = thing["metadata"]
    body = {**thing, "status": drop_empty_texts(dict(status))}
    return await kube.request(
        "PUT",
        resource.path(metadata["namespace"], metadata["name"], "status"),
        body=body,
        verb="update-status",
        kind=resource.kind,
    )


async def add_finalizer(kube: Kube, resource: Resource, thing: Mapping[str, Any], finalizer: str) -> Object:
    """Adds the finalizer; the object as it is then. Raises Conflict where it has changed since it was read."""
    finalizers = list(thing["metadata"].get("finalizers") or [])
    if finalizer in finalizers:
        return dict(thing)
    return await _write_finalizers(kube, resource, thing, [*finalizers, finalizer])


async def take_finalizer(kube: Kube, resource: Resource, thing: Mapping[str, Any], finalizer: str) -> Object | None:
    """Takes the finalizer away; None where the object is gone already. Raises Conflict where it has changed since it was read."""
    finalizers = list(thing["metadata"].get("finalizers") or [])
    if finalizer not in finalizers:
        return dict(thing)
    try:
        return await _write_finalizers(kube, resource, thing, [f for f in finalizers if f != finalizer])
    except NotFound:
        return None


async def _write_finalizers(kube: Kube, resource: Resource, thing: Mapping[str, Any], finalizers: list[str]) -> Object:
    metadata = thing["metadata"]
    body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers or None}}
    return await patch(kube, resource, metadata["namespace"], metadata["name"], body)


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
