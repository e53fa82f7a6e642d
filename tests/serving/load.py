"""Clients that stream chats all the while, on a thread of their own, and note what came of each."""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from serving.answers import STREAM_BROKEN, Answer
from serving.makers import QUESTIONS, question

ANSWER_SECONDS = 60.0
CALLERS = 97

Opinion = Callable[[str], str | None]
"""up, down, or nothing, on an answer's text."""


class Load:
    """`with Load(url, models) as load`: so many clients, each asking again as soon as it was answered and has paused.

    Callers change with every request, so that a canary's share is one of requests too. `opinion` makes them vote.
    """

    def __init__(
        self,
        url: str,
        models: Sequence[str],
        *,
        clients: int = 4,
        max_tokens: int = 24,
        pause_seconds: float = 0.05,
        opinion: Opinion | None = None,
    ) -> None:
        self.url = url
        self.models = list(models)
        self.answers: list[Answer] = []
        self.opinion = opinion
        self.votes = 0
        self._clients = clients
        self._max_tokens = max_tokens
        self._pause = pause_seconds
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """No more requests; returns when those at hand were answered."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(ANSWER_SECONDS + 5)

    def since(self, moment: float) -> list[Answer]:
        """Answers that ended after a moment."""
        return [a for a in list(self.answers) if a.ended >= moment]

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._ask_on(session) for _ in range(self._clients)))

    async def _ask_on(self, session: aiohttp.ClientSession) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            model = self.models[number % len(self.models)]
            answer, answer_id = await self._ask(session, model, number)
            self.answers.append(answer)
            if self.opinion is not None and answer_id and not answer.fault:
                await self._vote(session, answer_id, self.opinion(answer.text))
            await asyncio.sleep(self._pause)

    async def _ask(self, session: aiohttp.ClientSession, model: str, number: int) -> tuple[Answer, str]:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question(number * 7 % QUESTIONS)}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "stream": True,
            "user": f"caller-{number * 31 % CALLERS}",
        }
        seen = _Seen(time.monotonic())
        try:
            async with session.post(f"{self.url}/v1/chat/completions", json=body) as response:
                seen.status = response.status
                if response.status != 200:
                    seen.fail(f"status {response.status}", await response.text())
                else:
                    await _read_events(response, seen)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            seen.fail(f"{type(error).__name__}: {error}")
        return seen.answer(model), seen.answer_id

    async def _vote(self, session: aiohttp.ClientSession, answer_id: str, vote: str | None) -> None:
        if vote is None:
            return
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with session.post(f"{self.url}/v1/votes", json={"id": answer_id, "vote": vote}) as response:
                self.votes += response.status == 200


class _Seen:
    """What a client has seen of one answer so far."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.status: int | None = None
        self.text = ""
        self.answer_id = ""
        self.fault = ""
        self.error_message = ""
        self.first_token: float | None = None
        self.is_done = False

    def take(self, data: str) -> None:
        """One event's data."""
        if data == "[DONE]":
            self.is_done = True
            return
        payload: dict[str, Any] = json.loads(data)
        if payload.get("error") is not None:
            self.fail(STREAM_BROKEN, data)
            return
        self.answer_id = payload.get("id") or self.answer_id
        for choice in payload.get("choices") or []:
            piece = (choice.get("delta") or {}).get("content") or ""
            if piece and self.first_token is None:
                self.first_token = time.monotonic() - self.started
            self.text += piece

    def fail(self, fault: str, body: str = "") -> None:
        self.fault = self.fault or fault
        try:
            self.error_message = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            self.error_message = body[:200]

    def answer(self, model: str) -> Answer:
        return Answer(
            model,
            self.started,
            time.monotonic(),
            self.text,
            self.fault,
            self.first_token,
            self.status,
            self.error_message,
        )


async def _read_events(response: aiohttp.ClientResponse, seen: _Seen) -> None:
    async for raw in response.content:
        line = raw.decode().strip()
        if line.startswith("data:"):
            seen.take(line.removeprefix("data:").strip())
    if not seen.is_done and not seen.fault:
        seen.fail("ended without [DONE] and without an error")
    elif not seen.fault and not seen.text.strip():
        seen.fail("an empty answer")
