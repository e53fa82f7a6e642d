"""The fused linear layers compute what PEFT's and bitsandbytes' own do."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llamero.model.adapters import attach_adapter
from llamero.model.loading import load_base
from llamero.spec.job import LoraSpec
from llamero.training.linear import Fusion, fuse_adapters, unfuse_adapters

ROOM = 1 << 30
IDS = torch.randint(0, 380, (1, 50), generator=torch.Generator().manual_seed(3))


def load_model(folder: Path, method: Any, dtype: torch.dtype, **lora: Any) -> Any:
    quantization = "nf4" if method == "qlora" else None
    base = load_base(folder, quantization=quantization, device="cpu", training=True, dtype=dtype)
    torch.manual_seed(0)
    model = attach_adapter(base, LoraSpec(rank=4, alpha=16, **lora), method=method)
    # B starts as zero, which would hide A's part in everything.
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def compute_gradients(model: Any, autocast: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=IDS, position_ids=torch.arange(50)[None], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[0, :-1].float(), IDS[0, 1:]).backward()
    return logits.detach().float(), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).norm() / theirs[k].norm()) for k in ours)


@pytest.mark.parametrize("method", ["qlora", "lora"])
@pytest.mark.parametrize("lora", [{}, {"dropout": 0.3}, {"rslora": True}], ids=["plain", "dropout", "rslora"])
def test_fused_logits_and_gradients_equal_pefts_in_fp32_to_a_millionth(
    random_base: Path, method: str, lora: dict[str, Any]
) -> None:
    model = load_model(random_base, method, torch.float32, **lora)
    logits, gradients = compute_gradients(model)
    fusion = fuse_adapters(model, torch.float32, ROOM)
    assert fusion.fused == fusion.layers == 14
    fused_logits, fused_gradients = compute_gradients(model)
    assert float((fused_logits - logits).abs().max() / logits.abs().max()) < 1e-6
    assert largest_difference(fused_gradients, gradients) < 5e-6


def test_fused_bf16_lies_as_near_to_fp32_as_pefts_own(random_base: Path) -> None:
    exact = load_model(random_base, "qlora", torch.float32)
    truth, true_gradients = compute_gradients(exact)
    model = load_model(random_base, "qlora", torch.bfloat16)
    logits, gradients = compute_gradients(model, autocast=True)
    fuse_adapters(model, torch.bfloat16, ROOM)
    fused_logits, fused_gradients = compute_gradients(model, autocast=True)
    assert (fused_logits - truth).norm() < 1.1 * (logits - truth).norm()
    assert largest_difference(fused_gradients, true_gradients) < 1.2 * largest_difference(gradients, true_gradients)


def test_weights_kept_dequantized_give_the_very_numbers_of_dequantizing_each_time(random_base: Path) -> None:
    model = load_model(random_base, "qlora", torch.bfloat16)
    each_time = fuse_adapters(model, torch.bfloat16, dequantized_bytes_limit=0)
    assert (each_time.dequantized, each_time.dequantized_bytes) == (0, 0)
    logits, gradients = compute_gradients(model, autocast=True)
    kept = fuse_adapters(model, torch.bfloat16, ROOM)
    parameters = sum(m.in_features * m.out_features for m in model.modules() if hasattr(m, "lora_A"))
    assert kept == Fusion(layers=14, fused=14, dequantized=14, dequantized_bytes=2 * parameters)
    kept_logits, kept_gradients = compute_gradients(model, autocast=True)
    assert torch.equal(logits, kept_logits)
    assert all(torch.equal(gradients[k], kept_gradients[k]) for k in gradients)


def test_layers_that_need_more_than_plain_lora_keep_pefts_way(random_base: Path) -> None:
    model = load_model(random_base, "lora", torch.float32, use_dora=True)
    logits, gradients = compute_gradients(model)
    fusion = fuse_adapters(model, torch.float32, ROOM)
    assert (fusion.layers, fusion.fused) == (14, 0)
    again, gradients_again = compute_gradients(model)
    assert torch.equal(logits, again) and largest_difference(gradients_again, gradients) == 0.0


def test_unfused_layers_are_pefts_again(random_base: Path) -> None:
    model = load_model(random_base, "qlora", torch.bfloat16)
    logits, _ = compute_gradients(model, autocast=True)
    fuse_adapters(model, torch.bfloat16, ROOM)
    unfuse_adapters(model)
    assert not any("forward" in vars(m) for m in model.modules())
    again, _ = compute_gradients(model, autocast=True)
    assert torch.equal(logits, again)


def test_gradients_through_frozen_nf4_weights_equal_those_of_the_dequantized_base(random_base: Path) -> None:
    """Also after an evaluation pass, which makes bitsandbytes repack weights on some CPUs and lose input gradients."""
    model = load_model(random_base, "qlora", torch.bfloat16)
    model.eval()
    with torch.no_grad():
        model(input_ids=IDS, position_ids=torch.arange(50)[None], use_cache=False)
    model.train()
    exact = load_model(random_base, "qlora", torch.float32)
    _, truth = compute_gradients(exact)
    fuse_adapters(model, torch.bfloat16, ROOM)
    _, gradients = compute_gradients(model, autocast=True)
    assert largest_difference(gradients, truth) < 0.1
