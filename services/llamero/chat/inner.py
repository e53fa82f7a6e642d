"""The inner port: what the operator and Kubernetes ask. Never exposed to clients, and nothing of a prompt or an answer is told.

`/healthz` says that the process runs, `/readyz` that new requests may come: routes are read, and it is not ending.
"""

from collections.abc import Callable

from aiohttp import web

from llamero.chat.ledger import Ledger
from llamero.chat.table import RouteTable
from llamero.spec.serving import CHAT_REPORT_PATH


def build_inner_app(table: RouteTable, ledger: Ledger, is_draining: Callable[[], bool]) -> web.Application:
    """The inner port's HTTP application."""

    async def report(request: web.Request) -> web.Response:
        told = ledger.report(table.routes.revision)
        return web.Response(text=told.model_dump_json(by_alias=True), content_type="application/json")

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        if is_draining():
            return web.Response(status=503, text="ending: running answers go on, new requests go elsewhere\n")
        if not table.is_read:
            return web.Response(status=503, text="the routes have not been read yet\n")
        return web.Response(text="ok\n")

    app = web.Application()
    app.router.add_get(CHAT_REPORT_PATH, report)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app
