"""What engines' errors become at the front door, in the forms that each engine has for them."""

from typing import Any

import pytest

from llamero.chat.errors import ENGINE_AWAY, ENGINE_FAILED, OVERLOADED, UNPROCESSABLE, Problem, read_engine_error

TGI_IN_A_CHAT_S_STREAM = {"http_status_code": 422}


@pytest.mark.parametrize(
    ("status", "payload", "problem"),
    [
        (422, {"error": "Input validation error: too long", "error_type": "validation"}, UNPROCESSABLE),
        (200, {"error": "Request failed during generation: oom", "error_type": "generation"}, ENGINE_FAILED),
        (200, {"error": {"message": "Input validation error: too long", **TGI_IN_A_CHAT_S_STREAM}}, UNPROCESSABLE),
        (200, {"error": {"message": "Model is overloaded", **TGI_IN_A_CHAT_S_STREAM}}, OVERLOADED),
        (200, {"error": {"message": "Request failed during generation: oom", **TGI_IN_A_CHAT_S_STREAM}}, ENGINE_FAILED),
        (200, {"error": {"message": "Incomplete generation", **TGI_IN_A_CHAT_S_STREAM}}, ENGINE_FAILED),
        (200, {"error": {"message": "context is 2048", "type": "BadRequestError", "code": 400}}, UNPROCESSABLE),
        (200, {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}, ENGINE_FAILED),
        (
            404,
            {"error": {"message": "The model `a` does not exist.", "type": "NotFoundError", "code": 404}},
            ENGINE_AWAY,
        ),
        (500, None, ENGINE_FAILED),
    ],
)
def test_an_error_is_the_callers_or_the_engines_whatever_form_it_has(
    status: int, payload: Any, problem: Problem
) -> None:
    assert read_engine_error(status, payload).problem is problem
