"""The chat service's endpoints and its life as a process. No prompt and no answer ever goes into a log."""

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from llamero import __version__
from llamero.chat.bodies import check_chat, check_completion, parse_json
from llamero.chat.callers import name_caller
from llamero.chat.configmap import RoutesConfigMap
from llamero.chat.errors import FOREIGN, INTERNAL, TOO_LARGE, ChatError, Problem
from llamero.chat.inner import build_inner_app
from llamero.chat.ledger import Ledger
from llamero.chat.page import SECURITY_HEADERS, add_page
from llamero.chat.relay import Relay
from llamero.chat.routing import find_route
from llamero.chat.settings import MAX_BODY_BYTES, RELOAD_SECONDS, ChatSettings, ConfigMapName
from llamero.chat.table import RoutesFile, RouteTable
from llamero.chat.votes import take_vote
from llamero.engine.announce import announce
from llamero.engine.guard import foreign_reason
from llamero.spec.routes import Route
from llamero.storage import write_atomically

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TABLE: web.AppKey[RouteTable] = web.AppKey("table", RouteTable)
LEDGER: web.AppKey[Ledger] = web.AppKey("ledger", Ledger)
RELAY: web.AppKey[Relay] = web.AppKey("relay", Relay)
SETTINGS: web.AppKey[ChatSettings] = web.AppKey("settings", ChatSettings)
SHUTDOWN_SECONDS = 1.0  # for the last bytes of answers that are done


@dataclass
class Life:
    """How far the process is: requests under way, and whether it is ending."""

    running: int = 0
    is_draining: bool = False


LIFE: web.AppKey[Life] = web.AppKey("life", Life)


def build_app(settings: ChatSettings) -> web.Application:
    """The chat service's HTTP application."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=MAX_BODY_BYTES)
    app[SETTINGS] = settings
    app[TABLE] = RouteTable()
    app[LEDGER] = Ledger()
    app[LIFE] = Life()
    app[TABLE].listen(app[LEDGER].follow)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/votes", votes)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{model:.+}", model)
    app.router.add_get("/health", health)
    add_page(app)
    app.on_response_prepare.append(_add_headers)
    app.cleanup_ctx.append(_connections)
    return app


async def _connections(app: web.Application) -> Any:
    app[RELAY] = Relay(app[TABLE], app[LEDGER])
    watching = asyncio.create_task(_watch_routes(app[SETTINGS].routes, app[TABLE]))
    watching.add_done_callback(_end_with)
    yield
    watching.remove_done_callback(_end_with)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    await app[RELAY].close()


def _watch_routes(source: Path | ConfigMapName, table: RouteTable) -> Coroutine[Any, Any, None]:
    if isinstance(source, ConfigMapName):
        return RoutesConfigMap(source, table).watch()
    file = RoutesFile(source, table)
    file.refresh()  # before the first request can come
    return file.watch(RELOAD_SECONDS)


def _end_with(watching: "asyncio.Task[None]") -> None:
    """A service whose routes no longer follow the cluster would send requests astray: it ends, and is started again."""
    error = None if watching.cancelled() else watching.exception()
    log.critical("the routes are watched no longer: the service ends", exc_info=error)
    signal.raise_signal(signal.SIGTERM)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    if request.app[LIFE].is_draining:
        response.force_close()  # the next request of this client goes elsewhere
        response.headers["Connection"] = "close"


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in OpenAI's form, and one line in the log for each API request: method, path, status, seconds."""
    began = time.monotonic()
    status = 499  # the caller left
    life = request.app[LIFE]
    life.running += 1
    try:
        foreign = foreign_reason(request, request.app[SETTINGS].host)
        if foreign is not None:
            raise ChatError(FOREIGN, foreign)
        response = await handler(request)
        status = response.status
        return response
    except ChatError as error:
        status = error.problem.status
        return web.json_response(error.to_dict(), status=status, headers=error.headers())
    except web.HTTPRequestEntityTooLarge:
        status = TOO_LARGE.status
        large = ChatError(TOO_LARGE, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        return web.json_response(large.to_dict(), status=status)
    except web.HTTPException as error:
        status = error.status
        if status < 400:
            raise
        told = ChatError(
            Problem(status, "invalid_request_error", None), f"{request.method} {request.path}: {error.reason}."
        )
        return web.json_response(
            told.to_dict(), status=status, headers={k: v for k, v in error.headers.items() if k == "Allow"}
        )
    except ConnectionResetError:
        raise
    except Exception as error:
        status = INTERNAL.status
        log.error("%s %s failed: %s", request.method, request.path, type(error).__name__, exc_info=_bare(error))
        told = ChatError(INTERNAL, "The chat service failed. Its log has more.")
        return web.json_response(told.to_dict(), status=status)
    finally:
        life.running -= 1
        if request.path.startswith("/v1/"):
            log.info("%s %s %d %.3f s", request.method, request.path, status, time.monotonic() - began)


def _bare(error: Exception) -> Exception:
    """Where an error arose, without its message, which may quote a prompt."""
    return RuntimeError(type(error).__name__).with_traceback(error.__traceback__)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions"""
    body = parse_json(await request.read())
    check_chat(body)
    return await _pass_on(request, body)


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions"""
    body = parse_json(await request.read())
    check_completion(body)
    return await _pass_on(request, body)


async def _pass_on(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    caller = name_caller(request, body, request.app[SETTINGS].trust_forwarded_for)
    return await request.app[RELAY].answer(request, request.path, body, caller)


async def votes(request: web.Request) -> web.Response:
    """POST /v1/votes"""
    body = parse_json(await request.read())
    return web.json_response(take_vote(request.app[LEDGER], body, asyncio.get_running_loop().time()))


async def models(request: web.Request) -> web.Response:
    """GET /v1/models: the public names, with what they are."""
    table = request.app[TABLE]
    return web.json_response({"object": "list", "data": [_describe(r, table.loaded_at) for r in table.routes.routes]})


async def model(request: web.Request) -> web.Response:
    """GET /v1/models/{model}"""
    table = request.app[TABLE]
    return web.json_response(_describe(find_route(table.routes, request.match_info["model"]), table.loaded_at))


def _describe(route: Route, created: int) -> dict[str, Any]:
    is_base = all(t.adapter is None for t in route.targets)
    return {
        "id": route.model,
        "object": "model",
        "created": created,
        "owned_by": "llamero",
        "description": route.description,
        "kind": "base" if is_base else "adapter",
    }


async def health(request: web.Request) -> web.Response:
    """GET /health: the service runs; `models` are the names it has routes for."""
    routes = request.app[TABLE].routes.routes
    return web.json_response({"status": "ok", "version": __version__, "models": len(routes)}, dumps=json.dumps)


async def serve(settings: ChatSettings) -> None:
    """Serve until SIGTERM or SIGINT, then take no new connections and give running answers `drain_seconds` to end.

    What comes on connections that are open is still answered meanwhile, and each closes after its answer.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = build_app(settings)
    life = app[LIFE]
    inner = web.AppRunner(build_inner_app(app[TABLE], app[LEDGER], lambda: life.is_draining), access_log=None)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    site = web.TCPSite(runner, settings.host, settings.port)
    try:
        await _start_inner(inner, settings)
        await site.start()
        announce(runner, settings.host, settings.port_file)
        await stop.wait()
        life.is_draining = True
        await site.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_seconds):
                while life.running:
                    await asyncio.sleep(0.02)
    finally:
        await runner.cleanup()
        await inner.cleanup()


async def _start_inner(runner: web.AppRunner, settings: ChatSettings) -> None:
    if settings.inner_port is None:
        return
    await runner.setup()
    await web.TCPSite(runner, settings.host, settings.inner_port).start()
    port = int(runner.addresses[0][1])
    if settings.inner_port_file is not None:
        write_atomically(settings.inner_port_file, f"{port}\n")
    log.info("inner port: %d", port)
