"""The web page: a few static files that need no build and no other network, and the headers that keep answers harmless."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

STATIC = Path(__file__).parent / "static"
FILES = (
    "app.js",
    "api.js",
    "markdown.js",
    "style.css",
    "icon.svg",
    "chevron.svg",
    "vendor/marked.umd.js",
    "vendor/purify.min.js",
)
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def add_page(app: web.Application) -> None:
    """Serve the page at / and its files below /static/."""
    app.router.add_get("/", _serve("index.html"))
    for name in FILES:
        app.router.add_get(f"/static/{name}", _serve(name))


def _serve(name: str) -> Callable[[web.Request], Awaitable[web.FileResponse]]:
    async def handler(request: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    return handler
