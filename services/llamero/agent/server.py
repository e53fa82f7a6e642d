"""The agent's endpoints and its life as a process: GET /v1/report, PUT /v1/wanted, /healthz, /readyz, until SIGTERM.

It ends at once when it is told to: the engine drains by itself, and what the agent knew is found again by looking.
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from llamero.agent.agent import Agent
from llamero.agent.engines import build_client
from llamero.agent.settings import MAX_WANTED_BYTES, AgentSettings, SettingsError, parse_wanted, require_engine
from llamero.spec.serving import AGENT_REPORT_PATH, AGENT_WANTED_PATH, AgentWanted
from llamero.storage import write_atomically

FILE_SECONDS = 1.0
HUNG_SECONDS = 60.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
AGENT: web.AppKey[Agent] = web.AppKey("agent", Agent)
SETTINGS: web.AppKey[AgentSettings] = web.AppKey("settings", AgentSettings)

log = logging.getLogger(__name__)


def build_app(agent: Agent, settings: AgentSettings) -> web.Application:
    """The agent's HTTP application."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=MAX_WANTED_BYTES)
    app[AGENT], app[SETTINGS] = agent, settings
    app.router.add_get(AGENT_REPORT_PATH, report)
    app.router.add_put(AGENT_WANTED_PATH, want)
    app.router.add_get("/healthz", healthy)
    app.router.add_get("/readyz", ready)
    return app


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    if "Origin" in request.headers:
        return _refuse(403, "This is no service for web pages.")
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _refuse(error.status, error.reason)


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


async def report(request: web.Request) -> web.Response:
    """GET /v1/report: 503 while an agent that started anew has not yet found again what the engine serves."""
    agent = request.app[AGENT]
    if agent.is_catching_up:
        return _refuse(503, "The agent started a moment ago and looks at what the engine serves: ask again.")
    return _tell(agent)


async def want(request: web.Request) -> web.Response:
    """PUT /v1/wanted: an AgentWanted; one with a lower serial is passed over. Answers with the report."""
    agent, settings = request.app[AGENT], request.app[SETTINGS]
    try:
        wanted = parse_wanted(await request.read(), "The body")
        require_engine(wanted, settings.engine, "The body")
    except SettingsError as error:
        return _refuse(400, str(error))
    if agent.want(wanted):
        log.info("told what is wanted: serial %d, %d adapters", wanted.serial, len(wanted.adapters))
        await asyncio.to_thread(keep_wanted, settings, wanted)
    return _tell(agent)


def _tell(agent: Agent) -> web.Response:
    return web.Response(text=agent.report().model_dump_json(by_alias=True), content_type="application/json")


async def healthy(request: web.Request) -> web.Response:
    """GET /healthz: the agent's own loop runs."""
    silent = time.monotonic() - request.app[AGENT].ticked_at
    return web.Response() if silent < HUNG_SECONDS else _refuse(503, f"The agent did nothing for {silent:.0f} seconds.")


async def ready(request: web.Request) -> web.Response:
    """GET /readyz: the engine answers, and what was wanted at its start is settled."""
    agent = request.app[AGENT]
    if agent.is_ready:
        return web.Response()
    told = agent.report()
    waiting = [f"{a.id}: {a.stage}" for a in told.adapters if a.stage != "ready"]
    return _refuse(503, "; ".join(waiting) if told.engine_ready else told.engine_message)


# -- the list of wanted adapters -----------------------------------------------------------------------------------------------


def keep_wanted(settings: AgentSettings, wanted: AgentWanted) -> None:
    """Keep the list for the agent's next start in this pod; a disk that is full is no reason to stop."""
    try:
        write_atomically(settings.kept_wanted, wanted.model_dump_json(by_alias=True) + "\n")
    except OSError as error:
        log.warning("the list of wanted adapters can't be kept in %s: %s", settings.kept_wanted, error)


def read_kept(settings: AgentSettings) -> AgentWanted | None:
    """The list that an earlier agent of this pod was told last."""
    try:
        wanted = parse_wanted(settings.kept_wanted.read_bytes(), str(settings.kept_wanted))
        require_engine(wanted, settings.engine, str(settings.kept_wanted))
    except (OSError, SettingsError):
        return None
    return wanted


async def _follow_file(agent: Agent, settings: AgentSettings, path: Path) -> None:
    """Take in the mounted file whenever it changes; a wrong one is told of once and passed over."""
    seen: tuple[int, int, int] | None = None
    while True:
        with contextlib.suppress(OSError):
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != seen:
                seen = stamp
                try:
                    agent.want(settings.read_wanted())
                except SettingsError as error:
                    log.error("%s", error)
        await asyncio.sleep(FILE_SECONDS)


# -- life ----------------------------------------------------------------------------------------------------------------------


async def serve(settings: AgentSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SettingsError, OSError where it can't listen."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = Agent(build_client(settings.engine, settings.engine_url), settings.scratch, settings.storage, settings.pod)
    kept = read_kept(settings)
    if kept is not None:
        agent.want(kept)
    agent.want(settings.read_wanted())
    runner = web.AppRunner(build_app(agent, settings), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, settings.host, settings.port, shutdown_timeout=0.2).start()
    log.info("beside %s at %s, listening on %s", settings.engine, settings.engine_url, runner.addresses[0])
    tasks = [asyncio.create_task(agent.run()), asyncio.create_task(stop.wait())]
    if settings.wanted_file is not None:
        tasks.append(asyncio.create_task(_follow_file(agent, settings, settings.wanted_file)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # raises what ended it
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
