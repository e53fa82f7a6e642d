"""Packed linear layers give the plain ones' numbers, and are plain again where they are copied or changed."""

import copy

import pytest
import torch

from llamero.engine.packing import PackedLinear, pack_linears
from llamero.engine.settings import PACKED_PARAMETERS, choose_packing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_give_the_same_numbers_for_any_number_of_rows(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 160, bias=bias), torch.nn.Linear(160, 32, bias=bias)).to(dtype)
    plain = copy.deepcopy(model)
    assert pack_linears(model) == 2
    assert all(isinstance(layer, PackedLinear) for layer in model)
    with torch.inference_mode():
        for shape in ((1, 96), (1, 1, 96), (16, 1, 96), (3, 50, 96)):
            x = torch.randn(shape).to(dtype)
            tolerance = 1e-4 if dtype == torch.float32 else 0.05
            torch.testing.assert_close(model(x), plain(x), atol=tolerance, rtol=tolerance)


def test_a_copy_is_plain_and_goes_by_its_own_weights() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    assert pack_linears(model) == 1
    copied = copy.deepcopy(model[0])
    assert type(copied) is torch.nn.Linear
    with torch.inference_mode():
        copied.weight.zero_()
        assert bool((copied(torch.ones(4, 8)) == copied.bias).all())
        assert not bool((model[0](torch.ones(4, 8)) == model[0].bias).all())


def test_weights_that_are_replaced_are_used() -> None:
    layer = torch.nn.Linear(8, 8, bias=False)
    pack_linears(torch.nn.Sequential(layer))
    layer.weight = torch.nn.Parameter(torch.zeros(8, 8))
    with torch.inference_mode():
        assert not layer(torch.ones(4, 8)).any()


def test_large_bases_are_packed_only_where_asked_for() -> None:
    assert choose_packing(PACKED_PARAMETERS, "auto") and not choose_packing(PACKED_PARAMETERS + 1, "auto")
    assert choose_packing(PACKED_PARAMETERS + 1, "always") and not choose_packing(1, "never")
