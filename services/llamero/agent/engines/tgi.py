"""text-generation-inference at run time: adapters come with its start alone, and an unknown one is answered by the base with HTTP 200.

So nothing that it says of names is believed: a proof by log-probabilities is all there is. It tells those of a prompt only where it was
started with ENABLE_PREFILL_LOGPROBS=true.
"""

import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import AsyncInferenceClient, set_async_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    InferenceTimeoutError,
    OverloadedError,
    TextGenerationError,
    ValidationError,
)
from huggingface_hub.utils._http import default_async_client_factory

from llamero.agent.engines.base import EngineBusy, EngineDescription, EngineRefusal, EngineTrouble, sum_answer
from llamero.agent.engines.http import SCORE_SECONDS, TOKEN_SECONDS, HttpEngine, describe, spare_proxy
from llamero.spec.server import EngineType

_NO_SECRET = "none"
"""Sent as a token: without one the client would send the hub's own, which is no business of the engine's."""
_GONE = ("ConnectError", "ReadError", "WriteError", "RemoteProtocolError", "CloseError")
"""What the client's transport raises where nobody listens, or no longer."""


def _build_session() -> Any:
    """As the hub's client makes one, without the hook that refuses every request where HF_HUB_OFFLINE is set: the engine is no hub."""
    session = default_async_client_factory()
    session.event_hooks = {**session.event_hooks, "request": []}
    return session


set_async_client_factory(_build_session)


class TextGeneration(HttpEngine):
    """What TGI and llamero's own engine share: TGI's /generate, by Hugging Face's client."""

    progress_metrics = ("tgi_batch_inference_count", "tgi_request_generated_tokens_sum", "tgi_request_success")

    def __init__(self, url: str) -> None:
        super().__init__(url)
        spare_proxy(url)
        self._client = AsyncInferenceClient(model=f"{self.url}/generate", token=_NO_SECRET, timeout=SCORE_SECONDS)
        self._probe = AsyncInferenceClient(model=f"{self.url}/generate", token=_NO_SECRET, timeout=TOKEN_SECONDS)

    async def close(self) -> None:
        """Let connections go."""
        await self._client.close()
        await self._probe.close()
        await super().close()

    async def give_token(self) -> None:
        """One token of the base."""
        await self._generate(self._probe, "a", max_new_tokens=1)

    async def score(self, adapter: str | None, prompt: str, answer: str, answer_tokens: int) -> float:
        """See EngineClient."""
        told = await self._generate(
            self._client,
            prompt + answer,
            adapter_id=adapter,
            max_new_tokens=1,
            details=True,
            decoder_input_details=True,
        )
        prefill = told.details.prefill if told.details is not None else []
        log_probs = [token.logprob for token in prefill]
        if not any(value is not None for value in log_probs):
            raise EngineTrouble(
                f"{self.name} tells no log-probabilities of prompts: start it with ENABLE_PREFILL_LOGPROBS=true."
            )
        return sum_answer(log_probs, answer_tokens)

    async def generate(self, adapter: str | None, prompt: str, max_tokens: int) -> str:
        """See EngineClient."""
        told = await self._generate(
            self._client, prompt, adapter_id=adapter, max_new_tokens=max_tokens, details=True, do_sample=False
        )
        return str(told.generated_text)

    async def _generate(self, client: AsyncInferenceClient, prompt: str, **parameters: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return await client.text_generation(prompt, **parameters)
        except OverloadedError as error:
            raise EngineBusy(f"{self.name} has no room: {error}") from error
        except ValidationError as error:
            raise EngineRefusal(f"{self.name} does not take the request: {error}") from error
        except TextGenerationError as error:
            raise EngineTrouble(f"{self.name} failed: {error}") from error
        except HfHubHTTPError as error:
            raise self.explain(error.response.status_code, error.response.text, "/generate") from error
        except InferenceTimeoutError as error:
            raise EngineTrouble(f"{self.name} gave no answer within {client.timeout:.0f} seconds.") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EngineTrouble(
                f"{self.name} answers /generate in a form that is not TGI's: {describe(error)}."
            ) from error
        except Exception as error:  # the transport's own family, whose module differs between versions of the client
            gone = type(error).__name__ in _GONE
            raise EngineTrouble(f"{self.name} can't be reached at {self.url}: {describe(error)}.", gone=gone) from error


class TgiEngine(TextGeneration):
    """text-generation-inference."""

    kind: EngineType = "tgi"
    name = "TGI"
    loads_at_runtime = False

    async def loaded(self) -> None:
        """It does not tell: /info and /v1/models list the base alone."""
        return

    async def load(self, adapter: str, folder: Path) -> None:
        """Not at run time."""
        raise EngineTrouble(f"TGI takes adapters at its start only: {adapter} comes with the pod's next start.")

    async def unload(self, adapter: str) -> None:
        """Not at run time: it goes with the pod."""

    async def describe(self) -> EngineDescription:
        """By /info, where its version tells."""
        return read_description(await self.ask_json("GET", "/info"))


def read_description(info: dict[str, Any]) -> EngineDescription:
    """Precision by TGI's /info."""
    dtype, quantization = info.get("model_dtype"), info.get("quantization") or info.get("quantize")
    return EngineDescription(
        dtype=str(dtype).removeprefix("torch.") if dtype else None,
        quantization=str(quantization) if quantization else None,
    )
