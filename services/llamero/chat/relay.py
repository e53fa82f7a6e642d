"""Passes requests on to engines and their answers back, event by event, without reading more of them than it must.

Nothing goes to the client before the engine has begun to answer, so an error inside a 200 stream gets its own status and a
backend that can't answer is exchanged for another unseen. A client who leaves ends the engine's work at once.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import aiohttp
from aiohttp import web

from llamero.chat.errors import (
    ENGINE_AWAY,
    ENGINE_FAILED,
    OVERLOADED,
    ChatError,
    engine_away,
    engine_broke_off,
    read_engine_error,
)
from llamero.chat.heads import read_json
from llamero.chat.ledger import Key, Ledger, key_of
from llamero.chat.rendering import Rendered
from llamero.chat.resting import Resting
from llamero.chat.routing import Ask, Destination, Standing, choose_destination, find_route, order_targets
from llamero.chat.settings import CONNECT_SECONDS, IDLE_SECONDS, MAX_EVENT_BYTES, SILENCE_SECONDS
from llamero.chat.shapes import Passed, Shape, has_content, is_worth_sending
from llamero.chat.table import RouteTable

log = logging.getLogger(__name__)

CHAT_PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
REQUEST_ID = "X-Request-Id"
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
MAX_OVERLOADED = 3  # backends that may say "too many requests" before the caller is told
MAX_OPENING = 16  # events without content that are held back

_ERROR_KEY = re.compile(rb'^data:\s*\{\s*"error"|[{,]\s*"error"\s*:')


class CallerGone(ConnectionResetError):
    """The client left while it was being answered."""


class _Unanswered(Exception):
    """A backend gave nothing of an answer: another may be asked. `rest` is what is left alone for a while.

    With `has_failed` the engine tried and failed: that counts against the target, and asking the same of its other backends is in vain.
    """

    def __init__(self, told: ChatError, why: str, rest: str | Ask | None = None, has_failed: bool = False) -> None:
        super().__init__(why)
        self.told = told
        self.rest = rest
        self.has_failed = has_failed


@dataclass
class _Request:
    """A request on its way through the backends. `began` is when its target was first asked, on the loop's clock."""

    request: web.Request
    path: str
    body: dict[str, Any]
    caller: str
    answer_id: str
    began: float
    first_token_seconds: float | None = None


class Relay:
    """The connections to all engines."""

    def __init__(self, table: RouteTable, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger
        self._resting = Resting()
        self._standing = Standing(busy=ledger.busyness, is_resting=self._resting.holds)
        self._session = _open_session(aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS))
        self._fresh_session = _open_session(aiohttp.TCPConnector(limit=0, force_close=True))

    async def close(self) -> None:
        await self._session.close()
        await self._fresh_session.close()

    async def answer(self, request: web.Request, path: str, body: dict[str, Any], caller: str) -> web.StreamResponse:
        """Answer a request by a backend of its model's route; raises ChatError where none does."""
        answer_id = ("chatcmpl-" if path == CHAT_PATH else "cmpl-") + token_hex(12)
        asked = _Request(request, path, body, caller, answer_id, asyncio.get_running_loop().time())
        tried: set[Ask] = set()
        given_up: set[str | None] = set()
        failures: list[_Unanswered] = []
        first: Key | None = None
        while sum(f.told.problem is OVERLOADED for f in failures) < MAX_OVERLOADED:
            # The routes of this very moment: they may have changed while a backend was asked in vain.
            chosen = choose_destination(self._table.routes, body["model"], caller, self._standing, tried, given_up)
            if chosen is None:
                break
            key = key_of(chosen.route, chosen.target)
            if first is not None and key != first:
                asked.began = asyncio.get_running_loop().time()  # what the one target lost is not the other's doing
            first = first or key
            tried.add(chosen.ask)
            try:
                with self._ledger.under_way(chosen.ask):
                    return await self._ask(asked, chosen)
            except _Unanswered as error:
                log.warning("%s did not answer for %s: %s", chosen.backend.url, chosen.route.model, error)
                failures.append(error)
                if error.rest is not None:
                    self._resting.put(error.rest)
                if error.has_failed:
                    self._count(asked, key, failed=True)
                    given_up.add(chosen.target.adapter)
        raise self._give_up(asked, failures, first)

    def _give_up(self, asked: _Request, failures: list[_Unanswered], first: Key | None) -> ChatError:
        """What the caller is told when nobody answers; counted under the target that was to answer."""
        for failure in failures:
            if failure.told.problem is OVERLOADED:
                return failure.told
        for failure in failures:
            if failure.has_failed:  # counted already
                return failure.told
        route = find_route(self._table.routes, asked.body["model"])
        own = order_targets(route, asked.caller)[:1]
        key = first or (key_of(route, own[0]) if own else None)
        if key is not None:
            self._count(asked, key, failed=True)
        return failures[-1].told if failures else engine_away(route.model)

    async def _ask(self, asked: _Request, chosen: Destination) -> web.StreamResponse:
        """Answer by one backend; raises _Unanswered where nothing of an answer came, ChatError where the caller is at fault."""
        shape = self._shape(asked, chosen)
        try:
            try:
                return await self._exchange(self._session, asked, chosen, shape)
            except aiohttp.ClientError as error:
                if not _is_stale(error):
                    raise
            return await self._exchange(self._fresh_session, asked, chosen, shape)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(chosen, error) from None
        except ChatError as error:
            if not _is_fault(error):
                raise
            raise _Unanswered(error, "its answer can't be read", has_failed=True) from None

    def _shape(self, asked: _Request, chosen: Destination) -> Shape:
        if chosen.is_rendered_here and asked.path == CHAT_PATH:
            return Rendered(asked.body, chosen, asked.answer_id, int(time.time()))
        return Passed(asked.path, asked.body, chosen, asked.answer_id)

    async def _exchange(
        self, session: aiohttp.ClientSession, asked: _Request, chosen: Destination, shape: Shape
    ) -> web.StreamResponse:
        asked.first_token_seconds = None  # an earlier try may have begun to answer
        url = chosen.backend.url.rstrip("/") + shape.path
        headers = {"Content-Type": "application/json"}
        async with session.post(url, data=shape.question(), headers=headers) as upstream:
            if upstream.status != 200:
                raise _refused(chosen, upstream.status, read_json(await upstream.read()))
            if not asked.body.get("stream"):
                answer = await upstream.read()
                return self._tell_whole(asked, chosen, shape, answer)
            return await self._tell_stream(asked, chosen, shape, upstream)

    def _tell_whole(self, asked: _Request, chosen: Destination, shape: Shape, answer: bytes) -> web.Response:
        if b'"choices"' not in answer:
            raise _Unanswered(engine_broke_off(), "its answer has no choices", has_failed=True)
        told = shape.whole(answer)
        self._settle(asked, chosen, failed=False)
        return web.Response(body=told, content_type="application/json", headers={REQUEST_ID: asked.answer_id})

    async def _tell_stream(
        self, asked: _Request, chosen: Destination, shape: Shape, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        batches = _batches(upstream)
        opening = await self._open(asked, chosen, batches)
        response = web.StreamResponse(headers={**STREAM_HEADERS, REQUEST_ID: asked.answer_id})
        is_done, failed = DONE in opening, False
        try:
            await _prepare(response, asked.request)
            try:
                await self._send_batch(asked, shape, response, opening)
                async for batch in batches:
                    is_done = await self._send_batch(asked, shape, response, batch) or is_done
                if not is_done:
                    raise engine_broke_off()
            except (ChatError, aiohttp.ClientError, TimeoutError) as error:
                told = error if isinstance(error, ChatError) else engine_broke_off()
                failed = _is_fault(told)
                if not isinstance(error, ChatError):
                    self._resting.put(chosen.backend.url)
                log.warning("%s broke off an answer for %s", chosen.backend.url, chosen.route.model)
                await _send(response, b"data: " + json.dumps(told.to_dict()).encode() + b"\n\n")
            await _end(response)
        finally:
            # A caller who leaves before the first token says nothing of the adapter.
            if is_done or failed or asked.first_token_seconds is not None:
                self._settle(asked, chosen, failed)
        return response

    async def _open(self, asked: _Request, chosen: Destination, batches: AsyncIterator[list[bytes]]) -> list[bytes]:
        """The events up to the first that has content; raises what an error among them says."""
        opening: list[bytes] = []
        async for batch in batches:
            for event in batch:
                payload = _read_error(event)
                if payload is not None:
                    raise _refused(chosen, 200, payload)
                self._note_first_token(asked, event)
            opening += batch
            if len(opening) > MAX_OPENING or any(map(is_worth_sending, batch)) or DONE in batch:
                return opening
        raise _Unanswered(engine_broke_off(), "it broke off before it answered", rest=chosen.backend.url)

    async def _send_batch(
        self, asked: _Request, shape: Shape, response: web.StreamResponse, batch: list[bytes]
    ) -> bool:
        """Send events on, in one piece; True where the last of all was among them. Raises what an error among them says."""
        pieces: list[bytes] = []
        try:
            for event in batch:
                payload = _read_error(event)
                if payload is not None:
                    raise read_engine_error(200, payload)
                if asked.first_token_seconds is None:
                    self._note_first_token(asked, event)
                pieces.append(shape.event(event))
        finally:
            if pieces:
                await _send(response, b"".join(pieces))
        return batch[-1] == DONE

    def _note_first_token(self, asked: _Request, event: bytes) -> None:
        if asked.first_token_seconds is None and has_content(event):
            asked.first_token_seconds = asyncio.get_running_loop().time() - asked.began

    def _settle(self, asked: _Request, chosen: Destination, failed: bool) -> None:
        key = key_of(chosen.route, chosen.target)
        self._count(asked, key, failed)
        if not failed:
            self._resting.wake(chosen.ask)
        self._ledger.keep_answer(asked.answer_id, key, asyncio.get_running_loop().time())

    def _count(self, asked: _Request, key: Key, failed: bool) -> None:
        self._ledger.count(key, failed=failed, first_token_seconds=asked.first_token_seconds)


def _open_session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 16, trust_env=False)


def _is_stale(error: Exception) -> bool:
    """Whether an idle connection may have been closed by the engine just as a request went out on it."""
    is_cut = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionResetError)
    return is_cut and not isinstance(error, aiohttp.ClientConnectorError)


def _unreachable(chosen: Destination, error: Exception) -> _Unanswered:
    why = type(error).__name__
    if isinstance(error, aiohttp.SocketTimeoutError):
        # It took the request and may still be at it: asking others the same would make an overload worse.
        told = ChatError(ENGINE_FAILED, "The engine took the request and fell silent.")
        return _Unanswered(told, why, rest=chosen.backend.url, has_failed=True)
    return _Unanswered(engine_away(chosen.route.model), why, rest=chosen.backend.url)


def _refused(chosen: Destination, status: int, payload: Any) -> ChatError | _Unanswered:
    """What a backend's refusal means: the caller's fault, or a reason to ask another."""
    told = read_engine_error(status, payload)
    if told.problem is OVERLOADED:
        return _Unanswered(told, "its queue is full")
    if told.problem is ENGINE_AWAY:
        rest = chosen.ask if status == 404 else chosen.backend.url
        return _Unanswered(told, f"it is not ready (status {status})", rest=rest)
    if told.problem is ENGINE_FAILED:
        return _Unanswered(told, f"it failed (status {status})", has_failed=True)
    return told


def _is_fault(told: ChatError) -> bool:
    """Whether an error in the middle of an answer is the engine's."""
    return told.problem.status >= 500


async def _batches(upstream: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
    """Whole events as they come, each ending with an empty line; comments (keep-alives) are left out."""
    rest = b""
    async for piece in upstream.content.iter_any():
        rest = rest + piece if rest else piece
        if b"\r" in rest:
            rest = rest.replace(b"\r\n", b"\n")
        *whole, rest = rest.split(b"\n\n")
        batch = [event + b"\n\n" for event in whole if event.startswith(b"data:")]
        if batch:
            yield batch
        if len(rest) > MAX_EVENT_BYTES:
            raise engine_broke_off()


def _read_error(event: bytes) -> dict[str, Any] | None:
    """What an engine's error event says; None for other events."""
    if b'"error"' not in event or not _ERROR_KEY.search(event):
        return None
    payload = read_json(event.removeprefix(b"data:"))
    return payload if isinstance(payload, dict) and payload.get("error") is not None else None


async def _prepare(response: web.StreamResponse, request: web.Request) -> None:
    try:
        await response.prepare(request)
    except ConnectionError:
        raise CallerGone from None


async def _send(response: web.StreamResponse, data: bytes) -> None:
    if not data:
        return
    try:
        await response.write(data)
    except ConnectionError:
        raise CallerGone from None


async def _end(response: web.StreamResponse) -> None:
    try:
        await response.write_eof()
    except ConnectionError:
        raise CallerGone from None
