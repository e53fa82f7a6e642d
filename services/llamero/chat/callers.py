"""Who asks, as far as routing must know: the same caller is answered by the same target while a rollout moves on."""

import hashlib
from typing import Any

from aiohttp import web


def name_caller(request: web.Request, body: dict[str, Any], trust_forwarded_for: bool) -> str:
    """The body's `user`, else a hash of the key that the request brings, else the client's address."""
    if user := body.get("user"):
        return f"user {user}"
    if key := request.headers.get("Authorization"):
        return f"key {hashlib.sha256(key.encode(errors='replace')).hexdigest()}"
    if trust_forwarded_for and (forwarded := request.headers.get("X-Forwarded-For")):
        # The last entry is what the proxy before this service saw; those before it are what its client claimed.
        return f"address {forwarded.rpartition(',')[2].strip()}"
    return f"address {request.remote or ''}"
