"""Which precision a device computes in, and the proof that what is trained stays in fp32.

Frozen weights are NF4 or bf16; adapters and moments are fp32 always: with bf16 adapters and a usual learning rate, a step
is often smaller than the weight's last digit, so that a good part of the weights never moves.
"""

from pathlib import Path

import torch

# What Linux calls the instructions that make bf16 products faster than fp32 ones: x86 (AVX-512, AMX) and ARM.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def has_bf16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bf16 in hardware; without, bf16 products are emulated and slower than fp32."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return bool(lines) and bool(_BF16_FLAGS & set(lines[0].split()))


def choose_compute_dtype(device: str) -> torch.dtype:
    """bf16 on CUDA and on CPUs with bf16 instructions, fp32 elsewhere."""
    if device.startswith("cuda"):
        return torch.bfloat16
    return torch.bfloat16 if has_bf16_instructions() else torch.float32


def check_dtypes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise TypeError where a trained parameter, or a moment of one, is not in the precision that it must have.

    bitsandbytes' 8-bit moments are uint8 with fp32 scales by design; every other moment must be fp32.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise TypeError(f"{name} is trained in {parameter.dtype}, where fp32 is needed")
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not torch.is_tensor(value) or value.dtype in (torch.float32, torch.uint8):
                continue
            raise TypeError(f"the moment {key} of a parameter {tuple(parameter.shape)} is in {value.dtype}")
