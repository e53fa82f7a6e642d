"""The store: newest versions alone, children found by their labels, nothing that comes back after its end."""

from typing import Any

from llamero_operator.store import Store

KEY = ("team-a", "tutor")
LABELS = {
    "llamero.dev/job-uid": "u-1",
    "llamero.dev/job": "tutor",
    "llamero.dev/work": "train",
    "llamero.dev/run": "1",
    "llamero.dev/attempt": "1",
}
SPEC = {
    "baseModel": {"uri": "s3://models/tiny"},
    "data": {"sources": [{"uri": "s3://data/alpaca.json", "format": "alpaca"}]},
}


def thing(name: str, uid: str, version: int, labels: dict[str, str] | None = None, **parts: Any) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "team-a",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": labels or {},
        "creationTimestamp": "2026-01-02T03:04:05Z",
        "generation": 1,
    }
    return {"metadata": metadata, **parts}


def job(version: int, uid: str = "u-1", **parts: Any) -> dict[str, Any]:
    return thing("tutor", uid, version, spec=SPEC, **parts)


def adapter(name: str, version: int, sha256: str = "a" * 64) -> dict[str, Any]:
    spec = {"uri": "s3://a", "sha256": sha256, "base": "b", "baseSha256": "c", "model": "tutor"}
    return thing(name, f"uid-{name}", version, LABELS, spec=spec)


def test_an_older_version_never_takes_the_place_of_a_newer_one() -> None:
    store = Store()
    assert store.put("finetunejobs", job(5, status={"phase": "Training"})) == KEY
    assert store.put("finetunejobs", job(4, status={"phase": "Pending"})) is None
    assert store.put("finetunejobs", job(5, status={"phase": "Pending"})) is None
    assert store.jobs[KEY].raw["status"] == {"phase": "Training"}


def test_what_was_deleted_does_not_come_back_by_a_late_answer() -> None:
    store = Store()
    store.put("finetunejobs", job(5))
    assert store.remove("finetunejobs", KEY, "u-1") == KEY
    assert store.put("finetunejobs", job(6)) is None
    assert store.put("finetunejobs", job(7, uid="u-2")) == KEY


def test_the_end_of_a_former_object_does_not_remove_its_successor() -> None:
    store = Store()
    store.put("finetunejobs", job(5))
    store.put("finetunejobs", job(9, uid="u-2"))
    assert store.remove("finetunejobs", KEY, "u-1") is None
    assert store.jobs[KEY].uid == "u-2"


def test_children_and_pods_are_found_by_their_labels_whatever_comes_first() -> None:
    store = Store()
    assert store.put("pods", thing("pod", "p-1", 3, LABELS, spec={}, status={"phase": "Running"})) is None
    assert store.put("jobs", thing("child", "c-1", 2, LABELS)) is None
    store.put("finetunejobs", job(5))
    (child,) = store.children(KEY)
    assert (child.name, child.kind, [p.name for p in child.pods], child.deleting) == ("child", "train", ["pod"], False)
    assert store.put("pods", thing("pod", "p-1", 6, LABELS, spec={}, status={"phase": "Failed"})) == KEY


def test_a_pod_or_child_that_decisions_would_see_the_same_is_no_news() -> None:
    store = Store()
    store.put("finetunejobs", job(5))
    pending = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    ready = {"phase": "Pending", "conditions": [*pending["conditions"], {"type": "Initialized", "status": "True"}]}  # type: ignore[misc]
    assert store.put("pods", thing("p", "uid-p", 6, LABELS, status=pending)) == KEY
    assert store.put("pods", thing("p", "uid-p", 7, LABELS, status=ready)) is None
    assert store.versions["pods"]["team-a", "p"] == ("uid-p", 7)
    assert store.put("pods", thing("p", "uid-p", 8, LABELS, status={"phase": "Running"})) == KEY
    assert store.put("pods", thing("p", "uid-q", 9, LABELS, status={"phase": "Running"})) == KEY
    assert store.put("jobs", thing("c", "uid-c", 10, LABELS)) == KEY
    assert store.put("jobs", thing("c", "uid-c", 11, LABELS, status={"active": 1})) is None
    assert store.put("jobs", thing("c", "uid-d", 12, LABELS, status={"active": 1})) == KEY


def test_a_pod_whose_job_is_gone_still_counts() -> None:
    store = Store()
    store.put("finetunejobs", job(5))
    store.put("jobs", thing("child", "c-1", 2, LABELS))
    store.put("pods", thing("pod", "p-1", 3, LABELS, spec={}, status={"phase": "Running"}))
    assert store.remove("jobs", ("team-a", "child"), "c-1") == KEY
    (child,) = store.children(KEY)
    assert (child.deleting, child.run, child.attempt, [p.name for p in child.pods]) == (True, 1, 1, ["pod"])
    assert store.child_uids(KEY) == {}
    assert store.remove("pods", ("team-a", "pod"), "p-1") == KEY
    assert store.children(KEY) == ()


def test_a_child_whose_deletion_was_asked_for_counts_as_going() -> None:
    store = Store()
    store.put("finetunejobs", job(5))
    store.put("jobs", thing("child", "c-1", 2, LABELS))
    store.jobs[KEY].deleted_children.add("c-1")
    store.put("finetunejobs", job(6))
    assert store.children(KEY)[0].deleting


def test_adapters_are_known_by_the_job_that_made_them_and_outlive_it() -> None:
    store = Store()
    assert store.put("adapters", adapter("tutor-r1", 3)) == KEY
    store.put("finetunejobs", job(5))
    assert list(store.adapters(KEY)) == ["tutor-r1"]
    store.remove("finetunejobs", KEY, "u-1")
    assert list(store.adapters(KEY)) == ["tutor-r1"]
    assert store.remove("adapters", ("team-a", "tutor-r1")) == KEY
    assert store.adapters(KEY) == {}


def test_a_wrong_spec_is_kept_with_its_problems_and_mends_itself() -> None:
    store = Store()
    wrong = job(5)
    wrong["spec"] = {**SPEC, "epochs": 3}
    store.put("finetunejobs", wrong)
    assert store.jobs[KEY].parsed is None and store.jobs[KEY].problems
    right = job(6)
    right["metadata"]["generation"] = 2
    store.put("finetunejobs", right)
    assert store.jobs[KEY].parsed is not None and store.jobs[KEY].problems == ()


def test_what_the_api_server_keeps_for_its_own_use_is_not_kept() -> None:
    store = Store()
    managed = job(5)
    managed["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    store.put("finetunejobs", managed)
    assert "managedFields" not in store.jobs[KEY].raw["metadata"]
