"""The operator's log: one JSON object (or line of text) for each record, from every library, without secrets.

`about(...)` names the job, run, phase and attempt that the lines of a pass speak of.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from llamero_operator.settings import LogSettings

FIELDS = ("namespace", "job", "server", "run", "phase", "attempt")
_subject: ContextVar[Mapping[str, Any]] = ContextVar("llamero_log_subject", default=MappingProxyType({}))

_PASSWORD_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s@/]+@", re.IGNORECASE)
_BEARER = re.compile(r"(bearer\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)

QUIET = ("aiohttp.access", "celery", "kombu", "amqp", "asyncio", "urllib3", "kubernetes")
"""Libraries whose information is only of interest where debugging is on."""


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Lines written within carry these fields (of FIELDS)."""
    token = _subject.set({**_subject.get(), **{k: v for k, v in fields.items() if v is not None}})
    try:
        yield
    finally:
        _subject.reset(token)


def cut_secrets(text: str, secrets: tuple[str, ...] = ()) -> str:
    """The text without passwords in URLs, bearer tokens and the given secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _BEARER.sub(r"\1***", _PASSWORD_IN_URL.sub(r"\1:***@", text))


def find_secrets(redis_url: str) -> tuple[str, ...]:
    """The password in the URL, where there is one: it must never be printed, in whatever sentence."""
    try:
        password = urlsplit(redis_url).password
    except ValueError:
        return ()
    return (password,) if password else ()


class SubjectFilter(logging.Filter):
    """Puts the subject of the moment on each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.subject = _subject.get()
        return True


class JsonFormatter(logging.Formatter):
    """A JSON object a line: time, level, logger, message, the subject, and the exception where there is one."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "subject", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return cut_secrets(json.dumps(line, default=str, ensure_ascii=False), self._secrets)


class TextFormatter(logging.Formatter):
    """A line for eyes."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        subject = " ".join(f"{k}={v}" for k, v in getattr(record, "subject", {}).items())
        line = super().format(record)
        return cut_secrets(f"{line} [{subject}]" if subject else line, self._secrets)


def start_logs(settings: LogSettings, redis_url: str = "") -> None:
    """Sends every library's log the same way, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    secrets = find_secrets(redis_url)
    handler.setFormatter(JsonFormatter(secrets) if settings.format == "json" else TextFormatter(secrets))
    handler.addFilter(SubjectFilter())
    level = getattr(logging, settings.level.upper())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    for name in ("kopf", "kopf.objects"):
        kopf_logger = logging.getLogger(name)
        kopf_logger.handlers.clear()
        kopf_logger.propagate = True
        kopf_logger.setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))
    logging.captureWarnings(True)
