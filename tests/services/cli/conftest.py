"""A cluster for the command line: the real API server, a namespace of the test's own, and the status that an operator would write."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cluster.control_plane import ControlPlane

from llamero.cli.main import cli
from llamero.spec.names import GROUP, PLURAL, VERSION

Object = dict[str, Any]

MANIFEST = """\
apiVersion: llamero.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: {name}
spec:
  baseModel:
    uri: s3://models/tiny-base
  data:
    sources:
      - {{name: alpaca, uri: "s3://data/alpaca.json", format: alpaca}}
  training:
    epochs: 2
"""


@dataclass(frozen=True)
class Cluster:
    """What a test of a verb needs: a namespace, the admin's client, and the command."""

    plane: ControlPlane
    namespace: str
    folder: Path

    def llamero(self, *arguments: str) -> Result:
        """Runs the command in this process, in the test's namespace."""
        place = ["--kubeconfig", str(self.plane.kubeconfig), "--namespace", self.namespace]
        return CliRunner().invoke(cli, [*arguments, *place], env={"COLUMNS": "200"})

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts the command as a process of its own, its outputs together."""
        command = [sys.executable, "-m", "llamero", *arguments]
        command += ["--kubeconfig", str(self.plane.kubeconfig), "--namespace", self.namespace]
        environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def write(self, name: str = "tuned", **replacements: str) -> Path:
        """A manifest's file, with parts of its text replaced."""
        text = MANIFEST.format(name=name)
        for old, new in replacements.items():
            assert old in text
            text = text.replace(old, new)
        file = self.folder / f"{name}.yaml"
        file.write_text(text)
        return file

    def path(self, name: str, subresource: str = "") -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}/{name}{subresource}"

    def job(self, name: str = "tuned") -> Object:
        return self.plane.api.get(self.path(name))

    def find_job(self, name: str = "tuned") -> Object | None:
        return self.plane.api.find(self.path(name))

    def set_status(self, name: str = "tuned", **status: Any) -> Object:
        """Writes a status as the operator does; the observed generation is the spec's unless it is given."""
        status.setdefault("observedGeneration", self.job(name)["metadata"]["generation"])
        return self.plane.api.patch(self.path(name, "/status"), {"status": status})

    def submit(self, name: str = "tuned") -> Object:
        result = self.llamero("submit", str(self.write(name)))
        assert result.exit_code == 0, result.output
        return self.job(name)

    def get_json(self, *arguments: str) -> Object:
        result = self.llamero("get", *arguments, "-o", "json")
        assert result.exit_code == 0, result.output
        found: Object = json.loads(result.stdout)
        return found


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Cluster:
    """The command line's cluster."""
    return Cluster(control_plane, namespace, tmp_path)


@pytest.fixture
def condition() -> Callable[..., Object]:
    """`condition(type, status, reason, message)`: as the operator writes one."""

    def build(kind: str, status: str, reason: str, message: str = "") -> Object:
        since = "2026-01-02T03:04:05Z"
        return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}

    return build
