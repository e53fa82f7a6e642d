"""What the chat services last said: which routes they work by, what requests came to, which are under way.

They are found by the settings' names, each resolved to all its addresses anew at every round. Rounds run beside the passes.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

import aiohttp

from llamero.spec.serving import CHAT_REPORT_PATH, ChatReport
from llamero_operator.metrics import Metrics
from llamero_operator.serving.exchange import NoAnswer, build_url, fetch

logger = logging.getLogger(__name__)

Address = tuple[str, int]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

RESOLVE_SECONDS = 3.0
NOBODY = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
"""A name without addresses: a headless Service without pods."""


class UnknownHost(Exception):
    """It can't be told now which addresses a name has."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host; none where the name has none. Raises UnknownHost where that can't be told now."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in NOBODY:
            return []
        raise UnknownHost(f"{host} can't be resolved: {error}") from error
    except (TimeoutError, OSError) as error:
        raise UnknownHost(f"{host} can't be resolved: {str(error) or 'no answer'}") from error
    return sorted({str(address[0]) for *_, address in found})


def parse_service(text: str) -> Address:
    """(host, port) of `host:port`; an IPv6 address stands in brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(
            f"{text!r} is no host:port: write the chat service's name and inner port, such as `chat-inner:8081`"
        )
    return host.strip("[]"), int(port)


class Chats:
    """The chat services' last words. Belongs to one event loop; `close` ends what is under way."""

    def __init__(
        self,
        services: Sequence[str],
        session: aiohttp.ClientSession,
        metrics: Metrics,
        changed: Callable[[], None],
        resolve: Resolve = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = [parse_service(service) for service in services]
        self._session = session
        self._metrics = metrics
        self._changed = changed
        self._resolve = resolve
        self._clock = clock
        self._asked_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._known: dict[Address, tuple[str, ...]] = {}  # the last addresses of each name
        self.reports: tuple[ChatReport, ...] = ()
        """Of those that answered in the last round."""
        self.silent = 0
        """Those that did not."""

    def ask(self, every_seconds: float) -> None:
        """Starts a round where the last one is so long ago."""
        is_busy = self._task is not None and not self._task.done()
        if not self._services or is_busy or self._clock() - self._asked_at < every_seconds:
            return
        self._asked_at = self._clock()
        self._task = asyncio.create_task(self.round(), name="chats")

    async def close(self) -> None:
        """Ends what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def round(self) -> None:
        """Asks every chat service once, side by side."""
        self._asked_at = self._clock()
        before = (self.reports, self.silent)
        found = await asyncio.gather(*(self._addresses(service) for service in self._services))
        unknown = sum(1 for addresses in found if addresses is None)
        addresses = sorted({address for known in found for address in known or ()})
        answers = await asyncio.gather(*(self._ask(address) for address in addresses))
        heard = {report.instance: report for report in answers if report is not None}
        self.reports = tuple(heard[instance] for instance in sorted(heard))
        self.silent = unknown + sum(1 for report in answers if report is None)
        if (self.reports, self.silent) != before:
            self._changed()

    async def _addresses(self, service: Address) -> list[Address] | None:
        """None where it can't be told how many there are: one silent service stands for them."""
        host, port = service
        try:
            known = tuple(await self._resolve(host, port))
        except UnknownHost as error:
            if not self._known.get(service):
                logger.warning("the chat services can't be found: %s", error)
                return None
            known = self._known[service]
        self._known[service] = known
        return [(address, port) for address in known]

    async def _ask(self, address: Address) -> ChatReport | None:
        try:
            report = await fetch(self._session, build_url(*address, CHAT_REPORT_PATH), ChatReport)
        except NoAnswer as error:
            self._metrics.chat_requests.labels("failed").inc()
            logger.debug("a chat service is silent: %s", error)
            return None
        self._metrics.chat_requests.labels("done").inc()
        return report
