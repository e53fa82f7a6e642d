"""The newest known state of what serving needs: ModelServers, their Deployments and pods, and all Adapters.

Fed by the operator's store, which sees to versions; whoever is concerned by news is woken by `wake`. Views, not dictionaries, but for
what is written back: ModelServers and Adapters.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llamero.lifecycle.serving.world import AdapterView, DeploymentView, EnginePodView
from llamero.spec.server import ModelServer, ModelServerStatus
from llamero_operator.observe import EPOCH, parse_time, speaks_alike
from llamero_operator.serving import observe

Object = Mapping[str, Any]
Key = tuple[str, str]
"""(namespace, name) of a ModelServer; with an empty name, a namespace whose held Adapters are to be looked at."""


def sweep_key(namespace: str) -> Key:
    """The key of a look at a namespace's Adapters that no server may hold any more."""
    return (namespace, "")


@dataclass
class ServerRecord:
    """A ModelServer as the API has it; `parsed` and `problems` are of the spec in it."""

    raw: dict[str, Any]
    parsed: ModelServer | None
    problems: tuple[str, ...]
    status: ModelServerStatus

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def key(self) -> Key:
        return (self.raw["metadata"]["namespace"], self.raw["metadata"]["name"])

    @property
    def created_at(self) -> datetime:
        return parse_time(self.raw["metadata"].get("creationTimestamp")) or EPOCH

    @property
    def deleting(self) -> bool:
        return bool(self.raw["metadata"].get("deletionTimestamp"))


@dataclass(frozen=True)
class DeploymentRecord:
    """A server's Deployment: what decisions see of it, and what its next write needs."""

    name: str
    view: DeploymentView
    digest: str  # of the manifest that it was made from
    replicas: int  # that its spec asks for: autoscaling may have set them
    strategy: str


@dataclass(frozen=True)
class AdapterRecord:
    """An Adapter as the API has it; `view` is None where its spec can't be read."""

    raw: dict[str, Any]
    view: AdapterView | None

    @property
    def is_stuck(self) -> bool:
        """Whether its deletion waits for someone to let it go."""
        return bool(self.raw["metadata"].get("deletionTimestamp")) and observe.is_held(self.raw)


class ServingStore:
    """What is known. All methods are synchronous and belong to one event loop."""

    def __init__(self) -> None:
        self.servers: dict[Key, ServerRecord] = {}
        self.wake: Callable[[Key], None] = lambda key: None
        self._names_of: dict[str, Key] = {}  # uid of a ModelServer → its key
        self._pods: dict[str, dict[Key, EnginePodView]] = {}  # by uid of the server
        self._deployments: dict[str, dict[Key, DeploymentRecord]] = {}
        self._owners: dict[tuple[str, Key], str] = {}
        self._adapters: dict[str, dict[str, AdapterRecord]] = {}  # by namespace and name

    # Feeding

    def put(self, kind: str, key: Key, thing: Object) -> None:
        """Takes in an object that is newer than what is known of it."""
        if kind == "modelservers":
            self._put_server(key, thing)
        elif kind == "adapters":
            self._put_adapter(key, thing)
        elif kind in ("pods", "deployments"):
            self._put_owned(kind, key, thing)

    def remove(self, kind: str, key: Key) -> None:
        """Forgets an object."""
        if kind == "modelservers":
            record = self.servers.pop(key, None)
            if record is not None:
                self._names_of.pop(record.uid, None)
                self.wake(key)
                self.wake(sweep_key(key[0]))
        elif kind == "adapters":
            of_namespace = self._adapters.get(key[0], {})
            of_namespace.pop(key[1], None)
            if not of_namespace:
                self._adapters.pop(key[0], None)
            self._wake_namespace(key[0])
        elif (owner := self._owners.pop((kind, key), None)) is not None:
            index: dict[str, dict[Key, Any]] = self._pods if kind == "pods" else self._deployments
            of_server = index.get(owner, {})
            of_server.pop(key, None)
            if not of_server:
                index.pop(owner, None)
            self._wake_owner(owner)

    def _put_server(self, key: Key, thing: Object) -> None:
        raw = dict(thing)
        raw["metadata"] = {k: v for k, v in thing["metadata"].items() if k != "managedFields"}
        old = self.servers.get(key)
        is_same = old is not None and old.uid == raw["metadata"]["uid"]
        if old is not None and is_same and speaks_alike(old.raw, raw):
            parsed, problems = old.parsed, old.problems
        else:
            parsed, problems = observe.read_server(raw)
        record = ServerRecord(raw, parsed, problems, observe.read_server_status(raw))
        if old is not None:
            self._names_of.pop(old.uid, None)
        self.servers[key] = record
        self._names_of[record.uid] = key
        if old is None or not is_same or not _decides_alike(old, record):
            self.wake(key)

    def _put_adapter(self, key: Key, thing: Object) -> None:
        raw = dict(thing)
        raw["metadata"] = {k: v for k, v in thing["metadata"].items() if k != "managedFields"}
        record = AdapterRecord(raw, observe.view_adapter(raw))
        old = self._adapters.get(key[0], {}).get(key[1])
        self._adapters.setdefault(key[0], {})[key[1]] = record
        if old is None or old.view != record.view:
            self._wake_namespace(key[0])
        if record.is_stuck:
            self.wake(sweep_key(key[0]))

    def _put_owned(self, kind: str, key: Key, thing: Object) -> None:
        uid = observe.read_server_uid(thing)
        if uid is None:
            return
        index: dict[str, dict[Key, Any]] = self._pods if kind == "pods" else self._deployments
        view = observe.view_engine_pod(thing) if kind == "pods" else _record_deployment(thing)
        self._owners[kind, key] = uid
        if index.get(uid, {}).get(key) != view:
            index.setdefault(uid, {})[key] = view
            self._wake_owner(uid)

    def _wake_owner(self, uid: str) -> None:
        if (key := self._names_of.get(uid)) is not None:
            self.wake(key)

    def _wake_namespace(self, namespace: str) -> None:
        for key in self.servers:
            if key[0] == namespace:
                self.wake(key)

    # Reading

    def pods(self, record: ServerRecord) -> tuple[EnginePodView, ...]:
        """The server's pods, oldest first, without what their agents say."""
        return tuple(sorted(self._pods.get(record.uid, {}).values(), key=lambda p: (p.created_at, p.name)))

    def deployment(self, record: ServerRecord, name: str) -> DeploymentRecord | None:
        """The server's Deployment."""
        found = self._deployments.get(record.uid, {}).values()
        return next((d for d in found if d.name == name), None)

    def adapter(self, namespace: str, name: str) -> AdapterRecord | None:
        """The Adapter as the API has it."""
        return self._adapters.get(namespace, {}).get(name)

    def adapters(self, namespace: str) -> tuple[AdapterView, ...]:
        """The readable Adapters of a namespace, oldest first."""
        views = [r.view for r in self._adapters.get(namespace, {}).values() if r.view is not None]
        return tuple(sorted(views, key=lambda a: (a.created_at, a.name)))

    def stuck_adapters(self, namespace: str) -> list[AdapterRecord]:
        """The Adapters whose deletion waits for someone to let them go."""
        return [r for r in self._adapters.get(namespace, {}).values() if r.is_stuck]

    def server_names(self, namespace: str) -> frozenset[str]:
        """The ModelServers of a namespace."""
        return frozenset(name for space, name in self.servers if space == namespace)

    def others(self, key: Key) -> Iterable[ServerRecord]:
        """All other ModelServers."""
        return [record for k, record in self.servers.items() if k != key]


def _record_deployment(thing: Object) -> DeploymentRecord:
    metadata, spec = thing["metadata"], thing.get("spec") or {}
    return DeploymentRecord(
        name=metadata["name"],
        view=observe.view_deployment(thing),
        digest=str((metadata.get("annotations") or {}).get(observe.DIGEST_ANNOTATION) or ""),
        replicas=int(spec.get("replicas", 1)),
        strategy=str((spec.get("strategy") or {}).get("type") or ""),
    )


def _decides_alike(old: ServerRecord, new: ServerRecord) -> bool:
    """Whether decisions see the same in both."""
    a, b = old.raw["metadata"], new.raw["metadata"]
    return (
        speaks_alike(old.raw, new.raw)
        and old.deleting == new.deleting
        and a.get("finalizers") == b.get("finalizers")
        and old.status == new.status
    )
