"""What an agent needs of an engine at run time, and what its errors mean. Each engine's own wire format stands in a module beside.

An adapter's id goes by the engine's own name for it; None is the base. Scores are teacher-forced: the engine reads prompt + answer and
tells the log-probability of each token that it read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamero.agent.errors import Refusal, Trouble
from llamero.spec.server import EngineType


class EngineTrouble(Trouble):
    """The engine can't be asked, or failed. `gone`: its process does not listen, so what it held in memory is lost."""

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class EngineBusy(EngineTrouble):
    """The engine lives and has no room for this request now."""


class EngineRefusal(Refusal):
    """The engine says what is wrong with an adapter or a request: asking again would get the same answer."""


@dataclass(frozen=True)
class EngineDescription:
    """What an engine tells of its arithmetic; None where it does not tell. `dtype` as torch names it: float32, bfloat16, float16."""

    dtype: str | None = None
    quantization: str | None = None


class EngineClient(Protocol):
    """The runtime half of an engine. All methods raise EngineTrouble; load, score and generate also EngineRefusal."""

    kind: EngineType
    loads_at_runtime: bool

    async def ready(self) -> None:
        """Return where the engine answers, proven by a token that it made of late."""

    async def loaded(self) -> frozenset[str] | None:
        """The ids of the adapters that it holds, without the base; None where it does not tell."""

    async def load(self, adapter: str, folder: Path) -> None:
        """Take an adapter in; returns when it can be asked for. One that is in already is no error: ids are never reused."""

    async def unload(self, adapter: str) -> None:
        """Let an adapter go; one that is not there is no error."""

    async def score(self, adapter: str | None, prompt: str, answer: str, answer_tokens: int) -> float:
        """Sum of the log-probabilities (nats) of the last `answer_tokens` tokens of prompt + answer."""

    async def generate(self, adapter: str | None, prompt: str, max_tokens: int) -> str:
        """The greedy answer."""

    async def describe(self) -> EngineDescription:
        """Its precision."""

    async def close(self) -> None:
        """Let connections go."""


def sum_answer(log_probs: list[float | None], answer_tokens: int) -> float:
    """The sum over the answer's tokens, which stand last. Raises EngineRefusal where there are not so many."""
    answer = log_probs[-answer_tokens:]
    told = [value for value in answer if value is not None]
    if len(told) < answer_tokens:
        raise EngineRefusal(
            f"The prompt and its answer have {len(told)} scored tokens, where the answer alone should have {answer_tokens}: the golden "
            "prompts were made with another tokenizer."
        )
    return sum(told)
