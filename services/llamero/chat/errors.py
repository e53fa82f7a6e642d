"""Errors in OpenAI's shape, and what an engine's errors become at the front door.

https://platform.openai.com/docs/guides/error-codes
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RETRY_AFTER_SECONDS = "1"


@dataclass(frozen=True)
class Problem:
    """How one kind of error is told: HTTP status, OpenAI's `type` and `code`."""

    status: int
    type: str
    code: str | None


INVALID = Problem(400, "invalid_request_error", None)
FOREIGN = Problem(403, "invalid_request_error", "forbidden")
MODEL_NOT_FOUND = Problem(404, "invalid_request_error", "model_not_found")
ANSWER_NOT_FOUND = Problem(404, "invalid_request_error", "answer_not_found")
TOO_LARGE = Problem(413, "invalid_request_error", "body_too_large")
UNPROCESSABLE = Problem(422, "invalid_request_error", None)
OVERLOADED = Problem(429, "rate_limit_error", "engine_overloaded")
INTERNAL = Problem(500, "server_error", None)
ENGINE_FAILED = Problem(503, "server_error", "engine_failed")
ENGINE_AWAY = Problem(503, "server_error", "engine_unavailable")

# TGI's error_type, where a stream that began with 200 carries no status of its own.
BY_ERROR_TYPE: Mapping[str, Problem] = {
    "validation": UNPROCESSABLE,
    "template_error": UNPROCESSABLE,
    "tool_error": UNPROCESSABLE,
    "overloaded": OVERLOADED,
    "generation": ENGINE_FAILED,
    "incomplete_generation": ENGINE_FAILED,
    "request failed during generation": ENGINE_FAILED,
    "adapter_not_found": ENGINE_AWAY,
    "shutting_down": ENGINE_AWAY,
    "healthcheck": ENGINE_AWAY,
}
BY_STATUS: Mapping[int, Problem] = {
    400: UNPROCESSABLE,
    404: ENGINE_AWAY,
    413: TOO_LARGE,
    422: UNPROCESSABLE,
    424: ENGINE_FAILED,
    429: OVERLOADED,
    502: ENGINE_AWAY,
    503: ENGINE_AWAY,
    504: ENGINE_AWAY,
}


# What TGI's sentences begin with: its streamed chats tell no error_type, and 422 whatever happened.
BY_SENTENCE: Mapping[str, Problem] = {
    "Input validation error": UNPROCESSABLE,
    "Template error": UNPROCESSABLE,
    "Tool error": UNPROCESSABLE,
    "Model is overloaded": OVERLOADED,
    "Request failed during generation": ENGINE_FAILED,
    "Incomplete generation": ENGINE_FAILED,
}


class ChatError(Exception):
    """A request that is not answered: the kind of problem, a sentence, and the parameter at fault where there is one."""

    def __init__(self, problem: Problem, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message
        self.param = param

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's error body."""
        return {
            "error": {
                "message": self.message,
                "type": self.problem.type,
                "param": self.param,
                "code": self.problem.code,
            }
        }

    def headers(self) -> dict[str, str]:
        return {"Retry-After": RETRY_AFTER_SECONDS} if self.problem.status in (429, 503) else {}


def read_engine_error(status: int, payload: Any) -> ChatError:
    """What an engine's error body (TGI's or OpenAI's form) becomes; `status` is 200 for an error event in a stream."""
    told = payload.get("error") if isinstance(payload, dict) else None
    error_type = payload.get("error_type") if isinstance(payload, dict) else None
    if isinstance(told, dict):
        error_type = error_type or told.get("type")
        code = told.get("code")
        status = code if status == 200 and isinstance(code, int) else status  # vLLM's, in a stream
        told = told.get("message")
    problem = BY_ERROR_TYPE.get(str(error_type).lower()) or _by_sentence(told) or BY_STATUS.get(status) or ENGINE_FAILED
    if problem is ENGINE_AWAY:
        return ChatError(
            problem, "The engine behind this model is not ready for it just now. Try again a little later."
        )
    message = told if isinstance(told, str) and told else f"The engine answered with status {status}."
    return ChatError(problem, message)


def _by_sentence(told: Any) -> Problem | None:
    return next((p for start, p in BY_SENTENCE.items() if isinstance(told, str) and told.startswith(start)), None)


def engine_away(model: str) -> ChatError:
    """No engine of the model can be reached."""
    return ChatError(
        ENGINE_AWAY,
        f"No engine that serves {model} can be reached just now: it may be starting or gone. Try again a little later.",
    )


def engine_broke_off() -> ChatError:
    """The engine ended in the middle of an answer."""
    return ChatError(
        ENGINE_FAILED, "The engine broke off in the middle of the answer. What came before is all there is."
    )
