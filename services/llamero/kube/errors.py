"""What can go wrong with the API server, in four words; every error's text is a sentence for a person."""

import json
from collections.abc import Mapping
from typing import Any


class KubeError(Exception):
    """The API server did not do what was asked."""


class Conflict(KubeError):
    """The object has changed since it was read, or exists already (`is_there`): a 409 to a creation need not mean the latter."""

    def __init__(self, sentence: str, reason: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason

    @property
    def is_there(self) -> bool:
        """Whether an object of the name exists already."""
        return self.reason == "AlreadyExists"


class NotFound(KubeError):
    """The object, its namespace or its kind is not there."""


class Refused(KubeError):
    """The API server will not do it as asked: invalid, forbidden, over quota. Asking again as it is would be in vain.

    `status` is the HTTP status, `reason` Kubernetes' word, `causes` its machine-readable causes.
    """

    def __init__(self, sentence: str, status: int = 0, reason: str = "", causes: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason
        self.causes = causes

    @property
    def is_namespace_ending(self) -> bool:
        """Whether nothing can be created because the namespace is being deleted."""
        return "NamespaceTerminating" in self.causes


class Away(KubeError):
    """No answer, or one that says to come again: whether the request took effect is not known."""

    def __init__(self, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
"""Answers after which the same request may succeed."""

MAX_SENTENCE = 400


def build_error(status: int, headers: Mapping[str, str], body: bytes, what: str) -> KubeError:
    """The error of an answer with an HTTP status of 400 or more; `what` says what was asked (`create Job team/a`)."""
    answer = _parse_status(body)
    said = str(answer.get("message") or body.decode(errors="replace").strip() or f"HTTP {status}")[:MAX_SENTENCE]
    reason = str(answer.get("reason") or "")
    details = answer.get("details") if isinstance(answer.get("details"), dict) else {}
    if status == 409:
        return Conflict(f"{what}: {said}", reason)
    if status == 404:
        return NotFound(f"{what}: {said}")
    if status in RETRIED_STATUSES:
        return Away(f"{what}: {said}", parse_retry_after(headers.get("Retry-After"), details or {}))
    causes = tuple(str(c.get("reason", "")) for c in (details or {}).get("causes") or [] if isinstance(c, dict))
    return Refused(f"{what}: {said}", status, reason, causes)


def parse_retry_after(header: str | None, details: Mapping[str, Any]) -> float | None:
    """Seconds to wait before the next try, from the header or the Status; None where neither says."""
    for value in (header, details.get("retryAfterSeconds")):
        try:
            if value is not None:
                return min(max(float(value), 0.0), 300.0)
        except (TypeError, ValueError):
            continue
    return None


def _parse_status(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
