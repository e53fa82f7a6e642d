"""How one request is put to an engine, and how what comes back becomes the answer: the seam between relay and templates.

`Passed` sends the caller's body on as it is, under the engine's own model name; `rendering.Rendered` sends a prompt made here.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from llamero.chat.heads import Head
from llamero.chat.routing import Destination

_CONTENT = re.compile(
    rb'"(?:content|text|reasoning_content|reasoning|refusal|arguments)"\s*:\s*"(?!")|"tool_calls"\s*:\s*\[\s*\{|"function_call"\s*:\s*\{'
)
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"(?!")')


class Shape(Protocol):
    """One try at one backend."""

    path: str

    def question(self) -> bytes:
        """The body for the engine."""

    def event(self, event: bytes) -> bytes:
        """What an engine's event (ending with an empty line) becomes; empty where it becomes nothing."""

    def whole(self, answer: bytes) -> bytes:
        """What an engine's whole answer becomes."""


class Passed:
    """The caller's own request."""

    def __init__(self, path: str, body: Mapping[str, Any], destination: Destination, answer_id: str) -> None:
        self.path = path
        self._body = body
        self._model = destination.upstream_model
        head = Head(answer_id, destination.route.model)
        self.event = head.rewrite
        self.whole = head.rewrite

    def question(self) -> bytes:
        return json.dumps({**self._body, "model": self._model}, separators=(",", ":")).encode()


def has_content(event: bytes) -> bool:
    """Whether an engine's event has a piece of the answer, which the caller has waited for."""
    return _CONTENT.search(event) is not None


def is_worth_sending(event: bytes) -> bool:
    """Whether the answer has begun or ended with this event: openings that only name the role come before."""
    return has_content(event) or _FINISH.search(event) is not None
