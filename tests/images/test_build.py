"""Images are built for real where this machine can: buildah and debootstrap, as root, no daemon, no registry."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import llamero

REPOSITORY = Path(__file__).parents[2]


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llamero_images_build", REPOSITORY / "images" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


builder = load_builder()


class TestPipSettings:
    def test_the_environment_wins_over_files_and_lists_stay_lists(self) -> None:
        listing = "\n".join(
            [
                ":env:.default-timeout='180'",
                "global.default-timeout='15'",
                "global.index-url='https://packages.example/simple'",
                "global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'",
                "global.target='/somewhere'",
                "install.no-index='true'",
            ]
        )
        assert builder.read_pip_settings(listing).text == (
            "[global]\n"
            "default-timeout = 180\n"
            "index-url = https://packages.example/simple\n"
            "extra-index-url = https://a.example/simple\n    https://b.example/simple\n"
            "no-index = true\n"
        )

    def test_local_folders_and_certificates_are_mounted_and_remote_ones_not(self, tmp_path: Path) -> None:
        (tmp_path / "my wheels").mkdir()
        (tmp_path / "index" / "simple").mkdir(parents=True)
        (tmp_path / "ca.pem").touch()
        listing = "\n".join(
            [
                f"global.extra-index-url='{(tmp_path / 'index' / 'simple').as_uri()}\\nhttps://packages.example/simple'",
                f"global.find-links='{(tmp_path / 'my wheels').as_uri()}\\n/no/such/folder'",
                f"global.cert='{tmp_path / 'ca.pem'}'",
            ]
        )
        mounts = set(builder.read_pip_settings(listing).mounts)
        assert mounts == {tmp_path / "index", tmp_path / "my wheels", tmp_path / "ca.pem"}

    def test_no_settings_are_an_empty_file(self) -> None:
        assert builder.read_pip_settings("") == builder.PipSettings("[global]\n", ())

    def test_a_line_that_is_none_is_told(self) -> None:
        with pytest.raises(builder.BuildError, match=r"can't read: global\.cert=oops"):
            builder.read_pip_settings("global.cert=oops")


@pytest.mark.parametrize(
    ("file", "text", "mirror"),
    [
        ("sources.list.d/debian.sources", "Types: deb\n# URIs: x\nURIs: http://mirror.example/debian\n", "http://mirror.example/debian"),
        ("sources.list", "deb [trusted=yes] http://other.example/debian bookworm main\n", "http://other.example/debian"),
        ("sources.list", "# nothing\n", "http://deb.debian.org/debian"),
    ],
)  # fmt: skip
def test_the_base_comes_from_the_mirror_that_apt_uses(tmp_path: Path, file: str, text: str, mirror: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert builder.debian_mirror(tmp_path) == mirror


def test_an_image_that_there_is_not_gets_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "images/build.py", "oprator"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no image oprator: choose from operator, data, trainer, engine, agent, chat, tgi" in done.stderr


def test_a_machine_without_the_tools_is_told_how_to_get_them(tmp_path: Path) -> None:
    if Path("/usr/sbin/debootstrap").exists():
        command = [sys.executable, "images/build.py", "--base", "x", "operator"]
    else:
        command = [sys.executable, "images/build.py", "operator"]
    done = subprocess.run(command, cwd=REPOSITORY, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "scripts/setup.sh images" in done.stderr and "buildah" in done.stderr


def test_requirements_are_those_of_one_extra() -> None:
    command = [sys.executable, "images/requirements.py", "chat"]
    lines = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "aiohttp>=3.11" in lines and any(line.startswith("pydantic") for line in lines)
    assert not any(line.startswith(("torch", "kopf")) for line in lines)
    refused = subprocess.run([*command[:2], "chta"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "name one extra" in refused.stderr


# -- a real build --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def buildah() -> object:
    if missing := builder.missing_tools():
        pytest.skip(f"building images needs {' and '.join(missing)}: `scripts/setup.sh images`")
    if os.geteuid() != 0:
        pytest.skip("building images without a daemon needs root here")
    return builder.Buildah(builder.cache_folder())


@pytest.fixture(scope="module")
def operator_image(buildah: object) -> str:
    """The operator's image, built anew from the checkout; the cache holds what did not change."""
    return str(builder.build(buildah, "operator", builder.ensure_base(buildah), "test", ""))


def test_the_operators_image_tells_its_version(buildah: object, operator_image: str) -> None:
    for command in (["python", "-m", "llamero_operator", "--version"], ["llamero", "--version"]):
        done = builder.run_in(buildah, operator_image, command)
        assert done.returncode == 0, done.stderr
        assert llamero.__version__ in done.stdout


def test_the_operators_image_runs_as_nobody_and_can_write_nothing_of_its_own(
    buildah: object, operator_image: str
) -> None:
    script = "id -u; id -g; for f in / /opt/llamero /opt/source /usr /etc /build; do test -w $f && echo writable $f; done; true"
    assert builder.run_in(buildah, operator_image, ["sh", "-c", script]).stdout.split() == ["65532", "65532"]


def test_the_operators_image_holds_no_setting_of_the_machine_that_built_it(
    buildah: object, operator_image: str
) -> None:
    script = "cat /etc/pip.conf; ls /mnt /build; find / -xdev -name pip.conf"
    done = builder.run_in(buildah, operator_image, ["sh", "-c", script])
    assert done.stdout.replace("/mnt:", "").strip() == ""
    inspected = json.loads(buildah.run("inspect", "--type", "image", operator_image, capture=True))  # type: ignore[attr-defined]
    history = json.dumps(inspected["OCIv1"])
    for word in builder.pip_settings().text.split():
        if "/" in word:
            assert word not in history


def test_the_operators_image_has_its_labels_and_no_entry_point(buildah: object, operator_image: str) -> None:
    config = json.loads(buildah.run("inspect", "--type", "image", operator_image, capture=True))["OCIv1"]["config"]  # type: ignore[attr-defined]
    assert config["User"] == "65532:65532" and "Entrypoint" not in config
    assert config["Labels"]["org.opencontainers.image.version"] == llamero.__version__
    assert config["Labels"]["org.opencontainers.image.title"] == "llamero-operator"


@pytest.mark.parametrize("package", ["torch", "transformers", "numpy"])
def test_the_operators_image_has_none_of_the_others_packages(
    buildah: object, operator_image: str, package: str
) -> None:
    done = builder.run_in(buildah, operator_image, ["python", "-c", f"import {package}"])
    assert f"No module named '{package}'" in done.stderr
