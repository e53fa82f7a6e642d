"""What is installed is pinned, and the command is found."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import llamero


def test_every_dependency_is_pinned(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0].split("[")[0]).lower()
        for line in (repository / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", requirement)[0]).lower() for requirement in wanted}
    assert names - pinned == set()
    assert set(project["optional-dependencies"]) == {"operator", "data", "training", "engine", "agent", "chat", "dev"}


def test_setting_up_again_changes_nothing(repository: Path) -> None:
    before = (repository / ".venv" / ".dependencies").stat().st_mtime_ns
    subprocess.run(["scripts/setup.sh", "python"], cwd=repository, check=True)
    assert (repository / ".venv" / ".dependencies").stat().st_mtime_ns == before


def test_the_command_tells_its_version() -> None:
    result = subprocess.run([sys.executable, "-m", "llamero", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"llamero {llamero.__version__}\n"


def test_pythons_own_operator_is_not_shadowed(repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.add(1, 2))"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "3\n"
