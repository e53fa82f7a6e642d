"""What is asked of whom: bases, adapters and prompts, made from seeds and kept in the cache folder.

`tiny` is examples/tiny-base; `larger` a random Llama of about 100 million parameters with the tiny base's tokenizer. Adapters are random
LoRA on all linear layers, large enough that each answers in its own way.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TINY_BASE = REPOSITORY / "examples" / "tiny-base"
QUESTIONS = REPOSITORY / "examples" / "data" / "alpaca.json"
ADAPTERS = 8
RANK = 16
INPUTS_VERSION = 3
"""Raised when the same names would hold other weights."""


@dataclass(frozen=True)
class Scale:
    """How much is asked of a base: `alone` requests of the peer a round, `asked` of the engine, answers of up to `tokens` tokens."""

    name: str
    prompts: int
    asked: int
    alone: int
    tokens: int


@dataclass(frozen=True)
class Inputs:
    """Folders of a base and its adapters, and the prompts as rendered text."""

    base: Path
    adapters: tuple[tuple[str, Path], ...]
    prompts: tuple[str, ...]
    parameters: int
    adapter_bytes: int


def prepare(name: str, folder: Path, prompts: int) -> Inputs:
    """Make what is missing and describe all of it."""
    base = _BASES[name](folder)
    adapters = tuple((f"adapter-{n}", _make_adapter(base, folder / f"{name}-adapter-{n}", n)) for n in range(ADAPTERS))
    size = sum(p.stat().st_size for p in adapters[0][1].glob("*.safetensors"))
    return Inputs(base, adapters, _render_prompts(prompts), _count_parameters(base), size)


def _tiny(folder: Path) -> Path:
    return TINY_BASE


def _larger(folder: Path) -> Path:
    """A random Llama of 16 layers of width 768."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    def make(target: Path) -> None:
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=16,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)

    return _made(folder / "larger-base", make)


_BASES: dict[str, Callable[[Path], Path]] = {"tiny": _tiny, "larger": _larger}


def _make_adapter(base: Path, folder: Path, seed: int) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

    def make(target: Path) -> None:
        torch.manual_seed(1000 + seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=modules, task_type="CAUSAL_LM")
        peft = get_peft_model(model, config)
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        peft.save_pretrained(target)

    return _made(folder, make)


def _made(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made whole or not at all."""
    marker = folder / "made.json"
    if marker.is_file() and json.loads(marker.read_text()) == INPUTS_VERSION:
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    make(partial)
    (partial / "made.json").write_text(json.dumps(INPUTS_VERSION))
    partial.rename(folder)
    return folder


def _render_prompts(count: int) -> tuple[str, ...]:
    """Questions of the quickstart's data, by the base's chat template."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(TINY_BASE)
    rows = json.loads(QUESTIONS.read_text())
    texts = [row.get("instruction") for row in rows if isinstance(row, dict)]  # some rows are broken on purpose
    asked = list(dict.fromkeys(text for text in texts if isinstance(text, str) and text.endswith("?")))[:count]
    if len(asked) < count:
        raise SystemExit(f"{QUESTIONS} has {len(asked)} questions, {count} are needed.")
    turns = [[{"role": "user", "content": text}] for text in asked]
    return tuple(tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns)


def _count_parameters(base: Path) -> int:
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in base.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            total += sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118 - no mapping
    return total
