"""The environments of the sides: the project's own, and the peers', made once a machine in the cache folder.

python benchmarks/data/peers.py      # make the peers' environment beforehand
"""

import fcntl
import hashlib
import importlib.util
import shutil
import sys
import venv
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements-peers.txt"
REPOSITORY = HERE.parent.parent


def _load_training_environments() -> ModuleType:
    """The training benchmark's module of the same purpose: where the cache is, and how pip is called."""
    spec = importlib.util.spec_from_file_location("training_environments", HERE.parent / "training" / "environments.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


environments = _load_training_environments()


def environment_folder() -> Path:
    """`<cache>/bench-data-<hash>`: other requirements or another Python make another environment."""
    digest = hashlib.sha256((REQUIREMENTS.read_text() + sys.version.split()[0]).encode()).hexdigest()
    folder: Path = environments.cache_folder() / f"bench-data-{digest[:12]}"
    return folder


def find_peers() -> Path | None:
    """The interpreter of the peers' environment, if it was made."""
    folder = environment_folder()
    return folder / "bin" / "python" if (folder / environments.COMPLETE).exists() else None


def ensure_peers() -> Path:
    """Make the peers' environment where it is not there yet; returns its interpreter. Raises CalledProcessError when pip fails."""
    folder = environment_folder()
    python = folder / "bin" / "python"
    if find_peers():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not find_peers():
            print(f"Making the environment {folder} (once a machine, some minutes) ...", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            lines = environments.list_requirements(REQUIREMENTS.read_text())
            environments.install(python, lines[:1])
            environments.install(python, lines)
            (folder / environments.COMPLETE).touch()
    return python


def own_python() -> Path:
    """The interpreter of the project's environment."""
    python: Path = environments.main_python()
    return python


if __name__ == "__main__":
    print(ensure_peers())
