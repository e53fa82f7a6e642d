"""The states of all random generators that a training step may draw from, as integer tensors and back: no pickle."""

import random

import numpy as np
import torch

_PYTHON_WORDS = 625


def capture_rng() -> dict[str, torch.Tensor]:
    """The states of torch (CPU and all CUDA devices), numpy and Python."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    if kind != "MT19937":
        raise RuntimeError(f"numpy's global generator is {kind}, which can't be kept in a checkpoint")
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.concatenate([np.asarray(keys, dtype=np.int64), [position, has_gauss]])),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_rng(states: dict[str, torch.Tensor]) -> None:
    """Set the generators to what `capture_rng` gave; a CUDA device that is not here is passed over."""
    torch.set_rng_state(states["torch"])
    python = [int(w) for w in states["python"]]
    gauss = states["python_gauss"].tolist()
    random.setstate((python[0], tuple(python[1 : 1 + _PYTHON_WORDS]), gauss[0] if gauss else None))
    numbers = states["numpy"].numpy()
    np.random.set_state(
        ("MT19937", numbers[:-2].astype(np.uint32), int(numbers[-2]), int(numbers[-1]), float(states["numpy_gauss"][0]))
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda:{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda:{index}"], index)
