"""A tokenizer and small models in float32 that several files of these tests share."""

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tokenizer(random_base: Path) -> Any:
    """The random base's tokenizer with its own ChatML template; a fresh one each time, since tests change templates."""
    from llamero.model.loading import load_tokenizer

    return load_tokenizer(random_base)


@pytest.fixture
def packed_model(random_base: Path) -> Any:
    """The random base in float32 with per-document attention; its heads share keys (GQA)."""
    from llamero.model.loading import load_base

    return load_base(random_base, quantization=None, device="cpu", training=True, dtype=torch.float32)


@pytest.fixture
def plain_model(random_base: Path) -> Any:
    """The same numbers with transformers' own attention."""
    from llamero.model.loading import load_base

    return load_base(random_base, quantization=None, device="cpu", training=False, dtype=torch.float32)
