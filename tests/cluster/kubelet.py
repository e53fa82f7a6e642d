"""The HTTPS endpoint through which the API server reads containers' logs from a node."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from cluster.certificates import Authority
from cluster.processes import free_port

FOLLOW_SECONDS = 0.1
CHUNK_BYTES = 1 << 16

FindLog = Callable[[str, str, str, bool], Path | None]
"""(namespace, pod, container, previous) → the file; None before there is one. Raises KeyError for what the node does not have."""
IsRunning = Callable[[str, str, str], bool]


class KubeletServer:
    """Serves `/containerLogs/<namespace>/<pod>/<container>`: follow, tailLines, limitBytes, previous (timestamps are ignored)."""

    def __init__(self, folder: Path, find_log: FindLog, is_running: IsRunning) -> None:
        self.port = free_port()
        self._pair = Authority(folder).issue("kubelet")
        self._find_log = find_log
        self._is_running = is_running
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens on 127.0.0.1; the API server does not verify a node's certificate unless told to."""
        application = web.Application()
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._pair.certificate, self._pair.key)
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        namespace, pod, container = (request.match_info[part] for part in ("namespace", "pod", "container"))
        previous = request.query.get("previous") == "true"
        try:
            path = self._find_log(namespace, pod, container, previous)
        except KeyError:
            raise web.HTTPNotFound(text=f"container {container} of pod {namespace}/{pod} is not on this node") from None
        if path is None:
            kind = "previous terminated container" if previous else "container"
            raise web.HTTPBadRequest(text=f'{kind} "{container}" in pod "{pod}" has no log')
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        tail = request.query.get("tailLines")
        limit = int(request.query.get("limitBytes") or 0)
        follow = request.query.get("follow") == "true" and not previous
        await copy_log(
            path, response.write, tail, limit, lambda: follow and self._is_running(namespace, pod, container)
        )
        await response.write_eof()
        return response


async def copy_log(
    path: Path,
    write: Callable[[bytes], Awaitable[None]],
    tail_lines: str | None,
    limit_bytes: int,
    goes_on: Callable[[], bool],
) -> None:
    """Writes the file's content, from the last lines on where asked, as long as it may still grow."""
    with path.open("rb") as stream:
        if tail_lines is not None:
            stream.seek(tail_offset(path, int(tail_lines)))
        sent = 0
        while True:
            more = goes_on()
            while chunk := stream.read(CHUNK_BYTES):
                if limit_bytes and sent + len(chunk) >= limit_bytes:
                    await write(chunk[: limit_bytes - sent])
                    return
                sent += len(chunk)
                await write(chunk)
            if not more:
                return
            await asyncio.sleep(FOLLOW_SECONDS)


def tail_offset(path: Path, lines: int) -> int:
    """Where the file's last lines begin."""
    content = path.read_bytes()
    if lines <= 0:
        return len(content)
    position = len(content) - (1 if content.endswith(b"\n") else 0)
    for _ in range(lines):
        position = content.rfind(b"\n", 0, position)
        if position < 0:
            return 0
    return position + 1
