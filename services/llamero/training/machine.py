"""What this machine offers a training: device, threads, memory, and from them how much goes through the model at once."""

import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

CPU_BIN_FLOPS = 1e11
"""Work of one forward and backward pass that a CPU bin is sized for: about a second, so that SIGTERM never waits long."""
CPU_BIN_TOKENS = 4096
"""Tokens above which a fuller bin no longer pays on a CPU."""
DEQUANTIZED_SHARE = 0.25
"""Share of the free memory that dequantised copies of frozen weights may take."""
ONE_THREAD_PARAMETERS = 30_000_000
"""Below so many parameters one thread was the faster (6 million, 2 cores, one of them busy: 3,300 tokens/s against 2,300 to 2,700)."""
FLOPS_PER_TOKEN_AND_PARAMETER = 4
"""Forward 2 and backward to the activations 2; frozen weights need no gradient."""


def choose_device(wanted: str) -> str:
    """`cpu` or `cuda`; auto takes CUDA where there is one."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def count_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Free memory: what the kernel calls available, or what the control group leaves, whichever is less; 0 if unknown."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        return 0
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            found.append(max(0, int(limit) - int((cgroup / "memory.current").read_text())))
    except (OSError, ValueError):
        pass
    return min(found)


def choose_bin_tokens(wanted: int | None, device: str, sequence_length: int, parameters: int) -> int:
    """Tokens of one forward pass. The result of a step does not depend on it, only its speed and memory.

    On CUDA a bin holds `sequence_length` tokens. On a CPU small models gain from fuller bins, whose fixed costs are shared by
    more tokens, up to `CPU_BIN_TOKENS`; for a large model a bin of `sequence_length` is work enough.
    """
    if wanted is not None:
        return wanted
    if device != "cpu":
        return sequence_length
    affordable = int(CPU_BIN_FLOPS / (FLOPS_PER_TOKEN_AND_PARAMETER * max(parameters, 1)))
    return max(sequence_length, min(CPU_BIN_TOKENS, affordable))


def choose_threads(wanted: int | None, parameters: int) -> int:
    """torch threads for a CPU training: one where the model is too small for several to gain by sharing a product."""
    if wanted is not None:
        return wanted
    return 1 if parameters < ONE_THREAD_PARAMETERS else count_cores()


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one: fetching large blocks from the kernel each time costs a CPU training 5-8%."""
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):
        return  # another C library, which has ways of its own


def peak_memory_bytes(device: str) -> int:
    """The most memory that was held: CUDA's by torch's allocator, or this process's resident set."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
