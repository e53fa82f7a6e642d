"""What serving knows, whom its news wake, and which server has a public name or an Adapter where several want it."""

from typing import Any

import pytest

from llamero.spec import names
from llamero_operator.serving.claims import find_taken, has_claim
from llamero_operator.serving.store import Key, sweep_key
from llamero_operator.store import Store

TINY, OTHER = ("team-a", "tiny"), ("team-a", "other")


ADAPTER_SPEC = {"uri": "s3://a", "sha256": "a" * 64, "base": "b", "baseSha256": "c", "model": "tutor"}


class Known:
    """A store, and whom it woke since it was last asked."""

    def __init__(self) -> None:
        self.store = Store()
        self.serving = self.store.serving
        self._woken: list[Key] = []
        self.serving.wake = self._woken.append
        self._version = 0

    def woken(self) -> set[Key]:
        found = set(self._woken)
        self._woken.clear()
        return found

    def put(self, kind: str, name: str, uid: str = "", namespace: str = "team-a", **parts: Any) -> dict[str, Any]:
        self._version += 1
        metadata = {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{name}",
            "resourceVersion": str(self._version),
            "generation": 1,
            "creationTimestamp": "2026-01-02T03:04:05Z",
            **parts.pop("metadata", {}),
        }
        thing = {"metadata": metadata, **parts}
        self.store.put(kind, thing)
        return thing

    def put_server(self, name: str = "tiny", models: list[dict[str, Any]] | None = None, **parts: Any) -> None:
        spec = {"baseModel": {"uri": "s3://models/tiny"}, "engine": {"type": "cpu"}, **parts.pop("spec", {})}
        status = {"models": models} if models else {}
        self.put("modelservers", name, spec=spec, status=status, **parts)

    def put_pod(self, name: str, server: str = "tiny", deleting: bool = False, **status: Any) -> None:
        metadata: dict[str, Any] = {"labels": names.server_labels(server, f"uid-{server}")}
        if deleting:
            metadata["deletionTimestamp"] = "2026-01-02T03:05:05Z"
        self.put("pods", name, metadata=metadata, spec={}, status={"phase": "Running", **status})

    def put_adapter(self, name: str = "tutor-r1", server: str = "", **parts: Any) -> None:
        self.put("adapters", name, spec={**ADAPTER_SPEC, "server": server}, **parts)


@pytest.fixture
def known() -> Known:
    made = Known()
    made.put_server("tiny")
    made.put_server("other")
    made.put_server("far", namespace="team-b", uid="uid-far")
    made.woken()
    return made


def test_a_pod_wakes_its_server_where_decisions_see_a_change_and_only_then(known: Known) -> None:
    known.put_pod("tiny-1", podIP="10.0.0.1")
    assert known.woken() == {TINY}
    known.put_pod("tiny-1", podIP="10.0.0.1", hostIP="10.9.9.9")
    assert known.woken() == set()
    known.put_pod("tiny-1", podIP="10.0.0.1", deleting=True)
    assert known.woken() == {TINY}
    known.store.remove("pods", ("team-a", "tiny-1"))
    assert known.woken() == {TINY}
    assert known.serving.pods(known.serving.servers[TINY]) == ()


def test_pods_and_deployments_that_came_first_are_found_by_their_server(known: Known) -> None:
    known.put_pod("late-1", server="late")
    labels = names.server_labels("late", "uid-late")
    known.put("deployments", "late-engine", metadata={"labels": labels}, spec={"replicas": 3}, status={})
    assert known.woken() == set()
    known.put_server("late")
    record = known.serving.servers["team-a", "late"]
    assert [p.name for p in known.serving.pods(record)] == ["late-1"]
    found = known.serving.deployment(record, "late-engine")
    assert found is not None and found.replicas == 3 and found.digest == ""


def test_a_server_made_again_under_an_old_name_has_none_of_the_old_ones_pods(known: Known) -> None:
    known.put_pod("tiny-1")
    known.put_server("tiny", uid="uid-tiny-2")
    assert known.serving.pods(known.serving.servers[TINY]) == ()


def test_an_adapter_wakes_the_servers_of_its_namespace_where_decisions_see_a_change(known: Known) -> None:
    known.put_adapter()
    assert known.woken() == {TINY, OTHER}
    known.put_adapter(metadata={"annotations": {"who": "me"}})
    assert known.woken() == set()
    known.put_adapter(status={"weight": 5})
    assert known.woken() == {TINY, OTHER}
    known.store.remove("adapters", ("team-a", "tutor-r1"))
    assert known.woken() == {TINY, OTHER}
    assert known.serving.adapters("team-a") == ()


def test_the_serving_sides_own_write_of_an_adapter_wakes_the_job_that_made_it(known: Known) -> None:
    woken: list[Key] = []
    known.store.wake_job = woken.append
    known.put("finetunejobs", "tutor", spec={})
    labels = {names.LABEL_JOB: "tutor", names.LABEL_UID: "uid-tutor", names.LABEL_RUN: "1"}
    adapter = known.put("adapters", "tutor-r1", metadata={"labels": labels}, spec=ADAPTER_SPEC)
    answer = {**adapter, "metadata": {**adapter["metadata"], "resourceVersion": "999"}, "status": {"weight": 100}}
    known.store.put_own_write("adapters", answer)
    assert woken == [("team-a", "tutor")]
    assert known.store.put("adapters", answer) is None, "the watch shows it no news"


def test_an_adapter_whose_deletion_waits_has_its_namespace_looked_at(known: Known) -> None:
    stuck = {"finalizers": [names.SERVED_FINALIZER], "deletionTimestamp": "2026-01-02T03:05:05Z"}
    known.put_adapter(metadata=stuck)
    assert sweep_key("team-a") in known.woken()
    assert [r.raw["metadata"]["name"] for r in known.serving.stuck_adapters("team-a")] == ["tutor-r1"]
    known.store.remove("modelservers", TINY)
    assert known.woken() == {TINY, sweep_key("team-a")}, "its server may have been the one that had it"


def test_an_unreadable_adapter_that_is_stuck_is_known_all_the_same(known: Known) -> None:
    stuck = {"finalizers": [names.SERVED_FINALIZER], "deletionTimestamp": "2026-01-02T03:05:05Z"}
    known.put("adapters", "odd", spec={}, metadata=stuck)
    assert len(known.serving.stuck_adapters("team-a")) == 1 and known.serving.adapters("team-a") == ()


def test_a_server_is_woken_by_an_edit_and_by_a_status_that_is_not_ours_but_not_by_the_same_again(known: Known) -> None:
    known.put_server("tiny", metadata={"generation": 2}, spec={"replicas": 3})
    assert known.woken() == {TINY}
    known.put_server("tiny", metadata={"generation": 2}, spec={"replicas": 3})
    assert known.woken() == set()
    known.put_server("tiny", metadata={"generation": 2}, spec={"replicas": 3}, models=[{"name": "tutor"}])
    assert known.woken() == {TINY}


def test_mistakes_in_a_spec_are_known_with_the_server(known: Known) -> None:
    known.put_server("wrong", spec={"replicas": -1})
    record = known.serving.servers["team-a", "wrong"]
    assert record.parsed is None and record.problems


# -- claims --------------------------------------------------------------------------------------------------------------------


def taken(known: Known, name: str, owners: dict[str, str]) -> dict[str, str]:
    key = ("team-a", name)
    return find_taken(known.serving.servers[key], known.serving.others(key), owners)


def claim(known: Known, name: str, state: str, created: str, **metadata: str) -> None:
    when = {"creationTimestamp": f"2026-01-0{created}T00:00:00Z", **metadata}
    known.put_server(name, models=[{"name": "tutor", "state": state}], metadata=when)


@pytest.mark.parametrize("state", ["Waiting", "Serving", "Canary", "Paused", "RolledBack"])
def test_a_name_that_an_older_server_claims_is_taken(state: str) -> None:
    known = Known()
    claim(known, "old", state, "1")
    claim(known, "new", "Waiting", "2")
    assert taken(known, "new", {}) == {"tutor": "team-a/old"}
    assert taken(known, "old", {}) == {}


@pytest.mark.parametrize("state", ["Conflict", "Retired"])
def test_a_name_that_the_older_server_does_not_want_or_have_is_free(state: str) -> None:
    known = Known()
    claim(known, "old", state, "1")
    claim(known, "new", "Waiting", "2")
    assert taken(known, "new", {}) == {}


def test_a_name_that_is_routed_stays_where_it_is_whoever_is_older() -> None:
    known = Known()
    claim(known, "old", "Waiting", "1")
    claim(known, "new", "Serving", "2")
    owners = {"tutor": "team-a/new"}
    assert taken(known, "new", owners) == {}
    assert taken(known, "old", owners) == {"tutor": "team-a/new"}


def test_of_two_of_the_same_second_one_gives_way() -> None:
    known = Known()
    claim(known, "a", "Waiting", "1")
    claim(known, "b", "Waiting", "1")
    assert (taken(known, "a", {}), taken(known, "b", {})) == ({}, {"tutor": "team-a/a"})


def test_a_server_that_is_being_deleted_claims_nothing_but_keeps_what_is_routed_to_it() -> None:
    known = Known()
    claim(known, "old", "Serving", "1", deletionTimestamp="2026-01-03T00:00:00Z")
    claim(known, "new", "Waiting", "2")
    assert taken(known, "new", {}) == {}
    assert taken(known, "new", {"tutor": "team-a/old"}) == {"tutor": "team-a/old"}


@pytest.mark.parametrize(
    "server, adapter, claims",
    [
        ({}, {}, False),
        ({}, {"server": "tiny"}, True),
        ({}, {"status": {"server": "tiny"}}, True),
        ({"spec": {"models": [{"name": "tutor", "adapter": "tutor-r1"}]}}, {}, True),
        ({"models": [{"name": "tutor", "previous": "tutor-r1"}]}, {}, True),
        ({"models": [{"name": "tutor", "adapter": "tutor-r2"}]}, {}, False),
    ],
)
def test_a_server_has_a_claim_to_an_adapter_that_either_speaks_of(
    server: dict[str, Any], adapter: dict[str, Any], claims: bool
) -> None:
    known = Known()
    known.put_server("tiny", **server)
    known.put_adapter(**adapter)
    found = known.serving.adapter("team-a", "tutor-r1")
    assert found is not None and has_claim(known.serving.servers[TINY], found) is claims
