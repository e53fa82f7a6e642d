from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig

from llamero.model.adapters import attach_adapter, trainable_parameters
from llamero.model.attention import NAME
from llamero.model.batches import lay_out
from llamero.model.loss import sum_response_loss, token_log_probs
from llamero.spec.job import LoraSpec

Example = tuple[NDArray[np.int64], NDArray[np.int64]]

# float32: the loss is a sum of some 100 terms of size 10; gradients are compared relative to the largest of their matrix.
RELATIVE = 1e-5


def draw_examples(*lengths: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 384, n), (np.arange(n) >= n // 2).astype(np.int64)) for n in lengths]


def padded_loss(model: Any, examples: list[Example]) -> torch.Tensor:
    """What a padded trainer computes: right padding, an attention mask, labels -100 outside the answers."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    seen = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (tokens, mask) in enumerate(examples):
        n = len(tokens)
        ids[row, :n] = torch.from_numpy(tokens)
        seen[row, :n] = 1
        labels[row, :n] = torch.from_numpy(np.where(mask == 1, tokens, -100))
    labels[:, 0] = -100
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


def with_adapter(model: Any) -> Any:
    torch.manual_seed(1)
    peft = attach_adapter(model, LoraSpec(rank=4, alpha=8), method="lora")
    for parameter in trainable_parameters(peft).values():  # B is zero at first, which would hide A's gradient
        torch.nn.init.normal_(parameter, std=0.05)
    return peft


@pytest.mark.parametrize("chunk_tokens", [None, 7])
def test_packed_loss_and_gradients_equal_padded_ones(
    packed_model: Any, plain_model: Any, chunk_tokens: int | None
) -> None:
    examples = draw_examples(40, 2, 13, 64, 13)
    packed, padded = with_adapter(packed_model), with_adapter(plain_model)
    loss, count = sum_response_loss(packed, lay_out(examples), chunk_tokens)
    loss.backward()
    reference = padded_loss(padded, examples)
    reference.backward()
    assert count == sum(int(mask[1:].sum()) for _, mask in examples)
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)
    wanted = trainable_parameters(padded)
    for name, parameter in trainable_parameters(packed).items():
        assert parameter.grad is not None
        difference = (parameter.grad - wanted[name].grad).abs().max() / wanted[name].grad.abs().max()  # type: ignore[union-attr]
        assert float(difference) < RELATIVE, name


def test_a_step_cut_into_several_rows_sums_to_the_same(packed_model: Any) -> None:
    examples = draw_examples(20, 30, 11, 5)
    model = with_adapter(packed_model)
    whole, count = sum_response_loss(model, lay_out(examples))
    parts = [sum_response_loss(model, lay_out([e])) for e in examples]
    torch.testing.assert_close(torch.stack([p[0] for p in parts]).sum(), whole, rtol=1e-6, atol=0)
    assert sum(p[1] for p in parts) == count


def test_log_probabilities_sum_to_the_loss_and_belong_to_their_documents(packed_model: Any) -> None:
    examples = draw_examples(20, 30, 11)
    batch = lay_out(examples)
    log_probs = token_log_probs(packed_model, batch)
    loss, count = sum_response_loss(packed_model, batch)
    assert log_probs.dtype == torch.float32
    assert log_probs.shape == (count,)
    torch.testing.assert_close(-log_probs.sum(), loss.detach(), rtol=1e-6, atol=0)
    for document, example in enumerate(examples):
        alone = token_log_probs(packed_model, lay_out([example]))
        torch.testing.assert_close(log_probs[batch.target_documents == document], alone, rtol=0, atol=2e-5)


def test_chunks_change_nothing(packed_model: Any) -> None:
    batch = lay_out(draw_examples(50, 31))
    whole = token_log_probs(packed_model, batch)
    assert torch.equal(token_log_probs(packed_model, batch, chunk_tokens=1000), whole)
    torch.testing.assert_close(token_log_probs(packed_model, batch, chunk_tokens=3), whole, rtol=0, atol=1e-5)


def test_a_row_without_targets_has_no_loss(packed_model: Any) -> None:
    batch = lay_out([(np.array([1, 2, 3]), np.zeros(3))])
    loss, count = sum_response_loss(packed_model, batch)
    assert (float(loss), count) == (0.0, 0)
    assert token_log_probs(packed_model, batch).shape == (0,)


SMALL = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "config", [CohereConfig(**SMALL, logit_scale=0.25), GraniteConfig(**SMALL, logits_scaling=4.0)]
)
def test_what_a_model_does_to_its_logits_is_done_in_the_loss(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME).eval()
    examples = draw_examples(20)
    loss, _ = sum_response_loss(model, lay_out(examples))
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(loss, padded_loss(model, examples), rtol=1e-5, atol=0)


def test_gradient_checkpointing_keeps_documents_apart(packed_model: Any) -> None:
    examples = draw_examples(20, 30, 11)
    model = with_adapter(packed_model)
    loss, _ = sum_response_loss(model, lay_out(examples))
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in trainable_parameters(model).items() if p.grad is not None}
    model.zero_grad()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    again, _ = sum_response_loss(model, lay_out(examples))
    again.backward()
    assert torch.equal(again, loss)
    for name, parameter in trainable_parameters(model).items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted[name])
