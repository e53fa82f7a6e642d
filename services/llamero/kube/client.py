"""The connection to the API server: credentials, timeouts, throttle, retries, errors. Objects are plain dictionaries.

It stands on the official client's `kubernetes.aio`; what is asked for is the business of the modules beside this one.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yaml
from kubernetes.aio import client as official
from kubernetes.aio import config as official_config

from llamero.kube.errors import Away, KubeError, Refused, build_error
from llamero.kube.throttle import Throttle, backoff_seconds

Object = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
JSON = "application/json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
WRITE_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Witness(Protocol):
    """Is told of every request: for metrics, for fault points, and to forbid writes to one who no longer leads."""

    def before_write(self, verb: str, kind: str) -> None: ...

    def after_write(self, verb: str, kind: str) -> None: ...

    def answered(self, verb: str, kind: str, status: int, seconds: float) -> None: ...

    def retried(self, verb: str, kind: str, why: str) -> None: ...


class NoWitness:
    """Takes no notice."""

    def before_write(self, verb: str, kind: str) -> None: ...

    def after_write(self, verb: str, kind: str) -> None: ...

    def answered(self, verb: str, kind: str, status: int, seconds: float) -> None: ...

    def retried(self, verb: str, kind: str, why: str) -> None: ...


@dataclass(frozen=True)
class ClientOptions:
    """How fast and how patient a client is."""

    qps: float = 50
    burst: int = 100
    max_concurrent: int = 16
    connect_seconds: float = 10
    request_seconds: float = 30
    retry_seconds: float = 20
    """No further try is begun when so much time has passed since the first."""
    user_agent: str = "llamero"


class Kube:
    """A client of one API server. Made by `connect`; use as `async with connect() as kube`."""

    def __init__(
        self,
        configuration: official.Configuration,
        options: ClientOptions | None = None,
        witness: Witness | None = None,
        namespace: str = "default",
    ) -> None:
        self.options = options or ClientOptions()
        self.witness: Witness = witness or NoWitness()
        self.namespace = namespace
        configuration.connection_pool_maxsize = max(self.options.max_concurrent * 2, 8)
        configuration.client_session_kwargs = {"trust_env": is_proxied(configuration.host)}
        self.api = official.ApiClient(configuration)
        self.api.user_agent = self.options.user_agent
        self.throttle = Throttle(self.options.qps, self.options.burst, self.options.max_concurrent)
        self._refresher: asyncio.Task[None] | None = None

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self.api.configuration.host)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections."""
        if self._refresher is not None:
            self._refresher.cancel()
        await self.api.close()

    def keep_fresh(self, loader: Any) -> None:
        """Renews credentials of a kubeconfig that come from a plugin; others need none of it."""
        self._refresher = asyncio.create_task(official_config.refresh_token(loader, self.api.configuration))

    async def request(
        self,
        method: str,
        path: str,
        *,
        verb: str,
        kind: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
        seconds: float | None = None,
        is_retried: bool = True,
    ) -> Object:
        """The answer's JSON. `verb` and `kind` are what metrics and errors call it (`create`, `Job`).

        Reads are tried again after any failure to answer, writes only where the server certainly did nothing. Raises Conflict,
        NotFound, Refused or Away.
        """
        began = time.monotonic()
        failures = 0
        while True:
            try:
                return await self._once(method, path, verb, kind, query, body, content_type, accept, seconds)
            except Away as error:
                wait = error.retry_after if error.retry_after is not None else backoff_seconds(failures)
                if error.retry_after is not None:
                    self.throttle.pause(error.retry_after)
                failures += 1
                may_repeat = method == "GET" or isinstance(error, NotSent) or error.retry_after is not None
                if not (is_retried and may_repeat) or time.monotonic() + wait - began > self.options.retry_seconds:
                    raise
                self.witness.retried(verb, kind, type(error).__name__)
                await asyncio.sleep(wait)

    async def _once(
        self,
        method: str,
        path: str,
        verb: str,
        kind: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        accept: str,
        seconds: float | None,
    ) -> Object:
        what = f"{verb} {kind} {path.rpartition('/')[2]}"
        is_write = method in WRITE_METHODS
        async with self.throttle.turn():
            if is_write:
                self.witness.before_write(verb, kind)
            began = time.monotonic()
            timeout = self._timeout(seconds or self.options.request_seconds)
            answer, data = None, b""
            try:
                answer = await self._open(method, path, query, body, content_type, accept, timeout)
                data = await answer.read()
            except aiohttp.ClientConnectorError as error:
                raise NotSent(f"{what}: the API server can't be reached: {error}") from error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                said = str(error) or type(error).__name__
                raise Away(f"{what}: the API server gave no answer: {said}") from error
            finally:
                status = answer.status if answer is not None else 0
                self.witness.answered(verb, kind, status, time.monotonic() - began)
            if is_write:
                self.witness.after_write(verb, kind)
        if answer.status >= 400:
            raise build_error(answer.status, answer.headers, data, what)
        return _parse(data, what)

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str] | None = None, accept: str = JSON, verb: str, kind: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer that goes on (a watch, a followed log). Raises as `request`; a cut stream ends or raises Away."""
        what = f"{verb} {kind} {path.rpartition('/')[2]}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.options.connect_seconds, sock_read=None)
        async with self.throttle.turn():
            try:
                answer = await self._open("GET", path, query, None, JSON, accept, timeout)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise Away(f"{what}: the API server gave no answer: {error}") from error
        try:
            if answer.status >= 400:
                raise build_error(answer.status, answer.headers, await answer.read(), what)
            yield _lines(answer.response.content, what)
        finally:
            answer.response.close()

    async def headers(self) -> dict[str, str]:
        """The headers that prove who asks; credentials that run out are renewed."""
        headers: dict[str, str] = {}
        await self.api.update_params_for_auth(headers, [], ["BearerToken"], "", "GET", None)
        return headers

    def open_watch_session(self, middlewares: Sequence[aiohttp.ClientMiddlewareType] = ()) -> aiohttp.ClientSession:
        """A session with the same credentials, for kopf's watches; the middlewares see every request. The caller closes it."""

        async def prove(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            request.headers.update(await self.headers())
            return await handler(request)

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self.api.rest_client.ssl_context),
            middlewares=(*middlewares, prove),
            trust_env=True,
            proxy=self.api.configuration.proxy,
            headers={"User-Agent": self.options.user_agent},
        )

    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        accept: str,
        timeout: aiohttp.ClientTimeout,
    ) -> Any:
        headers = {"Accept": accept, "User-Agent": self.options.user_agent, "Content-Type": content_type}
        headers |= await self.headers()
        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        return await self.api.call_api(method, url, headers, body, _request_timeout=timeout)

    def _timeout(self, seconds: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=seconds, sock_connect=self.options.connect_seconds)


class NotSent(Away):
    """There was no connection: the request certainly had no effect."""


async def connect(
    options: ClientOptions | None = None,
    witness: Witness | None = None,
    context: str | None = None,
    kubeconfig: str | None = None,
) -> Kube:
    """A client by `kubeconfig` or KUBECONFIG (or `context` of it), else by the pod's service account, else by ~/.kube/config.

    Raises Refused with a sentence where none of them can be used.
    """
    configuration = type.__call__(official.Configuration)
    file = kubeconfig or os.environ.get("KUBECONFIG")
    in_cluster = not file and not context and "KUBERNETES_SERVICE_HOST" in os.environ
    try:
        if in_cluster:
            official_config.load_incluster_config(configuration)
            namespace = NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.is_file() else "default"
            return Kube(configuration, options, witness, namespace)
        loader = await official_config.load_kube_config(
            config_file=file, context=context, client_configuration=configuration, persist_config=False
        )
    except (official_config.ConfigException, OSError, ValueError, TypeError, yaml.YAMLError) as error:
        where = "the service account" if in_cluster else f"the kubeconfig {file or '~/.kube/config'}"
        said = " ".join(str(error).split())
        raise Refused(
            f"{where} can't be used: {said}: set KUBECONFIG to a file that names a cluster and a user"
        ) from error
    kube = Kube(configuration, options, witness, _namespace_of(loader))
    if "exec" in (loader._user or {}) or loader.provider == "gcp":
        kube.keep_fresh(loader)
    return kube


def is_proxied(server: str) -> bool:
    """Whether the environment's proxy stands before the server.

    Where none does, aiohttp need not trust the environment: it would look for a password in ~/.netrc before each request, in a thread.
    """
    parts = urlsplit(server)
    return parts.scheme in getproxies() and not proxy_bypass(parts.netloc)


def _namespace_of(loader: Any) -> str:
    with suppress(KeyError, TypeError, AttributeError, official_config.ConfigException):
        found = loader.current_context["context"].get("namespace")
        return str(found) if found else "default"
    return "default"


def _parse(data: bytes, what: str) -> Object:
    if not data:
        return {}
    try:
        answer = json.loads(data)
    except ValueError as error:
        raise Away(f"{what}: the API server's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise KubeError(f"{what}: the API server's answer is no object")
    return answer


async def _lines(content: aiohttp.StreamReader, what: str) -> AsyncIterator[bytes]:
    pending = b""
    try:
        async for chunk in content.iter_any():
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                yield line
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Away(f"{what}: the stream was cut: {error}") from error
    if pending:
        yield pending
