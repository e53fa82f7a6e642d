"""Greedy answers to many prompts at once, equal to those that `generate` gives one at a time.

Prompts of like length share a batch, padded on the left; position ids come from the attention mask, so that a prompt's
neighbours make no difference but for the rounding of sums.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList


@dataclass(frozen=True)
class Generated:
    """Token ids of an answer without its stop token, and whether a stop token ended it."""

    ids: list[int]
    finished: bool


class _StepReport(StoppingCriteria):
    """Tells after each token how many have been made; stops nothing."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        self._on_step()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def answer_greedily(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int,
    on_progress: Callable[[float], None] = lambda answers: None,
) -> list[Generated]:
    """An answer to each prompt (token ids), in the prompts' order.

    `model` holds its key-value cache with an attention that takes masks (`sdpa`). `on_progress` is told how many answers are
    done, with fractions while a batch is under way.
    """
    answers: list[Generated | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        batch = _answer_batch(
            model,
            [prompts[i] for i in members],
            stop_ids,
            pad_id,
            max_new_tokens,
            _within(on_progress, start, len(members)),
        )
        for index, answer in zip(members, batch, strict=True):
            answers[index] = answer
        on_progress(start + len(members))
    return [a for a in answers if a is not None]


def _within(on_progress: Callable[[float], None], start: int, size: int) -> Callable[[float], None]:
    """Tells of a share of a batch as a number of answers."""
    return lambda share: on_progress(start + share * size)


def _answer_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    on_share: Callable[[float], None],
) -> list[Generated]:
    longest = max(map(len, prompts))
    rows = [[pad_id] * (longest - len(p)) + list(p) for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    steps = 0

    def count_step() -> None:
        nonlocal steps
        steps += 1
        on_share(steps / max_new_tokens)

    output = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
            use_cache=True,
        ),
        stopping_criteria=StoppingCriteriaList([_StepReport(count_step)]),
    )
    return [_cut_at_stop(row, set(stop_ids)) for row in output[:, longest:].tolist()]


def _cut_at_stop(ids: list[int], stop_ids: set[int]) -> Generated:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    return Generated(ids if end is None else ids[:end], end is not None)
