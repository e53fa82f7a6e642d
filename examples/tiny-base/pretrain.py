"""Make the project's tiny base model: tokenizer, batches, pretraining and checkpoint, read top to bottom.

It knows how a tiny Llama is trained from nothing; its text comes from `python_corpus.py`, and fine-tuning, adapters
and serving are left to llamero. Everything is seeded: the same Python and library versions give the same corpus, the
same tokenizer and, up to the order of floating-point sums, the same weights.

    python examples/tiny-base/pretrain.py --output examples/tiny-base           # train
    python examples/tiny-base/pretrain.py --output examples/tiny-base --check   # measure what is there
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from python_corpus import (
    Entry,
    Message,
    build_conversations,
    build_texts,
    collect_entries,
    digest_entries,
    split_entries,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# ---------------------------------------------------------------------------------------------------------------
# 1. Tokenizer: byte-level BPE with ChatML turns

END_OF_TEXT, TURN_START, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
VOCABULARY_SIZE = 2048
MAX_POSITIONS = 2048
# Words keep one leading space or sign, digits stand alone, line ends and indentation are pieces of their own.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The generation block holds the content and the stop token: what an assistant must learn to write, and no more.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tokenizer(entries: Sequence[Entry], seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of VOCABULARY_SIZE pieces: any text comes back from its tokens unchanged."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    conversations = build_conversations(entries, random.Random(seed))
    chat_lines = [f"{turn['role']}\n{turn['content']}" for turns in conversations for turn in turns]
    backend.train_from_iterator([*build_texts(entries), *chat_lines], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


# ---------------------------------------------------------------------------------------------------------------
# 2. Batches: whole documents, packed, each with positions from zero

Document = list[int]
IGNORED = -100


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], longest: int) -> list[Document]:
    """Documents of at most `longest` tokens; a longer text goes on in a next document."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    documents = [[*tokens, end] for tokens in encoded]
    return [d[at : at + longest] for d in documents for at in range(0, len(d), longest)]


def encode_conversations(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[list[Message]], longest: int
) -> list[Document]:
    rendered = tokenizer.apply_chat_template(list(conversations), tokenize=False)
    return encode_texts(tokenizer, rendered, longest)


def pack_documents(documents: Sequence[Document], block: int) -> list[list[Document]]:
    """First-fit into blocks of `block` tokens, looking back over the last 64 open ones."""
    bins: list[list[Document]] = []
    room: list[int] = []
    for document in documents:
        recent = range(max(0, len(bins) - 64), len(bins))
        index = next((i for i in recent if room[i] >= len(document)), None)
        if index is None:
            bins.append([])
            room.append(block)
            index = len(bins) - 1
        bins[index].append(document)
        room[index] -= len(document)
    return bins


def build_batch(bins: Sequence[Sequence[Document]], block: int, pad: int) -> dict[str, torch.Tensor]:
    """`input_ids`, `labels` and `position_ids`, each of shape (bins, block).

    Positions that start again at zero are how transformers sees where a document ends (with no attention mask and
    no cache), so that no document reads another; a document's first token is predicted from nothing and is ignored.
    """
    shape = (len(bins), block)
    input_ids = torch.full(shape, pad)
    labels = torch.full(shape, IGNORED)
    position_ids = torch.zeros(shape, dtype=torch.long)
    for row, documents in enumerate(bins):
        at = 0
        for document in documents:
            tokens = torch.tensor(document)
            span = slice(at, at + len(document))
            input_ids[row, span] = tokens
            labels[row, at + 1 : at + len(document)] = tokens[1:]
            position_ids[row, span] = torch.arange(len(document))
            at += len(document)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}


# ---------------------------------------------------------------------------------------------------------------
# 3. Model and training


@dataclass(frozen=True)
class Recipe:
    """What is trained and how; the defaults made the checkpoint that is checked in."""

    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    mlp_size: int = 704
    epochs: float = 2.5
    block_tokens: int = 512
    long_block_tokens: int = 2048
    long_share: float = 0.15  # the last part of training, on long blocks
    batch_tokens: int = 4096
    learning_rate: float = 3e-3
    matrix_learning_rate: float = 0.02
    warm_up_steps: int = 40
    weight_decay: float = 0.1
    seed: int = 0


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.mlp_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def build_optimizers(model: LlamaForCausalLM, recipe: Recipe, parts: int) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, in `parts` that can step side by side; AdamW for embeddings, head and norms.

    With AdamW for all, the held-out loss after 140 steps was 0.9 nats higher.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    tables = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" not in n]
    gains = [p for p in model.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": tables, "weight_decay": recipe.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    muons = [
        torch.optim.Muon(
            matrices[part::parts],
            lr=recipe.matrix_learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="original",
        )
        for part in range(parts)
    ]
    return [*muons, adamw]


def compute_rate_factor(step: int, steps: int, warm_up_steps: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    done = (step - warm_up_steps) / max(1, steps - warm_up_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def compute_loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The mean loss in nats and the number of tokens it is over."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    targets = batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED
    )
    return loss, int((targets != IGNORED).sum())


def compute_gradients(
    model: LlamaForCausalLM, batch: dict[str, torch.Tensor], pool: ThreadPoolExecutor, parts: int
) -> tuple[float, int]:
    """Set the gradients of the mean loss over `batch`, its rows shared out; give the loss and its tokens.

    One thread for each part and none inside an operation: 4,800 to 5,600 tokens a second on two idle cores against
    4,000 the other way round, since the parts wait for each other once a step and not once an operation.
    """
    parameters = list(model.parameters())
    whole = int((batch["labels"][:, 1:] != IGNORED).sum())

    def compute_part(part: dict[str, torch.Tensor]) -> tuple[float, tuple[torch.Tensor, ...]]:
        loss, tokens = compute_loss(model, part)
        share = loss * (tokens / whole)
        return share.item(), torch.autograd.grad(share, parameters)

    rows = len(batch["input_ids"])
    cuts = [rows * part // parts for part in range(parts + 1)]
    spans = [slice(low, high) for low, high in pairwise(cuts) if high > low]
    results = list(pool.map(compute_part, [{key: value[span] for key, value in batch.items()} for span in spans]))
    for parameter, *gradients in zip(parameters, *(gradients for _, gradients in results), strict=True):
        parameter.grad = sum(gradients[1:], start=gradients[0])
    return sum(loss for loss, _ in results), whole


@torch.no_grad()
def measure_loss(model: LlamaForCausalLM, documents: Sequence[Document], recipe: Recipe, pad: int) -> float:
    """Mean loss in nats a token over `documents`, none of which was trained on."""
    if not documents:
        return math.nan
    model.eval()
    total, count = 0.0, 0
    bins = pack_documents(documents, recipe.block_tokens)
    rows = recipe.batch_tokens // recipe.block_tokens
    for at in range(0, len(bins), rows):
        loss, tokens = compute_loss(model, build_batch(bins[at : at + rows], recipe.block_tokens, pad))
        total, count = total + loss.item() * tokens, count + tokens
    model.train()
    return total / count


def build_epoch(
    tokenizer: PreTrainedTokenizerFast, entries: Sequence[Entry], block: int, rng: random.Random
) -> list[Document]:
    """All texts and freshly worded conversations, shuffled."""
    documents = encode_texts(tokenizer, build_texts(entries), block)
    documents += encode_conversations(tokenizer, build_conversations(entries, rng), block)
    rng.shuffle(documents)
    return documents


def stream_batches(
    tokenizer: PreTrainedTokenizerFast, entries: Sequence[Entry], block: int, recipe: Recipe, rng: random.Random
) -> Iterator[dict[str, torch.Tensor]]:
    rows = max(1, recipe.batch_tokens // block)
    while True:
        bins = pack_documents(build_epoch(tokenizer, entries, block, rng), block)
        rng.shuffle(bins)
        for at in range(0, max(1, len(bins) - rows + 1), rows):
            yield build_batch(bins[at : at + rows], block, tokenizer.pad_token_id)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    entries: Sequence[Entry],
    recipe: Recipe,
    steps: int,
    threads: int,
) -> None:
    """Train in place for `steps` optimiser steps, saying the loss as it goes."""
    rng = random.Random(recipe.seed)
    optimizers = build_optimizers(model, recipe, threads)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: compute_rate_factor(step, steps, recipe.warm_up_steps))
        for o in optimizers
    ]
    long_from = round(steps * (1 - recipe.long_share))
    batches = stream_batches(tokenizer, entries, recipe.block_tokens, recipe, rng)
    long_batches = stream_batches(tokenizer, entries, recipe.long_block_tokens, recipe, rng)
    model.train()
    started, tokens_seen, smooth = time.perf_counter(), 0, 0.0
    for step in range(steps):
        batch = next(batches if step < long_from else long_batches)
        loss, tokens = compute_gradients(model, batch, pool, threads)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        list(pool.map(lambda optimizer: optimizer.step(), optimizers))
        for schedule in schedules:
            schedule.step()
        tokens_seen += tokens
        smooth = loss if step == 0 else 0.95 * smooth + 0.05 * loss
        if step % 20 == 0 or step == steps - 1:
            rate = tokens_seen / (time.perf_counter() - started)
            left = (steps - step - 1) * (time.perf_counter() - started) / (step + 1)
            say(f"step {step + 1}/{steps}  loss {smooth:.3f}  {rate:,.0f} tokens/s  {left:,.0f} s left")


# ---------------------------------------------------------------------------------------------------------------
# 4. The checkpoint and its record


def save_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """bf16 safetensors, tokenizer, chat template and generation settings, as transformers lays them out."""
    output.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    # The class's name before transformers 5, which still reads it: servers on older versions know no other.
    config_path = output / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_path.write_text(json.dumps(config, indent=2) + "\n")


def measure_held_out(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held_out: Sequence[Entry], recipe: Recipe
) -> dict[str, float]:
    texts = encode_texts(tokenizer, build_texts(held_out), recipe.block_tokens)
    conversations = build_conversations(held_out, random.Random(recipe.seed))
    chats = encode_conversations(tokenizer, conversations, recipe.block_tokens)
    pad = tokenizer.pad_token_id
    return {
        "plain": round(measure_loss(model, texts, recipe, pad), 4),
        "chat": round(measure_loss(model, chats, recipe, pad), 4),
    }


def check_checkpoint(folder: Path, entries: Sequence[Entry], recipe: Recipe) -> list[str]:
    """Compare the checkpoint in `folder` with its record; each difference is a sentence."""
    record = json.loads((folder / "pretraining.json").read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if digest_entries(entries) != record["corpus"]["sha256"]:
        return [
            f"The corpus of Python {platform.python_version()} is not the one of Python {record['python']} that the "
            "record is about; run the check with that version."
        ]
    train, held_out = split_entries(entries)
    differences = []
    if build_tokenizer(train, recipe.seed).backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
        differences.append("The tokenizer built from this corpus differs from tokenizer.json.")
    for form, loss in measure_held_out(model, tokenizer, held_out, recipe).items():
        recorded = record["held_out_loss"][form]
        say(f"held-out loss, {form} form: {loss:.4f} (recorded {recorded:.4f})")
        if abs(loss - recorded) > 0.01:
            differences.append(f"The held-out loss of the {form} form is {loss:.4f}, recorded {recorded:.4f}.")
    return differences


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pretrain the tiny base model on the text that ships with Python.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--epochs", type=float, default=Recipe.epochs, help="passes over the corpus")
    parser.add_argument("--steps", type=int, help="optimiser steps, in place of --epochs")
    parser.add_argument("--limit", type=int, help="keep this many entries only, for a trial run")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--check", action="store_true", help="train nothing: measure the checkpoint in --output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe(epochs=options.epochs)
    entries = collect_entries(options.limit)
    if options.check:
        differences = check_checkpoint(options.output, entries, recipe)
        say("\n".join(differences) or "The checkpoint is what its record says.")
        return 1 if differences else 0

    train, held_out = split_entries(entries)
    tokenizer = build_tokenizer(train, recipe.seed)
    epoch = build_epoch(tokenizer, train, recipe.block_tokens, random.Random(recipe.seed))
    epoch_tokens = sum(map(len, epoch))
    epoch_steps = len(pack_documents(epoch, recipe.block_tokens)) // (recipe.batch_tokens // recipe.block_tokens)
    steps = options.steps or max(1, round(recipe.epochs * epoch_steps))
    model = build_model(tokenizer, recipe)
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{len(train):,} entries and {len(held_out):,} held out; {epoch_tokens:,} tokens an epoch; "
        f"{parameters:,} parameters; {steps:,} steps"
    )
    started = time.perf_counter()
    pretrain(model, tokenizer, train, recipe, steps, options.threads)
    seconds = time.perf_counter() - started
    save_checkpoint(model, tokenizer, options.output)

    saved = LlamaForCausalLM.from_pretrained(options.output, dtype=torch.float32)
    held_out_loss = measure_held_out(saved, tokenizer, held_out, recipe)
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "corpus": {
            "sha256": digest_entries(entries),
            "entries": len(entries),
            "held_out": len(held_out),
            "text_bytes": sum(len(text.encode()) for text in build_texts(entries)),
            "epoch_tokens": epoch_tokens,
        },
        "parameters": parameters,
        "steps": steps,
        "seconds": round(seconds),
        "held_out_loss": held_out_loss,
    }
    (options.output / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    say(f"held-out loss: plain {held_out_loss['plain']:.3f}, chat {held_out_loss['chat']:.3f}; {seconds:,.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
