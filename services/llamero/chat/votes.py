"""POST /v1/votes: what a person thinks of an answer, counted under the target that gave it."""

from typing import Any, cast

from llamero.chat.errors import ANSWER_NOT_FOUND, INVALID, ChatError
from llamero.chat.ledger import Ledger, Vote

VOTES = ("up", "down")
MAX_ID = 128


def take_vote(ledger: Ledger, body: dict[str, Any], now: float) -> dict[str, Any]:
    """Count `{"id", "vote"}`; a later vote on the same answer replaces the first. Raises ChatError, naming the parameter."""
    answer_id, vote = body.get("id"), body.get("vote")
    if not isinstance(answer_id, str) or not 0 < len(answer_id) <= MAX_ID:
        raise ChatError(INVALID, "`id` must be the id of an answer: its `id`, or its header X-Request-Id.", "id")
    if vote not in VOTES:
        raise ChatError(INVALID, "`vote` must be up or down.", "vote")
    key = ledger.vote(answer_id, cast(Vote, vote), now)
    if key is None:
        raise ChatError(ANSWER_NOT_FOUND, "There is no such answer, or it is too long ago to vote on it.", "id")
    return {"object": "vote", "id": answer_id, "model": key.model, "vote": vote}
