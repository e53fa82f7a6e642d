"""What only the command line asks of a cluster: applying a manifest without force or for a trial, events, whether the kind is known."""

from collections.abc import Mapping
from typing import Any

from llamero.kube.client import APPLY_PATCH, Kube, Object
from llamero.kube.errors import NotFound
from llamero.kube.objects import EVENTS, JOBS

COMMAND_MANAGER = "llamero-cli"


async def submit_job(
    kube: Kube, namespace: str, manifest: Mapping[str, Any], *, force: bool = False, dry_run: bool = False
) -> Object:
    """Creates the job or brings it to the manifest (server-side apply). Raises Conflict where another manager owns a field."""
    query = {"fieldManager": COMMAND_MANAGER, "force": "true" if force else "false"}
    if dry_run:
        query["dryRun"] = "All"
    return await kube.request(
        "PATCH",
        JOBS.path(namespace, manifest["metadata"]["name"]),
        query=query,
        body=dict(manifest),
        content_type=APPLY_PATCH,
        verb="apply",
        kind=JOBS.kind,
    )


async def observe_events(kube: Kube, namespace: str, uid: str) -> list[Object]:
    """The events that speak of the object with this uid, oldest first."""
    query = {"fieldSelector": f"involvedObject.uid={uid}"}
    answer = await kube.request("GET", EVENTS.path(namespace), query=query, verb="list", kind=EVENTS.kind)
    events = list(answer.get("items") or [])
    return sorted(events, key=lambda event: str(event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]))


def is_kind_missing(error: NotFound) -> bool:
    """Whether it is not one object that is missing but the kind: its CRD is not installed."""
    return "could not find the requested resource" in str(error) or "page not found" in str(error)
