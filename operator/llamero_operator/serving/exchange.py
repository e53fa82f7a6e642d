"""One short HTTP exchange with a neighbour in the cluster (an agent, a chat service): JSON in, JSON out, nothing believed unseen."""

import json
from typing import TypeVar

import aiohttp
from pydantic import ValidationError

from llamero.spec.base import ResultModel

CONNECT_SECONDS = 1.0
MAX_ANSWER_BYTES = 2 << 20

Document = TypeVar("Document", bound=ResultModel)


class NoAnswer(Exception):
    """It did not answer, or not with what was asked for; the text says which, in a sentence."""


def open_session(answer_seconds: float) -> aiohttp.ClientSession:
    """A session for such exchanges: no proxy, no cookies, short patience."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=answer_seconds, sock_connect=min(CONNECT_SECONDS, answer_seconds)),
        connector=aiohttp.TCPConnector(limit=256, limit_per_host=4, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


def build_url(host: str, port: int, path: str) -> str:
    """`http://10.0.0.1:8090/v1/report`; an IPv6 address gets its brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path}"


async def fetch(session: aiohttp.ClientSession, url: str, model: type[Document]) -> Document:
    """The document at the address. Raises NoAnswer."""
    text = await _ask(session, "GET", url, None)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise NoAnswer(f"{url} answers with something else than a {model.__name__}") from error


async def tell(session: aiohttp.ClientSession, url: str, document: ResultModel) -> None:
    """Puts the document there. Raises NoAnswer."""
    await _ask(session, "PUT", url, json.dumps(document.to_json_dict()).encode())


async def _ask(session: aiohttp.ClientSession, method: str, url: str, body: bytes | None) -> bytes:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    try:
        async with session.request(method, url, data=body, headers=headers, allow_redirects=False) as answer:
            text = await _read(answer)
            if not 200 <= answer.status < 300:
                raise NoAnswer(f"{url} answers with HTTP {answer.status}")
            return text
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NoAnswer(f"{url} gives no answer: {str(error) or type(error).__name__}") from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise NoAnswer(f"{answer.url} answers with more than {MAX_ANSWER_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)
