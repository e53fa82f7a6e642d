"""Golden prompts: made by the evaluation, proven against plain transformers and against a running engine."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamero.evaluation import golden
from llamero.evaluation.config import EvaluationConfig
from llamero.evaluation.evaluate import evaluate
from llamero.model.adapters import describe_adapter
from llamero.phases.evaluation import find_golden, lay_golden
from llamero.spec.golden import MAX_GOLDEN_TOKENS, GoldenSet
from llamero.spec.names import golden_name
from llamero.spec.results import EvaluationResult, FileEntry
from llamero.storage import find_damage

torch.set_num_threads(1)


def run(content: dict[str, Any]) -> EvaluationResult:
    return evaluate(EvaluationConfig.model_validate(content), lambda event: None)


@pytest.fixture(scope="module")
def made(random_base: Path, adapters: dict[str, Path]) -> dict[str, GoldenSet]:
    """The golden prompts of two adapters of one base."""
    return {name: golden.make_golden(random_base, adapters[name]) for name in ("plain-a", "plain-b")}


@pytest.fixture
def telling_config(evaluation_config: dict[str, Any], adapters: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """The configuration of an evaluation whose adapter says something else than its base."""
    adapter = tmp_path / "adapter"
    shutil.copytree(adapters["plain-a"], adapter)
    files, sha256 = describe_adapter(adapter)
    (adapter / "manifest.json").write_text(json.dumps({"files": [f.to_json_dict() for f in files], "sha256": sha256}))
    return {**evaluation_config, "adapter": str(adapter)}


@torch.no_grad()
def score_plainly(model: Any, tokenizer: Any, prompt: str, answer: str, count: int) -> float:
    ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
    log_probs = model(ids).logits[0].float().log_softmax(-1)
    return sum(log_probs[i - 1, ids[0, i]].item() for i in range(ids.shape[1] - count, ids.shape[1]))


def test_the_recorded_values_are_those_of_plain_transformers(
    made: dict[str, GoldenSet], random_base: Path, adapters: dict[str, Path]
) -> None:
    found = made["plain-a"]
    tokenizer = AutoTokenizer.from_pretrained(random_base)
    base = AutoModelForCausalLM.from_pretrained(random_base, dtype=torch.float32).eval()
    plain = {p.prompt: score_plainly(base, tokenizer, p.prompt, p.answer, p.answer_tokens) for p in found.prompts}
    tuned = PeftModel.from_pretrained(base, adapters["plain-a"]).eval()
    assert 1 <= len(found.prompts) <= 10
    assert (found.dtype, found.quantization) == ("float32", None)
    for p in found.prompts:
        assert 1 <= p.answer_tokens <= MAX_GOLDEN_TOKENS
        assert p.base_log_prob == pytest.approx(plain[p.prompt], abs=1e-3)
        scored = score_plainly(tuned, tokenizer, p.prompt, p.answer, p.answer_tokens)
        assert p.tuned_log_prob == pytest.approx(scored, abs=1e-3)
        assert abs(p.tuned_log_prob - p.base_log_prob) >= golden.MIN_DIFFERENCE_NATS


def test_the_answers_tokens_are_the_last_of_prompt_and_answer(made: dict[str, GoldenSet], random_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_base)
    for p in [*made["plain-a"].prompts, *made["plain-b"].prompts]:
        whole, prompt = tokenizer(p.prompt + p.answer)["input_ids"], tokenizer(p.prompt)["input_ids"]
        assert whole[: -p.answer_tokens] == prompt


async def test_a_running_engine_answers_to_the_letter_and_lies_nearer_the_right_adapter(
    made: dict[str, GoldenSet], launch_engine: Any
) -> None:
    engine = launch_engine(names=("plain-a", "plain-b"))
    async with aiohttp.ClientSession(engine.url) as client:

        async def ask(inputs: str, adapter: str | None, **parameters: Any) -> dict[str, Any]:
            body = {"inputs": inputs, "parameters": {"adapter_id": adapter, "details": True, **parameters}}
            async with client.post("/generate", json=body) as response:
                assert response.status == 200, await response.text()
                answer: dict[str, Any] = await response.json()
                return answer

        for name, found in made.items():
            assert found.engine == "cpu"
            for p in found.prompts:
                told = await ask(p.prompt, name, max_new_tokens=p.answer_tokens)
                assert told["generated_text"] == p.answer
                nearer = {}
                for model in ("plain-a", "plain-b", None):
                    scored = await ask(p.prompt + p.answer, model, max_new_tokens=1, decoder_input_details=True)
                    prefill = scored["details"]["prefill"][-p.answer_tokens :]
                    value = sum(token["logprob"] for token in prefill)
                    nearer[model] = abs(value - p.tuned_log_prob) < abs(value - p.base_log_prob)
                    if model in (name, None):
                        expected = p.base_log_prob if model is None else p.tuned_log_prob
                        assert value == pytest.approx(expected, abs=1e-3)
                assert nearer[name] and not nearer[None]
        others = made["plain-a"].prompts
        told_by_other = [
            (await ask(p.prompt, "plain-b", max_new_tokens=p.answer_tokens))["generated_text"] for p in others
        ]
        assert told_by_other != [p.answer for p in others]


def test_making_them_twice_gives_the_same_bytes(
    made: dict[str, GoldenSet], random_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    again = golden.make_golden(random_base, adapters["plain-a"])
    first, second = tmp_path / "first", tmp_path / "second"
    sha256 = golden.write_golden(made["plain-a"], first)
    assert golden.write_golden(again, second) == sha256
    assert sha256 is not None
    content = (first / golden_name(sha256)).read_bytes()
    assert content == (second / golden_name(sha256)).read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256
    assert GoldenSet.model_validate_json(content) == made["plain-a"]


def test_an_adapter_that_changes_nothing_has_no_golden_prompts(
    random_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(random_base, dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    found = golden.make_golden(random_base, tmp_path)
    assert found.prompts == [] and found.engine == ""
    assert golden.write_golden(found, tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_adapters_that_mix_with_no_other_have_golden_prompts_too(random_base: Path, adapters: dict[str, Path]) -> None:
    assert golden.make_golden(random_base, adapters["dora"]).prompts


def test_a_close_call_ends_the_answer_before_it(
    random_base: Path, adapters: dict[str, Path], made: dict[str, GoldenSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "MIN_MARGIN_NATS", {torch.float32: 1.0})
    shorter = golden.make_golden(random_base, adapters["plain-a"])
    tokens = {p.prompt: p.answer_tokens for p in made["plain-a"].prompts}
    pairs = [(p.answer_tokens, tokens[p.prompt]) for p in shorter.prompts if p.prompt in tokens]
    assert pairs and any(short < whole for short, whole in pairs)


def test_the_beginning_of_text_is_left_to_the_engine(random_base: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(random_base)
    assert golden._without_bos(tokenizer, "<|endoftext|>Why?") == "<|endoftext|>Why?"
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos]
    )
    assert golden._without_bos(tokenizer, "<|endoftext|>Why?") == "Why?"


def test_the_evaluation_leaves_them_beside_its_figures_and_lays_them_beside_the_adapter(
    telling_config: dict[str, Any],
) -> None:
    result = run(telling_config)
    output, adapter = Path(telling_config["output"]), Path(telling_config["adapter"])
    assert result.golden_sha256 is not None
    path = find_golden(output, result)
    assert path == output / golden_name(result.golden_sha256)
    found = GoldenSet.model_validate_json(path.read_bytes())
    assert found.prompts and (found.dtype, found.quantization) == ("float32", None)
    assert all("<|im_start|>assistant" in p.prompt for p in found.prompts)
    before = (adapter / "manifest.json").read_bytes()
    assert lay_golden(output, result, adapter) == result.golden_sha256
    assert (adapter / path.name).read_bytes() == path.read_bytes()
    assert (adapter / "manifest.json").read_bytes() == before
    manifest = json.loads(before)
    assert find_damage(adapter, [FileEntry.model_validate(f) for f in manifest["files"]]) is None


def test_an_adapter_like_its_base_is_told_of_in_a_note(evaluation_config: dict[str, Any]) -> None:
    result = run(evaluation_config)
    assert result.golden_sha256 is None
    assert any("no golden prompts" in note for note in result.notes)
    assert list(Path(evaluation_config["output"]).glob("golden-*")) == []


def test_a_finished_evaluation_keeps_its_golden_prompts_and_makes_lost_ones_again(
    telling_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(telling_config)
    path = find_golden(Path(telling_config["output"]), first)
    assert path is not None
    assert run(telling_config) == first
    path.unlink()
    again = run(telling_config)
    assert again.golden_sha256 == first.golden_sha256 and path.is_file()


def test_an_evaluation_of_before_there_were_any_stays_without(telling_config: dict[str, Any]) -> None:
    first = run(telling_config)
    output = Path(telling_config["output"])
    content = json.loads((output / "result.json").read_bytes())
    del content["goldenSha256"]
    (output / "result.json").write_text(json.dumps(content))
    again = run(telling_config)
    assert again.golden_sha256 is None and again.seconds == first.seconds
    assert find_golden(output, again) is None and lay_golden(output, again, output / "nowhere") is None


def test_a_base_in_four_bits_is_told_and_still_answered_exactly(telling_config: dict[str, Any]) -> None:
    result = run({**telling_config, "method": "qlora"})
    path = find_golden(Path(telling_config["output"]), result)
    assert path is not None
    found = GoldenSet.model_validate_json(path.read_bytes())
    assert (found.dtype, found.quantization, found.engine) == ("float32", "nf4", "cpu")


def test_equality_is_promised_only_for_weights_that_the_engine_serves(random_base: Path, tmp_path: Path) -> None:
    float32, bfloat16 = tmp_path / "float32", tmp_path / "bfloat16"
    for folder, dtype in ((float32, torch.float32), (bfloat16, torch.bfloat16)):
        AutoModelForCausalLM.from_pretrained(random_base, dtype=dtype).save_pretrained(folder)
    promised: Callable[..., bool] = golden.are_served_weights
    assert promised(float32, None, torch.float32)
    assert promised(bfloat16, None, torch.bfloat16)
    assert not promised(float32, None, torch.bfloat16)
