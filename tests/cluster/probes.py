"""Startup, readiness and liveness probes of a running container: when to ask, how to ask, what the answers mean."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from cluster.environment import ConfigurationError
from cluster.runtimes import Running

Object = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Whether a probe succeeded and, where it did not, why."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Reports:
    """What the probes tell the pod: the container has started, is (not) ready, must be killed, failed once."""

    started: Callable[[], None]
    ready: Callable[[bool], None]
    unhealthy: Callable[[str], None]
    failed: Callable[[str, str], None]


async def run_probes(container: Object, running: Running, ip: str, reports: Reports) -> None:
    """Runs a container's probes until cancelled, or until a startup or liveness probe has failed for good."""
    startup, liveness, readiness = (container.get(f"{kind}Probe") for kind in ("startup", "liveness", "readiness"))
    prober = _Prober(container, running, ip, reports)
    if startup and not await prober.until_changed("Startup", startup, wanted=True):
        reports.unhealthy("startup probe failed")
        return
    reports.started()
    loops = []
    if readiness:
        loops.append(asyncio.create_task(prober.follow_readiness(readiness)))
    else:
        reports.ready(True)
    if liveness:
        loops.append(asyncio.create_task(prober.follow_liveness(liveness)))
    try:
        await asyncio.gather(*loops)
    finally:
        for loop in loops:
            loop.cancel()


class _Prober:
    def __init__(self, container: Object, running: Running, ip: str, reports: Reports) -> None:
        self.container = container
        self.running = running
        self.ip = ip
        self.reports = reports

    async def follow_readiness(self, probe: Object) -> None:
        ready = False
        while True:
            await self.until_changed("Readiness", probe, wanted=not ready, first=not ready)
            ready = not ready
            self.reports.ready(ready)

    async def follow_liveness(self, probe: Object) -> None:
        await self.until_changed("Liveness", probe, wanted=False)
        self.reports.unhealthy("liveness probe failed")

    async def until_changed(self, kind: str, probe: Object, wanted: bool, first: bool = True) -> bool:
        """Asks until the threshold of successes (wanted=True) or failures (False) in a row is reached.

        A startup probe that is wanted to succeed ends with False where its failures reach their threshold first.
        """
        if first:
            await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        thresholds = {True: probe.get("successThreshold", 1), False: probe.get("failureThreshold", 3)}
        in_a_row = {True: 0, False: 0}
        while True:
            verdict = await self._ask(probe)
            if not verdict.ok:
                self.reports.failed(kind, verdict.reason)
            in_a_row[verdict.ok] += 1
            in_a_row[not verdict.ok] = 0
            if in_a_row[wanted] >= thresholds[wanted]:
                return True
            if kind == "Startup" and in_a_row[False] >= thresholds[False]:
                return False
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _ask(self, probe: Object) -> Verdict:
        seconds = probe.get("timeoutSeconds", 1)
        try:
            if "exec" in probe:
                ended = await self.running.execute(probe["exec"]["command"], seconds)
                return Verdict(ended.code == 0, ended.message.strip() or f"exit code {ended.code}")
            if "httpGet" in probe:
                return await ask_http(probe["httpGet"], self.container, self.ip, seconds)
            if "tcpSocket" in probe:
                return await _ask_tcp(probe["tcpSocket"], self.container, self.ip, seconds)
        except ConfigurationError as error:
            return Verdict(False, str(error))
        return Verdict(False, f"the process node has no probe of type {', '.join(probe)}")


def port_of(port: int | str, container: Object) -> int:
    """A port's number; a name is looked up in the container's ports. Raises ConfigurationError for an unknown name."""
    if isinstance(port, int):
        return port
    for declared in container.get("ports") or []:
        if declared.get("name") == port:
            return int(declared["containerPort"])
    if port.isdigit():
        return int(port)
    raise ConfigurationError(f"the container has no port named {port}")


async def ask_http(request: Object, container: Object, ip: str, seconds: float) -> Verdict:
    """A GET as kubelets make it: 200 to 399 is success, certificates are not verified."""
    scheme = request.get("scheme", "HTTP").lower()
    host = request.get("host") or ip
    url = f"{scheme}://{host}:{port_of(request['port'], container)}{request.get('path', '/')}"
    headers = {header["name"]: header["value"] for header in request.get("httpHeaders") or []}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.get(url, headers=headers, ssl=False) as response,
        ):
            return Verdict(200 <= response.status < 400, f"HTTP probe failed with statuscode: {response.status}")
    except TimeoutError:
        return Verdict(False, f"Get {url}: no answer within {seconds:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Verdict(False, f"Get {url}: {error}")


async def _ask_tcp(socket: Object, container: Object, ip: str, seconds: float) -> Verdict:
    host, port = socket.get("host") or ip, port_of(socket["port"], container)
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(host, port)
    except (TimeoutError, OSError) as error:
        return Verdict(False, f"dial tcp {host}:{port}: {error or 'no answer'}")
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Verdict(True)
