"""Checks a client's body before an engine sees it: enough to name the parameter at fault; the engine checks the rest."""

import json
from collections.abc import Mapping
from typing import Any

from llamero.chat.errors import INVALID, ChatError
from llamero.chat.settings import MAX_MESSAGES, MAX_STOPS

NUMBERS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
COUNTS: Mapping[str, tuple[int, int]] = {
    "max_tokens": (1, 1 << 20),
    "max_completion_tokens": (1, 1 << 20),
    "n": (1, 1),
    "top_logprobs": (0, 20),
    "seed": (-(2**63), 2**63 - 1),
}
ROLES = ("system", "developer", "user", "assistant", "tool")


def parse_json(raw: bytes) -> dict[str, Any]:
    """The body as a JSON object; raises ChatError."""
    try:
        body = json.loads(raw)
    except (ValueError, UnicodeDecodeError, RecursionError):
        raise ChatError(INVALID, "The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise ChatError(INVALID, "The body must be a JSON object.")
    return body


def check_chat(body: dict[str, Any]) -> None:
    """Raise ChatError, naming the parameter, where a body of /v1/chat/completions can't be served."""
    check_shared(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ChatError(INVALID, "`messages` must be a list with at least one message.", "messages")
    if len(messages) > MAX_MESSAGES:
        raise ChatError(INVALID, f"`messages` may hold at most {MAX_MESSAGES} messages.", "messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")


def check_completion(body: dict[str, Any]) -> None:
    """Raise ChatError, naming the parameter, where a body of /v1/completions can't be served."""
    check_shared(body)
    prompt = body.get("prompt")
    if not isinstance(prompt, str) and not (
        isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str)
    ):
        raise ChatError(INVALID, "`prompt` must be one text.", "prompt")


def check_shared(body: dict[str, Any]) -> None:
    """The parameters that both endpoints have."""
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise ChatError(INVALID, "`model` must name a model: see /v1/models.", "model")
    for name, (low, high) in NUMBERS.items():
        _check_number(body, name, low, high)
    for name, (low, high) in COUNTS.items():
        _check_number(body, name, low, high)
        if isinstance(body.get(name), float):
            raise ChatError(INVALID, f"`{name}` must be a whole number.", name)
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise ChatError(INVALID, "`stream` must be true or false.", "stream")
    options = body.get("stream_options")
    if options is not None and not (isinstance(options, dict) and stream):
        raise ChatError(
            INVALID, "`stream_options` must be an object, and goes with `stream`: true only.", "stream_options"
        )
    user = body.get("user")
    if user is not None and not isinstance(user, str):
        raise ChatError(INVALID, "`user` must be a text.", "user")
    _check_stop(body.get("stop"))


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise ChatError(INVALID, f"`{where}` must be an object with role and content.", where)
    if message.get("role") not in ROLES:
        raise ChatError(INVALID, f"`{where}.role` must be one of {', '.join(ROLES)}.", f"{where}.role")
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        return
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise ChatError(INVALID, f"`{where}.content` may have parts of type text only.", f"{where}.content")
        return
    if not isinstance(content, str):
        raise ChatError(INVALID, f"`{where}.content` must be a text.", f"{where}.content")


def _check_number(body: dict[str, Any], name: str, low: float, high: float) -> None:
    value = body.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ChatError(INVALID, f"`{name}` must be a number.", name)
    if not low <= value <= high:
        raise ChatError(INVALID, f"`{name}` must be from {low} to {high}.", name)


def _check_stop(stop: Any) -> None:
    if stop is None or isinstance(stop, str):
        return
    if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop) or len(stop) > MAX_STOPS:
        raise ChatError(INVALID, f"`stop` must be a text or a list of at most {MAX_STOPS} texts.", "stop")
