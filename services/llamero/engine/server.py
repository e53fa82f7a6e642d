"""The engine's life as a process: load, listen, say so, drain on SIGTERM, end."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Awaitable, Callable

import torch
from aiohttp import web

from llamero import __version__
from llamero.engine.announce import announce
from llamero.engine.catalog import Catalog
from llamero.engine.generation import GenerationLimits, GenerationThread
from llamero.engine.guard import foreign_reason
from llamero.engine.metrics import EngineMetrics
from llamero.engine.openai_routes import add_openai_routes
from llamero.engine.packing import pack_linears
from llamero.engine.requests import EngineError
from llamero.engine.runner import ModelRunner
from llamero.engine.service import EngineInfo, EngineService
from llamero.engine.settings import MAX_BODY_BYTES, EngineSettings, choose_packing, choose_threads, choose_window
from llamero.engine.tgi_routes import SERVICE, add_tgi_routes
from llamero.model.loading import dequantize_base, load_base

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
HOST: web.AppKey[str] = web.AppKey("host", str)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_service(settings: EngineSettings) -> EngineService:
    """Load the base and start the generation thread. Raises ModelError, UnsupportedModel or ValueError, each with a sentence."""
    dtype = DTYPES[settings.dtype]
    model = load_base(
        settings.base,
        quantization=settings.quantization,
        device="cpu",
        training=False,
        dtype=None if settings.quantization else dtype,
    )
    if settings.quantization is not None:
        model = dequantize_base(model, dtype)
    parameters = sum(p.numel() for p in model.parameters())
    threads = choose_threads(parameters, settings.threads)
    torch.set_num_threads(threads)
    if choose_packing(parameters, settings.packed_weights):
        pack_linears(model)
    window = choose_window(
        getattr(model.config.get_text_config(), "max_position_embeddings", None), settings.max_total_tokens
    )
    metrics = EngineMetrics()
    limits = GenerationLimits(settings.max_batch, settings.max_queue)
    thread = GenerationThread(ModelRunner(model), limits, metrics)
    info = EngineInfo(
        version=__version__,
        dtype=settings.dtype,
        quantization=settings.quantization,
        threads=threads,
        max_total_tokens=window,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        parameters=parameters,
    )
    catalog = Catalog(settings.base, settings.name, thread)
    thread.start()
    return EngineService(info, catalog, thread, metrics)


def build_app(service: EngineService, host: str) -> web.Application:
    """The engine's HTTP application."""
    app = web.Application(middlewares=[_answer_errors], client_max_size=MAX_BODY_BYTES)
    app[SERVICE] = service
    app[HOST] = host
    add_tgi_routes(app)
    add_openai_routes(app)
    return app


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in TGI's form, with their own status. What was asked never goes into a log."""
    try:
        foreign = foreign_reason(request, request.app[HOST])
        if foreign is not None:
            raise web.HTTPForbidden(text=foreign)
        return await handler(request)
    except EngineError as error:
        headers = {"Retry-After": "1"} if error.status in (429, 503) else None
        return web.json_response(error.to_dict(), status=error.status, headers=headers)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        told = {"error": error.text or error.reason, "error_type": "http"}
        allowed = {k: v for k, v in error.headers.items() if k == "Allow"}
        return web.json_response(told, status=error.status, headers=allowed)
    except ConnectionResetError:
        raise  # the caller is gone; there is nobody to answer
    except Exception as error:
        log.error("%s %s failed", request.method, request.path, exc_info=_without_text(error))
        message = f"The engine failed: {type(error).__name__}."
        return web.json_response({"error": message, "error_type": "internal"}, status=500)


def _without_text(error: Exception) -> Exception:
    """The error with its traceback but without its message, which may quote a prompt."""
    return (
        type(error)().with_traceback(error.__traceback__)
        if not error.args
        else Exception(type(error).__name__).with_traceback(error.__traceback__)
    )


async def serve(settings: EngineSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    service = build_service(settings)
    # Only now: while the model loads, a signal simply ends the process.
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    for name, folder in settings.adapters:
        await service.catalog.load(name, folder)
        log.info("loaded the adapter %s", name)
    # What was loaded stays: without this the collector walks through all of it now and then, and every stream stands still.
    gc.collect()
    gc.freeze()
    # Without handler_cancellation a caller who leaves would be noticed only at the next write.
    runner = web.AppRunner(build_app(service, settings.host), handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, settings.host, settings.port, shutdown_timeout=0.2)
    await site.start()
    port = announce(runner, settings.host, settings.port_file)
    log.info("serving %s on port %d with %d threads", service.catalog.base.name, port, service.info.threads)
    await stop.wait()
    await _drain(service, settings.drain_seconds)
    await runner.cleanup()


async def _drain(service: EngineService, seconds: float) -> None:
    """Take no more requests and give those at hand some seconds to end; then end them with an error."""
    service.thread.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while service.thread.is_busy:
                await asyncio.sleep(0.02)
    await asyncio.to_thread(service.thread.stop)
    await asyncio.sleep(0.05)  # lets the last events reach their streams
