"""The numpy Llama is transformers' Llama."""

from pathlib import Path

import numpy as np
from serving.fixtures import Tiny
from serving.makers import question, render

from standins.llama import Cache, Llama
from standins.text import Words
from standins.tgi_adapters import load_adapter


def reference(folder: Path, ids: list[int], adapter: Path | None = None) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()


def test_its_log_probabilities_are_those_of_transformers_read_at_once_or_token_by_token(tiny: Tiny) -> None:
    model, words = Llama.load(tiny.base), Words(tiny.base)
    ids = words.encode(render(question(3)))
    expected = reference(tiny.base, ids)
    np.testing.assert_allclose(model.forward(ids, Cache()), expected, atol=2e-4)
    cache = Cache()
    pieces = [model.forward(ids[:5], cache), *(model.forward([i], cache) for i in ids[5:])]
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=2e-4)


def test_a_grouped_bfloat16_llama_is_read_as_well(random_base: Path) -> None:
    model, words = Llama.load(random_base), Words(random_base)
    ids = words.encode(render("Hello there."))
    np.testing.assert_allclose(model.forward(ids, Cache()), reference(random_base, ids), atol=5e-3)


def test_an_adapter_of_plain_lora_is_the_one_that_peft_serves(tiny: Tiny) -> None:
    adapter = tiny.adapter("amber")
    model, words = load_adapter(Llama.load(tiny.base), "amber", adapter.folder), Words(tiny.base)
    ids = words.encode(render(question(4)))
    np.testing.assert_allclose(model.forward(ids, Cache()), reference(tiny.base, ids, adapter.folder), atol=2e-3)


def test_its_prompts_are_those_of_the_tokenizer_of_transformers(tiny: Tiny) -> None:
    from transformers import AutoTokenizer

    tokenizer, words = AutoTokenizer.from_pretrained(tiny.base), Words(tiny.base)
    messages = [{"role": "user", "content": question(5)}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert words.render(messages) == text == render(question(5))
    assert words.encode(text) == tokenizer(text)["input_ids"]
