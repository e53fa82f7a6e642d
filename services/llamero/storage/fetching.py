"""Files from web servers, where the URL may be anybody's: what may be asked, of whom, and how much is taken.

A host is resolved here and every address it has is judged; the connection goes to the very address that was judged (a name that
changes its address between the two gains nothing), TLS still proves the host's name, and each redirect is judged anew. Proxies are
not used: they would resolve the name themselves. What the bytes mean is left to those who read them.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from llamero import __version__
from llamero.storage.addresses import find_fault
from llamero.storage.errors import Away, NotThere, Refused, StorageError

Resolver = Callable[[str, int], Sequence[str]]
"""(host, port) → its addresses. Raises OSError."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"http": 80, "https": 443}
_BLOCK_BYTES: Final = 1 << 18
_UNSAFE_IN_PATHS: Final = "%/:=&?~#+!$,;'@()*[]"


def resolve_host(host: str, port: int) -> list[str]:
    """The system's answer: the addresses of a host. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class FetchLimits:
    """How much is taken of one file. Time counts only while the network is waited for."""

    max_bytes: int = 50 * 1000**3
    max_redirects: int = 5
    connect_seconds: float = 10.0
    idle_seconds: float = 60.0
    total_seconds: float = 6 * 3600.0
    min_bytes_per_second: float = 1000.0
    speed_window_seconds: float = 60.0
    resumptions: int = 5
    pause_seconds: float = 0.5


@dataclass(frozen=True)
class FetchPolicy:
    """Whom one may ask. `allow_http`: http:// and private addresses too (data.allowHttp), metadata services never."""

    allow_http: bool = False
    limits: FetchLimits = field(default_factory=FetchLimits)
    resolve: Resolver = resolve_host


DEFAULT_POLICY: Final = FetchPolicy()


@dataclass(frozen=True)
class WebTags:
    """What a server tells of a file: what changes when its content does. `size` in bytes as sent."""

    etag: str | None
    last_modified: str | None
    size: int | None


def is_web(uri: str) -> bool:
    """Whether the URI is a web server's."""
    return uri.lower().startswith(("http://", "https://"))


def show_url(url: str) -> str:
    """The URL as it may stand in a message: without credentials and without its query, which may hold a signature."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")


def holds_credentials(url: str) -> bool:
    """Whether a name or a password stands before the host."""
    return "@" in urlsplit(url).netloc


def inspect_url(url: str, token: str | None = None, policy: FetchPolicy = DEFAULT_POLICY) -> WebTags:
    """What the server tells of the file, by HEAD, or by GET where it has no HEAD. Raises StorageError."""
    answer = _ask("HEAD", url, token, policy, {})
    answer.close()
    if answer.status >= 400 and answer.status not in (401, 404, 410, 429):
        answer = _ask("GET", url, token, policy, {})
        answer.close()
    _refuse_status(url, answer.status)
    return answer.tags


class WebFile(io.RawIOBase):
    """A file of a web server as a raw stream; a connection that breaks is taken up where it broke. Not seekable.

    Raises StorageError from the start where it can't be had, and from reads where it can't be had to its end.
    """

    def __init__(self, url: str, token: str | None = None, policy: FetchPolicy = DEFAULT_POLICY) -> None:
        super().__init__()
        self._url, self._token, self._policy = url, token, policy
        self._meter = _Meter(url, policy.limits)
        self._position = 0
        self._failures = 0
        self._answer = self._begin({})
        _refuse_status(url, self._answer.status)
        self.tags = self._answer.tags
        self.encoding = self._answer.encoding
        self._refuse_size(self.tags.size or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                data = self._answer.read(min(len(buffer), _BLOCK_BYTES))
            except (OSError, http.client.HTTPException) as error:
                self._resume(_describe(error))
                continue
            if not data and self.tags.size is not None and self._position < self.tags.size:
                self._resume("the connection was closed early")
                continue
            self._position += len(data)
            self._failures = 0 if data else self._failures
            self._refuse_size(self._position)
            buffer[: len(data)] = data
            return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_answer"):
            self._answer.close()
        super().close()

    def _begin(self, headers: dict[str, str]) -> "_Answer":
        return _ask("GET", self._url, self._token, self._policy, headers, self._meter)

    def _refuse_size(self, size: int) -> None:
        limit = self._policy.limits.max_bytes
        if size > limit:
            self.close()
            raise Refused(
                f"{show_url(self._url)} is larger than {limit:,} bytes, the most that is fetched of one file."
            )

    def _resume(self, cause: str) -> None:
        """Ask for the rest of the same version of the file. Raises StorageError where it can't be had."""
        self._answer.close()
        while True:
            self._failures += 1
            if self._failures > self._policy.limits.resumptions:
                raise self._broken(cause)
            time.sleep(self._policy.limits.pause_seconds * 2 ** (self._failures - 1))
            try:
                self._continue()
                return
            except Refused:
                raise
            except StorageError as error:
                cause = str(error)
            except (OSError, http.client.HTTPException) as error:
                cause = _describe(error)

    def _continue(self) -> None:
        etag, modified = self.tags.etag, self.tags.last_modified
        version = etag if etag and not etag.startswith("W/") else modified
        if version is None:
            raise Refused(str(self._broken("the server tells no version of the file by which to go on")))
        answer = self._begin({"Range": f"bytes={self._position}-", "If-Range": version} if self._position else {})
        is_same = (answer.tags.etag, answer.tags.last_modified) == (etag, modified)
        if answer.status == 206 and answer.first_byte == self._position:
            self._answer = answer
            return
        if answer.status == 200 and is_same:  # a server without ranges: what is known already is passed over
            self._answer = answer
            left = self._position
            while left:
                skipped = answer.read(min(left, _BLOCK_BYTES))
                if not skipped:
                    raise StorageError("the connection was closed early")
                left -= len(skipped)
            return
        answer.close()
        if answer.status in (200, 206, 412, 416):
            raise Refused(f"{show_url(self._url)} changed while it was read: start again.")
        _refuse_status(self._url, answer.status)

    def _broken(self, cause: str) -> StorageError:
        whole = f" of {self.tags.size:,}" if self.tags.size is not None else ""
        return Away(
            f"{show_url(self._url)} can't be read to its end: {cause} ({self._position:,}{whole} bytes were read)"
        )


# -- asking --------------------------------------------------------------------------------------------------------------------


@dataclass
class _Answer:
    """A response whose body is not read yet, and the socket under it."""

    response: http.client.HTTPResponse
    socket: socket.socket

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def tags(self) -> WebTags:
        get = self.response.headers.get
        length = get("Content-Length", "")
        is_sized = length.isdecimal() and "chunked" not in get("Transfer-Encoding", "").lower()
        return WebTags(get("ETag"), get("Last-Modified"), int(length) if is_sized else None)

    @property
    def encoding(self) -> str:
        return self.response.headers.get("Content-Encoding", "").strip().lower()

    @property
    def first_byte(self) -> int | None:
        """Where a partial answer begins."""
        unit, _, rest = self.response.headers.get("Content-Range", "").partition(" ")
        first = rest.partition("-")[0]
        return int(first) if unit == "bytes" and first.isdecimal() else None

    def read(self, size: int) -> bytes:
        return self.response.read1(size)

    def close(self) -> None:
        self.response.close()
        self.socket.close()


def _ask(
    method: str,
    url: str,
    token: str | None,
    policy: FetchPolicy,
    headers: dict[str, str],
    meter: "_Meter | None" = None,
) -> _Answer:
    """The answer at the end of the redirects, each judged like the first. Raises StorageError."""
    meter = meter or _Meter(url, policy.limits)
    secret, previous = token, None
    for _ in range(policy.limits.max_redirects + 1):
        target = _judge_url(url, policy, previous)
        if previous is not None and not _is_same_server(previous, target):
            secret = None  # a token is for the server that it was given for
        answer = _ask_once(method, target, secret, policy, headers, meter)
        location = answer.response.headers.get("Location")
        if answer.status not in _REDIRECTS or location is None:
            return answer
        answer.close()
        url, previous = urljoin(url, location), target
    raise Refused(
        f"{show_url(url)} is the end of more than {policy.limits.max_redirects} redirects: name the file itself."
    )


def _judge_url(url: str, policy: FetchPolicy, previous: SplitResult | None) -> SplitResult:
    came = f" (redirected from {previous.netloc})" if previous is not None else ""
    try:
        target = urlsplit(url)
        host, _ = target.hostname, target.port
    except ValueError as error:
        raise Refused(f"A URL{came} can't be understood: {error}.") from error
    shown = f"{show_url(url)}{came}"
    if "@" in target.netloc:
        raise Refused(f"{shown} holds a name or password: take it out, and give a token by secretRef.")
    if target.scheme not in _PORTS or not host:
        raise Refused(f"{shown} is no https:// address of a file.")
    if target.scheme == "http" and previous is not None and previous.scheme == "https":
        raise Refused(f"{shown} would go on without encryption, where it began with it: name the file by https.")
    if target.scheme == "http" and not policy.allow_http:
        raise Refused(f"{shown} is not https: use https, or set data.allowHttp for a server of your own.")
    return target


def _is_same_server(one: SplitResult, other: SplitResult) -> bool:
    ports = [part.port or _PORTS[part.scheme] for part in (one, other)]
    is_upgrade = (one.scheme, other.scheme) == ("http", "https") and ports == [80, 443]
    return one.hostname == other.hostname and (is_upgrade or (one.scheme == other.scheme and ports[0] == ports[1]))


def _ask_once(
    method: str,
    target: SplitResult,
    token: str | None,
    policy: FetchPolicy,
    headers: dict[str, str],
    meter: "_Meter",
) -> _Answer:
    shown = show_url(urlunsplit(target))
    sent = {"Host": target.netloc, "User-Agent": f"llamero/{__version__}", "Accept-Encoding": "identity"}
    sent |= {"Accept": "*/*", "Connection": "close", **headers}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    path = urlunsplit(
        ("", "", quote(target.path or "/", safe=_UNSAFE_IN_PATHS), quote(target.query, safe=_UNSAFE_IN_PATHS), "")
    )
    link = _connect(target, policy)
    try:
        connection = http.client.HTTPConnection(target.hostname or "")
        connection.sock = _WatchedSocket(link, meter)
        connection.request(method, path, headers=sent)
        return _Answer(connection.getresponse(), link)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        link.close()
        raise Away(f"{shown} can't be reached: {_describe(error)}.") from error
    except BaseException:
        link.close()
        raise


def _connect(target: SplitResult, policy: FetchPolicy) -> socket.socket:
    """A connection to one of the host's addresses, all of which were judged. Raises StorageError."""
    host, port = target.hostname or "", target.port or _PORTS[target.scheme]
    shown = show_url(urlunsplit(target))
    try:
        addresses = policy.resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise Away(f"{shown} can't be reached: {host} is not known ({error}).") from error
    for address in addresses:
        fault = find_fault(address, policy.allow_http)
        if fault is not None:
            where = "" if address == host else f" leads to {address}, which"
            may_be_own = not policy.allow_http and find_fault(address, True) is None
            hint = "; for a server of your own set data.allowHttp." if may_be_own else "."
            raise Refused(f"{shown}: {host}{where} {fault}. Nothing is fetched from there{hint}")
    last: Exception | None = None
    for address in addresses:
        try:
            link = socket.create_connection((address, port), timeout=policy.limits.connect_seconds)
        except OSError as error:
            last = error
            continue
        try:
            if target.scheme == "https":
                link = ssl.create_default_context().wrap_socket(link, server_hostname=host)
            link.settimeout(policy.limits.idle_seconds)
            return link
        except ssl.SSLCertVerificationError as error:
            link.close()
            raise Refused(
                f"{shown} does not prove its name: {error.verify_message}. For an authority of your own set SSL_CERT_FILE."
            ) from error
        except OSError as error:
            link.close()
            last = error
    why = _describe(last) if last is not None else f"{host} has no address"
    raise Away(f"{shown} can't be reached: {why}.") from last


def _refuse_status(url: str, status: int) -> None:
    if status < 300:
        return
    meaning = {
        401: "asks for a token: give one by secretRef",
        403: "may not be read, or not with this token",
        404: "does not exist",
        410: "does not exist any more",
        429: "is asked for too often: try again later",
    }.get(status, "can't be had" if status < 500 else "can't be had at the moment")
    kind = NotThere if status in (404, 410) else Away if status >= 500 or status == 429 else StorageError
    raise kind(f"{show_url(url)} {meaning} (HTTP {status}).")


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server was silent for too long"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


# -- receiving -----------------------------------------------------------------------------------------------------------------


class _Meter:
    """The time that one file takes, over all its connections: in all, and by speed."""

    def __init__(self, url: str, limits: FetchLimits) -> None:
        self._url, self._limits = url, limits
        self._waited = self._window_waited = 0.0
        self._window_bytes = 0

    def note(self, size: int, seconds: float) -> None:
        """Count what a receipt brought. Raises StorageError where the server is too slow."""
        limits = self._limits
        self._waited += seconds
        self._window_waited += seconds
        self._window_bytes += size
        if self._waited > limits.total_seconds:
            raise Refused(f"{show_url(self._url)} takes longer than {limits.total_seconds:,.0f} seconds.")
        if self._window_waited < limits.speed_window_seconds:
            return
        if self._window_bytes < limits.min_bytes_per_second * self._window_waited:
            raise Away(
                f"{show_url(self._url)} can't be read to its end: the server sends less than "
                f"{limits.min_bytes_per_second:,.0f} bytes a second."
            )
        self._window_waited, self._window_bytes = 0.0, 0


class _WatchedSocket:
    """What http.client needs of a socket, with each receipt measured. It is closed by whoever connected it."""

    def __init__(self, link: socket.socket, meter: _Meter) -> None:
        self._link, self._meter = link, meter

    def sendall(self, data: Any) -> None:
        self._link.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Received(self._link, self._meter), 1 << 16)

    def close(self) -> None:
        """Nothing: a response is read after its connection let go of the socket."""


class _Received(io.RawIOBase):
    def __init__(self, link: socket.socket, meter: _Meter) -> None:
        super().__init__()
        self._link, self._meter = link, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        started = time.monotonic()
        size = self._link.recv_into(buffer)
        self._meter.note(size, time.monotonic() - started)
        return size
