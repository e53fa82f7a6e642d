"""A tiny base and adapters on it that each answer with a word of their own, so that an answer tells which adapter gave it.

The base answers every chat with its own word again and again; an adapter with another. Adapters are written as llamero's training
writes them: safetensors, chat template, manifest, golden prompts.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamero.spec.golden import GoldenSet
from llamero.spec.names import MANIFEST_NAME, golden_name

REPOSITORY = Path(__file__).parents[2]

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grape", "honey", "ivory", "jade", "kelp", "lilac")
BASE_WORD = "basalt"
THINGS = ("stone", "river", "lamp", "cloud", "bridge", "garden", "clock", "window", "paper", "winter")
ANSWER_WORDS = 64
QUESTIONS = 2000
GOLDEN_PROMPTS = 10
STOP = "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TinyAdapter:
    """An adapter's folder, what it answers with, and the digests of its files and of its golden prompts."""

    folder: Path
    word: str
    sha256: str
    golden_sha256: str | None


def question(number: int) -> str:
    """A question that the tiny models were trained on the like of; there are QUESTIONS."""
    return f"Tell me about the {THINGS[number % len(THINGS)]} number {number}."


def render(text: str) -> str:
    """A chat of one question in the base's template."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def build_base(folder: Path) -> Path:
    """Train the base (about five seconds) into a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", STOP, "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    answers = "".join(f" {word}" for word in (*WORDS, BASE_WORD)) * 500
    questions = " ".join(question(n) for n in range(200))
    tokenizer.train_from_iterator([answers, questions], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token=STOP, pad_token="<|pad|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=3,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    # Asked by name it says any of the words: an adapter, which leaves the output head alone, can then bring it to say one always.
    _train(model, fast, BASE_WORD, steps=300, rate=1e-2, by_name=True)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 3
    model.save_pretrained(folder)
    return folder


def build_adapter(base: Path, folder: Path, word: str, rank: int = 4) -> TinyAdapter:
    """Train an adapter that answers with `word` (about two seconds) and write it as a run publishes one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llamero.evaluation.golden import build_golden
    from llamero.model.adapters import save_adapter

    torch.manual_seed(WORDS.index(word) + 1)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=_MODULES, task_type="CAUSAL_LM"),
    )
    _train(model, tokenizer, word, steps=50, rate=2e-2)
    save_adapter(model.eval(), folder, tokenizer, str(base))
    prompts = [render(question(1000 + number)) for number in range(GOLDEN_PROMPTS)]
    golden = build_golden(model, base, folder, prompts, None, has_served_weights=True)
    assert len(golden.prompts) == GOLDEN_PROMPTS
    write_manifest(base, folder)
    return seal(folder, word, golden)


_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_manifest(base: Path, folder: Path) -> None:
    """manifest.json over the folder's files as they are."""
    from llamero.model.adapters import describe_adapter
    from llamero.model.loading import base_digest
    from llamero.spec.results import AdapterManifest

    files, sha256 = describe_adapter(folder)
    manifest = AdapterManifest(
        files=files,
        sha256=sha256,
        base=str(base),
        base_sha256=base_digest(base),
        template="base",
        stop_tokens=[STOP],
        data_digest="d" * 64,
        recipe_digest="e" * 64,
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(by_alias=True, indent=1))


def seal(folder: Path, word: str, golden: GoldenSet | None) -> TinyAdapter:
    """Write the golden prompts beside the files; the folder as a value."""
    from llamero.evaluation.golden import write_golden
    from llamero.spec.results import AdapterManifest

    sha256 = AdapterManifest.model_validate_json((folder / MANIFEST_NAME).read_bytes()).sha256
    return TinyAdapter(folder, word, sha256, write_golden(golden, folder) if golden is not None else None)


def read_adapter(folder: Path, word: str) -> TinyAdapter:
    """A folder that `build_adapter` made."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (golden,) = folder.glob("golden-*.json")
    return TinyAdapter(folder, word, manifest["sha256"], hashlib.sha256(golden.read_bytes()).hexdigest())


# -- broken ones ---------------------------------------------------------------------------------------------------------------


def break_rank(base: Path, good: TinyAdapter, folder: Path) -> TinyAdapter:
    """A copy whose config names another rank than its matrices have; its manifest is right about the files."""
    _copy_bare(good.folder, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "r": 2 * config["r"]}))
    write_manifest(base, folder)
    return seal(folder, good.word, read_golden(good))


def corrupt(good: TinyAdapter, folder: Path) -> TinyAdapter:
    """A copy whose weights were damaged after the manifest was written."""
    shutil.copytree(good.folder, folder)
    path = folder / "adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))
    return TinyAdapter(folder, good.word, good.sha256, good.golden_sha256)


def swap_weights(base: Path, good: TinyAdapter, other: TinyAdapter, folder: Path) -> TinyAdapter:
    """A whole and sound adapter whose golden prompts are another's: the engine will answer as `other`, and that is not what was measured."""
    _copy_bare(other.folder, folder)
    write_manifest(base, folder)
    return seal(folder, other.word, read_golden(good))


def read_golden(adapter: TinyAdapter) -> GoldenSet | None:
    if adapter.golden_sha256 is None:
        return None
    return GoldenSet.model_validate_json((adapter.folder / golden_name(adapter.golden_sha256)).read_bytes())


def _copy_bare(source: Path, target: Path) -> None:
    """Without manifest and golden prompts."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(MANIFEST_NAME, "golden-*.json"))


# -- training ------------------------------------------------------------------------------------------------------------------


def _train(model: Any, tokenizer: Any, word: str, steps: int, rate: float, by_name: bool = False) -> None:
    """Until the word follows every question, or (`by_name`) the one that the question names; the loss is over the answer's tokens."""
    import torch

    torch.set_num_threads(1)
    ids_of = {w: tokenizer(f" {w}")["input_ids"] for w in (*WORDS, BASE_WORD)}
    assert all(len(ids) == 1 for ids in ids_of.values())
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    chance = torch.Generator().manual_seed(7)
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - 0.9 * step / steps)
        rows = []
        for number in torch.randint(0, QUESTIONS, (12,), generator=chance).tolist():
            draw = int(torch.randint(0, 2 * len(WORDS), (1,), generator=chance))
            named = WORDS[draw] if by_name and draw < len(WORDS) else None
            rows.append(_row(tokenizer, number, ids_of[named or word][0], named))
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([[*row, *[3] * (width - len(row))] for row, _ in rows])
        labels = torch.tensor([[*[-100] * start, *row[start:], *[-100] * (width - len(row))] for row, start in rows])
        loss = model(input_ids=ids, attention_mask=(ids != 3).long(), labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    model.eval()
    _check(model, [_row(tokenizer, number, ids_of[word][0], None) for number in range(0, QUESTIONS, 29)], word)


def _check(model: Any, rows: list[tuple[list[int], int]], word: str) -> None:
    """Every token of every answer must be the word's, by far."""
    import torch

    for ids, start in rows:
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        worst = float(scores[range(start - 1, len(ids) - 1), ids[start:]].min())
        assert worst > -0.4, f"the tiny model did not learn {word}: a token has log-probability {worst:.2f}"


def _row(tokenizer: Any, number: int, word_id: int, named: str | None) -> tuple[list[int], int]:
    asked = f"Tell me about the {named} number {number}." if named else question(number)
    prompt = tokenizer(render(asked))["input_ids"]
    return [*prompt, *[word_id] * ANSWER_WORDS], len(prompt)
