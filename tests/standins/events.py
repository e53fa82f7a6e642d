"""Server-sent events, as both servers write them."""

import json
from typing import Any

from aiohttp import web

HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def open_stream(request: web.Request) -> web.StreamResponse:
    """A 200 whose events follow."""
    response = web.StreamResponse(headers=HEADERS)
    await response.prepare(request)
    return response
