"""What every Dockerfile must hold to, read from the files themselves: no image need be built for it."""

import fnmatch
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamero_operator.settings import ImageSettings

REPOSITORY = Path(__file__).parents[2]
EXTRAS = {
    "operator": "operator",
    "data": "data",
    "trainer": "training",
    "engine": "engine",
    "agent": "agent",
    "chat": "chat",
}
FOREIGN = {"tgi"}


@dataclass(frozen=True)
class Stage:
    """One FROM and the instructions after it: (word, arguments), continuation lines joined, comments left out."""

    base: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, word: str) -> list[str]:
        return [arguments for found, arguments in self.instructions if found == word]


@dataclass(frozen=True)
class Dockerfile:
    extra: str
    before: tuple[tuple[str, str], ...]
    stages: tuple[Stage, ...]

    @property
    def build(self) -> Stage:
        return self.stages[0]

    @property
    def final(self) -> Stage:
        return self.stages[-1]


def read_dockerfile(name: str) -> Dockerfile:
    text = (REPOSITORY / "images" / name / "Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for name_of, default in re.findall(r"^ARG (EXTRAS)=(\S+)", text, flags=re.MULTILINE):
        text = text.replace(f"${{{name_of}}}", default).replace(f'".[{default}]"', f"'.[{default}]'")
    parts = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    instructions = [(word, " ".join(arguments.split())) for word, arguments in parts]
    starts = [index for index, (word, _) in enumerate(instructions) if word == "FROM"]
    stages = tuple(
        Stage(instructions[start][1], tuple(instructions[start + 1 : end]))
        for start, end in zip(starts, [*starts[1:], len(instructions)], strict=True)
    )
    return Dockerfile(EXTRAS[name], tuple(instructions[: starts[0]]), stages)


def has_two_stages_on_one_base(file: Dockerfile) -> bool:
    return [stage.base for stage in file.stages] == ["${BASE} AS build", "${BASE}"]


def takes_its_base_by_argument_and_names_no_registry(file: Dockerfile) -> bool:
    (word, default), *others = file.before
    name, _, image = default.partition("=")
    first = image.split("/")[0]
    is_host = "/" in image and ("." in first or ":" in first)
    return word == "ARG" and name == "BASE" and ":" in image and not is_host and not others


def runs_as_a_numbered_user_that_is_not_root(file: Dockerfile) -> bool:
    # A number, since runAsNonRoot can't judge a name; and nothing after it may write as root again.
    users = file.final.all("USER")
    return users == ["65532:65532"]


def installs_dependencies_before_it_copies_source(file: Dockerfile) -> bool:
    order = [f"{word} {arguments}" for word, arguments in file.build.instructions]
    dependencies = next(i for i, line in enumerate(order) if "pip install" in line and "-r requirements.txt" in line)
    source = [i for i, line in enumerate(order) if line.startswith(("COPY operator", "COPY services"))]
    return len(source) == 2 and min(source) > dependencies


def installs_its_own_extra_alone(file: Dockerfile) -> bool:
    runs = " ".join(file.build.all("RUN"))
    asked = re.findall(r"requirements\.py (\w+)", runs)
    installed = re.findall(r"'\.\[([\w,]+)\]'", runs)
    return asked == [file.extra] and installed == [file.extra] and "--no-deps" in runs


def pins_whatever_it_installs(file: Dockerfile) -> bool:
    installs = [part for run in file.build.all("RUN") for part in run.split("&&") if "pip install" in part]
    return len(installs) >= 2 and all("-c constraints.txt" in line or "--no-deps" in line for line in installs)


def keeps_pips_settings_out_of_its_layers(file: Dockerfile) -> bool:
    installs = [run for run in file.build.all("RUN") if "pip install" in run]
    return all(run.startswith("--mount=type=secret,id=pip,target=/etc/pip.conf ") for run in installs)


def takes_nothing_but_the_installed_packages_along(file: Dockerfile) -> bool:
    # In this order: a change of the source leaves the layer of the dependencies, which is most of the image.
    folders = ["--from=build /opt/llamero /opt/llamero", "--from=build /opt/source /opt/source"]
    return file.final.all("COPY") == folders and not file.final.all("ADD")


def writes_nothing_into_its_own_root(file: Dockerfile) -> bool:
    environment = " ".join(file.final.all("ENV"))
    return "PYTHONDONTWRITEBYTECODE=1" in environment and "HOME=/tmp" in environment


def has_a_name_for_a_user_that_no_file_knows(file: Dockerfile) -> bool:
    # getpass.getuser, which torch asks for its cache's folder, raises otherwise.
    return "USER=llamero" in " ".join(file.final.all("ENV"))


def leaves_the_entry_to_manifests(file: Dockerfile) -> bool:
    (command,) = file.final.all("CMD")
    return not file.final.all("ENTRYPOINT") and json.loads(command)[-1] == "--version"


def tells_what_it_is(file: Dockerfile) -> bool:
    (label,) = file.final.all("LABEL")
    return all(
        f"org.opencontainers.image.{key}=" in label
        for key in ("title", "description", "licenses", "version", "revision")
    )


def copies_only_what_is_there_and_let_through(file: Dockerfile) -> bool:
    sources = [
        source
        for arguments in file.build.all("COPY")
        for source in arguments.split()[:-1]
        if not source.startswith("--")
    ]
    return bool(sources) and all((REPOSITORY / source).exists() and is_let_through(source) for source in sources)


def hands_no_gpu_to_pods_that_did_not_ask(file: Dockerfile) -> bool:
    return "NVIDIA_VISIBLE_DEVICES" not in " ".join(file.final.all("ENV"))


def is_let_through(path: str) -> bool:
    """Whether .dockerignore lets a path into the build: the last line that matches it decides."""
    result = True
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, keeps = line.removeprefix("!").removeprefix("**/"), line.startswith("!")
        names = (path, *path.split("/")) if "**/" in line or pattern == "*" else (path,)
        if any(fnmatch.fnmatch(name, pattern) for name in names) or path.startswith(pattern + "/"):
            result = keeps
    return result


RULES: list[Callable[[Dockerfile], bool]] = [
    has_two_stages_on_one_base,
    takes_its_base_by_argument_and_names_no_registry,
    runs_as_a_numbered_user_that_is_not_root,
    installs_dependencies_before_it_copies_source,
    installs_its_own_extra_alone,
    pins_whatever_it_installs,
    keeps_pips_settings_out_of_its_layers,
    takes_nothing_but_the_installed_packages_along,
    writes_nothing_into_its_own_root,
    has_a_name_for_a_user_that_no_file_knows,
    leaves_the_entry_to_manifests,
    tells_what_it_is,
    copies_only_what_is_there_and_let_through,
    hands_no_gpu_to_pods_that_did_not_ask,
]


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_dockerfile_holds_to(rule: Callable[[Dockerfile], bool], name: str) -> None:
    assert rule(read_dockerfile(name))


# A rule that no file can break would be no rule: each must refuse the file spoilt in its way.
SPOILT: list[tuple[Callable[[Dockerfile], bool], str, str]] = [
    (has_two_stages_on_one_base, "FROM ${BASE}\nCOPY", "COPY"),
    (takes_its_base_by_argument_and_names_no_registry, "=python:", "=registry.example/python:"),
    (runs_as_a_numbered_user_that_is_not_root, "USER 65532:65532", "USER root"),
    (
        installs_dependencies_before_it_copies_source,
        "COPY constraints.txt",
        "COPY services services\nCOPY constraints.txt",
    ),
    (installs_its_own_extra_alone, "requirements.py operator", "requirements.py training"),
    (pins_whatever_it_installs, "-r requirements.txt -c constraints.txt", "-r requirements.txt"),
    (keeps_pips_settings_out_of_its_layers, "RUN --mount=type=secret,id=pip,target=/etc/pip.conf", "RUN"),
    (
        takes_nothing_but_the_installed_packages_along,
        "COPY --from=build",
        "COPY --from=build /build /build\nCOPY --from=build",
    ),
    (writes_nothing_into_its_own_root, "HOME=/tmp", "HOME=/root"),
    (has_a_name_for_a_user_that_no_file_knows, "USER=llamero", "LOGIN=llamero"),
    (leaves_the_entry_to_manifests, "CMD [", 'ENTRYPOINT ["python"]\nCMD ['),
    (tells_what_it_is, "image.licenses", "image.authors"),
    (copies_only_what_is_there_and_let_through, "COPY LICENSE", "COPY tests LICENSE"),
    (hands_no_gpu_to_pods_that_did_not_ask, "USER=llamero", "USER=llamero NVIDIA_VISIBLE_DEVICES=all"),
]


@pytest.mark.parametrize(("rule", "old", "new"), SPOILT, ids=lambda value: getattr(value, "__name__", None))
def test_a_spoilt_dockerfile_is_refused_by_the_rule(
    rule: Callable[[Dockerfile], bool], old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_text = Path.read_text

    def spoil(path: Path, *args: str, **kwargs: str) -> str:
        text = read_text(path, *args, **kwargs)
        if path.name != "Dockerfile":
            return text
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(Path, "read_text", spoil)
    assert not rule(read_dockerfile("operator"))


def test_every_rule_has_a_file_that_breaks_it() -> None:
    assert {rule for rule, _, _ in SPOILT} == set(RULES)


def test_every_image_has_an_extra_of_its_own() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {path.parent.name for path in REPOSITORY.glob("images/*/Dockerfile")} == set(EXTRAS) | FOREIGN
    assert set(EXTRAS.values()) <= set(extras)


def test_the_image_of_tgi_is_its_own_but_for_the_user_and_of_the_version_that_is_documented() -> None:
    text = (REPOSITORY / "images" / "tgi" / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=(\S+)$", text, flags=re.MULTILINE)
    described = ImageSettings.model_fields["tgi"].description or ""
    assert base.rpartition(":")[2] == "3.3.7" and base in described
    words = re.findall(r"^([A-Z]+) ", text, flags=re.MULTILINE)
    assert words == ["ARG", "FROM", "RUN", "USER", "ARG", "ARG", "LABEL"]
    assert "USER 65532:65532" in text


def test_every_image_of_the_settings_can_be_built_here_but_vllms() -> None:
    ours = {name for name, info in ImageSettings.model_fields.items() if info.default == f"llamero-{name}"}
    assert ours == set(EXTRAS) | FOREIGN
    assert set(ImageSettings.model_fields) - ours == {"vllm"}


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("services", True),
        ("services/llamero/cli/main.py", True),
        ("images/requirements.py", True),
        ("images/build.py", False),
        ("services/llamero/__pycache__", False),
        ("services/llamero/cli/main.pyc", False),
        (".git", False),
        (".venv", False),
        ("runs", False),
        ("tests", False),
    ],
)
def test_only_what_is_built_from_goes_to_the_builder(path: str, passes: bool) -> None:
    assert is_let_through(path) is passes
