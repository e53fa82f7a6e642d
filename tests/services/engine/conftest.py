"""Fixtures of the engine's tests: answers made alone by `generate()`, and one engine process that most tests share."""

import copy
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

Alone = Callable[[str | None, list[int], int], list[int]]


@pytest.fixture(scope="session")
def tokenizer(random_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(random_base)


@pytest.fixture(scope="session")
def alone(random_base: Path, adapters: dict[str, Path]) -> Alone:
    """Token ids that an adapter (None: the base) gives for prompt ids greedily, by itself, with transformers' own `generate()`."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(random_base, dtype=torch.float32).eval()
    models: dict[str | None, Any] = {None: base}

    def generate(adapter: str | None, prompt_ids: list[int], count: int) -> list[int]:
        if adapter not in models:
            models[adapter] = PeftModel.from_pretrained(copy.deepcopy(base), adapters[str(adapter)]).eval()
        ids = torch.tensor([prompt_ids])
        with torch.inference_mode():
            out = models[adapter].generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
            )
        return out[0, len(prompt_ids) :].tolist()  # type: ignore[no-any-return]

    return generate


@pytest.fixture(scope="session")
def engine(launch_engine: Any) -> Any:
    """An engine process with all adapters."""
    return launch_engine()


@pytest.fixture
async def client(engine: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client of the shared engine."""
    async with aiohttp.ClientSession(base_url=engine.url) as session:
        yield session
