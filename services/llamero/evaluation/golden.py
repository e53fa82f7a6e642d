"""Golden prompts of an adapter: which are asked, what the adapter answers, and how likely adapter and base hold that answer to be.

Made from a model that is loaded already (the evaluation), or from folders (an adapter that was made elsewhere). The file lies beside
the adapter's files; the agent in an engine's pod asks the same and compares. What the words mean stands in `spec.golden`.
"""

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from llamero.engine.catalog import ENGINE, ServedModel, read_served
from llamero.engine.offline import answer_all
from llamero.engine.requests import GenerationRequest
from llamero.engine.runner import ModelRunner, UnsupportedModel
from llamero.engine.text import TextStream
from llamero.evaluation.generation import answer_greedily
from llamero.evaluation.prompts import Prompt
from llamero.model import adapters, loading, templates
from llamero.model.errors import ModelError
from llamero.model.loss import causal_model
from llamero.spec.golden import MAX_GOLDEN_PROMPTS, MAX_GOLDEN_TOKENS, GoldenPrompt, GoldenSet
from llamero.spec.names import golden_name
from llamero.spec.records import Message
from llamero.storage import write_atomically

log = logging.getLogger(__name__)

CANDIDATES = 20
"""Prompts that are tried, of which those that tell adapter and base apart best are kept."""
MAX_PROMPT_TOKENS = 1024
"""A proof must be quick: longer prompts are left out."""
MIN_DIFFERENCE_NATS = 0.5
"""Adapter and base must differ by so much on an answer, or rounding could decide which of them it lies nearer."""
MIN_MARGIN_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Where the likeliest token leads the next by less, other sums' rounding could turn the choice: the answer is cut before it."""
ANSWER_ROWS = 8

GENERAL_PROMPTS = (
    "Who are you, and what can you help with?",
    "Explain in two sentences what a p-value is.",
    "Write a short poem about rain in the mountains.",
    "How do I sort a list of numbers in Python?",
    "Give three reasons to learn a second language.",
    "Translate into French: the train leaves at noon.",
    "What should I consider before I sign a contract?",
    "Summarise the plot of Romeo and Juliet.",
    "What is 17 times 23? Show your steps.",
    "My plant's leaves turn yellow. What may be wrong?",
    "Name the capital cities of Peru, Kenya and Norway.",
    "Write an email that declines a meeting politely.",
)
"""What an adapter from elsewhere is asked where nobody says what it was made for."""


@dataclass(frozen=True)
class _Answered:
    """A prompt's greedy answer, and by how many nats each of its tokens led the next."""

    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    margins: list[float]


@dataclass(frozen=True)
class _Candidate:
    golden: GoldenPrompt
    is_exact: bool

    @property
    def difference(self) -> float:
        return abs(self.golden.tuned_log_prob - self.golden.base_log_prob)


def make_golden(
    base_folder: Path,
    adapter_folder: Path,
    prompts: Sequence[str] = GENERAL_PROMPTS,
    *,
    quantization: Literal["nf4"] | None = None,
) -> GoldenSet:
    """The golden prompts of an adapter folder on this machine's CPU, in float32: `prompts` are what a user would say.

    `quantization` nf4 for an adapter that was trained on the base in four bits. The set has no prompts where adapter and base could not
    be told apart. Raises ModelError where base or adapter can't be loaded, or the adapter's numbers are none.
    """
    base = loading.load_base(
        base_folder,
        quantization=quantization,
        device="cpu",
        training=False,
        dtype=None if quantization else torch.float32,
    )
    model = adapters.load_adapter(loading.dequantize_base(base, torch.float32), adapter_folder)
    served = _read_words(base_folder, adapter_folder)
    rendered = [_render_user(served.tokenizer, text) for text in prompts]
    return build_golden(model.eval(), base_folder, adapter_folder, rendered, quantization, has_served_weights=True)


def render_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """The texts of the evaluation's prompts, without a beginning-of-text token where the tokenizer adds one itself."""
    texts = [templates.render_text(tokenizer, p.messages, input=p.input) for p in prompts]
    return list(dict.fromkeys(_without_bos(tokenizer, text) for text in texts))


def build_golden(
    model: Any,
    base_folder: Path,
    adapter_folder: Path,
    prompts: Sequence[str],
    quantization: Literal["nf4"] | None,
    has_served_weights: bool,
) -> GoldenSet:
    """The golden prompts among rendered prompts. `model` is the base with the adapter on it (PEFT), in evaluation mode.

    `has_served_weights`: the weights are the very numbers that the CPU engine would serve in this precision, so that its answers may be
    asked to be equal. Raises ModelError where log-probabilities are no numbers.
    """
    served = _read_words(base_folder, adapter_folder)
    causal_model(model).set_attn_implementation("sdpa")
    window = getattr(causal_model(model).config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    room = min(MAX_PROMPT_TOKENS, window - MAX_GOLDEN_TOKENS - 1)
    asked = [(text, served.text_prompt(text)) for text in prompts]
    asked = [(text, ids) for text, ids in asked if 0 < len(ids) <= room][:CANDIDATES]
    answered, is_engines = _answer(model, served, asked)
    found = [c for a in answered if (c := _score(model, served, a, is_engines and has_served_weights)) is not None]
    telling = sorted((c for c in found if c.difference >= MIN_DIFFERENCE_NATS), key=lambda c: -c.difference)
    # Those that the engine must answer to the letter come first, so that a few odd borders between tokens don't spoil the set.
    exact = [c for c in telling if c.is_exact][:MAX_GOLDEN_PROMPTS]
    kept = exact if 2 * len(exact) >= min(MAX_GOLDEN_PROMPTS, len(telling)) else telling[:MAX_GOLDEN_PROMPTS]
    return GoldenSet(
        engine=ENGINE if kept and all(c.is_exact for c in kept) else "",
        dtype=str(_dtype_of(model)).removeprefix("torch."),
        quantization=quantization,
        prompts=[c.golden for c in kept],
    )


def write_golden(golden: GoldenSet, folder: Path) -> str | None:
    """Write golden-<sha8>.json into a folder; the sha256 of its bytes, None (and no file) where the set has no prompts."""
    if not golden.prompts:
        return None
    content = (json.dumps(golden.to_json_dict(), indent=1) + "\n").encode()
    sha256 = hashlib.sha256(content).hexdigest()
    write_atomically(folder / golden_name(sha256), content)
    return sha256


def are_served_weights(base_folder: Path, quantization: Literal["nf4"] | None, loaded: torch.dtype) -> bool:
    """Whether weights that were loaded as `loaded` and then made wider are those that the engine serves from the same folder."""
    if quantization is not None:
        return loaded == loading.default_dtype(quantization, "cpu")
    return loaded == torch.float32 or not _holds_float32(base_folder)


def _holds_float32(base_folder: Path) -> bool:
    """Whether a base's files hold numbers that bfloat16 rounds."""
    for path in sorted(base_folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            if any(tensors.get_slice(key).get_dtype() not in ("BF16",) for key in tensors.keys()):  # noqa: SIM118 - no mapping
                return True
    return False


def _read_words(base_folder: Path, adapter_folder: Path) -> ServedModel:
    return read_served("adapter", "adapter", adapter_folder, read_served("base", None, base_folder, None))


def _render_user(tokenizer: Any, text: str) -> str:
    """A user's words by the chat template; as they stand where there is none."""
    if not tokenizer.chat_template:
        return text
    return _without_bos(tokenizer, templates.render_text(tokenizer, [Message("user", text)]))


def _without_bos(tokenizer: Any, text: str) -> str:
    bos = tokenizer.bos_token
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if adds_bos else text


def _answer(model: Any, served: ServedModel, asked: Sequence[tuple[str, list[int]]]) -> tuple[list[_Answered], bool]:
    """The adapter's greedy answers up to the first close call, and whether they are the engine's own."""
    if causal_model(model).device.type == "cpu":
        try:
            return _answer_by_engine(model, served, asked), True
        except UnsupportedModel:
            log.info("the CPU engine can't serve this base, so transformers is asked for the golden answers")
    tokenizer = served.tokenizer
    stop_ids = sorted(served.stop_token_ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
    found = answer_greedily(
        model,
        [ids for _, ids in asked],
        stop_ids=stop_ids,
        pad_id=int(pad),
        max_new_tokens=MAX_GOLDEN_TOKENS,
        batch_size=ANSWER_ROWS,
    )
    return [_Answered(t, ids, g.ids, [math.inf] * len(g.ids)) for (t, ids), g in zip(asked, found, strict=True)], False


def _answer_by_engine(model: Any, served: ServedModel, asked: Sequence[tuple[str, list[int]]]) -> list[_Answered]:
    runner = ModelRunner(causal_model(model))
    runner.adopt("adapter", model)
    requests = [
        GenerationRequest(
            "adapter",
            tuple(ids),
            served.tokenizer,
            MAX_GOLDEN_TOKENS,
            stop_token_ids=served.stop_token_ids,
            top_tokens=2,
        )
        for _, ids in asked
    ]
    try:
        answers = answer_all(runner, requests)
    finally:
        runner.release()
    found = []
    for (text, ids), answer in zip(asked, answers, strict=True):
        tokens = [t for t in answer.tokens if not t.is_stop]
        margins = [_margin(t.top) for t in tokens]
        found.append(_Answered(text, ids, [t.score.id for t in tokens], margins))
    return found


def _margin(top: Sequence[Any]) -> float:
    return float(top[0].log_prob - top[1].log_prob) if len(top) > 1 else math.inf


def _score(model: Any, served: ServedModel, answered: _Answered, may_be_exact: bool) -> _Candidate | None:
    """The prompt with its answer, cut where tokens would fall otherwise; None where nothing is left of it."""
    least = MIN_MARGIN_NATS.get(_dtype_of(model), 0.5)
    sure = next((i for i, margin in enumerate(answered.margins) if margin < least), len(answered.ids))
    for count in range(sure, 0, -1):
        ids = answered.ids[:count]
        text = _text_after(served.tokenizer, answered.prompt_ids, ids)
        if text.strip() and served.text_prompt(answered.prompt + text) == [*answered.prompt_ids, *ids]:
            break
    else:
        return None
    tuned = _log_prob(model, answered.prompt_ids, ids)
    with model.disable_adapter():
        base = _log_prob(model, answered.prompt_ids, ids)
    if not math.isfinite(tuned) or not math.isfinite(base):
        raise ModelError(
            "The adapter's log-probabilities on its golden prompts are not numbers: its weights are broken."
        )
    golden = GoldenPrompt(
        prompt=answered.prompt,
        answer=text,
        answer_tokens=len(ids),
        tuned_log_prob=round(tuned, 5),
        base_log_prob=round(base, 5),
    )
    return _Candidate(golden, may_be_exact and _text_of_engine(served.tokenizer, ids) == text)


def _text_after(tokenizer: Any, prompt_ids: list[int], ids: list[int]) -> str:
    """What an answer's tokens add to the text."""
    before = _decode(tokenizer, prompt_ids)
    whole = _decode(tokenizer, [*prompt_ids, *ids])
    return whole[len(before) :] if whole.startswith(before) else ""


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _text_of_engine(tokenizer: Any, ids: list[int]) -> str:
    """What the engine says where it is asked for so many tokens."""
    stream = TextStream(tokenizer)
    for token_id in ids:
        stream.push(token_id)
    stream.flush()
    return stream.text


@torch.inference_mode()
def _log_prob(model: Any, prompt_ids: list[int], ids: list[int]) -> float:
    """Sum of the answer's token log-probabilities, teacher-forced, in nats."""
    inner = causal_model(model)
    tokens = torch.tensor([[*prompt_ids, *ids]], device=inner.device)
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=len(ids) + 1).logits[0, :-1]
    log_probs = logits.float().log_softmax(-1)
    return float(log_probs.gather(1, tokens[0, -len(ids) :, None]).double().sum())


def _dtype_of(model: Any) -> torch.dtype:
    """The precision that the base computes in."""
    dtype: torch.dtype = causal_model(model).get_input_embeddings().weight.dtype
    return dtype
