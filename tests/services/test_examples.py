"""Every manifest that the repository shows is valid."""

import re
from pathlib import Path

import pytest
import yaml

from llamero.cli.manifest import load_manifest

REPOSITORY = Path(__file__).parent.parent.parent


def find_manifests() -> list[Path]:
    """YAML files below examples/ and benchmarks/ that say that they are llamero's."""
    files = [p for folder in ("examples", "benchmarks") for p in sorted((REPOSITORY / folder).rglob("*.yaml"))]
    return [p for p in files if re.search(r"^apiVersion: llamero\.dev/", p.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("manifest", find_manifests(), ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_every_manifest_is_valid(manifest: Path) -> None:
    loaded = load_manifest(manifest, {})
    assert loaded.problems == []
    assert loaded.job is not None or loaded.server is not None


def test_there_are_manifests_to_check() -> None:
    names = {p.name for p in find_manifests()}
    assert {"quickstart.yaml", "modelserver.yaml"} <= names
    assert all(isinstance(yaml.safe_load(p.read_text()), dict) for p in find_manifests())
