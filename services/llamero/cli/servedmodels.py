"""Servers with their public names and adapters, as objects say (from a cluster, or a local server's folder): which names are known, and
what is known of one. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llamero.cli.localserver import LocalServer, find_entry
from llamero.cli.manifest import format_path
from llamero.cli.wishes import KnownAdapter, KnownName, WishError, replace_entry
from llamero.lifecycle.serving.servers import decide
from llamero.lifecycle.serving.world import AdapterView, ServerRoutes, ServerWorld, ServingLimits
from llamero.spec.adapter import AdapterResourceStatus, AdapterSpec
from llamero.spec.job import API_VERSION
from llamero.spec.problems import Severity
from llamero.spec.server import SERVER_KIND, ModelServer, ModelServerStatus
from llamero.spec.status import ConditionType
from llamero.spec.validation import validate_server

Object = dict[str, Any]


@dataclass(frozen=True)
class SeenServer:
    """A ModelServer with the Adapters of its namespace, as objects. `where` is how a person would call it."""

    raw: Object
    adapters: tuple[Object, ...]
    where: str
    url: str = ""  # the chat service's, for a local server that runs

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def status(self) -> ModelServerStatus:
        return ModelServerStatus.model_validate(self.raw.get("status") or {})

    def names(self) -> list[str]:
        """Its public names: those of its manifest, of its status, and those that adapters were made for."""
        entries = [str(e.get("name")) for e in self.raw["spec"].get("models") or []]
        told = [m.name for m in self.status.models]
        made = [str(a["spec"]["model"]) for a in self.adapters if a["spec"].get("server") == self.name]
        return list(dict.fromkeys([*entries, *told, *sorted(made)]))

    def describe(self, name: str) -> KnownName:
        """What is known of a public name."""
        mine: list[KnownAdapter] = []
        others: list[KnownAdapter] = []
        for adapter in self.adapters:
            is_mine = adapter["spec"]["model"] == name and adapter["spec"].get("server") == self.name
            (mine if is_mine else others).append(describe_adapter(adapter))
        status = next((m for m in self.status.models if m.name == name), None)
        entry = find_entry(self.raw["spec"], name)
        return KnownName(name, lambda wished: self.foresee(name, wished), entry, status, tuple(mine), tuple(others))

    def foresee(self, name: str, entry: Mapping[str, Any] | None) -> str | None:
        """The adapter that would serve the name, or take it over, if its entry were this one: by the very function that will decide it."""
        spec = self.raw["spec"]
        models = replace_entry(spec.get("models") or [], name, dict(entry) if entry else None)
        plain = {"apiVersion": API_VERSION, "kind": SERVER_KIND, "metadata": {"name": self.name}}
        server, problems = validate_server({**plain, "spec": {**spec, "models": models}})
        if server is None:
            wrong = next(p for p in problems if p.severity is Severity.ERROR)
            raise WishError(f"{self.where} can't become that: {format_path(wrong.path)}: {wrong.message}.")
        limits = ServingLimits(known_gpu_classes=frozenset({server.spec.resources.gpu_class or ""}))
        decided = decide(self._build_world(server), limits, datetime.now(UTC)).status
        found = next((m for m in decided.models if m.name == name), None)
        return found.canary or found.adapter if found is not None else None

    def _build_world(self, server: ModelServer) -> ServerWorld:
        metadata = self.raw["metadata"]
        return ServerWorld(
            namespace=metadata.get("namespace", ""),
            name=self.name,
            uid=metadata.get("uid", ""),
            generation=int(metadata.get("generation", 1)),
            created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
            deleting=False,
            server=server,
            problems=(),
            status=self.status,
            adapters=tuple(_view(adapter) for adapter in self.adapters),
            pods=(),
            deployment=None,
            routed=ServerRoutes(),
            revision="",
            chats=(),
        )


def _view(adapter: Object) -> AdapterView:
    metadata = adapter["metadata"]
    return AdapterView(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        spec=AdapterSpec.model_validate(adapter["spec"]),
        served_id=metadata["name"],  # nothing is loaded by it here
        status=read_adapter_status(adapter),
        deleting="deletionTimestamp" in metadata,
    )


def describe_adapter(adapter: Object) -> KnownAdapter:
    """What a rollout needs to know of an Adapter."""
    metadata, spec, status = adapter["metadata"], adapter["spec"], read_adapter_status(adapter)
    verified, undone = status.condition(ConditionType.VERIFIED), status.condition(ConditionType.ROLLED_BACK)
    return KnownAdapter(
        metadata["name"],
        datetime.fromisoformat(metadata["creationTimestamp"]),
        int((spec.get("source") or {}).get("run", 0)),
        verified.message or verified.reason if verified and verified.status == "False" else "",
        undone.message or undone.reason if undone and undone.status == "True" else "",
        status.retry,
        "deletionTimestamp" in metadata,
    )


def read_adapter_status(adapter: Object) -> AdapterResourceStatus:
    """An Adapter's status; empty where it has none yet."""
    return AdapterResourceStatus.model_validate(adapter.get("status") or {})


def see_local(server: LocalServer) -> SeenServer:
    """A local server's folder. Raises LocalServerError."""
    manifest, status = server.read_manifest(), server.read_status()
    adapters = []
    for adapter in server.read_adapters():
        metadata = {"name": adapter.name, "namespace": "", "creationTimestamp": adapter.created_at.isoformat()}
        told = status.adapters.get(adapter.name)
        adapters.append(
            {
                "apiVersion": API_VERSION,
                "kind": "Adapter",
                "metadata": metadata,
                "spec": adapter.spec.to_json_dict(),
                "status": told.to_json_dict() if told else {},
            }
        )
    raw = {**manifest.raw, "status": status.server.to_json_dict()}
    url = status.url if server.is_served() else ""
    return SeenServer(raw, tuple(adapters), f"Server {server.name} in {server.folder}", url)


def find_model(servers: Sequence[SeenServer], model: str, server: str | None) -> SeenServer:
    """The server that has the public name. Raises WishError, which lists what there is."""
    chosen = choose_servers(servers, server)
    found = [s for s in chosen if model in s.names()]
    if len(found) > 1:
        raise WishError(f"{model} is a name of {_list(s.name for s in found)}: --server says which is meant.")
    if not found:
        known = _list(name for s in chosen for name in s.names())
        raise WishError(f"There is no model {model} here: known are {known or 'none'}.")
    return found[0]


def choose_servers(servers: Sequence[SeenServer], server: str | None) -> list[SeenServer]:
    """All of them, or the one that is named. Raises WishError where there is none of that name."""
    if server is None:
        return list(servers)
    chosen = [s for s in servers if s.name == server]
    if not chosen:
        raise WishError(f"There is no server {server} here: known are {_list(s.name for s in servers) or 'none'}.")
    return chosen


def _list(words: Any) -> str:
    return ", ".join(dict.fromkeys(words))
