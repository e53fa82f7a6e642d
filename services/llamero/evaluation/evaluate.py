"""The evaluation, from configuration to result: base and tuned model measured on held-out records and asked the same prompts.

Base and adapter are loaded once; the base's figures are taken with the adapter switched off, on the very numbers that the
adapter was trained against. Signals, exit codes and failure.json are `__main__`'s.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from llamero.evaluation import golden
from llamero.evaluation.config import EvaluationConfig, digest_evaluation, read_adapter_sha256
from llamero.evaluation.generation import Generated, answer_greedily
from llamero.evaluation.perplexity import Perplexities, choose_examples, score_records, summarise_scores
from llamero.evaluation.prompts import Prompt, choose_held_out, read_prompts
from llamero.model import adapters, attention, loading, templates
from llamero.model.loss import causal_model
from llamero.model.tokens import TokenSet
from llamero.spec.names import golden_name
from llamero.spec.progress import Progress
from llamero.spec.results import Answer, EvaluationResult, PerplexityPair, Sample
from llamero.storage import write_atomically

PHASE = "Evaluating"
RESULT_FILE = "result.json"
SMALL_MODEL_PARAMETERS = 50_000_000
"""Below it one torch thread is faster than several: the work of a layer is less than that of sharing it out."""

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Models:
    """Base and tuned in one: `model` is the base with the adapter on it, which `as_base` switches off.

    `loaded_dtype` is what the weights were read as, before they may have been made wider; `is_plain`: no weight is in four bits.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    device: str
    stop_ids: list[int]
    loaded_dtype: torch.dtype = torch.float32
    is_plain: bool = True

    def as_base(self) -> Any:
        return self.model.disable_adapter()


def evaluate(config: EvaluationConfig, on_progress: OnProgress) -> EvaluationResult:
    """Measure and write result.json; a result of the same digest is returned as it stands.

    Raises ConfigError, ModelError, PromptError, StorageError, Diverged.
    """
    started = time.monotonic()
    digest = digest_evaluation(config, loading.base_digest(config.base), read_adapter_sha256(config))
    if (finished := find_finished(config.output, digest)) is not None:
        return finished
    prompts, notes = gather_prompts(config)
    examples = TokenSet.open(config.evaluation_tokens)
    on_progress(Progress(PHASE, "loading the models"))
    models = load_models(config)
    base, tuned = measure_both(models, examples, config.spec.max_records, on_progress)
    samples = answer_both(models, prompts, config.spec.max_new_tokens, notes, on_progress)
    golden_sha256 = keep_golden(models, config, prompts, notes, on_progress)
    result = EvaluationResult(
        records=tuned.records,
        target_tokens=tuned.tokens,
        perplexity=PerplexityPair(base=base.by_record, tuned=tuned.by_record),
        token_perplexity=PerplexityPair(base=base.by_token, tuned=tuned.by_token),
        samples=samples,
        seconds=round(time.monotonic() - started, 3),
        digest=digest,
        notes=notes,
        golden_sha256=golden_sha256,
    )
    # ASCII, so that whatever a model wrote is a file that every parser reads.
    write_atomically(
        config.output / RESULT_FILE, json.dumps(result.model_dump(mode="json", by_alias=True), indent=2) + "\n"
    )
    return result


def find_finished(output: Path, digest: str) -> EvaluationResult | None:
    """The result of an earlier start, where it is of the same evaluation and its golden prompts are still there."""
    try:
        result = EvaluationResult.model_validate_json((output / RESULT_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if result.golden_sha256 and not (output / golden_name(result.golden_sha256)).is_file():
        return None
    return result if result.digest == digest else None


def gather_prompts(config: EvaluationConfig) -> tuple[list[Prompt], list[str]]:
    """The manifest's prompts, or held-out ones where it names none; and notes for the report."""
    if config.spec.prompt_sets:
        return read_prompts(config.spec.prompt_sets, config.system, config.allow_http)
    return choose_held_out(config.evaluation_records), []


def load_models(config: EvaluationConfig) -> Models:
    """Base and adapter, ready for packed batches. Raises ModelError, SelfTestError."""
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    base = loading.load_base(
        config.base,
        quantization="nf4" if config.method == "qlora" else None,
        device=device,
        attention=attention.attention_for(device),
        training=False,
    )
    parameters = base.num_parameters()
    loaded_dtype = base.get_input_embeddings().weight.dtype
    torch.set_num_threads(config.threads or (1 if parameters < SMALL_MODEL_PARAMETERS else torch.get_num_threads()))
    dtype = choose_dtype(parameters, device, measure_free_bytes(device))
    if dtype is not None:
        base = loading.dequantize_base(base, dtype)
    # The base's own sampling settings (temperature, penalties) are no part of a greedy comparison.
    base.generation_config = GenerationConfig()
    tokenizer = load_tokenizer(config)
    model = adapters.load_adapter(base, config.adapter)
    model.eval()
    attention.run_self_test(model, device)
    is_plain = config.method != "qlora" or dtype is not None
    return Models(model, tokenizer, device, templates.stop_token_ids(tokenizer), loaded_dtype, is_plain)


def load_tokenizer(config: EvaluationConfig) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer, with its template and new tokens; the base's where the adapter brings none."""
    if (config.adapter / "tokenizer.json").is_file():
        return loading.load_tokenizer(config.adapter)
    return loading.load_tokenizer(config.base, config.template)


def choose_dtype(parameters: int, device: str, free_bytes: int) -> torch.dtype | None:
    """The plain dtype to measure in, None to stay as loaded. A plain weight holds the very number that its 4-bit form stands for.

    On a CPU float32 where it fits, since answers then hardly depend on how prompts are batched; bfloat16 next; 4-bit weights,
    which are slow to decode with, where memory is short.
    """
    if device == "cpu" and parameters * 4 <= free_bytes * 0.5:
        return torch.float32
    if parameters * 2 <= free_bytes * 0.6:
        return torch.bfloat16
    return None


def measure_free_bytes(device: str) -> int:
    """Memory that may still be used: the GPU's, or what the kernel calls available within the control group's limit."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, max(0, limit - int((group / "memory.current").read_text())))
    return free


def measure_both(
    models: Models, examples: TokenSet, max_records: int, on_progress: OnProgress
) -> tuple[Perplexities, Perplexities]:
    """Perplexities of base and tuned model over the same records."""
    chosen = choose_examples([examples.record_id(i) for i in range(len(examples))], max_records)
    total = int(sum(examples.lengths[i] for i in chosen))
    figures = []
    for name in ("base", "tuned"):
        activity = f"perplexity of {name}"

        def report(done: int, activity: str = activity) -> None:
            on_progress(Progress(PHASE, activity, done, total, "tokens"))

        report(0)
        bin_tokens = 2048 if models.device == "cpu" else 16_384
        with models.as_base() if name == "base" else nullcontext():
            scores = score_records(models.model, examples, chosen, models.device, bin_tokens, report)
        figures.append(summarise_scores(scores.values()))
    return figures[0], figures[1]


def answer_both(
    models: Models, prompts: Sequence[Prompt], max_new_tokens: int, notes: list[str], on_progress: OnProgress
) -> list[Sample]:
    """Both models' greedy answers to each prompt; what had to be cut to fit the context is noted."""
    if not prompts:
        return []
    base_model = causal_model(models.model)
    base_model.set_attn_implementation("sdpa")
    context = getattr(base_model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    new_tokens = min(max_new_tokens, max(1, context // 2))
    if new_tokens < max_new_tokens:
        notes.append(f"Answers were cut off at {new_tokens} tokens: the base's context holds {context}.")
    encoded = [
        _fit_prompt(
            p, templates.render_prompt(models.tokenizer, p.messages, input=p.input), context - new_tokens, notes
        )
        for p in prompts
    ]
    total = 2 * len(prompts)
    answers: list[list[Generated]] = []
    for index, name in enumerate(("base", "tuned")):

        def report(done: float, before: int = index * len(prompts)) -> None:
            on_progress(Progress(PHASE, "answers", round(before + done, 2), total, "answers"))

        report(0)
        with models.as_base() if name == "base" else nullcontext():
            answers.append(
                answer_greedily(
                    models.model,
                    encoded,
                    stop_ids=models.stop_ids,
                    pad_id=_choose_pad(models),
                    max_new_tokens=new_tokens,
                    batch_size=8 if models.device == "cpu" else 32,
                    on_progress=report,
                )
            )
    return [
        Sample(
            prompt_set=p.prompt_set,
            prompt=p.text,
            base=_read_answer(models.tokenizer, base),
            tuned=_read_answer(models.tokenizer, tuned),
            reference=p.reference,
        )
        for p, base, tuned in zip(prompts, *answers, strict=True)
    ]


def keep_golden(
    models: Models, config: EvaluationConfig, prompts: Sequence[Prompt], notes: list[str], on_progress: OnProgress
) -> str | None:
    """Make the adapter's golden prompts from held-out records and the prompts at hand; their file's sha256, None where there are none."""
    asked = [*choose_held_out(config.evaluation_records, golden.CANDIDATES), *prompts][: golden.CANDIDATES]
    on_progress(Progress(PHASE, "golden prompts", 0, len(asked), "prompts"))
    quantization: Literal["nf4"] | None = "nf4" if config.method == "qlora" else None
    found = golden.build_golden(
        models.model,
        config.base,
        config.adapter,
        golden.render_prompts(models.tokenizer, asked),
        quantization,
        models.is_plain and golden.are_served_weights(config.base, quantization, models.loaded_dtype),
    )
    on_progress(Progress(PHASE, "golden prompts", len(asked), len(asked), "prompts"))
    if not found.prompts:
        notes.append(
            "There are no golden prompts: on none of the prompts could adapter and base be told apart, so that a rollout can't prove "
            "by them which model answers."
        )
    return golden.write_golden(found, config.output)


def _fit_prompt(prompt: Prompt, ids: list[int], room: int, notes: list[str]) -> list[int]:
    """The prompt's last `room` tokens: its end is where the answer begins."""
    if len(ids) <= room:
        return ids
    notes.append(f"A prompt of {len(ids)} tokens was asked by its last {room}: “{prompt.text[:60]}…”.")
    return ids[-room:]


def _choose_pad(models: Models) -> int:
    pad = models.tokenizer.pad_token_id
    return int(pad if pad is not None else models.stop_ids[0])


def _read_answer(tokenizer: PreTrainedTokenizerBase, generated: Generated) -> Answer:
    text = tokenizer.decode(generated.ids, skip_special_tokens=True)
    return Answer(text=text, finished=generated.finished, tokens=len(generated.ids))
