"""The command line against the real operator, with real pods: a job whose data is missing, its kept logs, and its end."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cluster.control_plane import ControlPlane
from cluster.waiting import until
from stack.stack import Stack

from llamero.cli.main import cli


@pytest.fixture
def stack(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Stack]:
    with Stack(control_plane, tmp_path) as running:
        yield running


def test_a_job_without_data_fails_with_a_sentence_its_logs_stay_and_it_can_be_suspended_and_deleted(
    stack: Stack, repository: Path, tmp_path: Path
) -> None:
    def llamero(*arguments: str) -> Result:
        place = ["--kubeconfig", str(stack.plane.kubeconfig), "--namespace", stack.namespace]
        return CliRunner().invoke(cli, [*arguments, *place])

    manifest = {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "empty"},
        "spec": {
            "baseModel": {"uri": str(repository / "examples" / "tiny-base")},
            "data": {"sources": [{"uri": str(tmp_path / "no-such-file.json"), "format": "alpaca"}], "workers": 1},
            "training": {"resources": {"gpus": 0}},
        },
    }
    file = tmp_path / "empty.json"
    file.write_text(json.dumps(manifest))

    ended = llamero("submit", str(file), "--wait")
    assert ended.exit_code == 4, ended.output
    assert "created: run 1 starts" in ended.stdout
    assert "Job empty run 1: Failed." in ended.stderr and "no-such-file.json" in ended.stderr

    shown = llamero("get", "empty").stdout
    assert "DataError" in shown and "RunStarted" in shown

    uid = stack.get("empty")["metadata"]["uid"]
    until(lambda: not stack.pods(uid), "the pods to go")
    logs = llamero("logs", "empty", "--work", "prepare")
    assert logs.exit_code == 0, logs.output
    assert "==> r1 prepare attempt 1" in logs.stdout and "no-such-file.json" in logs.stdout

    manifest["spec"]["data"]["sources"][0]["uri"] = str(tmp_path / "another-file.json")  # type: ignore[index]
    manifest["spec"]["suspend"] = True  # type: ignore[index]
    file.write_text(json.dumps(manifest))
    assert "it is suspended until `llamero resume empty`" in llamero("submit", str(file)).stdout
    assert llamero("resume", "empty").exit_code == 0
    again = llamero("watch", "empty")
    assert again.exit_code == 4 and "another-file.json" in again.stderr

    gone = llamero("delete", "empty", "--wait")
    assert (gone.exit_code, gone.stdout) == (0, f"Job {stack.namespace}/empty deleted.\n")
    assert [p for p in stack.storage.rglob("*") if p.is_file()] == []
