"""The evaluation against plain transformers: the same figures, the same answers, the same process."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from llamero.evaluation.config import ConfigError, EvaluationConfig
from llamero.evaluation.evaluate import choose_dtype, evaluate
from llamero.evaluation.failures import PromptError
from llamero.lifecycle.failures import PhaseExit
from llamero.model.tokens import TokenSet
from llamero.spec.progress import Progress
from llamero.spec.results import EvaluationResult

torch.set_num_threads(1)


def evaluate_config(content: dict[str, Any], events: list[Progress] | None = None) -> EvaluationResult:
    sink = events if events is not None else []
    return evaluate(EvaluationConfig.model_validate(content), sink.append)


def load_plainly(base: Path, adapter: Path | None, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", **options).eval()
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


@torch.no_grad()
def measure_plainly(model: Any, folders: list[str]) -> tuple[float, float, int]:
    """(perplexity by record, by token, tokens): one example at a time, whole logits, no function of the product but the reader."""
    examples = TokenSet.open([Path(f) for f in folders])
    scores: dict[str, list[float]] = {}
    for index in range(len(examples)):
        ids, mask = (torch.from_numpy(a.astype("int64")) for a in examples[index])
        log_probs = model(ids[None]).logits[0].float().log_softmax(-1)
        targets = torch.nonzero(mask[1:]).flatten() + 1
        found = [-log_probs[t - 1, ids[t]].item() for t in targets.tolist()]
        scores.setdefault(examples.record_id(index).split("_")[0], []).extend(found)
    by_record = [math.exp(sum(s) / len(s)) for s in scores.values()]
    everything = [s for record in scores.values() for s in record]
    return sum(by_record) / len(by_record), math.exp(sum(everything) / len(everything)), len(everything)


def test_perplexities_equal_plain_unpacked_transformers_to_1e_5(evaluation_config: dict[str, Any]) -> None:
    result = evaluate_config(evaluation_config)
    folders = evaluation_config["evaluationTokens"]
    base, adapter = Path(evaluation_config["base"]), Path(evaluation_config["adapter"])
    base_record, base_token, tokens = measure_plainly(load_plainly(base, None, dtype=torch.float32), folders)
    tuned_record, tuned_token, _ = measure_plainly(load_plainly(base, adapter, dtype=torch.float32), folders)
    assert (result.records, result.target_tokens) == (7, tokens)
    assert result.perplexity.base == pytest.approx(base_record, rel=1e-5)
    assert result.token_perplexity.base == pytest.approx(base_token, rel=1e-5)
    assert result.perplexity.tuned == pytest.approx(tuned_record, rel=1e-5)
    assert result.token_perplexity.tuned == pytest.approx(tuned_token, rel=1e-5)
    assert base_token != pytest.approx(tuned_token, rel=0.01), (
        "the adapter must make a difference, or this shows nothing"
    )


def test_a_qlora_adapter_is_measured_on_the_4_bit_base_that_it_was_trained_on(
    evaluation_config: dict[str, Any],
) -> None:
    result = evaluate_config({**evaluation_config, "method": "qlora"})
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base, adapter = Path(evaluation_config["base"]), Path(evaluation_config["adapter"])
    folders = evaluation_config["evaluationTokens"]
    for folder, pair in ((None, "base"), (adapter, "tuned")):
        plain = load_plainly(base, folder, dtype=torch.bfloat16, quantization_config=nf4)
        by_record, by_token, _ = measure_plainly(plain, folders)
        # The plain one computes in bfloat16 (8 bits), the product in float32 with the same numbers.
        assert getattr(result.perplexity, pair) == pytest.approx(by_record, rel=0.02)
        assert getattr(result.token_perplexity, pair) == pytest.approx(by_token, rel=0.02)
    unquantised = evaluate_config({**evaluation_config, "output": evaluation_config["output"] + "-plain"})
    assert result.token_perplexity.base != unquantised.token_perplexity.base


def test_greedy_answers_equal_generate_one_at_a_time(evaluation_config: dict[str, Any]) -> None:
    asked = [
        "Why?",
        "What is a licence, and who may give one to whom under these terms?",
        "May I copy it, please?",
        "A",
    ]
    spec = {"maxNewTokens": 24, "promptSets": [{"name": "mine", "prompts": asked}]}
    result = evaluate_config({**evaluation_config, "spec": spec})
    base, adapter = Path(evaluation_config["base"]), Path(evaluation_config["adapter"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name in ("base", "tuned"):
        model = load_plainly(base, adapter if name == "tuned" else None, dtype=torch.float32)
        for sample in result.samples:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": sample.prompt}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            made = model.generate(**ids, do_sample=False, max_new_tokens=24)[0, ids["input_ids"].shape[1] :].tolist()
            stop = tokenizer.eos_token_id
            finished = stop in made
            made = made[: made.index(stop)] if finished else made
            answer = getattr(sample, name)
            assert answer.text == tokenizer.decode(made, skip_special_tokens=True)
            assert (answer.finished, answer.tokens) == (finished, len(made))
    assert [s.prompt for s in result.samples] == asked
    assert any(s.base.text != s.tuned.text for s in result.samples)


def test_without_prompt_sets_three_held_out_records_are_asked_with_their_answers(
    evaluation_config: dict[str, Any], held_out: Path
) -> None:
    result = evaluate_config(evaluation_config)
    rows = [json.loads(line) for f in sorted(held_out.glob("*.jsonl")) for line in f.read_text().splitlines()]
    first = sorted((r for r in rows if r.get("chunk") != 1), key=lambda r: r["id"])[:3]
    assert [s.prompt for s in result.samples] == [r["messages"][0]["content"] for r in first]
    assert [s.reference for s in result.samples] == [r["messages"][1]["content"] for r in first]
    assert {s.prompt_set for s in result.samples} == {"held-out"}


def test_max_records_takes_the_first_by_content_hash(evaluation_config: dict[str, Any]) -> None:
    spec = {"maxRecords": 2, "maxNewTokens": 1}
    result = evaluate_config({**evaluation_config, "spec": spec})
    backwards = {
        **evaluation_config,
        "evaluationTokens": evaluation_config["evaluationTokens"][::-1],
        "output": evaluation_config["output"] + "-2",
    }
    again = evaluate_config({**backwards, "spec": spec})
    assert result.records == again.records == 2
    assert result.token_perplexity.base == pytest.approx(again.token_perplexity.base, rel=1e-6)


def test_nothing_held_out_gives_no_figures_and_no_error(evaluation_config: dict[str, Any]) -> None:
    result = evaluate_config({**evaluation_config, "evaluationTokens": [], "evaluationRecords": []})
    assert (result.records, result.target_tokens, result.samples) == (0, 0, [])
    assert (result.perplexity.base, result.token_perplexity.tuned) == (None, None)


def test_a_second_start_reuses_the_result_and_a_changed_input_does_not(evaluation_config: dict[str, Any]) -> None:
    spec = {"maxNewTokens": 2}
    first = evaluate_config({**evaluation_config, "spec": spec})
    events: list[Progress] = []
    again = evaluate_config({**evaluation_config, "spec": {**spec, "gate": {"maxTokenPerplexity": 2}}}, events)
    assert (again, events) == (first, []), "the gate is no part of what is measured"
    changed = evaluate_config({**evaluation_config, "spec": {"maxNewTokens": 3}}, events)
    assert changed.digest != first.digest
    assert events


def test_progress_names_each_activity_and_ends_at_its_total(evaluation_config: dict[str, Any]) -> None:
    events: list[Progress] = []
    evaluate_config(evaluation_config, events)
    last = {e.activity: e for e in events}
    activities = ["loading the models", "perplexity of base", "perplexity of tuned", "answers", "golden prompts"]
    assert list(last) == activities
    assert all(e.phase == "Evaluating" for e in events)
    assert all(last[a].done == last[a].total for a in list(last)[1:])


def test_a_prompt_longer_than_the_context_is_asked_by_its_end_and_noted(evaluation_config: dict[str, Any]) -> None:
    spec = {"maxNewTokens": 8, "promptSets": [{"prompts": ["word " * 1000]}]}
    result = evaluate_config({**evaluation_config, "spec": spec})
    assert len(result.samples) == 1
    assert len([note for note in result.notes if "by its last 504" in note]) == 1


def test_prompts_of_a_file_are_read_by_any_of_their_names(evaluation_config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "One?"},
        {"instruction": "Two", "input": "of it", "output": "2"},
        {"question": "Three?", "answer": "3"},
        {"turns": ["Four?", "And five?"]},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + "\n")
    spec = {"maxNewTokens": 1, "promptSets": [{"name": "file", "uri": str(file)}]}
    result = evaluate_config({**evaluation_config, "spec": spec})
    found = [(s.prompt, s.reference) for s in result.samples]
    assert found == [("One?", None), ("Two\n\nof it", "2"), ("Three?", "3"), ("Four?", None)]
    file.write_text('{"prompt": "fine"}\n{"text": "what?"}\n')
    with pytest.raises(PromptError, match=r"line 2 has no text in any of prompt, instruction, question, turns"):
        evaluate_config({**evaluation_config, "spec": spec})


def test_an_adapter_other_than_the_one_asked_for_is_refused(evaluation_config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="was to be measured"):
        evaluate_config({**evaluation_config, "adapterSha256": "0" * 64})


@pytest.mark.parametrize(
    ("parameters", "device", "free_gib", "expected"),
    [
        (7_000_000, "cpu", 8, torch.float32),
        (3_000_000_000, "cpu", 16, torch.bfloat16),
        (7_000_000_000, "cpu", 16, None),
        (1_000_000_000, "cuda", 80, torch.bfloat16),
        (70_000_000_000, "cuda", 80, None),
    ],
)
def test_the_measuring_dtype_is_the_widest_that_fits(
    parameters: int, device: str, free_gib: int, expected: torch.dtype | None
) -> None:
    assert choose_dtype(parameters, device, free_gib << 30) is expected


def start(config: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "llamero.evaluation", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_the_process_reports_progress_writes_its_result_and_ends_with_0(
    evaluation_config: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(evaluation_config))
    process = start(path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == PhaseExit.DONE, err
    events = [Progress.from_line(line) for line in out.splitlines()]
    assert {e.activity for e in events if e} >= {"perplexity of base", "perplexity of tuned", "answers"}
    written = Path(evaluation_config["output"]) / "result.json"
    assert EvaluationResult.model_validate_json(written.read_bytes()).records == 7


def test_the_process_tells_a_wrong_configuration_by_code_and_failure_file(
    evaluation_config: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**evaluation_config, "adapter": str(tmp_path / "none")}))
    process = start(path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == PhaseExit.BAD_CONFIG, err
    failure = json.loads((Path(evaluation_config["output"]) / "failure.json").read_text())
    assert failure["class"] == "BadConfig"
    assert "no finished adapter" in failure["message"]


def test_sigterm_ends_the_process_as_interrupted_without_a_result(
    evaluation_config: dict[str, Any], tmp_path: Path
) -> None:
    spec = {"maxNewTokens": 250, "promptSets": [{"prompts": ["Go on for ever."] * 200}]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**evaluation_config, "spec": spec}))
    process = start(path)
    assert process.stdout is not None
    for line in process.stdout:
        event = Progress.from_line(line)
        if event is not None and event.activity == "answers":
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == PhaseExit.INTERRUPTED, err
    output = Path(evaluation_config["output"])
    assert not (output / "result.json").exists()
    assert json.loads((output / "failure.json").read_text())["class"] == "Interrupted"
