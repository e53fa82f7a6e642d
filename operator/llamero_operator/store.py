"""The newest known state of everything that the operator watches: FineTuneJobs, child Jobs, pods, Adapters; what serves is passed on.

Fed by the watches and by the answers to the operator's own writes; an object is only replaced by a newer version of itself, so
that a pass never decides from a state older than its own last write. Pods and children are kept as views, not as dictionaries.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamero.kube import objects
from llamero.kube.discovery import parse_resource_version
from llamero.lifecycle.world import ChildView, PodView
from llamero.spec import names
from llamero.spec.adapter import AdapterResourceStatus, AdapterSpec
from llamero.spec.job import FineTuneJob
from llamero.spec.status import WorkKind
from llamero_operator import observe
from llamero_operator.serving.store import ServingStore

Object = Mapping[str, Any]
Key = tuple[str, str]
"""(namespace, name) of a FineTuneJob, or of whatever object."""

KINDS: dict[str, objects.Resource] = {
    "finetunejobs": objects.JOBS,
    "jobs": objects.BATCH_JOBS,
    "pods": objects.PODS,
    "adapters": objects.ADAPTERS,
}
"""What is watched for jobs, by the plural that kopf calls it."""

SERVING_KINDS: dict[str, objects.Resource] = {"modelservers": objects.SERVERS, "deployments": objects.DEPLOYMENTS}
"""What is watched besides where the operator serves."""

ALL_KINDS = KINDS | SERVING_KINDS

MAX_GONE = 20_000

OURS = f"app.kubernetes.io/managed-by={names.FIELD_MANAGER}"
SELECTORS: dict[str, str] = {"jobs": names.LABEL_UID, "pods": OURS, "deployments": OURS}
"""Label selectors of the watches: children are found by their labels alone."""


def watched_kinds(serves: bool) -> dict[str, objects.Resource]:
    """What is watched, by the plural that kopf calls it."""
    return ALL_KINDS if serves else KINDS


@dataclass
class JobRecord:
    """A FineTuneJob as the API has it; `parsed` and `problems` are of the spec in it."""

    raw: dict[str, Any]
    parsed: FineTuneJob | None = None
    problems: tuple[str, ...] = ()
    deleted_children: set[str] = field(default_factory=set)  # uids whose deletion was asked for

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def key(self) -> Key:
        return (self.raw["metadata"]["namespace"], self.raw["metadata"]["name"])


@dataclass
class _Child:
    uid: str
    view: ChildView


@dataclass
class _Pod:
    attempt: tuple[WorkKind, int, int]
    view: PodView


@dataclass(frozen=True)
class _Adapter:
    spec: AdapterSpec
    status: AdapterResourceStatus


class Store:
    """What is known. All methods are synchronous and belong to one event loop."""

    def __init__(self) -> None:
        self.jobs: dict[Key, JobRecord] = {}
        self.serving = ServingStore()
        self.versions: dict[str, dict[Key, tuple[str, int]]] = {kind: {} for kind in ALL_KINDS}
        self._names_of: dict[str, Key] = {}  # uid of a FineTuneJob → its key
        self._children: dict[str, dict[Key, _Child]] = {}
        self._pods: dict[str, dict[Key, _Pod]] = {}
        self._adapters: dict[Key, dict[str, _Adapter]] = {}  # of a job's key, by name
        self._adapter_owners: dict[Key, Key] = {}
        self._owners: dict[tuple[str, Key], str] = {}  # (kind, key) → uid of the FineTuneJob
        self.wake_job: Callable[[Key], None] = lambda key: None
        self._gone: dict[str, None] = {}  # uids that were deleted: a late answer about one must not bring it back

    # Feeding

    def put(self, kind: str, thing: Object) -> Key | None:
        """Takes an object in unless a newer version is known. Returns the key of the FineTuneJob that it concerns.

        None for none, and where nothing that decisions see has changed: of a pod's writes more than half.
        """
        metadata = thing["metadata"]
        key = (metadata["namespace"], metadata["name"])
        version = parse_resource_version(metadata["resourceVersion"])
        known = self.versions[kind].get(key)
        if metadata["uid"] in self._gone or (known is not None and known[1] >= version > 0):
            return None
        self.versions[kind][key] = (metadata["uid"], version)
        self.serving.put(kind, key, thing)
        if kind == "finetunejobs":
            return self._put_job(key, thing)
        if kind in SERVING_KINDS:
            return None
        uid = observe.read_job_uid(thing)
        if kind == "adapters":
            return self._put_adapter(key, thing)
        attempt = observe.read_attempt(thing)
        if uid is None or attempt is None:
            return None
        self._owners[kind, key] = uid
        if kind == "jobs":
            is_news = self._put_child(uid, key, thing)
        else:
            pod = _Pod(attempt, observe.view_pod(thing))
            is_news = self._pods.get(uid, {}).get(key) != pod
            self._pods.setdefault(uid, {})[key] = pod
        return self._names_of.get(uid) if is_news else None

    def put_own_write(self, kind: str, thing: Object) -> None:
        """Takes in the answer to a write of the serving side. The job that it concerns is woken: the watch shows it no news any more."""
        job = self.put(kind, thing)
        if job is not None:
            self.wake_job(job)

    def remove(self, kind: str, key: Key, uid: str | None = None) -> Key | None:
        """Forgets an object (with `uid`, only that very one). Returns the key of the FineTuneJob that it concerned."""
        known = self.versions[kind].get(key)
        if known is None or (uid is not None and known[0] != uid):
            return None
        del self.versions[kind][key]
        self._bury(known[0])
        self.serving.remove(kind, key)
        if kind == "finetunejobs":
            record = self.jobs.pop(key, None)
            if record is not None:
                self._names_of.pop(record.uid, None)
            return key
        if kind == "adapters":
            return self._remove_adapter(key)
        owner = self._owners.pop((kind, key), None)
        if owner is None:
            return None
        if kind == "jobs":
            _remove(self._children, owner, key)
        else:
            _remove(self._pods, owner, key)
        return self._names_of.get(owner)

    def _put_job(self, key: Key, thing: Object) -> Key:
        raw = dict(thing)
        raw["metadata"] = {k: v for k, v in thing["metadata"].items() if k != "managedFields"}
        old = self.jobs.get(key)
        record = JobRecord(raw)
        if old is not None and old.uid == record.uid:
            record.deleted_children = old.deleted_children
        if old is not None and old.uid == record.uid and observe.speaks_alike(old.raw, raw):
            record.parsed, record.problems = old.parsed, old.problems
        else:
            record.parsed, record.problems = observe.read_job(raw)
        if old is not None:
            self._names_of.pop(old.uid, None)
        self.jobs[key] = record
        self._names_of[record.uid] = key
        return key

    def _put_child(self, uid: str, key: Key, thing: Object) -> bool:
        """Whether decisions see a change."""
        view = observe.view_child(thing)
        if view is None:
            return False
        child = _Child(thing["metadata"]["uid"], view)
        is_news = self._children.get(uid, {}).get(key) != child
        self._children.setdefault(uid, {})[key] = child
        return is_news

    def _put_adapter(self, key: Key, thing: Object) -> Key | None:
        job = (thing["metadata"].get("labels") or {}).get(names.LABEL_JOB)
        spec = observe.read_adapter(thing)
        before = self._remove_adapter(key)
        if job is None or spec is None:
            return before
        owner = (key[0], job)
        self._adapters.setdefault(owner, {})[key[1]] = _Adapter(spec, observe.read_adapter_status(thing))
        self._adapter_owners[key] = owner
        return owner

    def _remove_adapter(self, key: Key) -> Key | None:
        owner = self._adapter_owners.pop(key, None)
        if owner is not None:
            of_job = self._adapters.get(owner, {})
            of_job.pop(key[1], None)
            if not of_job:
                self._adapters.pop(owner, None)
        return owner

    def _bury(self, uid: str) -> None:
        self._gone[uid] = None
        while len(self._gone) > MAX_GONE:
            self._gone.pop(next(iter(self._gone)))

    # Reading

    def children(self, key: Key) -> tuple[ChildView, ...]:
        """The child Jobs of a FineTuneJob with their pods, oldest first; pods whose Job is gone stand under one of its name."""
        record = self.jobs.get(key)
        if record is None:
            return ()
        pods: dict[tuple[WorkKind, int, int], list[PodView]] = {}
        for pod in self._pods.get(record.uid, {}).values():
            pods.setdefault(pod.attempt, []).append(pod.view)
        found: list[ChildView] = []
        for child in self._children.get(record.uid, {}).values():
            view = child.view
            attempt = (view.kind, view.run, view.attempt)
            own = tuple(sorted(pods.pop(attempt, []), key=lambda p: (p.created_at, p.name)))
            is_going = view.deleting or child.uid in record.deleted_children
            found.append(_with(view, own, is_going))
        found += [observe.view_orphan(key[1], record.uid, attempt, own) for attempt, own in pods.items()]
        return tuple(sorted(found, key=lambda c: (c.created_at, c.name)))

    def child_uids(self, key: Key) -> dict[str, str]:
        """The uids of the child Jobs that exist, by name."""
        record = self.jobs.get(key)
        return {k[1]: c.uid for k, c in self._children.get(record.uid, {}).items()} if record else {}

    def adapters(self, key: Key) -> dict[str, AdapterSpec]:
        """The Adapters that runs of a job of this name published, by name."""
        return {name: found.spec for name, found in self._adapters.get(key, {}).items()}

    def adapter_statuses(self, key: Key) -> dict[str, AdapterResourceStatus]:
        """What has become of them, by name."""
        return {name: found.status for name, found in self._adapters.get(key, {}).items()}

    def owner_of(self, kind: str, key: Key) -> Key | None:
        """The FineTuneJob that a known object concerns."""
        uid = self._owners.get((kind, key))
        return self._names_of.get(uid) if uid else None


def _remove(index: dict[str, dict[Key, Any]], uid: str, key: Key) -> None:
    of_job = index.get(uid, {})
    of_job.pop(key, None)
    if not of_job:
        index.pop(uid, None)


def _with(view: ChildView, pods: Iterable[PodView], deleting: bool) -> ChildView:
    return ChildView(**{**view.__dict__, "pods": tuple(pods), "deleting": deleting})
