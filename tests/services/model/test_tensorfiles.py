"""Values that are no numbers are found by their bits, whatever the type, as torch finds them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llamero.model import tensorfiles
from llamero.model.tensorfiles import find_unnumbered, read_shapes

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", TYPES)
def test_infinities_and_nan_are_told_from_the_largest_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    largest = torch.finfo(dtype).max
    path = tmp_path / "a.safetensors"
    fine = torch.tensor([0.0, -0.0, 1.5, largest, -largest, torch.finfo(dtype).tiny], dtype=torch.float64).to(dtype)
    nan = torch.tensor([[0.0, float("nan")]]).to(dtype)
    tensors = {"fine": fine, "nan": nan, "empty": torch.zeros(0, 3).to(dtype), "whole": torch.tensor([2**31 - 1, -1])}
    if dtype is not torch.float8_e4m3fn:  # it has none
        tensors["inf"] = torch.tensor([float("inf")]).to(dtype)
        tensors["minus"] = torch.tensor([float("-inf")]).to(dtype)
    save_file(tensors, path)
    assert sorted(find_unnumbered(path)) == sorted(set(tensors) & {"nan", "inf", "minus"})
    assert read_shapes(path) == {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@settings(max_examples=100, deadline=None)
@given(bits=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=64))
def test_any_bits_of_the_short_types_are_judged_as_torch_judges_them(
    bits: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("bits") / "a.safetensors"
    raw = torch.tensor(bits, dtype=torch.int16)
    tensors = {str(t): raw.view(t).clone() for t in (torch.float16, torch.bfloat16)}
    save_file(tensors, path)
    assert set(find_unnumbered(path)) == {k for k, v in tensors.items() if not bool(v.isfinite().all())}


def test_a_tensor_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfiles, "BLOCK_BYTES", 16)
    path = tmp_path / "a.safetensors"
    values = torch.zeros(3, 11)
    save_file({"a": values, "b": torch.full((9,), 2.0)}, path)
    assert find_unnumbered(path) == []
    values[2, 10] = float("nan")
    save_file({"a": values, "b": torch.full((9,), 2.0)}, path)
    assert find_unnumbered(path) == ["a"]
