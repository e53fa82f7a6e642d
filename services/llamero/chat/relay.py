"""Passes requests on to engines and their answers back, event by event, without reading more of them than it must.

Nothing goes to the client before the engine's first event is known, so an error inside a 200 stream gets its own status; a
client who leaves ends the engine's work at once; another backend is tried only before the first byte.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from llamero.chat.errors import ENGINE_AWAY, ChatError, engine_away, engine_broke_off, read_engine_error
from llamero.chat.routing import Destination
from llamero.chat.settings import CONNECT_SECONDS, MAX_EVENT_BYTES, SILENCE_SECONDS
from llamero.spec.routes import Backend

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

# Within a JSON text a quote that belongs to a string is escaped, so this can match a key only.
_MODEL_KEY = re.compile(rb'"model"\s*:\s*(?:"(?:[^"\\]|\\.)*"|null)')
_ERROR_KEY = re.compile(rb'^data:\s*\{\s*"error"|[{,]\s*"error"\s*:')


class Relay:
    """The connections to all engines."""

    def __init__(self) -> None:
        self.busy: Counter[str] = Counter()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(limit=0), read_bufsize=1 << 16, trust_env=False
        )

    async def close(self) -> None:
        await self._session.close()

    async def pass_on(
        self, request: web.Request, path: str, body: dict[str, Any], destination: Destination
    ) -> web.StreamResponse:
        """Answer a request by one of the destination's backends; raises ChatError where none does."""
        failure = engine_away(destination.route.model)
        for backend in destination.backends:
            self.busy[backend.url] += 1
            try:
                return await self._ask(request, path, body, destination, backend)
            except aiohttp.ClientConnectionError as error:
                log.warning("%s can't be reached: %s", backend.url, type(error).__name__)
            except ChatError as error:
                if error.problem is not ENGINE_AWAY:
                    raise
                log.warning("%s is not ready for %s", backend.url, destination.route.model)
                failure = error
            finally:
                self.busy[backend.url] -= 1
        raise failure

    async def _ask(
        self, request: web.Request, path: str, body: dict[str, Any], destination: Destination, backend: Backend
    ) -> web.StreamResponse:
        asked = json.dumps({**body, "model": destination.upstream_model(backend)}, separators=(",", ":")).encode()
        name = b'"model":' + json.dumps(destination.route.model).encode()
        url = backend.url.rstrip("/") + path
        async with self._session.post(url, data=asked, headers={"Content-Type": "application/json"}) as upstream:
            if upstream.status != 200:
                raise read_engine_error(upstream.status, _read_json(await upstream.read()))
            if not body.get("stream"):
                return await _pass_whole(upstream, name)
            return await _pass_stream(request, upstream, name)


async def _pass_whole(upstream: aiohttp.ClientResponse, name: bytes) -> web.Response:
    answer = await upstream.read()
    return web.Response(body=_rename(answer, name), content_type="application/json")


async def _pass_stream(request: web.Request, upstream: aiohttp.ClientResponse, name: bytes) -> web.StreamResponse:
    events = _events(upstream)
    first = await anext(events, None)
    if first is None:
        raise engine_broke_off()
    _raise_error_event(first)
    response = web.StreamResponse(headers=STREAM_HEADERS)
    await response.prepare(request)
    await response.write(_rename(first, name))
    is_done = False
    try:
        async for event in events:
            _raise_error_event(event)
            is_done = is_done or event == DONE
            await response.write(_rename(event, name))
        if not is_done:
            raise engine_broke_off()
    except (ChatError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
        if isinstance(error, ConnectionResetError) and request.transport is None:
            raise  # it is the client that is gone
        told = error if isinstance(error, ChatError) else engine_broke_off()
        await response.write(b"data: " + json.dumps(told.to_dict()).encode() + b"\n\n")
    await response.write_eof()
    return response


async def _events(upstream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole events as they come, each ending with an empty line; comments (keep-alives) are left out."""
    rest = b""
    async for piece in upstream.content.iter_any():
        rest = rest + piece if rest else piece
        if b"\r" in rest:
            rest = rest.replace(b"\r\n", b"\n")
        *whole, rest = rest.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data:"):
                yield event + b"\n\n"
        if len(rest) > MAX_EVENT_BYTES:
            raise engine_broke_off()


def _raise_error_event(event: bytes) -> None:
    """Raise what an engine's error event says; other events pass."""
    if not _ERROR_KEY.search(event):
        return
    payload = _read_json(event.removeprefix(b"data:"))
    if isinstance(payload, dict) and payload.get("error") is not None:
        raise read_engine_error(200, payload)


def _rename(answer: bytes, name: bytes) -> bytes:
    """The answer under the public model name."""
    return _MODEL_KEY.sub(lambda _: name, answer, count=1)


def _read_json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None
