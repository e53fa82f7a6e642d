"""The Kubernetes API as plain dictionaries: paths of objects, a small asyncio client and a smaller plain one.

The node and the tests use it: it adds nothing between them and the server, no retries, no caches, no model classes.
"""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

Object = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
CLUSTER_SCOPED = frozenset(
    {"Namespace", "Node", "PersistentVolume", "StorageClass", "ClusterRole", "ClusterRoleBinding", "PriorityClass"}
    | {"CustomResourceDefinition", "RuntimeClass"}
)


class ApiError(Exception):
    """The API server refused: `status` is the HTTP status, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Access:
    """What a client needs: the server's URL, its authority's file (None for plain HTTP), a bearer token."""

    url: str
    authority: Path | None
    token: str

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context that trusts the authority alone."""
        return ssl.create_default_context(cafile=str(self.authority)) if self.authority else None


def plural(kind: str) -> str:
    """The resource's name in a path: Pod → pods, NetworkPolicy → networkpolicies, Ingress → ingresses."""
    word = kind.lower()
    if word.endswith("s"):
        return word + ("es" if word != "endpoints" else "")
    return word[:-1] + "ies" if word.endswith("cy") else word + "s"


def path_of(api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
    """The URL path of a collection or, with a name, of an object."""
    parts = ["/api" if api_version == "v1" else "/apis", api_version]
    if namespace and kind not in CLUSTER_SCOPED:
        parts += ["namespaces", namespace]
    parts.append(plural(kind))
    if name:
        parts.append(name)
    return "/".join(parts)


def path_of_object(manifest: Object, namespace: str | None = None) -> str:
    """The URL path of the object that a manifest describes."""
    metadata = manifest["metadata"]
    where = metadata.get("namespace", namespace)
    return path_of(manifest["apiVersion"], manifest["kind"], where, metadata["name"])


def _error(status: int, body: bytes) -> ApiError:
    try:
        answer = json.loads(body)
        return ApiError(status, answer.get("reason", ""), answer.get("message", ""))
    except (ValueError, AttributeError):
        return ApiError(status, "", body.decode(errors="replace")[:500])


class AsyncApi:
    """The asyncio client; use as `async with AsyncApi(access) as api`."""

    def __init__(self, access: Access, connections: int = 32) -> None:
        self.access = access
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        tls = self.access.tls()
        connector = aiohttp.TCPConnector(limit=self._connections, ssl=tls if tls is not None else True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"Authorization": f"Bearer {self.access.token}"},
            timeout=aiohttp.ClientTimeout(total=None, connect=10, sock_read=150),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        seconds: float = 30,
        parameters: Mapping[str, str] | None = None,
    ) -> Object:
        """The answer's JSON. Raises ApiError for a refusal, aiohttp.ClientError or TimeoutError where no answer came."""
        if self._session is None:
            raise aiohttp.ClientConnectionError("the client is closed")
        async with self._session.request(
            method,
            self.access.url + path,
            params=parameters,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": content_type} if body is not None else None,
            timeout=aiohttp.ClientTimeout(total=seconds),
        ) as response:
            content = await response.read()
            if response.status >= 400:
                raise _error(response.status, content)
            answer: Object = json.loads(content) if content else {}
            return answer

    async def get(self, path: str, **parameters: str) -> Object:
        return await self.request("GET", path, parameters=parameters)

    async def create(self, path: str, body: Object) -> Object:
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: Object) -> Object:
        """A merge patch: null removes a field, a list replaces the list."""
        return await self.request("PATCH", path, body, MERGE_PATCH)

    async def delete(self, path: str, **options: Any) -> Object:
        """Deletes with DeleteOptions: gracePeriodSeconds, propagationPolicy, preconditions."""
        return await self.request("DELETE", path, options)

    async def watch(self, path: str, resource_version: str, **parameters: str) -> AsyncIterator[Object]:
        """The events ({type, object}) after `resource_version`, until the server ends the stream.

        Raises ApiError for an event of type ERROR (410: list anew).
        """
        if self._session is None:
            raise aiohttp.ClientConnectionError("the client is closed")
        query = {"watch": "true", "resourceVersion": resource_version, "timeoutSeconds": "300", **parameters}
        query["allowWatchBookmarks"] = "true"
        async with self._session.get(self.access.url + path, params=query) as response:
            if response.status >= 400:
                raise _error(response.status, await response.read())
            pending = b""
            async for chunk in response.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in filter(None, lines):
                    event: Object = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError(event["object"].get("code", 0), event["object"].get("reason", ""), str(event))
                    yield event


class PlainApi:
    """The same without asyncio, a connection a request: for fixtures and tests."""

    def __init__(self, access: Access) -> None:
        self.access = access
        # No proxy of the machine's between a test and its own server.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        tls = access.tls()
        if tls is not None:
            handlers.append(urllib.request.HTTPSHandler(context=tls))
        self._opener = urllib.request.build_opener(*handlers)

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        seconds: float = 30,
    ) -> Object:
        """The answer's JSON. Raises ApiError for a refusal, OSError where no answer came."""
        content = json.loads(self.read(method, path, body, content_type, seconds) or b"{}")
        assert isinstance(content, dict)
        return content

    def read(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        seconds: float = 30,
    ) -> bytes:
        """The answer's bytes (a pod's log, the server's metrics); errors as `request`."""
        headers = {"Authorization": f"Bearer {self.access.token}", "Content-Type": content_type}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.access.url + path, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=seconds) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            raise _error(error.code, error.read()) from None

    def get(self, path: str) -> Object:
        return self.request("GET", path)

    def find(self, path: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return self.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str) -> list[Object]:
        """The objects of a collection (the path may carry a query, e.g. `?labelSelector=a%3Db`)."""
        return list(self.get(path)["items"])

    def create(self, manifest: Object, namespace: str | None = None) -> Object:
        """Creates what a manifest describes; `namespace` is used where the manifest names none."""
        where = manifest["metadata"].get("namespace", namespace)
        return self.request("POST", path_of(manifest["apiVersion"], manifest["kind"], where), manifest)

    def patch(self, path: str, body: Object) -> Object:
        """A merge patch: null removes a field, a list replaces the list."""
        return self.request("PATCH", path, body, MERGE_PATCH)

    def delete(self, path: str, **options: Any) -> Object:
        """Deletes with DeleteOptions: gracePeriodSeconds, propagationPolicy, preconditions."""
        return self.request("DELETE", path, options)
