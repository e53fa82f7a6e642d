"""Proxies that misbehave: one in front of an API server (HTTP), one in front of anything (TCP, e.g. Redis).

Both run on an event loop in a thread of their own; what they do is switched by setting their attributes, at any time.
"""

import asyncio
import contextlib
import logging
import re
import ssl
import threading
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from yarl import URL

from cluster.api import Access
from cluster.certificates import KeyPair
from cluster.kubeconfig import write_kubeconfig
from cluster.processes import free_port
from cluster.threads import LoopThread

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
RESOURCE = re.compile(
    r"^/(?:api|apis/[^/]+)/[^/]+(?:/namespaces/[^/]+)?/([a-z]+)(?:/[^/]+)?(?:/(status|scale|token|log|eviction))?/?$"
)
HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade"})
CHUNK_BYTES = 1 << 16
LOG = logging.getLogger("cluster.faults")
# aiohttp logs a traceback for each connection that is cut on purpose.
QUIET = logging.getLogger("cluster.faults.server")
QUIET.setLevel(logging.CRITICAL + 1)


class Gate:
    """Lets a fault through for every n-th, or for the next few, of what is counted. Safe to set from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._every = 0
        self._next = 0
        self._seen = 0
        self.times = 0

    def every(self, n: int) -> None:
        """From now on each n-th one is faulted; 0 ends that."""
        with self._lock:
            self._every, self._seen = n, 0

    def next(self, count: int) -> None:
        """The next `count` ones are faulted."""
        with self._lock:
            self._next = count

    def off(self) -> None:
        """Nothing is faulted."""
        with self._lock:
            self._every = self._next = 0

    def takes(self) -> bool:
        """Whether the one at hand is to be faulted; counts it."""
        with self._lock:
            self._seen += 1
            hit = self._next > 0 or (self._every > 0 and self._seen % self._every == 0)
            if self._next > 0:
                self._next -= 1
            self.times += hit
            return hit


def resource_of(path: str) -> str:
    """`jobs` or `finetunejobs/status` for a path of the API; the path itself where it is none of an object."""
    if re.fullmatch(r"/api/v1/namespaces/[^/]+/?", path):
        return "namespaces"
    found = RESOURCE.match(path)
    if found is None:
        return path
    return f"{found[1]}/{found[2]}" if found[2] else found[1]


class FaultProxy:
    """A proxy in front of an API server that refuses, delays, cuts and counts.

    It speaks TLS with the key pair (a control plane's `server_pair` will do, as clients trust its authority), or plain HTTP
    where `tls` is None: then kubectl sends no token, for it trusts no plain connection with one.

    - `conflicts`: a Gate over writes; a hit is answered 409 Conflict and not passed on
    - `throttles`: a Gate over all requests but watches; a hit is answered 429 with Retry-After: `retry_after` seconds
    - `gone`: a Gate over watches; a hit is answered by a watch event of status 410 Expired
    - `cuts`: a Gate over all requests; a hit's connection is closed without an answer, before it is passed on
    - `cuts_after`: a Gate over writes; a hit is passed on, done by the server, and its answer thrown away
    - `delay_seconds`: every request waits that long
    - `only`: a function (method, resource) → bool that says which requests are faulted at all; None: all
    - `block()` / `unblock()`: no new connection is answered and all open ones are closed / as before
    - `writes`: a Counter of (method, resource) of the writes that came in; `requests`: of all
    - `on_write`: an async function (method, path, when) with when "before" or "after", awaited around each write passed on;
      "after": the server has done it and its answer is not yet with the client
    """

    def __init__(self, access: Access, tls: KeyPair | None) -> None:
        self.upstream = access
        self.port = free_port()
        self._tls = tls
        self.conflicts, self.throttles, self.gone = Gate(), Gate(), Gate()
        self.cuts, self.cuts_after = Gate(), Gate()
        self.retry_after = 1
        self.delay_seconds = 0.0
        self.only: Callable[[str, str], bool] | None = None
        self.on_write: Callable[[str, str, str], Awaitable[None]] | None = None
        self.writes: Counter[tuple[str, str]] = Counter()
        self.requests: Counter[tuple[str, str]] = Counter()
        self._blocked = False
        self._transports: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._thread = LoopThread("fault proxy")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def access(self) -> Access:
        """The upstream's access, by way of the proxy: same token."""
        return Access(self.url, self.upstream.authority if self._tls else None, self.upstream.token)

    def write_kubeconfig(self, path: Path, token: str | None = None, namespace: str = "default") -> Path:
        """A kubeconfig that goes through the proxy, with the admin's token unless another is given."""
        authority = self.upstream.authority if self._tls else None
        return write_kubeconfig(path, self.url, authority, token=token or self.upstream.token, namespace=namespace)

    def start(self) -> None:
        self._thread.run(self._start())

    def stop(self) -> None:
        self._thread.run(self._stop())
        self._thread.stop()

    def calm(self) -> None:
        """Ends every fault; the counts stay."""
        for gate in (self.conflicts, self.throttles, self.gone, self.cuts, self.cuts_after):
            gate.off()
        self.delay_seconds, self.only, self.on_write = 0.0, None, None
        self.unblock()

    def block(self) -> None:
        """The API server is away: open connections are closed, new ones are closed at once."""
        self._blocked = True
        self.cut_connections()

    def unblock(self) -> None:
        self._blocked = False

    def cut_connections(self) -> None:
        """Closes every open connection, watches too."""
        self._thread.loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    async def _start(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=self.upstream.tls() or True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout)
        server = web.Server(self._handle, access_log=None, logger=QUIET)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._tls.certificate, self._tls.key)
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True).start()

    async def _stop(self) -> None:
        self._abort_all()
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if transport is None or self._blocked:
            return self._cut(transport)
        self._transports.add(transport)
        try:
            return await self._answer(request, transport)
        except (OSError, asyncio.CancelledError):
            raise
        except Exception:
            LOG.exception("the fault proxy failed at %s %s", request.method, request.path)
            raise

    async def _answer(self, request: web.BaseRequest, transport: asyncio.Transport) -> web.StreamResponse:
        resource = resource_of(request.path)
        is_write, is_watch = request.method in WRITES, request.query.get("watch") in ("true", "1")
        self.requests[request.method, resource] += 1
        if is_write:
            self.writes[request.method, resource] += 1
        body = await request.read()
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        faulted = self.only is None or self.only(request.method, resource)
        if faulted:
            if self.cuts.takes():
                return self._cut(transport)
            if not is_watch and self.throttles.takes():
                return _refusal(
                    429, "TooManyRequests", "please try again later", {"Retry-After": str(self.retry_after)}
                )
            if is_write and self.conflicts.takes():
                message = f"Operation cannot be fulfilled on {resource}: the object has been modified"
                return _refusal(409, "Conflict", message)
            if is_watch and self.gone.takes():
                return await _expired(request)
        try:
            if not is_write:
                return await self._relay(request, body)
            return await self._write(request, body, lose_answer=faulted and self.cuts_after.takes())
        except (aiohttp.ClientError, ConnectionError):
            return self._cut(transport)

    async def _write(self, request: web.BaseRequest, body: bytes, lose_answer: bool) -> web.StreamResponse:
        """Passes a write on and holds its answer until the hook has seen that it is done."""
        if self.on_write:
            await self.on_write(request.method, request.path, "before")
        async with self._ask(request, body) as upstream:
            content = await upstream.read()
        if self.on_write:
            await self.on_write(request.method, request.path, "after")
        if lose_answer:
            return self._cut(request.transport)
        return web.Response(status=upstream.status, headers=_answer_headers(upstream), body=content)

    async def _relay(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        """Passes a read on, each chunk of the answer as it comes."""
        async with self._ask(request, body) as upstream:
            response = web.StreamResponse(status=upstream.status, headers=_answer_headers(upstream))
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    def _ask(
        self, request: web.BaseRequest, body: bytes
    ) -> "contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]":
        return self._session.request(
            request.method,
            # Escapes are kept: a selector's `%3D` must reach the server as it came.
            URL(self.upstream.url + str(request.rel_url), encoded=True),
            headers={name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS},
            data=body or None,
            allow_redirects=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    def _cut(self, transport: asyncio.Transport | None) -> web.StreamResponse:
        if transport is not None:
            transport.abort()
        raise ConnectionResetError("cut on purpose")


def _answer_headers(upstream: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in upstream.headers.items() if name.lower() not in HOP_HEADERS}


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**status, "message": message, "reason": reason, "code": code}


def _refusal(code: int, reason: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(_status(code, reason, message), status=code, headers=headers)


async def _expired(request: web.BaseRequest) -> web.StreamResponse:
    """A watch that is answered as the API server does when its history no longer reaches back."""
    event = {"type": "ERROR", "object": _status(410, "Expired", "too old resource version: 1 (2)")}
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(web.json_response(event).body + b"\n")  # type: ignore[operator]
    await response.write_eof()
    return response


class TcpProxy:
    """A TCP proxy in front of a server: passes on, falls silent (half-open), cuts, refuses.

    `silence()` keeps connections open and passes nothing in either direction until `resume()`: bytes wait meanwhile, as behind
    a network that drops packets. `cut()` resets every connection. `refuse()` resets new ones too until `resume()`.
    """

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.host = "127.0.0.1"
        self.port = free_port()
        self.connections = 0
        self._thread = LoopThread("tcp proxy")
        self._open: asyncio.Event
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.run(self._start())

    def stop(self) -> None:
        self._thread.run(self._stop())
        self._thread.stop()

    def silence(self) -> None:
        self._thread.run(self._set(flowing=False, refusing=False))

    def refuse(self) -> None:
        """Resets every connection, and new ones at once."""
        self._thread.run(self._set(flowing=True, refusing=True))
        self.cut()

    def resume(self) -> None:
        self._thread.run(self._set(flowing=True, refusing=False))

    def cut(self) -> None:
        """Resets every open connection."""
        self._thread.run(self._cut())

    async def _start(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._server = await asyncio.start_server(self._relay, self.host, self.port)

    async def _stop(self) -> None:
        self._server.close()
        await self._cut()

    async def _set(self, flowing: bool, refusing: bool) -> None:
        self._refusing = refusing
        if flowing:
            self._open.set()
        else:
            self._open.clear()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self.upstream)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, upstream_writer}
        self._writers |= pair
        flows = [
            asyncio.create_task(self._flow(reader, upstream_writer)),
            asyncio.create_task(self._flow(upstream_reader, writer)),
        ]
        try:
            await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for flow in flows:
                flow.cancel()
            for end in pair:
                end.transport.abort()
            self._writers -= pair

    async def _flow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._open.wait()
                writer.write(chunk)
                await writer.drain()
