"""The chat service's endpoints and its life as a process. No prompt and no answer ever goes into a log."""

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from llamero import __version__
from llamero.chat.bodies import check_chat, check_completion, parse_json
from llamero.chat.errors import FOREIGN, INTERNAL, TOO_LARGE, ChatError, Problem
from llamero.chat.page import SECURITY_HEADERS, add_page
from llamero.chat.relay import Relay
from llamero.chat.routing import choose_destination, find_route
from llamero.chat.settings import MAX_BODY_BYTES, RELOAD_SECONDS, ChatSettings
from llamero.chat.table import RouteTable
from llamero.engine.announce import announce
from llamero.engine.guard import foreign_reason
from llamero.spec.routes import Route

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TABLE: web.AppKey[RouteTable] = web.AppKey("table", RouteTable)
RELAY: web.AppKey[Relay] = web.AppKey("relay", Relay)
HOST: web.AppKey[str] = web.AppKey("host", str)
RUNNING: web.AppKey[set[int]] = web.AppKey("running", set)


def build_app(settings: ChatSettings) -> web.Application:
    """The chat service's HTTP application."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=MAX_BODY_BYTES)
    app[HOST] = settings.host
    app[TABLE] = RouteTable(settings.routes)
    app[TABLE].refresh()
    app[RUNNING] = set()
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{model:.+}", model)
    app.router.add_get("/health", health)
    add_page(app)
    app.on_response_prepare.append(_add_security_headers)
    app.cleanup_ctx.append(_connections)
    return app


async def _connections(app: web.Application) -> Any:
    app[RELAY] = Relay()
    watching = asyncio.create_task(app[TABLE].watch(RELOAD_SECONDS))
    yield
    watching.cancel()
    await app[RELAY].close()


async def _add_security_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in OpenAI's form, and one line in the log for each API request: method, path, status, seconds."""
    began = time.monotonic()
    status = 499  # the caller left
    try:
        foreign = foreign_reason(request, request.app[HOST])
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
    caller = body.get("user") or request.remote or ""
    relay = request.app[RELAY]
    destination = choose_destination(request.app[TABLE].routes, body["model"], caller, relay.busy)
    request.app[RUNNING].add(id(request))
    try:
        return await relay.pass_on(request, request.path, body, destination)
    finally:
        request.app[RUNNING].discard(id(request))


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
    """Serve until SIGTERM or SIGINT, then give running answers some seconds to end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = build_app(settings)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, settings.host, settings.port, shutdown_timeout=0.2)
    await site.start()
    announce(runner, settings.host, settings.port_file)
    await stop.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.drain_seconds):
            while app[RUNNING]:
                await asyncio.sleep(0.02)
    await runner.cleanup()
