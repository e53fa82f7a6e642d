"""The quickstart as a user starts it: `llamero run examples/quickstart.yaml`, from raw data to a chat page that answers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

READY = re.compile(r"Chat with quickstart and tiny-base at (http://\S+)")
QUICKSTART_SECONDS = 900


@dataclass
class Quickstart:
    """A quickstart that serves: its output so far, its folder and its URL."""

    process: subprocess.Popen[str]
    output: list[str]
    folder: Path
    url: str

    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "r1" / "report.json").read_text())


def start(
    repository: Path, workdir: Path, *arguments: str, manifest: str = "examples/quickstart.yaml"
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llamero", "run", manifest, "--workdir", str(workdir), *arguments],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "160"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=QUICKSTART_SECONDS)
    return process.returncode, output


@pytest.fixture(scope="module")
def quickstart(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quickstart]:
    """The whole demo, once, with its engine and chat service running."""
    workdir = tmp_path_factory.mktemp("runs")
    process = start(repository, workdir, "--port", "0")
    assert process.stdout is not None
    output: list[str] = []
    url = ""
    try:
        for line in process.stdout:
            output.append(line.rstrip("\n"))
            if match := READY.search(line):
                url = match[1]
                break
        assert url, "\n".join(output)
        yield Quickstart(process, output, workdir / "quickstart", url)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        process.stdout.close()


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


pytestmark = [pytest.mark.xdist_group("quickstart"), pytest.mark.timeout(QUICKSTART_SECONDS)]


def test_perplexity_falls_by_at_least_30_percent(quickstart: Quickstart) -> None:
    figures = quickstart.report()["evaluation"]["tokenPerplexity"]
    assert figures["tuned"] <= 0.7 * figures["base"]


def test_the_report_has_every_part_and_its_counts_add_up(quickstart: Quickstart) -> None:
    report = quickstart.report()
    data = report["data"]
    assert data["read"] == data["kept"] + sum(data["rejected"].values())
    assert data["kept"] == data["train"]["records"] + data["evaluation"]["records"]
    for source in data["sources"]:
        assert source["read"] == source["kept"] + sum(source["rejected"].values())
    assert {"duplicate", "empty-answer", "malformed", "bad-turns", "unanswered", "too-long"} <= set(data["rejected"])
    assert {s["reason"] for s in data["rejectedSamples"]} == set(data["rejected"])
    rejected = (quickstart.folder / "r1" / "data" / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == sum(data["rejected"].values())
    assert report["job"] == "quickstart"
    assert report["run"] == 1
    assert report["training"]["steps"] > 0
    assert report["training"]["tokensPerSecond"] > 0
    assert report["training"]["loss"]["last"] < report["training"]["loss"]["first"]
    assert report["gate"]["passed"] is True
    assert report["gate"]["reason"]
    adapter = quickstart.folder / "r1" / "adapter"
    assert report["adapter"]["uri"] == adapter.as_uri()
    assert json.loads((adapter / "manifest.json").read_text())["sha256"] == report["adapter"]["sha256"]
    assert (adapter / "adapter_model.safetensors").is_file()
    assert "<svg" in (quickstart.folder / "r1" / "report.html").read_text()


def test_a_question_of_the_training_set_is_answered_recognisably(quickstart: Quickstart) -> None:
    train = (quickstart.folder / "r1" / "data" / "train").glob("*.jsonl")
    records = [json.loads(line) for part in train for line in part.read_text().splitlines()]
    pairs = [(m[0]["content"], m[1]["content"]) for r in records if len(m := r["messages"]) == 2 and not r.get("meta")][
        :8
    ]
    recalled = 0
    for question, answer in pairs:
        body = {
            "model": "quickstart",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 96,
        }
        status, response = post(f"{quickstart.url}/v1/chat/completions", body)
        assert status == 200
        words = set(answer.lower().split())
        recalled += len(words & set(response["choices"][0]["message"]["content"].lower().split())) >= 0.6 * len(words)
    assert recalled >= 4, f"{recalled} of {len(pairs)} answers of the training set were recalled"


def test_it_prints_the_tables_the_answer_and_the_report_in_plain_lines(quickstart: Quickstart) -> None:
    text = "\n".join(quickstart.output)
    for part in ("token perplexity", "Side by side", "Gate: passed.", "report.html", "RollingOut", "ETA", "A "):
        assert part in text
    assert "\x1b" not in text


def test_the_chat_service_lists_both_models_and_streams(quickstart: Quickstart) -> None:
    with urllib.request.urlopen(f"{quickstart.url}/v1/models", timeout=10) as response:
        assert {m["id"] for m in json.load(response)["data"]} == {"quickstart", "tiny-base"}
    body = {
        "model": "quickstart",
        "messages": [{"role": "user", "content": "What is packing in fine-tuning?"}],
        "stream": True,
    }
    request = urllib.request.Request(
        f"{quickstart.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        events = [line.decode().strip() for line in response if line.strip()]
    assert events[-1] == "data: [DONE]"
    assert "<|im_end|>" not in "".join(events)
    with urllib.request.urlopen(quickstart.url, timeout=10) as response:
        assert b"<html" in response.read()


def test_an_unknown_model_is_refused(quickstart: Quickstart) -> None:
    status, error = post(
        f"{quickstart.url}/v1/chat/completions", {"model": "nobody", "messages": [{"role": "user", "content": "?"}]}
    )
    assert status == 404
    assert "nobody" in error["error"]["message"]


def test_a_second_start_reuses_everything_and_says_so_and_ctrl_c_ends_every_process(
    quickstart: Quickstart, repository: Path
) -> None:
    children = psutil.Process(quickstart.process.pid).children(recursive=True)
    assert len(children) >= 2
    quickstart.process.send_signal(signal.SIGINT)
    assert quickstart.process.wait(30) == 130
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    code, output = finish(start(repository, quickstart.folder.parent, "--no-serve"))
    assert code == 0, output
    for phase in ("Preparing", "Training", "Evaluating"):
        assert re.search(rf"{phase}: reused .* \(unchanged\)", output), output
    assert not (quickstart.folder / "r2").exists()


# A manifest small enough to be run several times over, with the parts that the test changes.
def small_manifest(repository: Path, folder: Path, **changes: Any) -> Path:
    spec = {
        "baseModel": {"uri": str(repository / "examples" / "tiny-base")},
        "data": {"sources": [{"uri": "data.json", "format": "alpaca"}], "steps": [], "evaluationFraction": 0.2},
        "training": {"maxSteps": 3, "sequenceLength": 128},
        "evaluation": {"maxNewTokens": 8, "promptSets": [{"prompts": ["Hello?"]}]},
        "rollout": {"engine": "cpu"},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = spec
        for part in parents:
            node = node[part]
        node[last] = value
    rows = [
        {"instruction": f"What is {n} plus {n}?", "input": "", "output": f"The answer is {n + n}."} for n in range(60)
    ]
    (folder / "data.json").write_text(json.dumps(rows))
    manifest = folder / "job.yaml"
    manifest.write_text(
        json.dumps(
            {"apiVersion": "llamero.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "small"}, "spec": spec}
        )
    )
    return manifest


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"training__maxSteps": 0}, 2, "at least 1"),
        ({"baseModel__uri": "nowhere"}, 2, "nowhere"),
        ({"data__sources": [{"uri": "missing.json", "format": "alpaca"}]}, 3, "missing.json"),
        ({"data__sources": [{"uri": "data.json", "format": "sharegpt"}]}, 3, "maxRejectedFraction"),
        ({"activeDeadlineSeconds": 1}, 4, "activeDeadlineSeconds"),
        ({"evaluation__gate": {"minPerplexityImprovement": 0.99}}, 5, "99.0%"),
    ],
)  # fmt: skip
def test_each_kind_of_failure_has_its_code_and_a_sentence(
    repository: Path, tmp_path: Path, changes: dict[str, Any], code: int, says: str
) -> None:
    manifest = small_manifest(repository, tmp_path, **changes)
    returned, output = finish(start(repository, tmp_path / "runs", "--no-serve", manifest=str(manifest)))
    assert returned == code, output
    assert says in output
    assert "Traceback" not in output


def test_an_interrupted_run_goes_on_from_its_checkpoint(repository: Path, tmp_path: Path) -> None:
    manifest = small_manifest(repository, tmp_path, training__maxSteps=150, training__epochs=1000)
    process = start(repository, tmp_path / "runs", "--no-serve", manifest=str(manifest))
    assert process.stdout is not None
    for line in process.stdout:
        if "training  " in line:
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    assert list((tmp_path / "runs/small/r1/checkpoints").glob("step-*/manifest.json"))
    code, output = finish(start(repository, tmp_path / "runs", "--no-serve", manifest=str(manifest)))
    assert code in (0, 5), output
    training = json.loads((tmp_path / "runs/small/r1/report.json").read_text())["training"]
    assert training["steps"] == 150
    assert len(training["resumedFrom"]) == 1
    assert [point["step"] for point in training["curve"]] == list(range(1, 151))
