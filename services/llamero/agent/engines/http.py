"""The HTTP that all engines have in common: plain requests, whether the engine lives, and how its refusals read.

A new connection for each request: one that was kept open across an engine's end would tell of the old process.
"""

import json
import os
import re
import time
from abc import ABC, abstractmethod
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from llamero.agent.engines.base import EngineBusy, EngineRefusal, EngineTrouble

LOOK_SECONDS = 5.0
"""Patience with requests that take no thinking: health, list of models, metrics."""
TOKEN_SECONDS = 30.0
"""Patience with a token: an engine that gives none for so long is not ready."""
FRESH_SECONDS = 15.0
"""A token that was made within so many seconds proves that the engine answers."""
STUCK_SECONDS = 300.0
"""An engine that is overloaded for so long and makes no token meanwhile is not ready: a dead GPU behind a full queue looks so."""
SCORE_SECONDS = 120.0
LOAD_SECONDS = 300.0
MAX_ANSWER_BYTES = 8 << 20
MAX_TOLD = 400


class HttpEngine(ABC):
    """Requests to an engine, and `ready` for all of them. Lives on one event loop."""

    name = "the engine"
    progress_metrics: tuple[str, ...] = ()
    """Counters of its /metrics that grow with every token or answer."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._token_at: float | None = None
        self._progress: float | None = None
        self._busy_since: float | None = None

    async def close(self) -> None:
        """Let connections go."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- life ------------------------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Healthy by its own word, and a token was made of late: for somebody, or now for us. Raises EngineTrouble."""
        try:
            await self.ask("GET", "/health", seconds=LOOK_SECONDS)
            await self._require_token()
        except EngineRefusal as refusal:
            raise EngineTrouble(str(refusal)) from refusal

    async def _require_token(self) -> None:
        if self._token_at is not None and time.monotonic() - self._token_at < FRESH_SECONDS:
            return
        if await self._has_progressed():
            return
        try:
            await self.give_token()
        except EngineBusy:
            self._excuse_busy()
            return
        except EngineTrouble:
            if not await self._has_progressed():
                self._token_at = None
                raise
        self._note_token()

    def _note_token(self) -> None:
        self._token_at, self._busy_since = time.monotonic(), None

    def _excuse_busy(self) -> None:
        """It has more than enough to do and says so, which is no fault; one that gets nothing done all the while is stuck."""
        now = time.monotonic()
        self._busy_since = now if self._busy_since is None else self._busy_since
        if now - self._busy_since >= STUCK_SECONDS:
            self._token_at = None
            raise EngineTrouble(
                f"{self.name} turns requests away as overloaded, and has made no token for {now - self._busy_since:.0f} seconds."
            )

    @abstractmethod
    async def give_token(self) -> None:
        """One token of the base. Raises EngineTrouble, EngineRefusal."""

    async def _has_progressed(self) -> bool:
        """Whether its counters say that it made tokens since they were last read."""
        try:
            found = sum_metrics((await self.ask("GET", "/metrics", seconds=LOOK_SECONDS)), self.progress_metrics)
        except (EngineTrouble, EngineRefusal):
            return False
        before, self._progress = self._progress, found
        if found is None or before is None or found <= before:
            return False
        self._note_token()
        return True

    # -- requests --------------------------------------------------------------------------------------------------------------

    async def ask_json(self, method: str, path: str, body: Any = None, seconds: float = LOOK_SECONDS) -> dict[str, Any]:
        """An answer that is a JSON object. Raises EngineTrouble, EngineRefusal."""
        text = await self.ask(method, path, body, seconds)
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise EngineTrouble(
                f"{self.name} answers {path} by something else than JSON: is this address the engine's?"
            )
        return content

    async def ask(self, method: str, path: str, body: Any = None, seconds: float = LOOK_SECONDS) -> str:
        """An answer's text. Raises EngineTrouble, EngineRefusal."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), trust_env=False)
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=LOOK_SECONDS)
        try:
            async with self._session.request(method, self.url + path, json=body, timeout=limit) as response:
                text = (await response.content.read(MAX_ANSWER_BYTES)).decode(errors="replace")
                while chunk := await response.content.read(MAX_ANSWER_BYTES - len(text)):
                    text += chunk.decode(errors="replace")
                status = response.status
        except TimeoutError as error:
            raise EngineTrouble(f"{self.name} did not answer {path} within {seconds:.0f} seconds.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EngineTrouble(f"{self.name} can't be reached at {self.url}: {describe(error)}.", gone=True) from error
        if status >= 400:
            raise self.explain(status, text, path)
        return text

    def explain(self, status: int, text: str, path: str) -> EngineTrouble | EngineRefusal:
        """What a refusal means."""
        message = f"{self.name} answers {path} with HTTP {status}: {read_error(text)}"
        if status == 429:
            return EngineBusy(message)
        if status in (400, 413, 422):
            return EngineRefusal(message)
        return EngineTrouble(message)


def read_error(text: str) -> str:
    """The sentence in an error's body, whichever of the usual forms it has: {error}, {error: {message}}, {message}, {detail}."""
    try:
        content = json.loads(text)
    except ValueError:
        content = text
    for key in ("error", "message", "detail"):
        if isinstance(content, dict) and key in content:
            content = content[key]
    shown = content if isinstance(content, str) else json.dumps(content)
    return " ".join(shown.split())[:MAX_TOLD] or "no reason given"


def sum_metrics(text: str, names: tuple[str, ...]) -> float | None:
    """The sum of some counters in Prometheus' text, over all their labels; None where there is none of them."""
    found = [
        float(match["value"])
        for line in text.splitlines()
        if (match := _METRIC.match(line)) is not None and match["name"] in names
    ]
    return sum(found) if found else None


_METRIC = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(?P<value>[-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:\s|$)")


def describe(error: BaseException) -> str:
    """A transport's error in a few words."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__).rstrip(".")[:MAX_TOLD]


def spare_proxy(url: str) -> None:
    """Keep requests to the engine off a proxy that the environment names for the way to the hub: some clients read no other setting."""
    host = urlsplit(url).hostname or ""
    for name in ("NO_PROXY", "no_proxy"):
        known = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if host not in known:
            os.environ[name] = ",".join([*known, host])
