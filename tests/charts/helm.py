"""Helm as a person runs it: lint, template, install. `scripts/setup.sh helm` provides it."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts" / "llamero"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))

Manifest = dict[str, Any]


class HelmError(Exception):
    """Helm refused; its text is what it printed."""


def find_helm() -> Path:
    """The helm that HELM names, or that setup provides (installed once a machine)."""
    if "HELM" in os.environ:
        return Path(os.environ["HELM"])
    done = subprocess.run(
        [str(REPOSITORY / "scripts" / "setup.sh"), "helm"], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.strip().splitlines()[-1])


class Helm:
    """Runs helm with a home of its own, so that nothing of this machine's user plays in."""

    def __init__(self, home: Path, kubeconfig: Path | None = None) -> None:
        self._program = find_helm()
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "HELM_CACHE_HOME": str(home / "cache"),
            "HELM_CONFIG_HOME": str(home / "config"),
            "HELM_DATA_HOME": str(home / "data"),
        }
        if kubeconfig is not None:
            self._environment["KUBECONFIG"] = str(kubeconfig)

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """What helm printed. Raises HelmError."""
        done = subprocess.run(
            [str(self._program), *arguments],
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise HelmError(f"helm {' '.join(arguments[:2])}: {done.stdout}{done.stderr}")
        return done.stdout

    def template(
        self, values: Path | Manifest, release: str = "llamero", namespace: str = "llamero", *options: str
    ) -> list[Manifest]:
        """The manifests that the chart renders to for the values, without the CRDs."""
        text = values.read_text() if isinstance(values, Path) else yaml.safe_dump(values)
        told = ("template", release, str(CHART), "--namespace", namespace, "--values", "-", *options)
        printed = self.run(*told, stdin=text)
        return [manifest for manifest in yaml.safe_load_all(printed) if manifest]
