"""Keeps web pages from elsewhere out of servers on this machine: checks of Host and Origin. aiohttp only.

A browser lets any page send requests to 127.0.0.1, and a page whose name is rebound to 127.0.0.1 could also read the answers.
"""

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web


def is_loopback(host: str) -> bool:
    """Whether an address or name can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def foreign_reason(request: web.BaseRequest, bound_host: str) -> str | None:
    """Why a request comes from a page elsewhere, as a sentence; None where it does not."""
    asked = urlsplit(f"//{request.host}").hostname or ""
    if is_loopback(bound_host) and not is_loopback(asked):
        return f"This server listens on {bound_host} only, and the request asks for {asked}."
    origin = request.headers.get("Origin")
    if origin is not None and request.method != "GET" and urlsplit(origin).netloc != request.host:
        return f"Requests from pages of {origin} are not allowed."
    return None
