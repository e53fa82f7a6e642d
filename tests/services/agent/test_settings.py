"""An environment that is wrong is told of in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from services.agent.conftest import agent_environment, wish

from llamero.agent.settings import AgentSettings, SettingsError

GOOD = wish(Path("/base")).model_dump_json(by_alias=True)


def test_a_whole_environment_is_read(tmp_path: Path) -> None:
    settings = AgentSettings.from_environment(agent_environment(tmp_path, tmp_path, "cpu", LLAMERO_WANTED=GOOD))
    assert (settings.engine, settings.host, settings.port, settings.pod) == ("cpu", "127.0.0.1", 8090, "pod-0")
    assert settings.read_wanted().base.uri == "/base"
    file = tmp_path / "wanted.json"
    file.write_text(GOOD)
    settings = AgentSettings.from_environment(
        agent_environment(tmp_path, tmp_path, "cpu", LLAMERO_WANTED_FILE=str(file))
    )
    assert settings.read_wanted().engine == "cpu"
    file.unlink()
    with pytest.raises(SettingsError, match=r"wanted\.json \(LLAMERO_WANTED_FILE\) can't be read"):
        settings.read_wanted()


BAD: list[tuple[dict[str, str], str]] = [
    ({"LLAMERO_ENGINE": ""}, "LLAMERO_ENGINE is not set"),
    ({"LLAMERO_ENGINE": "llama.cpp"}, "must be one of tgi, vllm, cpu"),
    ({"LLAMERO_ENGINE_URL": "10.0.0.7:8080"}, "http://HOST:PORT"),
    ({"LLAMERO_POD_IP": "localhost"}, "no IP address: localhost"),
    ({"LLAMERO_AGENT_PORT": "99999"}, "no port: 99999"),
    ({"LLAMERO_WANTED": ""}, "Exactly one of"),
    ({"LLAMERO_WANTED_FILE": "/wanted.json"}, "Exactly one of"),
    ({"LLAMERO_WANTED": "{"}, "no list of wanted adapters"),
    ({"LLAMERO_WANTED": GOOD.replace('"cpu"', '"vllm"')}, "is for vllm, and LLAMERO_ENGINE is cpu"),
    ({"LLAMERO_WANTED": GOOD.replace('"version":1', '"version":2')}, "give it the operator's image"),
    ({"LLAMERO_WANTED": json.dumps(json.loads(GOOD) | {"base": {}})}, "exactly one of name and uri"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path: Path, change: dict[str, str], words: str) -> None:
    environment = agent_environment(tmp_path, tmp_path, "cpu", LLAMERO_WANTED=GOOD) | change
    with pytest.raises(SettingsError, match=words):
        AgentSettings.from_environment(environment)


def test_wrong_settings_and_arguments_end_the_process_with_2(tmp_path: Path) -> None:
    environment = agent_environment(tmp_path, tmp_path, "cpu")
    done = subprocess.run(
        [sys.executable, "-m", "llamero.agent", "serve"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Exactly one of the environment variables LLAMERO_WANTED" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "llamero.agent", "run"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "usage: python -m llamero.agent fetch|serve\n")
