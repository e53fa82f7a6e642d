"""Server-sent events out of a generation: nothing is sent before the first event is known, and a caller who leaves cancels.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from aiohttp import web

from llamero.engine.generation import Generation, GenerationThread
from llamero.engine.requests import EngineError, Finished, TokenEvent

Render = Callable[[TokenEvent | Finished], Iterable[dict[str, Any]]]

HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def encode_event(data: dict[str, Any] | str) -> bytes:
    """One event with a JSON (or literal) payload."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


async def stream_generation(
    request: web.Request,
    thread: GenerationThread,
    generation: Generation,
    render: Render,
    opening: Iterable[dict[str, Any]] = (),
    closing: str | None = None,
) -> web.StreamResponse:
    """Answer a request with a generation's events.

    `render` turns an event into payloads; `opening` and `closing` are sent around them. An error before the first token is
    raised as EngineError, so that it gets its own status; one after it becomes an error event, the last of the stream.
    """
    response = web.StreamResponse(headers=HEADERS)
    try:
        first = await generation.next_event()
        await response.prepare(request)
        out = [encode_event(payload) for payload in opening]
        async for event in _chain(first, generation):
            out += [encode_event(payload) for payload in render(event)]
            if out:
                await response.write(b"".join(out))
            out = []
        if closing is not None:
            await response.write(encode_event(closing))
    except EngineError as error:
        if not response.prepared:
            raise
        await response.write(encode_event(error.to_dict()))
    finally:
        thread.cancel(generation)
    await response.write_eof()
    return response


async def _chain(first: TokenEvent | Finished, generation: Generation) -> AsyncIterator[TokenEvent | Finished]:
    yield first
    if isinstance(first, Finished):
        return
    async for event in generation.events():
        yield event
