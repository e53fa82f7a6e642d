"""A deleted job is let go: its files are removed where that can be, and it is never held for ever."""

from datetime import timedelta

import pytest
from services.lifecycle.simulation import Cluster, build_job

from llamero.spec.status import WorkKind


def delete(cluster: Cluster) -> None:
    """The job is deleted, and its pods have ended."""
    cluster.deleting = True
    cluster.reconcile()
    cluster.reap()
    cluster.reconcile()


def cleaner(cluster: Cluster) -> str:
    (child,) = [c for c in cluster.live() if c.kind is WorkKind.CLEAN]
    return child.name


def test_the_cleaner_starts_when_all_pods_have_ended_and_is_told_which_adapters_stay() -> None:
    cluster = Cluster(build_job())
    cluster.settle()
    cluster.edit(training={"epochs": 1, "resources": {"gpus": 0}})
    cluster.go_to(WorkKind.TRAIN)
    cluster.deleting = True
    cluster.reconcile()
    assert not cluster.live()
    cluster.reap()
    decision = cluster.reconcile()
    assert [(w.kind, w.keep_adapters) for w in decision.work] == [(WorkKind.CLEAN, ("a" * 64,))]
    cluster.finish(cleaner(cluster))
    decision = cluster.reconcile()
    assert cluster.gone and decision.forget_queues
    assert cluster.reported[-1].reason == "CleanedUp"
    assert list(cluster.adapters) == ["tutor-r1"]


@pytest.mark.parametrize("code", [1, 14])
def test_a_cleaner_that_failed_twice_lets_the_job_go_with_a_warning(code: int) -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.TRAIN)
    delete(cluster)
    cluster.finish(cleaner(cluster), code, "The storage can't be written.")
    cluster.reconcile()
    assert not cluster.gone
    cluster.reap()
    assert cluster.children[cleaner(cluster)].attempt == 2
    cluster.finish(cleaner(cluster), code, "The storage can't be written.")
    cluster.reconcile()
    assert cluster.gone
    assert (cluster.reported[-1].reason, cluster.reported[-1].warning) == ("CleanupFailed", True)


def test_a_cleaner_that_never_ends_is_given_up() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.TRAIN)
    delete(cluster)
    began = cluster.status.deleting_since
    assert began is not None
    limit = cluster.limits.grace_seconds + 180
    cluster.now = began + timedelta(seconds=limit - 1)
    assert cluster.reconcile().wake_after == 1
    assert not cluster.gone
    cluster.wait(1)
    cluster.reconcile()
    assert cluster.gone
    assert cluster.reported[-1].reason == "CleanupGivenUp"


def test_pods_that_never_end_do_not_hold_the_job_for_ever() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.TRAIN)
    cluster.deleting = True
    cluster.reconcile()
    cluster.wait(cluster.limits.grace_seconds + 180)
    cluster.reconcile()
    assert cluster.gone


def test_a_refused_cleaner_lets_the_job_go() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.TRAIN)
    cluster.refuses = lambda name: "the namespace is being terminated" if "clean" in name else None
    delete(cluster)
    cluster.reconcile()
    assert cluster.gone
    assert cluster.reported[-1].reason == "CleanupRefused"
    assert "terminated" in cluster.reported[-1].message


def test_without_a_storage_to_clean_the_job_is_let_go_once_its_pods_have_ended() -> None:
    cluster = Cluster(build_job(), has_storage=False)
    cluster.go_to(WorkKind.TRAIN)
    cluster.deleting = True
    cluster.reconcile()
    assert not cluster.gone
    cluster.reap()
    cluster.reconcile()
    assert cluster.gone
    assert cluster.reported[-1].reason == "CleanupSkipped"


def test_a_job_that_never_ran_is_let_go_without_a_word() -> None:
    cluster = Cluster(build_job())
    cluster.deleting = True
    cluster.reconcile()
    assert cluster.gone
    assert not cluster.reported


def test_a_job_with_a_wrong_spec_is_cleaned_up_too() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.TRAIN)
    cluster.job, cluster.problems = None, ("spec: it is wrong.",)
    delete(cluster)
    cluster.finish(cleaner(cluster))
    cluster.reconcile()
    assert cluster.gone


def test_what_a_first_attempt_left_is_cleaned_though_the_deletion_came_before_its_status_was_written() -> None:
    cluster = Cluster(build_job())
    before = cluster.status
    cluster.go_to(WorkKind.PREPARE)
    cluster.status = before  # the status was refused: the deletion had changed the job meanwhile
    delete(cluster)
    assert not cluster.gone
    cluster.finish(cleaner(cluster))
    cluster.reconcile()
    assert cluster.gone
    assert cluster.reported[-1].reason == "CleanedUp"


def test_a_job_of_which_nothing_was_ever_begun_is_let_go_at_once() -> None:
    cluster = Cluster(build_job())
    cluster.deleting = True
    cluster.reconcile()
    assert cluster.gone
