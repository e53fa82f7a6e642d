"""vLLM at run time: adapters are each process's own and gone with it, and every step is confirmed in /v1/models.

Loading needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora. Loading a name that is in already answers 400, and a name whose
adapter was replaced may answer from the old one's prefix cache: ids are never reused, so "already loaded" is the same adapter.
https://docs.vllm.ai/en/latest/features/lora.html
"""

import re
from pathlib import Path
from typing import Any

from llamero.agent.engines.base import EngineDescription, EngineRefusal, EngineTrouble, sum_answer
from llamero.agent.engines.http import LOAD_SECONDS, SCORE_SECONDS, TOKEN_SECONDS, HttpEngine
from llamero.spec.server import EngineType

LOAD_PATH, UNLOAD_PATH, COMPLETIONS_PATH = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"


_DYING = re.compile(r"EngineCore|EngineDead|engine is dead|out of memory|timed? ?out", re.IGNORECASE)


class VllmEngine(HttpEngine):
    """vLLM's OpenAI-compatible server."""

    kind: EngineType = "vllm"
    name = "vLLM"
    loads_at_runtime = True
    progress_metrics = ("vllm:generation_tokens_total", "vllm:generation_tokens")

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._base: str | None = None

    async def give_token(self) -> None:
        """One token of the base: /health is green on a dead GPU too."""
        await self._complete(None, "a", TOKEN_SECONDS, max_tokens=1)

    async def loaded(self) -> frozenset[str]:
        """By /v1/models."""
        return read_loaded(await self.ask_json("GET", "/v1/models"))

    async def load(self, adapter: str, folder: Path) -> None:
        """See EngineClient."""
        refusal: EngineRefusal | None = None
        try:
            await self.ask("POST", LOAD_PATH, {"lora_name": adapter, "lora_path": str(folder)}, LOAD_SECONDS)
        except EngineRefusal as error:
            refusal = error
        if adapter in await self.loaded():
            return
        raise refusal or EngineTrouble(f"vLLM took {adapter} in and does not list it in /v1/models.")

    async def unload(self, adapter: str) -> None:
        """See EngineClient."""
        try:
            await self.ask("POST", UNLOAD_PATH, {"lora_name": adapter}, LOAD_SECONDS)
        except (EngineTrouble, EngineRefusal):
            if adapter in await self.loaded():
                raise

    async def score(self, adapter: str | None, prompt: str, answer: str, answer_tokens: int) -> float:
        """See EngineClient. With `echo` the prompt's tokens stand before the one that has to be generated."""
        told = await self._complete(
            adapter, prompt + answer, SCORE_SECONDS, max_tokens=1, echo=True, logprobs=1, add_special_tokens=True
        )
        try:
            log_probs = list(told["choices"][0]["logprobs"]["token_logprobs"])
            prompt_tokens = int(told["usage"]["prompt_tokens"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineTrouble("vLLM tells no log-probabilities of the prompt with echo.") from error
        return sum_answer(log_probs[:prompt_tokens], answer_tokens)

    async def generate(self, adapter: str | None, prompt: str, max_tokens: int) -> str:
        """See EngineClient."""
        told = await self._complete(adapter, prompt, SCORE_SECONDS, max_tokens=max_tokens)
        try:
            return str(told["choices"][0]["text"])
        except (KeyError, IndexError, TypeError) as error:
            raise EngineTrouble("vLLM's answer has no text.") from error

    async def describe(self) -> EngineDescription:
        """It does not tell."""
        return EngineDescription()

    async def _complete(self, adapter: str | None, prompt: str, seconds: float, **options: Any) -> dict[str, Any]:
        model = adapter if adapter is not None else await self._base_name()
        body = {"model": model, "prompt": prompt, "temperature": 0, **options}
        return await self.ask_json("POST", COMPLETIONS_PATH, body, seconds)

    async def _base_name(self) -> str:
        if self._base is None:
            cards = (await self.ask_json("GET", "/v1/models")).get("data") or []
            self._base = next((str(card["id"]) for card in cards if not card.get("parent")), None)
        if self._base is None:
            raise EngineTrouble("vLLM lists no base model in /v1/models.")
        return self._base

    def explain(self, status: int, text: str, path: str) -> EngineTrouble | EngineRefusal:
        """As for all, but for a load endpoint that is not there, and for loads that are refused as if by a fault of the server.

        What the engine finds wrong with an adapter (its rank, its modules, its files) is 400 in older releases and 500 in newer ones; an
        engine that is dying, or has no room now, answers 500 too, and is asked again.
        """
        if status == 500 and path == LOAD_PATH and '"InternalServerError"' in text and not _DYING.search(text):
            return EngineRefusal(str(super().explain(status, text, path)))
        if status in (404, 405) and path in (LOAD_PATH, UNLOAD_PATH) and "adapter" not in text:
            return EngineTrouble(
                f"vLLM has no {path}: start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )
        return super().explain(status, text, path)


def read_loaded(models: dict[str, Any]) -> frozenset[str]:
    """The adapters in an answer of /v1/models: those that have a parent."""
    cards = models.get("data") or []
    return frozenset(str(card["id"]) for card in cards if isinstance(card, dict) and card.get("parent"))
