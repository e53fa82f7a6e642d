"""The benchmark's inputs: the base model and the tokenised examples that all sides get alike.

The model is the project's tiny base, a random one of its shape where that is absent, or a random Llama of about 1B parameters; the
text is Alpaca's where the real data is at hand, else the quickstart's.
"""

import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TINY_BASE = REPOSITORY / "examples" / "tiny-base"
QUICKSTART_ALPACA = REPOSITORY / "examples" / "data" / "alpaca.json"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINY_SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
# The shape of Llama 3.2 1B (1.24 billion parameters), whose large vocabulary is what costs memory in the loss.
BILLION_SHAPE: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Inputs:
    """What `prepare` made: folders and files, and words for the report. Lengths in tokens."""

    model: Path
    model_words: str
    data: Path
    data_words: str
    pad_token_id: int
    mean_tokens: float
    longest_tokens: int


def prepare(size: str, folder: Path, examples: int, sequence_length: int, seed: int) -> Inputs:
    """Model and data for one job. `size` is `tiny` or `1b`; every example is shorter than `sequence_length`."""
    from transformers import AutoTokenizer

    records, data_words = read_records()
    model, model_words = make_model(size, folder, [record["output"] for record in records[:20000]])
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = list(tokenise(tokenizer, shuffled(records, seed), sequence_length, examples))
    if not rows:
        raise SystemExit(f"No record of {data_words} is shorter than {sequence_length} tokens.")
    rows = [rows[index % len(rows)] for index in range(examples)]
    data = folder / f"examples-{sequence_length}-{examples}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lengths = [len(row["input_ids"]) for row in rows]
    return Inputs(
        model, model_words, data, data_words, tokenizer.pad_token_id, sum(lengths) / len(lengths), max(lengths)
    )


def read_records() -> tuple[list[dict[str, str]], str]:
    """Alpaca records with an instruction and an output, and where they are from."""
    real = Path(os.environ.get("LLAMERO_DATA", REPOSITORY.parent / "shared" / "data")) / "alpaca_data.json"
    path, words = (real, "Alpaca") if real.is_file() else (QUICKSTART_ALPACA, "the quickstart's Alpaca file")
    if not path.is_file():
        raise SystemExit(f"No text to train on: neither {real} (set LLAMERO_DATA) nor {path} is there.")
    rows = json.loads(path.read_text())
    return [row for row in rows if isinstance(row, dict) and row.get("instruction") and row.get("output")], words


def shuffled(records: list[dict[str, str]], seed: int) -> Iterator[dict[str, str]]:
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    return (records[index] for index in order)


def tokenise(
    tokenizer: Any, records: Iterable[dict[str, str]], sequence_length: int, limit: int
) -> Iterator[dict[str, list[int]]]:
    """Up to `limit` examples by the base's chat template; the mask is the template's own (assistant's content and stop token)."""
    made = 0
    for record in records:
        prompt = "\n\n".join(part for part in (record["instruction"], record.get("input", "")) if part)
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": record["output"]}],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        mask = encoded["assistant_masks"]
        if len(mask) >= sequence_length or not any(mask):
            continue
        yield {"input_ids": list(encoded["input_ids"]), "mask": list(mask)}
        made += 1
        if made == limit:
            return


def make_model(size: str, folder: Path, texts: list[str]) -> tuple[Path, str]:
    has_tiny_base = (TINY_BASE / "model.safetensors").is_file()
    if size == "tiny" and has_tiny_base:
        return TINY_BASE, "examples/tiny-base"
    target = folder / f"random-{size}"
    tokenizer_from = TINY_BASE if has_tiny_base else make_tokenizer(folder / "tokenizer", texts)
    shape = TINY_SHAPE if size == "tiny" else BILLION_SHAPE
    words = f"a random Llama ({'the tiny base’s shape' if size == 'tiny' else 'Llama 3.2 1B’s shape'})"
    if (target / "model.safetensors").is_file():
        return target, words
    make_random_llama(shape, tokenizer_from, target)
    return target, words


def make_tokenizer(folder: Path, texts: list[str]) -> Path:
    """A byte-level BPE of 2,048 pieces trained on the texts, with a ChatML template that marks what is trained."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_SHAPE["vocab_size"],
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    return folder


def make_random_llama(shape: dict[str, Any], tokenizer_from: Path, target: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
