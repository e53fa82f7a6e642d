"""llamero's own engine at run time: TGI's surface for requests, vLLM's for adapters; an unknown adapter is 404."""

from pathlib import Path

from llamero.agent.engines.base import EngineDescription, EngineRefusal, EngineTrouble
from llamero.agent.engines.http import LOAD_SECONDS
from llamero.agent.engines.tgi import TextGeneration, read_description
from llamero.agent.engines.vllm import read_loaded
from llamero.spec.server import EngineType


class CpuEngine(TextGeneration):
    """The built-in CPU engine."""

    kind: EngineType = "cpu"
    name = "the engine"
    loads_at_runtime = True

    async def loaded(self) -> frozenset[str]:
        """By /v1/models."""
        return read_loaded(await self.ask_json("GET", "/v1/models"))

    async def load(self, adapter: str, folder: Path) -> None:
        """See EngineClient."""
        body = {"lora_name": adapter, "lora_path": str(folder)}
        try:
            await self.ask("POST", "/v1/load_lora_adapter", body, LOAD_SECONDS)
        except EngineRefusal as refusal:
            if adapter in await self.loaded():
                return
            if "is loaded already" in str(refusal):  # another request of ours is at it
                raise EngineTrouble(str(refusal)) from refusal
            raise
        if adapter not in await self.loaded():
            raise EngineTrouble(f"The engine took {adapter} in and does not list it.")

    async def unload(self, adapter: str) -> None:
        """See EngineClient."""
        try:
            await self.ask("POST", "/v1/unload_lora_adapter", {"lora_name": adapter}, LOAD_SECONDS)
        except (EngineTrouble, EngineRefusal):
            if adapter in await self.loaded():
                raise

    async def describe(self) -> EngineDescription:
        """By /info."""
        return read_description(await self.ask_json("GET", "/info"))
