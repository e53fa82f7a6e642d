"""A local server's state on disk: the manifest and the adapters that a person sets, and what the controller writes of them.

`server.json` and `adapters/` are written by commands alone, `status.json` and `routes.json` by the one controller alone, each whole and
by renaming: nobody ever reads half a file, and neither waits for the other. How an adapter is checked is `adapterfolders`' business, what
follows from all this the controller's.
"""

import copy
import fcntl
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field

from llamero.cli.errors import CommandError
from llamero.cli.manifest import format_path
from llamero.spec.adapter import Adapter, AdapterResourceStatus, AdapterSpec
from llamero.spec.base import ResultModel
from llamero.spec.job import API_VERSION
from llamero.spec.names import MAX_SERVER_NAME, imported_adapter_id
from llamero.spec.problems import Problem, Severity
from llamero.spec.server import SERVER_KIND, ModelServer, ModelServerSpec, ModelServerStatus
from llamero.spec.validation import validate_server
from llamero.storage import write_atomically

SERVERS_FOLDER = "serve"
DEFAULT_SERVER = "local"
NAMESPACE = "default"
LOCK_SECONDS = 1.0  # one who only looks whether it is served has the lock for a moment

Object = dict[str, Any]


class LocalServerError(CommandError):
    """What is wrong with a local server's state or with what was asked of it."""


class LocalStatus(ResultModel):
    """status.json: what the controller has made of it, and where it is reached while `pid` runs."""

    server: ModelServerStatus = Field(default_factory=ModelServerStatus)
    adapters: dict[str, AdapterResourceStatus] = Field(default_factory=dict)
    held: list[str] = Field(default_factory=list, description="Adapters that the engine has or may get.")
    url: str = Field("", description="The chat service's address while it runs.")
    pid: int = 0
    routes_at: datetime | None = Field(None, description="When the routes were last written.")


@dataclass(frozen=True)
class LocalAdapter:
    """An adapter as it was imported."""

    name: str
    uid: str
    created_at: datetime
    spec: AdapterSpec
    deleting: bool = False

    @property
    def served_id(self) -> str:
        return imported_adapter_id(NAMESPACE, self.name, self.spec.sha256)


@dataclass(frozen=True)
class LocalManifest:
    """server.json as read: the manifest, what of it is wrong, and the raw object."""

    raw: Object
    server: ModelServer | None
    problems: tuple[str, ...]

    @property
    def generation(self) -> int:
        return int(self.raw["metadata"].get("generation", 1))

    @property
    def created_at(self) -> datetime:
        return datetime.fromisoformat(self.raw["metadata"]["creationTimestamp"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])


@dataclass(frozen=True)
class LocalServer:
    """One server's folder: `<workdir>/serve/<server>/`."""

    workdir: Path
    name: str

    def __post_init__(self) -> None:
        if not is_server_name(self.name):
            raise LocalServerError(
                f"`{self.name}` is no name for a server: lower-case letters, digits and dashes, at most {MAX_SERVER_NAME}."
            )

    @property
    def folder(self) -> Path:
        return self.workdir / SERVERS_FOLDER / self.name

    @property
    def manifest_file(self) -> Path:
        return self.folder / "server.json"

    @property
    def status_file(self) -> Path:
        return self.folder / "status.json"

    @property
    def routes_file(self) -> Path:
        return self.folder / "routes.json"

    @property
    def adapters_folder(self) -> Path:
        """A JSON file for each Adapter."""
        return self.folder / "adapters"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def scratch(self) -> Path:
        """What the agent brings for the engine."""
        return self.folder / "scratch"

    def files_of(self, adapter: str) -> Path:
        """The folder with an adapter's files, copied when it was imported."""
        return self.folder / "files" / adapter

    @property
    def exists(self) -> bool:
        return self.manifest_file.is_file()

    @contextmanager
    def served(self) -> Iterator[None]:
        """One process serves it at a time; the lock goes with that process, however it ends. Raises LocalServerError."""
        with _lock(self.folder / ".lock", LOCK_SECONDS) as taken:
            if not taken:
                raise LocalServerError(
                    f"Another llamero serves {self.name} from {self.folder}: end that one, or give another --server or --workdir."
                )
            yield

    def is_served(self) -> bool:
        """Whether a process serves it now."""
        with _lock(self.folder / ".lock", 0.0) as taken:
            return not taken

    # -- the manifest ----------------------------------------------------------------------------------------------------------

    def create(self, spec: ModelServerSpec, now: datetime) -> None:
        """A new server. One that is there already stays as it is."""
        with _lock(self.folder / ".edit.lock"):
            if self.exists:
                return
            raw = {
                "apiVersion": API_VERSION,
                "kind": SERVER_KIND,
                "metadata": {
                    "name": self.name,
                    "namespace": NAMESPACE,
                    "uid": str(uuid.uuid4()),
                    "generation": 1,
                    "creationTimestamp": now.isoformat(),
                },
                "spec": spec.to_json_dict(),
            }
            self._write(raw)

    def read_manifest(self) -> LocalManifest:
        """Raises LocalServerError where there is none, or where it is no JSON object."""
        try:
            raw = json.loads(self.manifest_file.read_bytes())
            metadata = raw["metadata"]
            _ = metadata["uid"], datetime.fromisoformat(metadata["creationTimestamp"])
        except FileNotFoundError as error:
            raise LocalServerError(
                f"There is no local server {self.name} in {self.workdir}: start one with `llamero serve --base DIR --adapter NAME=DIR`."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalServerError(
                f"{self.manifest_file} can't be read ({error}): mend it, or remove {self.folder} and start anew."
            ) from error
        server, problems = validate_server(raw)
        return LocalManifest(raw, server, _sentences(problems))

    @contextmanager
    def edit(self) -> Iterator[Object]:
        """The manifest to be changed in place; written back where it has changed, with the next generation where its spec has."""
        with _lock(self.folder / ".edit.lock"):
            raw = self.read_manifest().raw
            before = copy.deepcopy(raw)
            yield raw
            if raw["spec"] == before["spec"]:
                if raw != before:
                    self._write(raw)
                return
            server, problems = validate_server(raw)
            if server is None:
                raise LocalServerError(f"{self.name} can't become that: {' '.join(_sentences(problems))}")
            raw["metadata"]["generation"] = int(raw["metadata"].get("generation", 1)) + 1
            self._write(raw)

    def _write(self, raw: Object) -> None:
        write_atomically(self.manifest_file, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")

    # -- adapters --------------------------------------------------------------------------------------------------------------

    def read_adapters(self) -> list[LocalAdapter]:
        """Every adapter, oldest first. Raises LocalServerError where a file is damaged."""
        files = sorted(self.adapters_folder.glob("*.json")) if self.adapters_folder.is_dir() else []
        return sorted((_read_adapter(file) for file in files), key=lambda a: (a.created_at, a.name))

    def add_adapter(self, name: str, spec: AdapterSpec, now: datetime) -> LocalAdapter:
        """An adapter whose files lie where its spec says. It never changes afterwards."""
        newest = max((a.created_at for a in self.read_adapters()), default=None)
        created_at = now if newest is None else max(now, newest + timedelta(microseconds=1))  # the later is the newer
        adapter = LocalAdapter(name, str(uuid.uuid4()), created_at, spec)
        self._write_adapter(adapter)
        return adapter

    def _write_adapter(self, adapter: LocalAdapter) -> None:
        metadata = {
            "name": adapter.name,
            "namespace": NAMESPACE,
            "uid": adapter.uid,
            "creationTimestamp": adapter.created_at.isoformat(),
        }
        if adapter.deleting:
            metadata["deletionTimestamp"] = adapter.created_at.isoformat()
        raw = {"apiVersion": API_VERSION, "kind": "Adapter", "metadata": metadata, "spec": adapter.spec.to_json_dict()}
        write_atomically(self.adapters_folder / f"{adapter.name}.json", json.dumps(raw, indent=2) + "\n")

    def move_base(self, folder: str) -> None:
        """The same base lies in another folder now: adapters name it by its place."""
        for adapter in self.read_adapters():
            self._write_adapter(replace(adapter, spec=adapter.spec.model_copy(update={"base": folder})))

    def mark_deleted(self, name: str, now: datetime) -> bool:
        """Ask for an adapter's deletion: the controller removes it once no request can go to it. False where there is none."""
        file = self.adapters_folder / f"{name}.json"
        try:
            raw = json.loads(file.read_bytes())
        except FileNotFoundError:
            return False
        raw["metadata"].setdefault("deletionTimestamp", now.isoformat())
        write_atomically(file, json.dumps(raw, indent=2) + "\n")
        return True

    def remove_adapter(self, name: str) -> None:
        """The resource of a deleted adapter; its files are gone by then."""
        (self.adapters_folder / f"{name}.json").unlink(missing_ok=True)

    @contextmanager
    def adding(self) -> Iterator[None]:
        """One command at a time takes the next adapter's name."""
        with _lock(self.folder / ".adapters.lock"):
            yield

    # -- status ----------------------------------------------------------------------------------------------------------------

    def read_status(self) -> LocalStatus:
        """What the controller wrote last; empty where it has written nothing that can be read."""
        try:
            return LocalStatus.model_validate_json(self.status_file.read_bytes())
        except (OSError, ValueError):
            return LocalStatus()

    def write_status(self, status: LocalStatus) -> None:
        write_atomically(self.status_file, json.dumps(status.to_json_dict(), indent=2, ensure_ascii=False) + "\n")


def is_server_name(name: str) -> bool:
    """Whether a ModelServer may be called so."""
    return len(name) <= MAX_SERVER_NAME and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) is not None


def find_servers(workdir: Path) -> list[LocalServer]:
    """The local servers of a work folder, by name."""
    folder = workdir / SERVERS_FOLDER
    names = sorted(p.name for p in folder.iterdir() if is_server_name(p.name)) if folder.is_dir() else []
    return [server for name in names if (server := LocalServer(workdir, name)).exists]


def _read_adapter(file: Path) -> LocalAdapter:
    try:
        raw = json.loads(file.read_bytes())
        metadata = raw["metadata"]
        return LocalAdapter(
            metadata["name"],
            metadata["uid"],
            datetime.fromisoformat(metadata["creationTimestamp"]).astimezone(UTC),
            Adapter.model_validate(raw).spec,
            "deletionTimestamp" in metadata,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise LocalServerError(f"{file} can't be read ({first}): mend it, or take it away.") from error


def _sentences(problems: list[Problem]) -> tuple[str, ...]:
    return tuple(f"{format_path(p.path)}: {p.message}." for p in problems if p.severity is Severity.ERROR)


@contextmanager
def _lock(path: Path, seconds: float | None = None) -> Iterator[bool]:
    """A lock that goes with its holder; False where another has it for longer than `seconds` (None: waited for)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + (seconds or 0.0)
    with path.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if seconds is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.05)
        yield True


def find_entry(spec: Mapping[str, Any], name: str) -> Object:
    """A public name's entry in `spec.models`; empty where there is none."""
    return next((dict(e) for e in spec.get("models") or [] if e.get("name") == name), {})
