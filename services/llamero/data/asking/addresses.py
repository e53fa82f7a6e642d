"""Where an endpoint may be, how it is reached and by which key; no message here holds a key or a URL's credentials."""

import os
import socket
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from llamero.data.errors import DataError
from llamero.spec.steps import LanguageModel

_LINK_LOCAL: Final = "is a link-local address (a cloud's metadata service)"


def check_url(url: str, allow_http: bool) -> None:
    """Where an endpoint may be: https, or http on this machine or where the manifest allows it. Raises DataError with a sentence."""
    shown = show_url(url)
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise DataError(f"The endpoint {shown} has no readable port: mend its `url`.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise DataError(f"The endpoint {shown} is no http(s) address: give its base as `url`, such as https://host/v1.")
    if parts.username or parts.password:
        raise DataError(f"The endpoint {shown} has a name or password in its `url`: put the key into a secretRef.")
    if parts.scheme == "http" and not allow_http and not _is_loopback(host):
        raise DataError(
            f"The endpoint {shown} is not encrypted: prompts and key would be readable on the way. Use https, or set data.allowHttp "
            "for a server of your own."
        )
    if _is_link_local(host):
        raise DataError(f"The endpoint {shown} {_LINK_LOCAL}: name another.")


def show_url(url: str) -> str:
    """A URL as it may be shown: without credentials and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_link_local(host: str) -> bool:
    try:
        address = ip_address(host.split("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_link_local


class Resolver(AbstractResolver):
    """The system's resolver, which gives no link-local address."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if any(_is_link_local(one["host"]) for one in found):
            raise DataError(f"The endpoint's host {host} {_LINK_LOCAL}: name another.")
        return found

    async def close(self) -> None:
        await self._inner.close()


def find_proxy(scheme: str, host: str) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY and NO_PROXY say of a host; this machine is reached without one."""
    if _is_loopback(host) or proxy_bypass(host):
        return None
    return getproxies().get(scheme)


def read_key(model: LanguageModel) -> str | None:
    """The API key, from the environment variable that the secretRef's key names. Raises DataError where it is not set."""
    if model.secret_ref is None:
        return None
    key = os.environ.get(model.secret_ref.key, "").strip()
    if not key:
        raise DataError(
            f"The key for the endpoint {show_url(model.url)} is missing: set the environment variable {model.secret_ref.key} "
            f"(on a cluster: key `{model.secret_ref.key}` of the secret {model.secret_ref.name})."
        )
    if not key.isascii() or not key.isprintable():
        raise DataError(
            f"The key for the endpoint {show_url(model.url)} (secretRef key {model.secret_ref.key}) holds characters that no HTTP header may."
        )
    return key
