"""Vicuna's rules for shared conversations: no short turns, and no answer that is the chat page's and not the model's.

That of several conversations with the same id, or the same first two turns, the longest stays, is the set step `duplicates`.
"""

from collections.abc import Sequence
from typing import Final

from llamero.data.steps.record import Drop, Record, StepContext
from llamero.spec.steps import ConversationsStep

REFUSALS: Final = (
    # quotas
    "too many requests",
    "requests in 1 hour",
    "rate limit reached",
    "rate limit exceeded",
    "exceeded your current quota",
    "reached your message limit",
    "reached the current usage cap",
    "usage limit has been reached",
    "at capacity right now",
    "is at full capacity",
    "only one message at a time",
    # errors
    "network error",
    "an error occurred. if this issue persists",
    "error in body stream",
    "error in message stream",
    "error in moderation",
    "500 internal server error",
    "something went wrong. if this issue persists",
    "there was an error generating a response",
    "hmm...something seems to have gone wrong",
    "the server had an error while processing",
    "request timed out",
    "502 bad gateway",
    "504 gateway time-out",
    # the page
    "conversation not found",
    "unable to load conversation",
    "this content may violate our content policy",
    "your session has expired",
    "please log in again",
    "verify you are human",
    "checking if the site connection is secure",
    "please stand by, while we are checking your browser",
    "regenerate response",
    "contact us through our help center",
)
"""What the page says where an answer should be, in lower case."""

_HEAD, _TAIL = 200, 120


class _Conversations:
    def __init__(self, options: ConversationsStep) -> None:
        self._least = max(options.min_turn_characters, 1)
        self._refusals = REFUSALS if options.drop_refusals else ()
        self._phrases = tuple(" ".join(p.lower().split()) for p in options.refusal_phrases if p.strip())

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        return [self._find_short_turn(record) or self._find_refusal(record) or record for record in records]

    def _find_short_turn(self, record: Record) -> Drop | None:
        for number, message in enumerate(record.messages, 1):
            if message.role not in ("user", "assistant"):
                continue
            length = len(message.content.strip())
            if length >= self._least:
                continue
            if message.role == "user" and record.input:  # of a single exchange: part of its user turn
                length += len(record.input)
            if length < self._least:
                detail = f"Turn {number} has {length} characters, where at least {self._least} are wanted."
                return Drop("minTurnCharacters", detail, length, self._least)
        return None

    def _find_refusal(self, record: Record) -> Drop | None:
        if not self._refusals and not self._phrases:
            return None
        for number, message in enumerate(record.messages, 1):
            if message.role != "assistant":
                continue
            text = message.content.lower()
            # An answer may speak of network errors; what the page put in its place begins or ends with one.
            edges = text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n{text[-_TAIL:]}"
            phrase = next((p for p in self._refusals if p in edges), None)
            if phrase is not None:
                return Drop("dropRefusals", f"Turn {number} is no answer but the page's: “{phrase}”.")
            if self._phrases and (found := self._find_phrase(text)):
                return Drop("refusalPhrases", f"Turn {number} holds “{found}”.")
        return None

    def _find_phrase(self, text: str) -> str | None:
        flat = " ".join(text.split())
        return next((p for p in self._phrases if p in flat), None)


def build(options: ConversationsStep, context: StepContext) -> _Conversations:
    """The step."""
    return _Conversations(options)
