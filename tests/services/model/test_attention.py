from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen3Config

from llamero.model import attention
from llamero.model.attention import NAME, Documents, SelfTestError, attend_documents, forward_kwargs, run_self_test
from llamero.model.batches import lay_out

VOCABULARY = 384
# float32 sums in another order: logits of this model are of size 10, so this is a relative 1e-6.
LOGITS = 1e-5


def draw_documents(*lengths: int, seed: int = 0) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, n) for n in lengths]


@torch.no_grad()
def packed_logits(model: Any, documents: list[NDArray[np.int64]]) -> list[torch.Tensor]:
    batch = lay_out([(d, np.ones(len(d))) for d in documents])
    logits = model(input_ids=batch.input_ids, **forward_kwargs(batch)).logits[0]
    return list(logits.split([len(d) for d in documents]))


@torch.no_grad()
def single_logits(model: Any, document: NDArray[np.int64]) -> torch.Tensor:
    return model(input_ids=torch.from_numpy(document)[None], use_cache=False).logits[0]


def test_packed_logits_equal_those_of_transformers_own_attention(packed_model: Any, plain_model: Any) -> None:
    documents = draw_documents(40, 1, 7, 100, 7)
    for packed, document in zip(packed_logits(packed_model, documents), documents, strict=True):
        torch.testing.assert_close(packed, single_logits(plain_model, document), atol=LOGITS, rtol=0)


def test_a_document_never_sees_another(packed_model: Any) -> None:
    documents = draw_documents(12, 30, 9, 21)
    before = packed_logits(packed_model, documents)
    for changed in range(len(documents)):
        others = list(documents)
        others[changed] = draw_documents(len(documents[changed]), seed=changed + 7)[0]
        after = packed_logits(packed_model, others)
        for i in range(len(documents)):
            if i == changed:
                assert not torch.equal(before[i], after[i])
            else:
                assert torch.equal(before[i], after[i])


def test_transformers_own_attention_leaks_where_ours_does_not(packed_model: Any, plain_model: Any) -> None:
    """What the self-test guards against: a mask beside packed data, and documents leak without an error."""
    documents = draw_documents(12, 30)
    batch = lay_out([(d, np.ones(len(d))) for d in documents])
    with torch.no_grad():
        leaky = plain_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=torch.ones_like(batch.input_ids),
        ).logits[0, 12:]
    assert float((leaky - single_logits(plain_model, documents[1])).abs().max()) > 0.1


def test_documents_are_found_from_positions_where_no_bounds_are_given(packed_model: Any) -> None:
    documents = draw_documents(12, 30, 5)
    batch = lay_out([(d, np.ones(len(d))) for d in documents])
    with torch.no_grad():
        logits = packed_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]
    assert torch.equal(logits, torch.cat(packed_logits(packed_model, documents)))


def test_the_self_test_passes_on_a_good_model_in_each_dtype(packed_model: Any) -> None:
    assert run_self_test(packed_model, "cpu") < 1e-5
    assert packed_model.training
    assert run_self_test(packed_model.to(torch.bfloat16), "cpu") < attention.TOLERANCE[torch.bfloat16]


def test_the_self_test_refuses_attention_that_leaks(packed_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents, *rest: Any
    ) -> torch.Tensor:
        whole = Documents(documents.starts, (query.shape[2],))
        return attention._attend_sdpa(query, key, value, whole, *rest)

    monkeypatch.setitem(attention.KERNELS, "sdpa", leak)
    with pytest.raises(SelfTestError, match="leak into each other"):
        run_self_test(packed_model, "cpu")


@pytest.mark.parametrize(
    "forward",
    [
        {"use_cache": True, "rows": 2},
        {"use_cache": False, "rows": 2},
    ],
)
def test_several_rows_are_refused(packed_model: Any, forward: dict[str, Any]) -> None:
    ids = torch.zeros(forward.pop("rows"), 4, dtype=torch.long)
    with pytest.raises(SelfTestError, match="one packed row"):
        packed_model(input_ids=ids, **forward)


def test_a_cache_is_refused_at_its_first_further_token(packed_model: Any) -> None:
    out = packed_model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True)
    with pytest.raises(SelfTestError, match="without cache"):
        packed_model(input_ids=torch.tensor([[4]]), past_key_values=out.past_key_values, use_cache=True)


def build_model(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=NAME).eval()


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def test_a_sliding_window_is_kept_inside_each_document() -> None:
    model = build_model(MistralConfig(**SMALL, sliding_window=8))
    documents = draw_documents(40, 5, 23)
    packed = packed_logits(model, documents)
    model.set_attn_implementation("eager")
    for logits, document in zip(packed, documents, strict=True):
        torch.testing.assert_close(logits, single_logits(model, document), atol=LOGITS, rtol=0)


def test_other_architectures_pack_too() -> None:
    assert run_self_test(build_model(Qwen3Config(**SMALL)), "cpu") < 1e-5


def test_attention_that_alters_its_scores_is_refused() -> None:
    model = build_model(Gemma2Config(**SMALL))
    with pytest.raises(SelfTestError, match="softcap"):
        run_self_test(model, "cpu")


@pytest.mark.parametrize("window", [None, 8])
def test_flex_attention_gives_what_plain_attention_gives(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block mask that CUDA uses, run uncompiled on a CPU; forward only, since flex has no CPU backward."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "_flex_attention", lambda: flex_attention)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 60, 16, generator=generator) for heads in (4, 2, 2))
    documents = Documents(torch.tensor([0, 20, 27, 60], dtype=torch.int32), (20, 7, 33))
    flex = attention.KERNELS["flex"](query, key, value, documents, 0.0, 0.3, window)
    plain = attention.KERNELS["sdpa"](query, key, value, documents, 0.0, 0.3, window)
    torch.testing.assert_close(flex, plain, atol=1e-6, rtol=0)


def test_kernels_are_chosen_by_device_dtype_and_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_unusable", {"flash-attn"})
    assert attention.choose_kernel("cpu", torch.bfloat16, 64) == "sdpa"
    assert attention.choose_kernel("cuda", torch.bfloat16, 64) == "varlen"
    assert attention.choose_kernel("cuda", torch.bfloat16, 64, dropout=0.1) == "sdpa"
    assert attention.choose_kernel("cuda", torch.float32, 64) == "flex"
    assert attention.choose_kernel("cuda", torch.bfloat16, 512) == "flex"
    monkeypatch.setattr(attention, "_unusable", {"flash-attn", "varlen", "flex"})
    assert attention.choose_kernel("cuda", torch.bfloat16, 64) == "sdpa"


def test_packed_training_and_generation_live_on_one_model(
    packed_model: Any, plain_model: Any, random_base: Path
) -> None:
    ids = torch.from_numpy(draw_documents(9)[0])[None]
    packed_model.eval().set_attn_implementation("sdpa")
    packed_model.config.use_cache = True
    wanted = plain_model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(packed_model.generate(ids, max_new_tokens=8, do_sample=False), wanted)


def test_gradients_of_attention_are_those_of_the_documents_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (3, 17, 8)
    documents = Documents(torch.tensor([0, 3, 20, 28], dtype=torch.int32), lengths)
    module = torch.nn.Module()
    tensors = [torch.randn(1, h, 28, 8, generator=generator, dtype=torch.float64) for h in (4, 2, 2)]

    def attend(*parts: torch.Tensor, only: Documents) -> torch.Tensor:
        return attend_documents(module, *parts, None, documents=only)[0]

    leaves = [t.clone().requires_grad_() for t in tensors]
    attend(*leaves, only=documents).square().sum().backward()
    for place, (start, length) in enumerate(zip((0, 3, 20), lengths, strict=True)):
        alone = [t[:, :, start : start + length].clone().requires_grad_() for t in tensors]
        bounds = Documents(torch.tensor([0, length], dtype=torch.int32), (length,))
        attend(*alone, only=bounds).square().sum().backward()
        for whole, part in zip(leaves, alone, strict=True):
            assert whole.grad is not None
            torch.testing.assert_close(
                whole.grad[:, :, start : start + length], part.grad, atol=1e-5, rtol=1e-5, msg=f"document {place}"
            )
