"""text-generation-inference's contract and its traps, each a sentence."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from serving.fixtures import Tiny
from serving.makers import BASE_WORD, break_rank, corrupt, question, render

from standins.asking import ask, chat
from standins.conftest import StandIn
from standins.text import Words

PROGRAM = "text-generation-launcher"


@pytest.fixture(scope="module")
def url(start_shared_stand_in: StandIn, tiny: Tiny) -> str:
    """A server with the adapters a (amber) and b (birch)."""
    adapters = f"a={tiny.adapter('amber').folder},b={tiny.adapter('birch').folder}"
    _, url = start_shared_stand_in(
        PROGRAM, MODEL_ID=str(tiny.base), LORA_ADAPTERS=adapters, ENABLE_PREFILL_LOGPROBS="true", HOSTNAME="127.0.0.1"
    )
    return url


def test_each_adapter_answers_under_its_id_and_the_base_under_none_and_under_tgi(url: str) -> None:
    def generated(**parameters: object) -> str:
        body = {"inputs": render(question(1)), "parameters": {"max_new_tokens": 3, **parameters}}
        return str(ask(f"{url}/generate", body).json["generated_text"])

    assert generated(adapter_id="a") == " amber" * 3
    assert generated(adapter_id="b") == " birch" * 3
    assert generated() == f" {BASE_WORD}" * 3
    assert (
        ask(f"{url}/v1/chat/completions", chat(question(1), "tgi")).json["choices"][0]["message"]["content"]
        == f" {BASE_WORD}" * 6
    )


def test_an_unknown_adapter_is_answered_by_the_base_with_200_and_the_name_that_was_asked_for(url: str) -> None:
    answer = ask(f"{url}/v1/chat/completions", chat(question(2), "nobody"))
    assert answer.status == 200
    assert answer.json["model"] == "nobody"
    assert answer.json["choices"][0]["message"]["content"] == f" {BASE_WORD}" * 6


def test_models_and_info_list_the_base_alone(url: str, tiny: Tiny) -> None:
    assert [m["id"] for m in ask(f"{url}/v1/models").json["data"]] == [str(tiny.base)]
    assert ask(f"{url}/info").json["model_id"] == str(tiny.base)
    assert "adapters" not in ask(f"{url}/info").text


def test_adapters_are_read_at_start_alone(start_stand_in: StandIn, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny.adapter("amber").folder, folder)
    _, url = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), LORA_ADAPTERS=f"a={folder}", HOSTNAME="127.0.0.1")
    shutil.rmtree(folder)
    shutil.copytree(tiny.adapter("birch").folder, folder)
    assert ask(f"{url}/v1/load_lora_adapter", {"lora_name": "b", "lora_path": str(folder)}).status == 404
    assert "amber" in ask(f"{url}/v1/chat/completions", chat(question(3), "a")).text


def test_a_stream_tells_an_error_inside_its_200(url: str) -> None:
    broken = ask(f"{url}/generate_stream", {"inputs": "<<fail after 2>> go", "parameters": {"max_new_tokens": 9}})
    assert broken.status == 200
    assert [e["index"] for e in broken.events[:2]] == [1, 2]
    assert broken.events[2] == {
        "error": "Request failed during generation: CUDA out of memory.",
        "error_type": "generation",
    }
    too_long = ask(f"{url}/generate_stream", {"inputs": "go", "parameters": {"max_new_tokens": 100_000}})
    assert too_long.status == 200
    assert [e["error_type"] for e in too_long.events] == ["validation"]
    in_chat = ask(f"{url}/v1/chat/completions", chat("<<fail after 0>>", "a", stream=True))
    assert in_chat.status == 200
    assert in_chat.events[0]["error"]["http_status_code"] == 422
    assert in_chat.events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": "go", "parameters": {"max_new_tokens": 100_000}}, 422, "validation"),
        ({"inputs": ""}, 422, "validation"),
        ({"inputs": "go", "parameters": {"temperature": 0.0}}, 422, "validation"),
        ({"inputs": "<<fail after 1>>", "parameters": {"max_new_tokens": 5}}, 424, "generation"),
    ],
)
def test_without_a_stream_an_error_has_its_own_status_and_the_router_s_form(
    url: str, body: dict[str, object], status: int, kind: str
) -> None:
    answer = ask(f"{url}/generate", body)
    assert answer.status == status
    assert set(answer.json) == {"error", "error_type"}
    assert answer.json["error_type"] == kind


def test_a_body_that_does_not_fit_is_refused_in_plain_text(url: str) -> None:
    answer = ask(f"{url}/generate", {"input": "go"})
    assert answer.status == 422
    with pytest.raises(json.JSONDecodeError):
        _ = answer.json


def test_more_requests_than_it_takes_are_refused_with_429(start_stand_in: StandIn, tiny: Tiny) -> None:
    _, url = start_stand_in(
        PROGRAM,
        "--model-id",
        str(tiny.base),
        "--max-concurrent-requests",
        "1",
        HOSTNAME="127.0.0.1",
        STANDIN_TOKEN_SECONDS="0.05",
    )
    body = {"inputs": render(question(1)), "parameters": {"max_new_tokens": 40}}
    first = threading.Thread(target=ask, args=(f"{url}/generate", body))
    first.start()
    statuses = set()
    while first.is_alive() and 429 not in statuses:
        statuses.add(ask(f"{url}/generate", {**body, "parameters": {"max_new_tokens": 1}}).status)
    first.join()
    assert 429 in statuses


def test_prompts_log_probabilities_are_told_where_the_launcher_allows_them_and_not_otherwise(
    url: str, start_stand_in: StandIn, tiny: Tiny
) -> None:
    golden = tiny.adapter("amber")
    from serving.makers import read_golden

    prompt = read_golden(golden).prompts[0]  # type: ignore[union-attr]
    body = {
        "inputs": prompt.prompt + prompt.answer,
        "parameters": {"max_new_tokens": 1, "decoder_input_details": True, "details": True, "adapter_id": "a"},
    }
    prefill = ask(f"{url}/generate", body).json["details"]["prefill"]
    assert prefill[0]["logprob"] is None
    told = sum(t["logprob"] for t in prefill[-prompt.answer_tokens :])
    assert told == pytest.approx(prompt.tuned_log_prob, abs=1e-3)
    _, plain = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), HOSTNAME="127.0.0.1")
    assert ask(f"{plain}/generate", body).json["details"]["prefill"] == []
    assert ask(f"{url}/generate_stream", body).events[0]["error_type"] == "validation"


def test_all_adapters_are_asked_in_the_base_s_chat_template(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny.adapter("amber").folder, folder)
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    _, url = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), LORA_ADAPTERS=f"a={folder}", HOSTNAME="127.0.0.1")
    told = ask(f"{url}/v1/chat/completions", chat(question(1), "a")).json
    assert told["usage"]["prompt_tokens"] == len(Words(tiny.base).encode(render(question(1))))
    assert told["choices"][0]["message"]["content"] == " amber" * 6


def edit(change: Callable[[dict[str, np.ndarray], dict[str, object]], None]) -> Callable[[Path, Path], Path]:
    """An adapter's copy with other tensors or another config."""

    def build(good: Path, folder: Path) -> Path:
        shutil.copytree(good, folder)
        tensors = {k: v.copy() for k, v in load_file(folder / "adapter_model.safetensors").items()}
        config = json.loads((folder / "adapter_config.json").read_text())
        change(tensors, config)
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return build


def add_head(tensors: dict[str, np.ndarray], config: dict[str, object]) -> None:
    tensors["base_model.model.lm_head.weight"] = np.zeros((4, 4), np.float32)
    config["modules_to_save"] = ["lm_head"]


def add_magnitudes(tensors: dict[str, np.ndarray], config: dict[str, object]) -> None:
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = np.zeros(48, np.float32)
    config["use_dora"] = True


def name_patterns(tensors: dict[str, np.ndarray], config: dict[str, object]) -> None:
    config["alpha_pattern"] = {"q_proj": 0}


def take_out(kind: str, layer: int) -> Callable[[dict[str, np.ndarray], dict[str, object]], None]:
    def change(tensors: dict[str, np.ndarray], config: dict[str, object]) -> None:
        for key in [k for k in tensors if f"layers.{layer}." in k and kind in k]:
            del tensors[key]

    return change


def first_score(url: str, adapter: str) -> float:
    """A number that depends on every weight."""
    body = {
        "inputs": render(question(1)),
        "parameters": {"max_new_tokens": 1, "details": True, "adapter_id": adapter},
    }
    return float(ask(f"{url}/generate", body).json["details"]["tokens"][0]["logprob"])


def test_what_is_no_pair_of_lora_matrices_is_dropped_without_a_word(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    good = tiny.adapter("amber").folder
    changes = {
        "good": lambda tensors, config: None,
        "head": add_head,
        "dora": add_magnitudes,
        "patterns": name_patterns,
    }
    folders = {name: edit(change)(good, tmp_path / name) for name, change in changes.items()}
    adapters = ",".join(f"{name}={folder}" for name, folder in folders.items())
    _, url = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), LORA_ADAPTERS=adapters, HOSTNAME="127.0.0.1")
    scores = {name: first_score(url, name) for name in folders}
    assert len(set(scores.values())) == 1, scores


def test_a_module_type_that_one_layer_lacks_is_dropped_in_all_layers(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    good = tiny.adapter("amber").folder

    def none_at_all(tensors: dict[str, np.ndarray], config: dict[str, object]) -> None:
        take_out("up_proj", 0)(tensors, config)
        take_out("up_proj", 1)(tensors, config)

    one = edit(take_out("up_proj", 1))(good, tmp_path / "one")
    both = edit(none_at_all)(good, tmp_path / "both")
    adapters = f"one={one},both={both},whole={good}"
    _, url = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), LORA_ADAPTERS=adapters, HOSTNAME="127.0.0.1")
    assert first_score(url, "one") == first_score(url, "both") != first_score(url, "whole")


def test_all_safetensors_of_an_adapter_s_folder_are_merged_into_it(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    shutil.copytree(tiny.adapter("amber").folder, folder)
    shutil.copy(tiny.adapter("birch").folder / "adapter_model.safetensors", folder / "optimizer.safetensors")
    _, url = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), LORA_ADAPTERS=f"a={folder}", HOSTNAME="127.0.0.1")
    assert "birch" in ask(f"{url}/v1/chat/completions", chat(question(1), "a")).text


@pytest.mark.parametrize("fault", ["damaged", "missing", "two-ranks", "no-config", "another-base"])
def test_a_bad_adapter_fails_the_start(
    start_stand_in: StandIn, tiny: Tiny, random_base: Path, tmp_path: Path, fault: str
) -> None:
    good = tiny.adapter("amber")
    folder, base = tmp_path / "bad", tiny.base
    if fault == "damaged":
        shutil.copytree(good.folder, folder)
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif fault == "two-ranks":

        def narrow(tensors: dict[str, np.ndarray], config: dict[str, object]) -> None:
            key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
            tensors[key.format("A")] = np.ascontiguousarray(tensors[key.format("A")][:2])
            tensors[key.format("B")] = np.ascontiguousarray(tensors[key.format("B")][:, :2])

        edit(narrow)(good.folder, folder)
    elif fault == "no-config":
        shutil.copytree(good.folder, folder)
        (folder / "adapter_config.json").unlink()
    elif fault == "another-base":
        folder, base = good.folder, random_base
    server, _ = start_stand_in(
        PROGRAM, wait=False, MODEL_ID=str(base), LORA_ADAPTERS=f"a={folder}", HOSTNAME="127.0.0.1"
    )
    assert server.process is not None
    assert server.process.wait(30) == 1
    assert "ShardCannotStart" in server.tail()


def test_a_rank_that_the_config_tells_wrongly_is_served_at_another_scale(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    good = tiny.adapter("amber")
    wrong = break_rank(tiny.base, good, tmp_path / "rank")
    adapters = f"good={good.folder},wrong={wrong.folder}"
    _, url = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), LORA_ADAPTERS=adapters, HOSTNAME="127.0.0.1")
    assert first_score(url, "good") != first_score(url, "wrong")


def test_values_that_were_damaged_are_served_all_the_same(start_stand_in: StandIn, tiny: Tiny, tmp_path: Path) -> None:
    bad = corrupt(tiny.adapter("amber"), tmp_path / "damaged")
    _, url = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), LORA_ADAPTERS=f"a={bad.folder}", HOSTNAME="127.0.0.1")
    assert ask(f"{url}/health").status == 200


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["--lora-adapter", "a=/x"], {}, "unexpected argument '--lora-adapter'"),
        (["--quantize", "nf4"], {}, "invalid value 'nf4' for '--quantize'"),
        ([], {"MAX_TOTAL_TOKENS": "many"}, "invalid value 'many' for '--max-total-tokens'"),
        (["--dtype=float32"], {}, "invalid value 'float32' for '--dtype'"),
    ],
)
def test_an_option_that_the_launcher_does_not_know_ends_it_with_2(
    start_stand_in: StandIn, arguments: list[str], environment: dict[str, str], told: str
) -> None:
    server, _ = start_stand_in(PROGRAM, *arguments, wait=False, **environment)
    assert server.process is not None
    assert server.process.wait(30) == 2
    assert told in server.tail()


def test_too_little_memory_ends_the_launcher_when_it_warms_up(start_stand_in: StandIn, tiny: Tiny) -> None:
    server, _ = start_stand_in(PROGRAM, "--cuda-memory-fraction=0.01", wait=False, MODEL_ID=str(tiny.base))
    assert server.process is not None
    assert server.process.wait(30) == 1
    assert "Not enough memory" in server.tail()


def test_an_adapter_with_two_equals_signs_in_its_entry_fails_the_start(start_stand_in: StandIn, tiny: Tiny) -> None:
    server, _ = start_stand_in(PROGRAM, wait=False, MODEL_ID=str(tiny.base), LORA_ADAPTERS="a=/x=y")
    assert server.process is not None
    assert server.process.wait(30) == 1
    assert "Invalid LoRA adapter format" in server.tail()


def test_told_to_stop_it_takes_no_new_connection_and_ends_the_answers_at_hand(
    start_stand_in: StandIn, tiny: Tiny
) -> None:
    server, url = start_stand_in(PROGRAM, MODEL_ID=str(tiny.base), HOSTNAME="127.0.0.1", STANDIN_TOKEN_SECONDS="0.03")
    answers = []
    body = {"inputs": render(question(1)), "parameters": {"max_new_tokens": 40}}
    asking = threading.Thread(target=lambda: answers.append(ask(f"{url}/generate_stream", body)))
    asking.start()
    while "tgi_batch_current_size 1" not in ask(f"{url}/metrics").text:
        assert asking.is_alive()
    assert server.process is not None
    server.process.terminate()
    with pytest.raises(OSError, match=r"refused|reset"):
        while asking.is_alive():
            ask(f"{url}/health")
    asking.join()
    assert answers[0].events[-1]["generated_text"] == f" {BASE_WORD}" * 40
    assert server.process.wait(10) == 0


def test_metrics_tell_queue_batch_and_requests(url: str) -> None:
    text = ask(f"{url}/metrics").text
    for name in (
        "tgi_queue_size",
        "tgi_batch_current_size",
        "tgi_request_count",
        "tgi_request_success",
        "tgi_request_duration_count",
    ):
        assert f"\n{name} " in text, name


def test_a_stream_of_completions_has_the_stop_token_in_it_and_empty_finish_reasons(url: str, tiny: Tiny) -> None:
    prompt = render(question(1)) + " amber" * 3
    body = {"model": "a", "prompt": prompt, "max_tokens": 4, "temperature": 0, "stream": True}
    events = ask(f"{url}/v1/completions", body).events
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]] == ["", "", "", "length"]
    assert events[-1] == "[DONE]"
    assert events[0]["model"] == "a"


def test_sampling_is_on_in_chats_unless_the_temperature_is_zero(url: str) -> None:
    body = chat("go", "tgi", max_tokens=12)
    assert (
        len({ask(f"{url}/v1/chat/completions", body).json["choices"][0]["message"]["content"] for _ in range(3)}) == 1
    )
    del body["temperature"]
    seeds = {
        ask(f"{url}/v1/chat/completions", {**body, "seed": s}).json["choices"][0]["message"]["content"]
        for s in range(40)
    }
    assert len(seeds) > 1
