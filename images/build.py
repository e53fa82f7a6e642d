"""Builds the container images with buildah, without a daemon and without a registry; knows buildah and this machine's pip settings.

The base is the image that --base names, or a Debian made by debootstrap on the spot, once a machine. pip's settings (index,
certificate, local folders) are those of this machine: handed to the build as a secret and read-only mounts, and in no layer.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = ("operator", "data", "trainer", "engine", "agent", "chat")
FOREIGN = ("tgi",)
"""Made from an image of others, which its Dockerfile names: built where it is asked for by name."""
WITH_TORCH = frozenset({"trainer", "engine"})
DEBIAN = "bookworm"  # its python3 is 3.11
LOCAL_BASE = f"localhost/llamero-base:{DEBIAN}"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
MAX_CACHED_LAYERS = 60
PIP_OPTIONS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "cert",
    "proxy",
    "default-timeout",
    "timeout",
)


class BuildError(Exception):
    """Why an image can't be built, as a sentence."""


@dataclass(frozen=True)
class PipSettings:
    """pip's settings for a build: the text of a pip.conf, and the folders and files of this machine that it names."""

    text: str
    mounts: tuple[Path, ...]


@dataclass(frozen=True)
class Buildah:
    """buildah with a storage of its own. As root it needs neither a user namespace nor a runtime (`--isolation chroot`)."""

    home: Path

    def command(self, *arguments: str) -> list[str]:
        storage = [
            "--root",
            str(self.home / "storage"),
            "--runroot",
            str(self.home / "run"),
            "--storage-driver",
            driver(),
        ]
        return ["buildah", *storage, *arguments]

    def run(self, *arguments: str, capture: bool = False) -> str:
        """Runs buildah; raises BuildError where it fails. Its own output is the person's to read."""
        done = subprocess.run(
            self.command(*arguments), stdout=subprocess.PIPE if capture else None, text=True, check=False
        )
        if done.returncode:
            raise BuildError(f"buildah {arguments[0]} ended with {done.returncode}: see its output above")
        return (done.stdout or "").strip()

    def has(self, image: str) -> bool:
        return (
            subprocess.run(
                self.command("inspect", "--type", "image", image), capture_output=True, check=False
            ).returncode
            == 0
        )


def driver() -> str:
    """overlay as root; vfs copies whole layers, but works anywhere. LLAMERO_IMAGE_STORAGE_DRIVER decides otherwise."""
    return os.environ.get("LLAMERO_IMAGE_STORAGE_DRIVER") or ("overlay" if os.geteuid() == 0 else "vfs")


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(os.environ.get("LLAMERO_CACHE", f"{base}/llamero")) / "images"


def missing_tools(base: str | None = None) -> list[str]:
    """Programs that a build needs and this machine has not."""
    needed = ["buildah"] if base else ["buildah", "debootstrap"]
    return [tool for tool in needed if shutil.which(tool) is None and not Path("/usr/sbin", tool).exists()]


def image_name(name: str, tag: str = "dev") -> str:
    return f"localhost/llamero-{name}:{tag}"


def ensure_base(buildah: Buildah) -> str:
    """A Debian with Python, from the mirror that this machine's apt uses; made once."""
    if buildah.has(LOCAL_BASE):
        return LOCAL_BASE
    if os.geteuid() != 0:
        raise BuildError("debootstrap needs root: run as root, or name a base image with --base")
    buildah.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=buildah.home) as folder:
        root = Path(folder, "root")
        say(f"Making a Debian {DEBIAN} with Python as base (once a machine) ...")
        command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", DEBIAN, str(root), debian_mirror()]
        with Path(folder, "log").open("w+") as log:
            if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
                log.seek(0)
                raise BuildError("debootstrap could not make the base:\n" + "".join(log.readlines()[-10:]))
        for junk in (
            *root.glob("var/cache/apt/archives/*.deb"),
            *root.glob("var/lib/apt/lists/*_*"),
            *root.glob("var/log/*.log"),
        ):
            junk.unlink()
        container = buildah.run("from", "scratch", capture=True)
        try:
            buildah.run("add", "--quiet", container, str(root), "/")
            buildah.run(
                "config",
                "--cmd",
                "python3",
                "--env",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                container,
            )
            buildah.run("commit", "--quiet", container, LOCAL_BASE)
        finally:
            buildah.run("rm", container, capture=True)
    return LOCAL_BASE


def debian_mirror(sources: Path = Path("/etc/apt")) -> str:
    """The first mirror that apt's sources name, else Debian's own."""
    for file in sorted([*sources.glob("sources.list.d/debian.sources"), *sources.glob("sources.list")]):
        for line in file.read_text().splitlines():
            words = [word for word in line.split() if not word.startswith("#")]
            if words[:1] in (["URIs:"], ["deb"]) and (found := [w for w in words if "://" in w]):
                return found[0]
    return "http://deb.debian.org/debian"


def read_pip_settings(listing: str) -> PipSettings:
    """`pip config list` → a pip.conf. The environment's settings win over the files', as pip has it. Raises BuildError for a strange line."""
    values: dict[str, str] = {}
    for prefix in ("global.", "install.", ":env:."):
        for line in listing.splitlines():
            name, _, value = line.partition("=")
            option = name.removeprefix(prefix)
            if name.startswith(prefix) and option in PIP_OPTIONS:
                try:
                    values[option] = str(ast.literal_eval(value))
                except (ValueError, SyntaxError) as error:
                    raise BuildError(f"`pip config list` printed a line that this script can't read: {line}") from error
    lines = ["[global]", *(option + " = " + "\n    ".join(value.split()) for option, value in values.items())]
    return PipSettings("\n".join(lines) + "\n", tuple(dict.fromkeys(_find_mounts(values))))


def _find_mounts(values: dict[str, str]) -> Iterator[Path]:
    for option in ("index-url", "extra-index-url", "find-links", "cert"):
        for word in values.get(option, "").split():
            url = urlsplit(word)
            path = Path(unquote(url.path)) if url.scheme == "file" else Path(word)
            if url.scheme not in ("", "file") or not path.is_absolute() or not path.exists():
                continue
            # The pages of an index name files beside it.
            yield path.parent if option.endswith("index-url") else path


def pip_settings() -> PipSettings:
    """This machine's, by its own pip."""
    listing = ""
    dependencies = REPOSITORY / ".venv" / ".dependencies"
    environment = [Path(dependencies.read_text().split()[0], "bin", "python")] if dependencies.is_file() else []
    for python in (Path(sys.executable), *environment):
        done = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            listing = done.stdout
            break
    return read_pip_settings(listing)


@contextmanager
def pip_arguments(settings: PipSettings) -> Iterator[list[str]]:
    """buildah's arguments that hand pip's settings to a build, for as long as it runs."""
    with tempfile.TemporaryDirectory(prefix="llamero-pip-") as folder:
        secret = Path(folder, "pip.conf")
        secret.touch(mode=0o600)
        secret.write_text(settings.text)
        yield [f"--secret=id=pip,src={secret}", *(f"--volume={path}:{path}:ro" for path in settings.mounts)]


def build(buildah: Buildah, name: str, base: str, tag: str, torch_index: str, data_extras: str = "data") -> str:
    """Builds one image, with an empty `base` on the one that its Dockerfile names; unchanged layers come from the cache. Gives its name."""
    image = image_name(name, tag)
    arguments = {"VERSION": version(), "REVISION": revision()}
    if base:
        arguments["BASE"] = base
    if name in WITH_TORCH and torch_index:
        arguments["TORCH_INDEX"] = torch_index
    if name == "data":
        arguments["EXTRAS"] = data_extras
    with pip_arguments(pip_settings()) as pip:
        buildah.run(
            *("bud", "--isolation", "chroot", "--layers", "--format", "oci"),
            *(() if name in FOREIGN else ("--pull=false",)),
            *pip,
            *(f"--build-arg={key}={value}" for key, value in arguments.items()),
            *("--ignorefile", str(REPOSITORY / ".dockerignore")),
            *("--file", str(REPOSITORY / "images" / name / "Dockerfile"), "--tag", image, str(REPOSITORY)),
        )
    prune(buildah)
    return image


def prune(buildah: Buildah) -> None:
    """Forgets the build cache where it has grown; images with a name stay."""
    if (
        len(json.loads(buildah.run("images", "--all", "--filter", "dangling=true", "--json", capture=True)))
        > MAX_CACHED_LAYERS
    ):
        buildah.run("rmi", "--prune", capture=True)


def version() -> str:
    text = (REPOSITORY / "services" / "llamero" / "__init__.py").read_text()
    assignments = (node for node in ast.parse(text).body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(a.value) for a in assignments if getattr(a.targets[0], "id", "") == "__version__")


def revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def run_in(
    buildah: Buildah, image: str, command: Sequence[str], read_only_volumes: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """A command in a fresh container of an image, as its user, with its environment."""
    container = buildah.run("from", "--pull=false", image, capture=True)
    try:
        mounts = [f"--volume={path}:{path}:ro" for path in read_only_volumes]
        full = buildah.command("run", "--isolation", "chroot", *mounts, container, "--", *command)
        return subprocess.run(full, capture_output=True, text=True, check=False)
    finally:
        buildah.run("rm", container, capture=True)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build llamero's container images with buildah.")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help=f"which: {', '.join(IMAGES)} (default: all of these), {', '.join(FOREIGN)}",
    )
    parser.add_argument("--base", help="base image with python3 ≥ 3.11 and venv (default: a Debian made here)")
    parser.add_argument(
        "--tgi-base", default="", help="what the tgi image is made from (default: see images/tgi/Dockerfile)"
    )
    parser.add_argument("--tag", default="dev", help="tag of the images (default: dev)")
    parser.add_argument("--torch-index", default="", help="another pip index for torch, such as that of its CPU builds")
    parser.add_argument(
        "--data-extras",
        default="data",
        help="extras of the data image; `data,training` for data steps that need a model of their own (default: data)",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.images if name not in (*IMAGES, *FOREIGN)]
    if unknown:
        parser.error(f"there is no image {', '.join(unknown)}: choose from {', '.join((*IMAGES, *FOREIGN))}")
    if missing := missing_tools(options.base):
        say(f"Building images needs {' and '.join(missing)}: `scripts/setup.sh images` installs it on Debian.")
        return 1
    buildah = Buildah(cache_folder())
    try:
        for name in options.images or IMAGES:
            base = options.tgi_base if name in FOREIGN else options.base or ensure_base(buildah)
            image = build(buildah, name, base, options.tag, options.torch_index, options.data_extras)
            say(f"Built {image}")
    except BuildError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
