"""A request's way from a checked body to a running generation: which model, which prompt, how long. Shared by all endpoints."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamero.engine.catalog import Catalog, ServedModel
from llamero.engine.generation import Generation, GenerationThread
from llamero.engine.metrics import EngineMetrics
from llamero.engine.requests import (
    EngineError,
    ErrorKind,
    Finished,
    GenerationRequest,
    Sampling,
    TokenEvent,
    TokenScore,
)

PROBE_FRESH_SECONDS = 15.0
PROBE_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class EngineInfo:
    """What /info tells."""

    version: str
    dtype: str
    quantization: str | None
    threads: int
    max_total_tokens: int
    max_batch: int
    max_queue: int
    parameters: int


@dataclass
class EngineService:
    """Everything that the endpoints need."""

    info: EngineInfo
    catalog: Catalog
    thread: GenerationThread
    metrics: EngineMetrics

    async def encode(
        self, model: ServedModel, make_ids: Callable[[], list[int]], truncate: int | None = None
    ) -> list[int]:
        """Prompt ids, made off the event loop; `truncate` keeps the last so many. Raises EngineError where too long or empty."""
        ids = await asyncio.to_thread(make_ids)
        if truncate is not None:
            ids = ids[-truncate:]
        if not ids:
            raise EngineError(ErrorKind.VALIDATION, "The prompt is empty: it must have at least one token.")
        most = self.info.max_total_tokens - 1
        if len(ids) > most:
            message = f"`inputs` must have less than {most + 1} tokens. Given: {len(ids)}"
            raise EngineError(ErrorKind.VALIDATION, message)
        return ids

    def room_for(self, prompt_tokens: int, asked: int | None, clamp: bool) -> int:
        """Tokens that the answer may have. Past the window: cut to what is left where `clamp`, else refused as TGI does."""
        left = self.info.max_total_tokens - prompt_tokens
        if asked is None:
            return left
        if asked > left and not clamp:
            raise EngineError(
                ErrorKind.VALIDATION,
                f"`inputs` tokens + `max_new_tokens` must be <= {self.info.max_total_tokens}. "
                f"Given: {prompt_tokens} `inputs` tokens and {asked} `max_new_tokens`",
            )
        return min(asked, left)

    def submit(
        self,
        model: ServedModel,
        prompt_ids: list[int],
        max_new_tokens: int,
        sampling: Sampling,
        stop_strings: list[str],
        top_tokens: int = 0,
        prompt_log_probs: bool = False,
    ) -> Generation:
        """Start a generation; raises EngineError where the engine has no room."""
        return self.thread.submit(
            GenerationRequest(
                adapter=model.adapter,
                prompt_ids=tuple(prompt_ids),
                tokenizer=model.tokenizer,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                stop_token_ids=model.stop_token_ids,
                stop_strings=tuple(stop_strings),
                top_tokens=top_tokens,
                prompt_log_probs=prompt_log_probs,
            )
        )

    async def collect(self, generation: Generation) -> tuple[list[TokenEvent], Finished]:
        """The whole answer; a caller that goes away cancels it."""
        tokens: list[TokenEvent] = []
        try:
            async for event in generation.events():
                if isinstance(event, Finished):
                    return tokens, event
                tokens.append(event)
        finally:
            self.thread.cancel(generation)
        raise AssertionError("a generation ends with Finished")

    async def probe(self) -> None:
        """Prove that the engine answers, with a real token where none was made of late; raises EngineError where it does not."""
        trouble = self.thread.trouble()
        if trouble is not None:
            raise EngineError(ErrorKind.UNHEALTHY, trouble)
        if self.thread.is_busy or self.thread.seconds_since_token < PROBE_FRESH_SECONDS:
            return
        ids = self.catalog.base.text_prompt("a") or [0]
        generation = self.submit(self.catalog.base, ids, 1, Sampling(), [])
        try:
            await asyncio.wait_for(self.collect(generation), PROBE_TIMEOUT_SECONDS)
        except TimeoutError:
            message = f"The model gave no token within {PROBE_TIMEOUT_SECONDS:.0f} seconds."
            raise EngineError(ErrorKind.UNHEALTHY, message) from None


def token_text(model: ServedModel, token_id: int) -> str:
    """A token's own text, special tokens included."""
    return str(model.tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_object(model: ServedModel, score: TokenScore, text: str | None = None) -> dict[str, Any]:
    """TGI's token object."""
    return {
        "id": score.id,
        "text": token_text(model, score.id) if text is None else text,
        "logprob": score.log_prob,
        "special": score.id in model.special_ids,
    }
