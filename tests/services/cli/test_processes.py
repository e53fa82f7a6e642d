"""Servers as processes: when they are ready, and how it is told that they are not."""

import os
from pathlib import Path

import pytest

from llamero.cli.processes import Server, ServerError


def test_a_server_is_ready_when_it_says_so_and_ends_with_the_block(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{repository / 'services'}")
    (tmp_path / "some_server.py").write_text(
        "import time\nprint('noise')\nprint('ready http://127.0.0.1:1')\nwhile 1: time.sleep(.1)"
    )
    with Server("engine", "some_server", [], tmp_path / "log") as server:
        assert server.url == "http://127.0.0.1:1"
        assert server.returncode() is None
    assert server.returncode() == -15


def test_a_server_that_ends_before_it_is_ready_is_told_with_its_log(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{repository / 'services'}")
    (tmp_path / "some_server.py").write_text("raise SystemExit(7)")
    with pytest.raises(ServerError, match=r"engine ended with code 7.*log"):
        Server("engine", "some_server", [], tmp_path / "log").__enter__()
