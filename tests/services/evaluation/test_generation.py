"""Greedy answers: stop tokens, batches and progress."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llamero.evaluation.generation import answer_greedily

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 60, 61, 62, 63], [100], [20, 30, 40, 50]]


@pytest.fixture(scope="module")
def model(random_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(random_base, dtype=torch.float32, attn_implementation="sdpa").eval()


def answer(model: Any, prompts: list[list[int]], stop_ids: list[int], **options: Any) -> list[Any]:
    settings = {"pad_id": 3, "max_new_tokens": 10, "batch_size": 8} | options
    return answer_greedily(model, prompts, stop_ids=stop_ids, **settings)


def test_answers_do_not_depend_on_how_prompts_are_batched(model: Any) -> None:
    alone = [answer(model, [p], [2])[0] for p in PROMPTS]
    for batch_size in (2, 3, 8):
        assert answer(model, PROMPTS, [2], batch_size=batch_size) == alone


def test_an_answer_ends_before_its_stop_token_while_others_go_on(model: Any) -> None:
    free = answer(model, PROMPTS, [2])
    stop = free[1].ids[4]
    stopped = answer(model, PROMPTS, [2, stop])
    assert stopped[1].finished
    assert stopped[1].ids == free[1].ids[: free[1].ids.index(stop)]
    assert [len(a.ids) for a in free] == [10] * 4
    for before, after in zip(free, stopped, strict=True):
        assert after.finished == (stop in before.ids)
        assert before.ids[: len(after.ids)] == after.ids


def test_progress_rises_to_the_number_of_prompts(model: Any) -> None:
    seen: list[float] = []
    answer(model, PROMPTS, [2], batch_size=3, on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 4
    assert any(0 < s < 3 for s in seen)
