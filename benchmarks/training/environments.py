"""The Python environments of the benchmark's sides: which interpreter runs a side, and how a peer's environment is made.

A peer's environment is made once a machine, in the cache folder (LLAMERO_CACHE, by default ~/.cache/llamero) as
`bench-<name>-<hash of its requirements>`; what a side does there is the side's business.

    python benchmarks/training/environments.py [trl] [llamafactory]      # make them beforehand
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
NO_DEPENDENCIES_MARK = "# without dependencies:"
COMPLETE = ".complete"

# LLaMA-Factory imports torchaudio at start and uses it for sound alone; its build must match torch's and needs not exist for CPU.
STUBS = {"llamafactory": {"torchaudio.py": '"""Stands in for torchaudio: nothing here is called for text."""\n'}}


def main_python() -> Path:
    """The interpreter of the project's own environment (`make setup`), or the running one where that was not made."""
    python = REPOSITORY / ".venv" / "bin" / "python"
    return python if python.exists() else Path(sys.executable)


def cache_folder() -> Path:
    cache = os.environ.get("LLAMERO_CACHE")
    if cache:
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "llamero"


def requirements_file(name: str) -> Path:
    return HERE / f"requirements-{name}.txt"


def environment_folder(name: str) -> Path:
    """`<cache>/bench-<name>-<hash>`: other requirements or another Python make another environment."""
    text = requirements_file(name).read_text() + repr(STUBS.get(name)) + sys.version.split()[0]
    return cache_folder() / f"bench-{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def split_requirements(text: str) -> tuple[list[str], list[str]]:
    """The requirements to install with their dependencies, and those to install without."""
    first, _, second = text.partition(NO_DEPENDENCIES_MARK)
    return list_requirements(first), list_requirements(second)


def list_requirements(text: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def ensure_environment(name: str) -> Path:
    """Make the peer's environment where it is not there yet; returns its interpreter. Raises CalledProcessError when pip fails."""
    folder = environment_folder(name)
    python = folder / "bin" / "python"
    if (folder / COMPLETE).exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / COMPLETE).exists():
            print(f"Making the environment {folder} (once a machine, some minutes) ...", file=sys.stderr, flush=True)
            make_environment(name, folder, python)
            (folder / COMPLETE).touch()
    return python


def make_environment(name: str, folder: Path, python: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    with_dependencies, without_dependencies = split_requirements(requirements_file(name).read_text())
    install(python, with_dependencies)
    if without_dependencies:
        install(python, ["--no-deps", *without_dependencies])
    site = next((folder / "lib").glob("python*")) / "site-packages"
    for file_name, text in STUBS.get(name, {}).items():
        (site / file_name).write_text(text)


def install(python: Path, arguments: list[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    for requested in sys.argv[1:] or ["trl", "llamafactory"]:
        print(ensure_environment(requested))
