"""ModelServers and what belongs to them: the operator makes a default one, the command line reads and edits them."""

from collections.abc import Mapping
from typing import Any

from llamero.kube import objects
from llamero.kube.client import Kube, Object
from llamero.kube.errors import Conflict, NotFound
from llamero.kube.objects import CONFIG_MAPS, SERVERS


async def observe_server(kube: Kube, namespace: str, name: str) -> Object:
    """The ModelServer as the API server has it now. Raises NotFound."""
    return await objects.read(kube, SERVERS, namespace, name)


async def observe_servers(kube: Kube, namespace: str | None = None) -> list[Object]:
    """The ModelServers of a namespace, or of all."""
    answer = await kube.request("GET", SERVERS.path(namespace), verb="list", kind=SERVERS.kind)
    return list(answer.get("items") or [])


async def ensure_server(kube: Kube, manifest: Mapping[str, Any]) -> Object | None:
    """Creates the ModelServer; None where there is one of the name, which is left as it is. Raises Refused."""
    try:
        return await objects.create(kube, SERVERS, manifest["metadata"]["namespace"], manifest)
    except Conflict as error:
        if not error.is_there:
            raise
        return None


async def observe_config_map(kube: Kube, namespace: str, name: str) -> Object | None:
    """The ConfigMap; None where there is none."""
    try:
        return await objects.read(kube, CONFIG_MAPS, namespace, name)
    except NotFound:
        return None
