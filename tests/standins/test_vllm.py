"""vLLM's contract and its traps, each a sentence."""

import http.client
import json
import shutil
import threading
from pathlib import Path

import pytest
from serving.fixtures import Tiny
from serving.makers import BASE_WORD, question, read_golden

from standins.asking import Answer, ask, chat
from standins.conftest import StandIn

PROGRAM = "vllm"
GATE = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def start(start_stand_in: StandIn, tiny: Tiny, *more: str, **environment: str) -> str:
    arguments = ("serve", str(tiny.base), "--served-model-name", "base", "--host", "127.0.0.1", "--enable-lora", *more)
    return start_stand_in(PROGRAM, *arguments, **{**GATE, **environment})[1]


@pytest.fixture
def url(start_stand_in: StandIn, tiny: Tiny) -> str:
    return start(start_stand_in, tiny, "--max-loras", "2", "--max-cpu-loras", "4", "--max-lora-rank", "16")


def load(url: str, name: str, folder: Path, **more: object) -> Answer:
    return ask(f"{url}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder), **more})


def says(url: str, name: str, number: int = 1) -> str:
    return str(ask(f"{url}/v1/chat/completions", chat(question(number), name)).json["choices"][0]["message"]["content"])


def test_an_adapter_is_loaded_listed_with_its_parent_asked_and_unloaded(url: str, tiny: Tiny) -> None:
    loaded = load(url, "a", tiny.adapter("amber").folder)
    assert (loaded.status, loaded.text) == (200, "Success: LoRA adapter 'a' added successfully.")
    cards = {c["id"]: c for c in ask(f"{url}/v1/models").json["data"]}
    assert cards["base"]["parent"] is None
    assert (cards["a"]["parent"], cards["a"]["root"]) == ("base", str(tiny.adapter("amber").folder))
    assert says(url, "a") == " amber" * 6
    assert says(url, "base") == f" {BASE_WORD}" * 6
    gone = ask(f"{url}/v1/unload_lora_adapter", {"lora_name": "a"})
    assert (gone.status, gone.text) == (200, "Success: LoRA adapter 'a' removed successfully.")
    assert "a" not in {c["id"] for c in ask(f"{url}/v1/models").json["data"]}


def test_an_unknown_model_is_404_in_openai_s_form(url: str) -> None:
    for stream in (False, True):
        answer = ask(f"{url}/v1/chat/completions", chat("go", "nobody", stream=stream))
        assert answer.status == 404
        assert answer.json["error"] == {
            "message": "The model `nobody` does not exist.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }


def test_adapters_are_not_loaded_by_calls_unless_the_environment_allows_it(start_stand_in: StandIn, tiny: Tiny) -> None:
    url = start(start_stand_in, tiny, VLLM_ALLOW_RUNTIME_LORA_UPDATING="0")
    answer = load(url, "a", tiny.adapter("amber").folder)
    assert (answer.status, answer.json) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("load", {"lora_name": "a"}, 400, "InvalidUserInput"),
        ("load", {"lora_name": "a", "lora_path": "/nowhere"}, 404, "NotFoundError"),
        ("unload", {"lora_name": "never"}, 404, "NotFoundError"),
        ("unload", {}, 400, "InvalidUserInput"),
    ],
)
def test_a_call_that_can_t_be_done_says_so_in_openai_s_form(
    url: str, path: str, body: dict[str, str], status: int, kind: str
) -> None:
    answer = ask(f"{url}/v1/{path}_lora_adapter", body)
    assert answer.status == status
    assert answer.json["error"]["type"] == kind
    assert answer.json["error"]["code"] == status


def test_a_name_that_is_taken_is_refused(url: str, tiny: Tiny) -> None:
    assert load(url, "a", tiny.adapter("amber").folder).status == 200
    again = load(url, "a", tiny.adapter("birch").folder)
    assert again.status == 400
    assert "has already been loaded" in again.json["error"]["message"]


def test_a_name_that_is_used_again_answers_known_prompts_as_the_adapter_before(url: str, tiny: Tiny) -> None:
    load(url, "a", tiny.adapter("amber").folder)
    assert says(url, "a", 1) == " amber" * 6
    ask(f"{url}/v1/unload_lora_adapter", {"lora_name": "a"})
    load(url, "a", tiny.adapter("birch").folder)
    assert says(url, "a", 1) == " amber" * 6  # stale
    assert says(url, "a", 2) == " birch" * 6
    load(url, "b", tiny.adapter("birch").folder)
    assert says(url, "b", 1) == " birch" * 6


def test_adapters_are_gone_after_a_restart(start_stand_in: StandIn, tiny: Tiny) -> None:
    arguments = ("serve", str(tiny.base), "--host", "127.0.0.1", "--enable-lora")
    server, url = start_stand_in(PROGRAM, *arguments, **GATE)
    assert load(url, "a", tiny.adapter("amber").folder).status == 200
    server.kill()
    server.start()
    server.wait_ready(lambda: is_up(url), 30)
    assert [c["id"] for c in ask(f"{url}/v1/models").json["data"]] == [str(tiny.base)]
    assert ask(f"{url}/v1/chat/completions", chat("go", "a")).status == 404


def is_up(url: str) -> bool:
    try:
        return ask(f"{url}/health").status == 200
    except OSError:
        return False


@pytest.mark.parametrize("status", [500, 400])
def test_a_rank_above_the_limit_is_refused_by_500_in_newer_releases_and_by_400_in_older(
    start_stand_in: StandIn, tiny: Tiny, status: int
) -> None:
    url = start(start_stand_in, tiny, "--max-lora-rank", "1", STANDIN_VLLM_REFUSES_BY=str(status))
    answer = load(url, "a", tiny.adapter("amber").folder)
    assert answer.status == status
    assert answer.json["error"]["message"] == "LoRA rank 4 is greater than max_lora_rank 1."


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_dora": True}, "vLLM does not yet support DoRA."),
        ({"modules_to_save": ["lm_head"]}, "vLLM only supports modules_to_save being None."),
        ({"bias": "all"}, "Adapter bias is not supported."),
    ],
)
def test_what_goes_beyond_plain_lora_is_refused(
    url: str, tiny: Tiny, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny.adapter("amber").folder, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    answer = load(url, "a", folder)
    assert answer.status == 500
    assert told in answer.json["error"]["message"]


def test_an_adapter_that_was_pushed_out_of_the_cache_is_read_again_from_its_folder(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    url = start(start_stand_in, tiny, "--max-loras", "1", "--max-cpu-loras", "1")
    folder = tmp_path / "amber"
    shutil.copytree(tiny.adapter("amber").folder, folder)
    load(url, "a", folder)
    load(url, "b", tiny.adapter("birch").folder)
    assert says(url, "a", 1) == " amber" * 6
    assert says(url, "b", 1) == " birch" * 6
    shutil.rmtree(folder)
    assert ask(f"{url}/v1/chat/completions", chat(question(7), "a")).status == 404


def test_a_prompt_s_log_probabilities_come_by_echo_and_by_prompt_logprobs(url: str, tiny: Tiny) -> None:
    load(url, "a", tiny.adapter("amber").folder)
    golden = read_golden(tiny.adapter("amber"))
    assert golden is not None
    prompt = golden.prompts[0]
    text = prompt.prompt + prompt.answer
    echoed = ask(
        f"{url}/v1/completions",
        {"model": "a", "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0},
    ).json["choices"][0]
    assert echoed["text"] == text
    assert echoed["logprobs"]["token_logprobs"][0] is None
    told = sum(echoed["logprobs"]["token_logprobs"][-prompt.answer_tokens :])
    assert told == pytest.approx(prompt.tuned_log_prob, abs=1e-3)
    by_id = ask(
        f"{url}/v1/completions",
        {"model": "a", "prompt": text, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0},
    ).json["choices"][0]["prompt_logprobs"]
    assert by_id[0] is None
    told = sum(next(iter(place.values()))["logprob"] for place in by_id[-prompt.answer_tokens :])
    assert told == pytest.approx(prompt.tuned_log_prob, abs=1e-3)
    refused = ask(f"{url}/v1/completions", {"model": "a", "prompt": text, "max_tokens": 0})
    assert refused.status == 400


def test_health_is_200_while_the_model_breaks_down(url: str) -> None:
    assert ask(f"{url}/v1/chat/completions", chat("<<fail after 0>>", "base")).status == 500
    stream = ask(f"{url}/v1/chat/completions", chat("<<fail after 2>>", "base", stream=True))
    assert stream.status == 200
    assert stream.events[-2]["error"]["code"] == 500
    assert stream.events[-1] == "[DONE]"
    assert ask(f"{url}/health").status == 200


def test_metrics_tell_the_waiting_requests(url: str) -> None:
    assert '\nvllm:num_requests_waiting{model_name="base"} 0.0\n' in ask(f"{url}/metrics").text


@pytest.mark.parametrize("wrong", [["--lora"], ["--max-lora-rank", "3"], ["--max-loras", "4", "--max-cpu-loras", "2"]])
def test_options_that_it_does_not_know_end_it_with_2(start_stand_in: StandIn, tiny: Tiny, wrong: list[str]) -> None:
    server, _ = start_stand_in(PROGRAM, "serve", str(tiny.base), *wrong, wait=False)
    assert server.process is not None
    assert server.process.wait(30) == 2


@pytest.mark.parametrize("timeout", [None, 5])
def test_told_to_stop_it_breaks_off_the_answers_at_hand_unless_it_has_a_shutdown_timeout(
    start_stand_in: StandIn, tiny: Tiny, timeout: int | None
) -> None:
    more = () if timeout is None else (f"--shutdown-timeout={timeout}",)
    arguments = ("serve", str(tiny.base), "--host", "127.0.0.1", *more)
    server, url = start_stand_in(PROGRAM, *arguments, STANDIN_TOKEN_SECONDS="0.03")
    answers: list[Answer | Exception] = []
    body = chat(question(1), str(tiny.base), max_tokens=40, stream=True)

    def ask_on() -> None:
        try:
            answers.append(ask(f"{url}/v1/chat/completions", body))
        except (OSError, http.client.HTTPException) as error:
            answers.append(error)

    asking = threading.Thread(target=ask_on)
    asking.start()
    while f'vllm:num_requests_running{{model_name="{tiny.base}"}} 1.0' not in ask(f"{url}/metrics").text:
        assert asking.is_alive()
    assert server.process is not None
    server.process.terminate()
    asking.join()
    assert server.process.wait(10) == 0
    if timeout is None:
        assert isinstance(answers[0], Exception)
    else:
        assert isinstance(answers[0], Answer)
        assert answers[0].events[-1] == "[DONE]"
