"""What is asked of the generation thread and what it answers, as values: no tensor, no HTTP.

A `GenerationRequest` goes in, and `TokenEvent`s come out, then one `Finished` or `Failed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class FinishReason(StrEnum):
    """Why a generation ended, in TGI's words."""

    LENGTH = "length"
    STOP_TOKEN = "eos_token"
    STOP_SEQUENCE = "stop_sequence"


class ErrorKind(StrEnum):
    """What went wrong, in TGI's words where it has one."""

    VALIDATION = "validation"
    OVERLOADED = "overloaded"
    GENERATION = "generation"
    ADAPTER_NOT_FOUND = "adapter_not_found"
    ADAPTER_REFUSED = "adapter_refused"
    SHUTTING_DOWN = "shutting_down"
    UNHEALTHY = "healthcheck"


STATUS: Mapping[ErrorKind, int] = {
    ErrorKind.VALIDATION: 422,
    ErrorKind.OVERLOADED: 429,
    ErrorKind.GENERATION: 424,
    ErrorKind.ADAPTER_NOT_FOUND: 404,
    ErrorKind.ADAPTER_REFUSED: 400,
    ErrorKind.SHUTTING_DOWN: 503,
    ErrorKind.UNHEALTHY: 503,
}


class EngineError(Exception):
    """A request that can't be served: its kind, and a sentence for the caller."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    @property
    def status(self) -> int:
        return STATUS[self.kind]

    def to_dict(self) -> dict[str, str]:
        """TGI's error body."""
        return {"error": self.message, "error_type": str(self.kind)}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Greedy unless `do_sample`; then in this order: penalties, temperature, top_k, top_p.

    repetition_penalty divides the scores of tokens in prompt and answer (arXiv:1909.05858); frequency_penalty (per occurrence)
    and presence_penalty (once) are subtracted for tokens of the answer, as in OpenAI's API.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One generation. `adapter` None is the base; `tokenizer` belongs to the adapter and turns ids into text.

    `top_tokens` asks for that many most likely tokens at each step, `prompt_log_probs` for the prompt's own log-probabilities.
    """

    adapter: str | None
    prompt_ids: tuple[int, ...]
    tokenizer: Any
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    top_tokens: int = 0
    prompt_log_probs: bool = False


@dataclass(frozen=True)
class TokenScore:
    """A token and its log-probability (natural logarithm, of the model's own distribution); None for the first of a prompt."""

    id: int
    log_prob: float | None


@dataclass(frozen=True)
class TokenEvent:
    """One generated token. `text` is what can be shown by now: "" while a character or a stop string is half there.

    `is_last` says that `Finished` follows; `prompt`, on the first token, are the prompt's scores where they were asked for.
    """

    score: TokenScore
    text: str
    is_stop: bool = False
    is_last: bool = False
    top: tuple[TokenScore, ...] = ()
    prompt: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of a generation. `text` is the whole answer without stop token and stop string."""

    reason: FinishReason
    text: str
    tokens: int
    prompt_tokens: int
    seed: int | None
    stop_string: str | None = None


@dataclass(frozen=True)
class Failed:
    """A generation that broke off."""

    error: EngineError


Event = TokenEvent | Finished | Failed
