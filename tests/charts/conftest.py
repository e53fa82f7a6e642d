"""Fixtures of the chart's tests."""

from pathlib import Path

import pytest
from charts.helm import Helm


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    home: Path = tmp_path_factory.mktemp("helm")
    return Helm(home)
