"""Each extra suffices for what its image runs: the modules are imported where nothing but the extra's own closure is installed.

The closure comes from the metadata of what is installed here, and stands in a folder of links: an interpreter that sees that
folder alone finds the other packages neither by import nor by metadata, as in the image.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]
OPTIONAL_DEPENDENCIES = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]

# What an image's commands import, by extra; packages stand for all of their modules.
RUNS: dict[str, tuple[str, ...]] = {
    "operator": ("llamero_operator", "llamero.kube", "llamero.lifecycle", "llamero.spec", "llamero.cli.main"),
    "data": ("llamero.pods", "llamero.worker", "llamero.phases", "llamero.data", "llamero.storage", "llamero.cli.main"),
    "training": (
        *(
            "llamero.pods",
            "llamero.worker",
            "llamero.phases",
            "llamero.training",
            "llamero.evaluation",
            "llamero.model",
        ),
        *("llamero.storage", "llamero.cli.main"),
    ),
    "engine": ("llamero.engine", "llamero.cli.main"),
    "agent": ("llamero.agent", "llamero.storage", "llamero.cli.main"),
    "chat": ("llamero.chat", "llamero.kube", "llamero.cli.main"),
}
ABSENT: dict[str, tuple[str, ...]] = {
    "operator": ("torch", "transformers", "numpy", "aiobotocore", "pytest"),
    "data": ("torch", "peft", "bitsandbytes", "kubernetes", "kopf", "pytest"),
    "training": ("kopf", "kubernetes", "pytest"),
    "engine": ("celery", "kopf", "kubernetes", "pytest"),
    "agent": ("torch", "transformers", "peft", "celery", "kopf", "kubernetes", "pytest"),
    "chat": ("torch", "transformers", "celery", "kopf", "pytest"),
}


def closure(requirements: list[str]) -> dict[str, Distribution]:
    """All distributions that the requirements ask for, directly or not, by normalised name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        key = (normal(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found[key[0]] = here = distribution(wanted.name)
        for text in here.requires or []:
            further = Requirement(text)
            extras = ["", *wanted.extras]
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def link_closure(distributions: dict[str, Distribution], folder: Path) -> None:
    for one in distributions.values():
        for top in {file.parts[0] for file in one.files or []} - {"..", "__pycache__"}:
            target = folder / top
            if not target.exists():
                target.symlink_to(Path(str(one.locate_file(top))).resolve())


def modules_of(names: tuple[str, ...]) -> Iterator[str]:
    """The named modules, and every module below those that are packages."""
    for name in names:
        for root in ("services", "operator"):
            path = REPOSITORY / root / name.replace(".", "/")
            if path.with_suffix(".py").is_file():
                yield name
            for file in sorted(path.rglob("*.py")) if path.is_dir() else ():
                yield ".".join(file.relative_to(REPOSITORY / root).with_suffix("").parts).removesuffix(".__init__")


IMPORT_ALL = """
import importlib, sys, traceback
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__) if "/llamero" in f.filename]
        print(f"{name}: {error!r} at {frames[-1] if frames else '?'}")
"""


@pytest.fixture(scope="module", params=RUNS)
def extra(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def site(extra: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the extra's closure alone."""
    base = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    folder = tmp_path_factory.mktemp(extra)
    link_closure(closure([*base, *OPTIONAL_DEPENDENCIES[extra]]), folder)
    return folder


def run_python(site: Path, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(str(p) for p in (REPOSITORY / "services", REPOSITORY / "operator", site))
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    # -S: the machine's own packages stay out.
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_all_that_an_image_runs_is_imported_with_its_extra_alone(extra: str, site: Path) -> None:
    names = sorted({name for name in modules_of(RUNS[extra]) if not name.endswith("__main__")})
    assert len(names) > 3
    done = run_python(site, IMPORT_ALL, *names)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


def test_an_extra_brings_nothing_of_the_others(extra: str, site: Path) -> None:
    code = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
    assert run_python(site, code, *ABSENT[extra]).stdout.split() == []


def test_every_named_module_is_there() -> None:
    missing = [name for names in RUNS.values() for name in names if not list(modules_of((name,)))]
    assert missing == []
