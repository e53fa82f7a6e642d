"""What is asked of a language model and what comes back, and the key that names an answer in the cache."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from llamero.spec.records import Message

KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation that ends with the turn to be answered. Another `sample` asks the same again for another answer."""

    messages: tuple[Message, ...]
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's text, and the tokens that it took. `is_cut`: it ends where `maxTokens` did (only where cut ones are allowed)."""

    text: str
    input_tokens: int
    output_tokens: int
    is_cached: bool = False
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question that got no usable answer; `reason` is a sentence that holds nothing of question or answer."""

    reason: str


def hash_question(endpoint: str, question: Question, temperature: float, max_tokens: int, attempt: int) -> bytes:
    """The key of a question's answer: 16 bytes over all that can change it.

    `endpoint` is `name_endpoint`'s; `attempt` counts how often an answer that could not be parsed was asked for again.
    """
    turns = [[m.role, m.content] for m in question.messages]
    return _hash(["chat", endpoint, turns, temperature, max_tokens, question.sample, attempt])


def hash_text(endpoint: str, text: str) -> bytes:
    """The key of a text's embedding."""
    return _hash(["embedding", endpoint, text])


def name_endpoint(url: str, model: str) -> str:
    """What answers: the model's name, and the endpoint's host and path.

    The host counts, since servers call what they serve by the same names (`tgi`, `default`): an answer of another model would be worse
    than one that is paid for again.
    """
    return json.dumps([url.rstrip("/"), model])


def _hash(parts: Sequence[object]) -> bytes:
    # surrogatepass: a half of a surrogate pair in a text is odd, not a reason to stop.
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
