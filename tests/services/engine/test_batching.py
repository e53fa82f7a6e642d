"""Rows of many adapters in one batch answer as they do alone, however they join and leave."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llamero.engine.generation import GenerationLimits, GenerationThread
from llamero.engine.metrics import EngineMetrics
from llamero.engine.requests import (
    EngineError,
    ErrorKind,
    Finished,
    FinishReason,
    GenerationRequest,
    Sampling,
    TokenEvent,
)
from llamero.engine.runner import MIXED, ModelRunner
from llamero.model.loading import load_base

STOP_ID = 2  # <|im_end|> of the random base


@pytest.fixture(scope="module")
def runner(random_base: Path, adapters: dict[str, Path]) -> ModelRunner:
    torch.set_num_threads(1)
    runner = ModelRunner(load_base(random_base, quantization=None, device="cpu", training=False, dtype=torch.float32))
    for name, folder in adapters.items():
        runner.load(name, folder)
    return runner


@pytest.fixture
def thread(runner: ModelRunner) -> Iterator[GenerationThread]:
    thread = GenerationThread(runner, GenerationLimits(max_batch=16, max_queue=100), EngineMetrics())
    thread.start()
    yield thread
    thread.stop()


def ask(tokenizer: Any, adapter: str | None, prompt_ids: list[int], count: int, **options: Any) -> GenerationRequest:
    return GenerationRequest(
        adapter, tuple(prompt_ids), tokenizer, count, stop_token_ids=frozenset([STOP_ID]), **options
    )


async def answer(thread: GenerationThread, request: GenerationRequest) -> tuple[list[int], Finished]:
    ids: list[int] = []
    async for event in thread.submit(request).events():
        if isinstance(event, Finished):
            return ids, event
        ids.append(event.score.id)
    raise AssertionError


def make_prompts(seed: int) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(4, 384) for _ in range(n)] for n in (1, 3, 9, 17, 33, 40, 64, 120)]


async def test_answers_in_a_mixed_batch_equal_those_made_alone(
    thread: GenerationThread, tokenizer: Any, adapters: dict[str, Path], alone: Callable[..., list[int]]
) -> None:
    source = random.Random(1)
    prompts = make_prompts(2)
    names = [None, *adapters]

    async def one() -> tuple[str | None, list[int], int, list[int]]:
        await asyncio.sleep(source.random() * 0.5)
        adapter, prompt, count = source.choice(names), source.choice(prompts), source.choice([2, 11, 30])
        ids, _ = await answer(thread, ask(tokenizer, adapter, prompt, count))
        return adapter, prompt, count, ids

    answers = await asyncio.gather(*(one() for _ in range(60)))
    wrong = [(a, len(p), n) for a, p, n, ids in answers if ids != alone(a, p, n)]
    assert wrong == []
    assert len({tuple(ids) for *_, ids in answers}) > 30, (
        "the adapters must answer differently for this to prove anything"
    )


async def test_a_prompt_longer_than_a_piece_is_read_while_others_go_on(
    thread: GenerationThread, tokenizer: Any, alone: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamero.engine.generation.PROMPT_TOKENS_PER_STEP", 16)
    short, long = make_prompts(3)[1], make_prompts(3)[-1]
    running = asyncio.create_task(answer(thread, ask(tokenizer, "plain-a", short, 60)))
    await asyncio.sleep(0.01)
    joined = await answer(thread, ask(tokenizer, "plain-b", long, 20))
    assert joined[0] == alone("plain-b", long, 20)
    assert (await running)[0] == alone("plain-a", short, 60)


def test_plain_adapters_share_a_lane_and_others_get_their_own(runner: ModelRunner) -> None:
    alone = {name for name in runner.adapters if runner.lane_of(name) != MIXED}
    assert alone == {"dora", "head"}


async def test_a_seeded_sample_does_not_depend_on_its_batch_mates(thread: GenerationThread, tokenizer: Any) -> None:
    prompts = make_prompts(4)
    sampling = Sampling(do_sample=True, temperature=1.3, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=11)
    by_itself, end = await answer(thread, ask(tokenizer, "plain-a", prompts[3], 25, sampling=sampling))
    mates = [
        answer(thread, ask(tokenizer, "plain-b", p, 25, sampling=Sampling(do_sample=True, seed=n)))
        for n, p in enumerate(prompts)
    ]
    in_company, *_ = await asyncio.gather(
        answer(thread, ask(tokenizer, "plain-a", prompts[3], 25, sampling=sampling)), *mates
    )
    assert in_company[0] == by_itself
    assert end.seed == 11
    other, _ = await answer(
        thread, ask(tokenizer, "plain-a", prompts[3], 25, sampling=Sampling(do_sample=True, temperature=1.3, seed=12))
    )
    assert other != by_itself


async def test_a_cancelled_request_leaves_the_batch_and_the_others_as_they_were(
    thread: GenerationThread, tokenizer: Any, alone: Callable[..., list[int]]
) -> None:
    prompts = make_prompts(5)
    staying = asyncio.create_task(answer(thread, ask(tokenizer, "plain-a", prompts[2], 80)))
    leaving = thread.submit(ask(tokenizer, "plain-b", prompts[6], 400))
    await leaving.next_event()
    thread.cancel(leaving)
    ids, _ = await staying
    assert ids == alone("plain-a", prompts[2], 80)
    assert thread.batch_size == 0 and not thread.is_busy


async def test_an_adapter_that_is_unloaded_serves_its_running_requests_first(
    runner: ModelRunner,
    thread: GenerationThread,
    tokenizer: Any,
    adapters: dict[str, Path],
    alone: Callable[..., list[int]],
) -> None:
    prompt = make_prompts(6)[3]
    await asyncio.wrap_future(thread.load("again", adapters["plain-a"]))
    running = thread.submit(ask(tokenizer, "again", prompt, 60))
    first = await running.next_event()
    done = thread.unload("again")
    assert isinstance(first, TokenEvent)
    ids = [first.score.id] + [e.score.id async for e in running.events() if isinstance(e, TokenEvent)]
    await asyncio.wrap_future(done)
    assert ids == alone("plain-a", prompt, 60)
    assert "again" not in runner.adapters
    ids, _ = await answer(thread, ask(tokenizer, "plain-b", prompt, 20))
    assert ids == alone("plain-b", prompt, 20)


async def test_more_requests_than_the_queue_holds_are_refused(runner: ModelRunner, tokenizer: Any) -> None:
    thread = GenerationThread(runner, GenerationLimits(max_batch=1, max_queue=2), EngineMetrics())
    thread.start()
    prompt = make_prompts(7)[2]
    running = [thread.submit(ask(tokenizer, None, prompt, 200))]
    await running[0].next_event()
    running += [thread.submit(ask(tokenizer, None, prompt, 200)) for _ in range(2)]
    with pytest.raises(EngineError) as refused:
        thread.submit(ask(tokenizer, None, prompt, 200))
    assert refused.value.kind is ErrorKind.OVERLOADED
    assert refused.value.status == 429
    await asyncio.to_thread(thread.stop)
    with pytest.raises(EngineError) as ended:
        async for _ in running[2].events():
            pass
    assert ended.value.kind is ErrorKind.SHUTTING_DOWN


async def test_prompt_log_probabilities_are_the_models_own(
    runner: ModelRunner, thread: GenerationThread, tokenizer: Any
) -> None:
    prompt = make_prompts(8)[4]
    generation = thread.submit(ask(tokenizer, "plain-a", prompt, 1, prompt_log_probs=True, top_tokens=3))
    first = await generation.next_event()
    assert isinstance(first, TokenEvent)
    assert [s.id for s in first.prompt] == prompt
    assert first.prompt[0].log_prob is None
    assert len(first.top) == 3 and first.top[0] == first.score
    shorter = thread.submit(ask(tokenizer, "plain-a", prompt[:-1], 1, top_tokens=384))
    before_last = await shorter.next_event()
    assert isinstance(before_last, TokenEvent)
    scores = {s.id: s.log_prob for s in before_last.top}
    assert first.prompt[-1].log_prob == pytest.approx(scores[prompt[-1]], abs=1e-4)


async def test_prompt_log_probabilities_are_each_adapters_own_in_a_mixed_batch(
    thread: GenerationThread, tokenizer: Any, random_base: Path, adapters: dict[str, Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    names: list[str | None] = [None, "plain-a", "plain-b", "narrow", "dora", "head"]
    jobs = [(name, prompt) for prompt in make_prompts(14)[1:6] for name in names]
    mates = [asyncio.create_task(answer(thread, ask(tokenizer, "plain-b", p, 60))) for p in make_prompts(15)]

    async def score(name: str | None, prompt: list[int]) -> list[float | None]:
        first = await thread.submit(ask(tokenizer, name, prompt, 1, prompt_log_probs=True)).next_event()
        assert isinstance(first, TokenEvent)
        assert [s.id for s in first.prompt] == prompt
        return [s.log_prob for s in first.prompt]

    found = await asyncio.gather(*(score(*job) for job in jobs))
    await asyncio.gather(*mates)
    for name in names:
        model = AutoModelForCausalLM.from_pretrained(random_base, dtype=torch.float32).eval()
        if name is not None:
            model = PeftModel.from_pretrained(model, adapters[name]).eval()
        for (asked, prompt), scores in zip(jobs, found, strict=True):
            if asked != name:
                continue
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                log_probs = model(ids).logits[0].log_softmax(-1)
            assert scores[0] is None
            assert scores[1:] == pytest.approx(log_probs[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist(), abs=1e-3)


async def test_prompts_that_wait_together_are_read_together_and_answered_as_alone(
    runner: ModelRunner, tokenizer: Any, alone: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    forward = runner.forward
    monkeypatch.setattr(runner, "forward", lambda *a, **k: widths.append(len(a[1])) or forward(*a, **k))
    thread = GenerationThread(runner, GenerationLimits(max_batch=16, max_queue=100), EngineMetrics())
    source = random.Random(21)
    lengths = [9, 12, 10, 18, 11, 17, 40, 44]
    jobs = [
        ([None, "plain-a", "plain-b"][n % 3], [source.randrange(4, 384) for _ in range(size)])
        for n, size in enumerate(lengths)
    ]
    gate = threading.Event()
    thread.start()

    def hold() -> None:
        assert gate.wait(30)

    held = thread._command(hold)
    asked = [thread.submit(ask(tokenizer, adapter, prompt, n + 1)) for n, (adapter, prompt) in enumerate(jobs)]
    gate.set()
    await asyncio.wrap_future(held)
    found = [[e.score.id async for e in g.events() if isinstance(e, TokenEvent)] for g in asked]
    assert found == [alone(adapter, prompt, n + 1) for n, (adapter, prompt) in enumerate(jobs)]
    assert widths[0] == 6, "prompts of like length are read in one go"
    assert all(torch.isfinite(layer.keys).all() for lane in thread._lanes.values() for layer in lane._cache.layers)
    thread.stop()


def test_as_few_rows_as_possible_move_when_others_leave() -> None:
    from llamero.engine.cache import _fill_holes

    assert _fill_holes([0, 1, 2, 3]) == [0, 1, 2, 3]
    assert _fill_holes([1, 2, 3]) == [3, 1, 2]
    assert _fill_holes([0, 3]) == [0, 3]
    assert _fill_holes([2]) == [2]


def test_a_prompt_is_read_with_others_only_where_little_of_it_is_padding() -> None:
    from llamero.engine.batch import can_share_a_read

    assert can_share_a_read(longest=40, total=100, count=4, budget_tokens=512)
    assert not can_share_a_read(longest=100, total=140, count=4, budget_tokens=512)
    assert not can_share_a_read(longest=300, total=590, count=2, budget_tokens=512)


async def test_a_stop_string_ends_the_answer_before_it(thread: GenerationThread, tokenizer: Any) -> None:
    prompt = make_prompts(9)[3]
    _, whole = await answer(thread, ask(tokenizer, "plain-a", prompt, 40))
    stop = whole.text[7:11]
    _, cut = await answer(thread, ask(tokenizer, "plain-a", prompt, 40, stop_strings=(stop,)))
    assert cut.reason is FinishReason.STOP_SEQUENCE
    assert cut.stop_string == stop
    assert cut.text == whole.text[: whole.text.index(stop)]


async def collect_text(events: AsyncIterator[TokenEvent | Finished]) -> tuple[str, str]:
    pieces = ""
    async for event in events:
        if isinstance(event, Finished):
            return pieces, event.text
        pieces += event.text
    raise AssertionError


async def test_the_pieces_of_a_stream_are_the_whole_text(thread: GenerationThread, tokenizer: Any) -> None:
    for prompt in make_prompts(10):
        pieces, text = await collect_text(thread.submit(ask(tokenizer, "narrow", prompt, 40)).events())
        assert pieces == text


@pytest.fixture(scope="module")
def adapter_with_new_tokens(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that adds two tokens to the vocabulary and says little else."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("new-tokens")
    torch.manual_seed(9)
    base = AutoModelForCausalLM.from_pretrained(random_base, dtype=torch.float32)
    base.resize_token_embeddings(386)
    config = LoraConfig(
        r=4,
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,
        trainable_token_indices={"embed_tokens": [384, 385], "lm_head": [384, 385]},
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.5 * torch.randn_like(parameter)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


async def test_tokens_that_an_adapter_adds_are_its_own_alone(
    random_base: Path,
    adapters: dict[str, Path],
    adapter_with_new_tokens: Path,
    tokenizer: Any,
    alone: Callable[..., list[int]],
) -> None:
    runner = ModelRunner(load_base(random_base, quantization=None, device="cpu", training=False, dtype=torch.float32))
    thread = GenerationThread(runner, GenerationLimits(), EngineMetrics())
    thread.start()
    for name, folder in [
        ("plain-a", adapters["plain-a"]),
        ("newer", adapter_with_new_tokens),
        ("plain-b", adapters["plain-b"]),
    ]:
        await asyncio.wrap_future(thread.load(name, folder))
    assert runner.lane_of("newer").alone == "newer"
    jobs = [(a, p) for a in ("plain-a", "plain-b", None) for p in make_prompts(11)]
    newer = [answer(thread, ask(tokenizer, "newer", p, 30)) for p in make_prompts(12)]
    answers = await asyncio.gather(*(answer(thread, ask(tokenizer, a, p, 30)) for a, p in jobs), *newer)
    assert [ids for ids, _ in answers[: len(jobs)]] == [alone(a, p, 30) for a, p in jobs]
    assert any(max(ids) >= 384 for ids, _ in answers[len(jobs) :]), "the adapter's own tokens must come up here"
    thread.stop()
