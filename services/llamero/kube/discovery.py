"""What the API server is and can do, and which versions its objects have."""

import re
from collections.abc import Mapping

from llamero.kube.client import METADATA_LIST, Kube
from llamero.kube.errors import NotFound
from llamero.kube.objects import AUTOSCALERS, DISRUPTION_BUDGETS, Resource
from llamero.lifecycle.serving.world import ServingCapabilities
from llamero.lifecycle.world import Capabilities
from llamero.spec import names

JOB_SUSPEND_SINCE = (1, 22)
"""Job `suspend` is on by default since then (KEP-2232: beta in 1.22, stable in 1.24)."""


async def observe_capabilities(kube: Kube) -> Capabilities:
    """The server's version and what follows from it."""
    answer = await kube.request("GET", "/version", verb="get", kind="Version")
    version = parse_version(answer)
    return Capabilities(job_suspend=version >= JOB_SUSPEND_SINCE, version=version)


SPREAD_BY_TEMPLATE_SINCE = (1, 27)
"""matchLabelKeys of topology spread constraints (KEP-3243)."""


async def observe_serving_capabilities(kube: Kube) -> ServingCapabilities:
    """What the server offers for ModelServers. Raises as `Kube.request`."""
    answer = await kube.request("GET", "/apis", verb="get", kind="APIGroupList")
    served = {
        version.get("groupVersion") for group in answer.get("groups") or [] for version in group.get("versions") or []
    }
    version = parse_version(await kube.request("GET", "/version", verb="get", kind="Version"))
    return ServingCapabilities(
        disruption_budgets=group_version(DISRUPTION_BUDGETS) in served,
        autoscaling=group_version(AUTOSCALERS) in served,
        spread_by_template=version >= SPREAD_BY_TEMPLATE_SINCE,
    )


def group_version(resource: Resource) -> str:
    """`policy/v1` of a resource's path."""
    return resource.prefix.removeprefix("/apis/")


def parse_version(answer: Mapping[str, object]) -> tuple[int, int]:
    """(1, 28) from what `/version` says. Some clouds write the minor version as `28+`, some builds leave both numbers empty."""
    found = re.match(r"v?(\d+)\.(\d+)", str(answer.get("gitVersion", "")))
    if found is None:
        found = re.match(r"(\d+)\.(\d+)", f"{answer.get('major', '')}.{answer.get('minor', '')}")
    return (int(found[1]), int(found[2])) if found else (0, 0)


async def observe_kinds(kube: Kube) -> frozenset[str]:
    """The plurals that llamero's API group serves; none where its CRDs are not installed."""
    path = f"/apis/{names.GROUP}/{names.VERSION}"
    try:
        answer = await kube.request("GET", path, verb="get", kind="APIResourceList")
    except NotFound:
        return frozenset()
    resources = answer.get("resources") or []
    return frozenset(r["name"] for r in resources if "/" not in r["name"])


Versions = dict[tuple[str, str], tuple[str, int]]
"""(namespace, name) → (uid, resourceVersion)."""


async def observe_versions(
    kube: Kube, resource: Resource, namespace: str | None, selector: str | None
) -> tuple[int, Versions]:
    """The list's resourceVersion and each object's, from the server's cache: metadata alone, cheap enough to compare with."""
    query = {"resourceVersion": "0"} | ({"labelSelector": selector} if selector else {})
    answer = await kube.request(
        "GET", resource.path(namespace), query=query, accept=METADATA_LIST, verb="list", kind=resource.kind
    )
    found: Versions = {}
    for item in answer.get("items") or []:
        metadata = item["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        found[key] = (metadata["uid"], parse_resource_version(metadata["resourceVersion"]))
    return parse_resource_version(answer["metadata"]["resourceVersion"]), found


def parse_resource_version(text: str) -> int:
    """A number that orders the versions of one kind's objects (comparable by KEP-5504, and with etcd always); -1 where it is none."""
    return int(text) if text.isdigit() else -1
