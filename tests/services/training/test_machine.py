"""What is read off the machine, and what follows from it."""

from pathlib import Path

import pytest

from llamero.training.machine import available_memory_bytes, choose_bin_tokens, choose_device
from llamero.training.precision import has_bf16_instructions


@pytest.mark.parametrize(
    ("wanted", "device", "sequence_length", "parameters", "tokens"),
    [
        (512, "cpu", 1024, 5_000_000, 512),
        (512, "cuda", 1024, 5_000_000, 512),
        (None, "cuda", 1024, 5_000_000, 1024),
        (None, "cpu", 1024, 5_000_000, 4096),
        (None, "cpu", 8192, 5_000_000, 8192),
        (None, "cpu", 1024, 1_000_000_000, 1024),
        (None, "cpu", 512, 20_000_000, 1250),
    ],
)
def test_bins_are_filled_more_where_a_small_model_trains_on_a_cpu(
    wanted: int | None, device: str, sequence_length: int, parameters: int, tokens: int
) -> None:
    assert choose_bin_tokens(wanted, device, sequence_length, parameters) == tokens


def test_a_device_that_is_asked_for_is_taken() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda")


def test_free_memory_is_the_lesser_of_the_kernels_and_the_control_groups(tmp_path: Path) -> None:
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:       8000 kB\nMemAvailable:   6000 kB\n")
    cgroup.mkdir()
    assert available_memory_bytes(meminfo, cgroup) == 6000 * 1024
    (cgroup / "memory.current").write_text("1000000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert available_memory_bytes(meminfo, cgroup) == 6000 * 1024
    (cgroup / "memory.max").write_text("3000000\n")
    assert available_memory_bytes(meminfo, cgroup) == 2_000_000


def test_unknown_memory_is_none(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path / "nothing", tmp_path) == 0


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("Features\t: fp asimd", False),
    ],
)
def test_bf16_instructions_are_read_off_the_cpus_flags(tmp_path: Path, line: str, has: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n")
    assert has_bf16_instructions(cpuinfo) is has
    assert has_bf16_instructions(tmp_path / "absent") is False
