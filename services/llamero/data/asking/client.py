"""One OpenAI-compatible endpoint over HTTP: sends a request until it is answered, refused, or tried too often, and says which.

Where an endpoint may be stands in `addresses.py`; what is asked, what is kept and what it may cost are the Asker's. No message, log line or
exception here holds a prompt, an answer or a key: endpoints' own error texts repeat prompts, so only their codes are passed on.
"""

import asyncio
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from llamero.data.asking.addresses import Resolver, find_proxy, show_url
from llamero.data.asking.ledger import Account
from llamero.data.asking.limits import Pace, estimate_tokens
from llamero.data.errors import DataError
from llamero.spec.records import Message
from llamero.spec.steps import LanguageModel

MAX_ANSWER_BYTES: Final = 32 << 20
MAX_TOKENS_REPORTED: Final = 100_000_000
_CONNECT_SECONDS = 30.0
_MESSAGE_TOKENS = 4  # what a chat template puts around a turn, about
_PROBE_TOKENS = 20
_LOOK_SECONDS = 0.05
_LONGEST_SLEEP_SECONDS = 1.0

_RETRIED: Final = frozenset({408, 409, 425, 429})
_REFUSED: Final = frozenset({400, 413, 422})
_CODE = re.compile(r"\A[a-z][a-z0-9_]{0,63}\Z")

T = TypeVar("T")

_log = logging.getLogger(__name__)


class QuestionRefused(Exception):
    """The endpoint refuses this one request (400, 413, 422); the message is a sentence."""


class Exhausted(Exception):
    """The last try failed, too; the message says how, as a part of a sentence."""


class _Transient(Exception):
    """Worth another try. `wait_seconds` is what the endpoint asked for; `is_spent`: the tokens were used, though nothing came of it."""

    def __init__(self, reason: str, wait_seconds: float | None = None, is_spent: bool = False) -> None:
        super().__init__(reason)
        self.wait_seconds, self.is_spent = wait_seconds, is_spent


class _DialectError(Exception):
    """The endpoint wants a parameter otherwise; the request can be sent again at once."""


@dataclass(frozen=True)
class Backoff:
    """Pauses between tries: anywhere between nothing and first · 2^n (full jitter), at most `longest`; Retry-After up to `longest_asked`."""

    first_seconds: float = 1.0
    longest_seconds: float = 60.0
    longest_asked_seconds: float = 300.0

    def choose(self, attempt: int, asked_seconds: float | None, draw: Callable[[], float] = random.random) -> float:
        """The pause after try number `attempt` (from 0). What the endpoint asked for is kept to, and a little more, so that not all come at once."""
        if asked_seconds is not None:
            asked = min(asked_seconds, self.longest_asked_seconds)
            return asked + draw() * min(self.first_seconds, asked)
        return draw() * min(self.longest_seconds, self.first_seconds * 2**attempt)


@dataclass(frozen=True, slots=True)
class Completion:
    """A chat answer; `finish` is the endpoint's finish_reason."""

    text: str
    finish: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings in the texts' order, all of one length."""

    vectors: list[list[float]]
    input_tokens: int


class Client:
    """Sends requests to a model's endpoint. To be opened and used in one event loop.

    `permit()` is called before each request and may raise; `waste(tokens)` is told what an unreadable answer has cost. `account` counts
    requests and retries.
    """

    def __init__(
        self,
        model: LanguageModel,
        key: str | None,
        pace: Pace,
        account: Account,
        permit: Callable[[], None],
        waste: Callable[[int], None],
        backoff: Backoff,
    ) -> None:
        self._model, self._key, self._pace, self._account = model, key, pace, account
        self._permit, self._waste, self._backoff = permit, waste, backoff
        self._session: aiohttp.ClientSession | None = None
        self._renamed: dict[str, str | None] = {}
        self.where = f"The endpoint {show_url(model.url)} (model `{model.model}`)"

    async def complete(self, messages: Sequence[Message], temperature: float, max_tokens: int) -> Completion:
        """Ask for one chat answer.

        Raises QuestionRefused, Exhausted, DataError where asking on makes no sense, and what `permit` raises.
        """
        payload = {
            "model": self._model.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        asked = sum(estimate_tokens(len(m.content)) + _MESSAGE_TOKENS for m in messages)
        completion = await self._send(
            "/chat/completions",
            payload,
            asked,
            asked + self._pace.expect_output(max_tokens),
            lambda body: self._read_completion(body, asked),
            lambda c: c.input_tokens + c.output_tokens,
        )
        self._pace.learn_output(completion.output_tokens)
        return completion

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Ask for the vectors of some texts. Raises as `complete` does."""
        payload = {"model": self._model.model, "input": list(texts), "encoding_format": "float"}
        asked = sum(estimate_tokens(len(text)) for text in texts)
        return await self._send(
            "/embeddings",
            payload,
            asked,
            asked,
            lambda body: self._read_vectors(body, len(texts), asked),
            lambda v: v.input_tokens,
        )

    async def is_well(self) -> bool:
        """Whether the endpoint answers a small question now: tells a question that it can't bear from an endpoint that is down."""
        try:
            await self._post_once(
                "/chat/completions",
                {
                    "model": self._model.model,
                    "messages": [{"role": "user", "content": "Say yes."}],
                    "temperature": 0.0,
                    "max_tokens": 16,
                },
                self._read_any,
            )
            self._waste(_PROBE_TOKENS)
        except (_Transient, _DialectError):
            return False
        except QuestionRefused:
            pass
        return True

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- sending ---------------------------------------------------------------------------------------------------------------

    async def _send(
        self,
        path: str,
        payload: dict[str, Any],
        asked: int,
        reserved: int,
        read: Callable[[Any], T],
        count: Callable[[T], int],
    ) -> T:
        attempt, dialects = 0, 0
        while True:
            await self._wait_turn(reserved)
            self._permit()
            try:
                answer = await self._post_once(path, payload, read)
            except _DialectError:
                dialects += 1
                if dialects > len(payload):
                    raise Exhausted("refused the request's form again and again") from None
            except QuestionRefused:
                self._pace.correct(reserved, 0)
                raise
            except _Transient as trouble:
                self._pace.correct(reserved, asked if trouble.is_spent else 0)
                if trouble.is_spent:
                    self._waste(asked)
                if attempt >= self._model.retries:
                    raise Exhausted(str(trouble)) from None
                await self._pause(attempt, trouble)
                attempt += 1
                self._account.retries += 1
            else:
                self._pace.correct(reserved, count(answer))
                return answer

    async def _wait_turn(self, tokens: int) -> None:
        at = self._pace.reserve(time.monotonic(), tokens)
        await self._sleep_until(at)
        while self._pace.is_paused(time.monotonic()):
            await self._sleep_until(time.monotonic() + _LOOK_SECONDS)

    async def _pause(self, attempt: int, trouble: _Transient) -> None:
        seconds = self._backoff.choose(attempt, trouble.wait_seconds)
        if trouble.wait_seconds is not None:
            asked = min(trouble.wait_seconds, self._backoff.longest_asked_seconds)
            self._pace.pause(time.monotonic() + asked)
        _log.info("%s %s; try %d of %d in %.1f s", self.where, trouble, attempt + 2, self._model.retries + 1, seconds)
        await self._sleep_until(time.monotonic() + seconds)

    async def _sleep_until(self, at: float) -> None:
        """Wait, and look now and then whether there is still something to wait for."""
        while (left := at - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _LONGEST_SLEEP_SECONDS))
            self._permit()

    async def _post_once(self, path: str, payload: dict[str, Any], read: Callable[[Any], T]) -> T:
        """One request. Nothing that aiohttp raises gets out: its exceptions hold headers and bodies."""
        self._account.requests += 1
        parts = urlsplit(self._model.url)
        url = urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))
        try:
            async with self._open_session().post(
                url,
                data=json.dumps(self._rename(payload)).encode(),
                headers=self._headers(),
                allow_redirects=False,
                proxy=find_proxy(parts.scheme, parts.hostname or ""),
            ) as response:
                content = await _read_body(response)
                if response.status != HTTPStatus.OK:
                    self._judge_status(response.status, response.headers, content)
        except TimeoutError:
            raise _Transient(f"gave no answer within {self._model.timeout_seconds:g} s") from None
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise DataError(
                f"{self.where} can't be trusted: {type(error).__name__}. If its certificate is from an authority of your own, name it by "
                "SSL_CERT_FILE (on a cluster: hub.caConfigMap)."
            ) from None
        except aiohttp.InvalidURL:
            raise DataError(f"{self.where} has no readable address: mend its `url`.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Transient(f"broke the connection ({type(error).__name__})") from None
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise _Transient("answered no JSON", is_spent=True) from None
        try:
            return read(body)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise _Transient("answered something else than the API says", is_spent=True) from None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=self._model.timeout_seconds, sock_connect=min(_CONNECT_SECONDS, self._model.timeout_seconds)
            )
            connector = aiohttp.TCPConnector(limit=0, resolver=Resolver(), ttl_dns_cache=60)
            self._session = aiohttp.ClientSession(
                timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _rename(self, payload: dict[str, Any]) -> dict[str, Any]:
        named = ((self._renamed.get(name, name), value) for name, value in payload.items())
        return {name: value for name, value in named if name is not None}

    # -- what an answer means --------------------------------------------------------------------------------------------------

    def _judge_status(self, status: int, headers: Any, content: bytes) -> None:
        """Raise what a status other than 200 means."""
        code, parameter = _read_error(content)
        told = f"HTTP {status}" + (f", {code}" if code else "")
        if code == "insufficient_quota" or status == HTTPStatus.PAYMENT_REQUIRED:
            raise DataError(
                f"{self.where} says that the account's quota is spent ({told}): top it up, then run again. What was answered is kept."
            )
        if status in _RETRIED or status >= 500:
            raise _Transient(f"answered {told}", read_retry_after(headers, datetime.now(UTC)))
        if status in _REFUSED:
            self._learn_dialect(code, parameter)
            raise QuestionRefused(f"the endpoint refused it ({told})")
        raise DataError(f"{self.where} answered {told}: {self._advise(status)}")

    def _learn_dialect(self, code: str | None, parameter: str | None) -> None:
        """OpenAI's newer models take `max_completion_tokens`, and no temperature."""
        if code not in ("unsupported_parameter", "unsupported_value"):
            return
        changes: dict[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None}
        if parameter in changes:
            # Requests that were under way with the old form find it learnt already.
            if parameter not in self._renamed:
                _log.warning("%s does not take `%s`: it is sent as %s", self.where, parameter, changes[parameter])
                self._renamed[parameter] = changes[parameter]
            raise _DialectError

    def _advise(self, status: int) -> str:
        reference = self._model.secret_ref
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            if reference is None:
                return "it wants a key. Name the secret that holds it by the model's secretRef."
            return (
                f"the key in secretRef {reference.name}, key `{reference.key}` (on a laptop: the environment variable {reference.key}), "
                "is wrong or may not use this model."
            )
        if status == HTTPStatus.NOT_FOUND:
            return "there is no such model, or the url is not the API's base (such as https://host/v1). Mend `model` or `url`."
        if 300 <= status < 400:
            return (
                "it redirects elsewhere, and a key is not carried to another address. Give the final address as `url`."
            )
        return "this is no OpenAI-compatible endpoint, or its `url` is not the API's base. Mend `url`."

    def _read_completion(self, body: Any, asked: int) -> Completion:
        choice = body["choices"][0]
        finish, content = choice.get("finish_reason") or "stop", choice["message"].get("content")
        if content is None and finish in ("length", "content_filter"):
            content = ""
        if not isinstance(content, str) or not isinstance(finish, str):
            raise ValueError("no text")
        text = content.encode("utf-8", "replace").decode()
        usage = body.get("usage")
        used, answered = _read_count(usage, "prompt_tokens"), _read_count(usage, "completion_tokens")
        if used is None or answered is None:
            self._account.estimated += 1
            used, answered = asked, estimate_tokens(len(text))
        return Completion(text, finish, used, answered)

    def _read_vectors(self, body: Any, count: int, asked: int) -> Vectors:
        rows = sorted(body["data"], key=lambda row: row["index"])
        if [row["index"] for row in rows] != list(range(count)):
            raise ValueError("other rows than asked for")
        vectors = [[float(x) for x in row["embedding"]] for row in rows]
        length = len(vectors[0])
        if not length or any(len(v) != length for v in vectors):
            raise ValueError("vectors of different lengths")
        if any(x != x or x in (float("inf"), float("-inf")) for v in vectors for x in v):
            raise ValueError("no finite numbers")
        used = _read_count(body.get("usage"), "prompt_tokens")
        if used is None:
            self._account.estimated += count
            used = asked
        return Vectors(vectors, used)

    @staticmethod
    def _read_any(body: Any) -> None:
        if not body["choices"]:
            raise ValueError("no choices")


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise _Transient(f"answered more than {MAX_ANSWER_BYTES >> 20} MiB", is_spent=True)
    return bytes(content)


def _read_error(content: bytes) -> tuple[str | None, str | None]:
    """An error's code and parameter, where they are plain words; its message is left alone, for it may repeat the prompt."""
    try:
        error = json.loads(content)["error"]
        code, parameter = error.get("code") or error.get("type"), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, None
    return _take_word(code), _take_word(parameter)


def _take_word(value: Any) -> str | None:
    return value if isinstance(value, str) and _CODE.match(value) else None


def _read_count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS_REPORTED:
        return None
    return value


def read_retry_after(headers: Any, now: datetime) -> float | None:
    """Seconds to wait by Retry-After (seconds or an HTTP date; RFC 9110, 10.2.3) or OpenAI's retry-after-ms; None where there is none."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _bound(float(milliseconds) / 1000)
        value = headers.get("Retry-After")
        if value is None:
            return None
        if re.fullmatch(r"\s*\d+(\.\d*)?\s*", value):
            return _bound(float(value))
        date = parsedate_to_datetime(value)
        return _bound((date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _bound(seconds: float) -> float | None:
    return max(0.0, seconds) if seconds == seconds else None
