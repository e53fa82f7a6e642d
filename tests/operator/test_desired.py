"""What must exist for a job: one child for each piece of work, and what in a job can't be served in pods."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llamero.lifecycle.world import Work, World
from llamero.spec.job import FineTuneJob
from llamero.spec.status import WorkKind
from llamero_operator.desired import child_name, desired_children, find_cluster_problems, kueue_queue
from llamero_operator.resources.pods import UnknownGpuClass
from llamero_operator.settings import OperatorSettings, StorageSettings

MakeJob = Callable[..., FineTuneJob]
MakeWorld = Callable[..., World]

SETTINGS = OperatorSettings(storage=StorageSettings(claim="files"))


def test_there_is_one_child_for_each_piece_of_work_in_its_order(make_world: MakeWorld) -> None:
    works = [Work(WorkKind.TRAIN, 1, 2), Work(WorkKind.LOGS, 0, 1)]
    children = desired_children(make_world(), works, SETTINGS)
    assert [c["metadata"]["name"] for c in children] == [child_name(make_world(), w) for w in works]
    assert desired_children(make_world(), [], SETTINGS) == []


def test_the_same_decision_renders_the_same_child(make_world: MakeWorld) -> None:
    work = [Work(WorkKind.PREPARE, 1, 1, pods=3)]
    assert desired_children(make_world(), work, SETTINGS) == desired_children(make_world(), work, SETTINGS)


def test_a_job_made_again_under_an_old_name_has_other_children(make_world: MakeWorld) -> None:
    first, second = make_world(), replace(make_world(), uid="ffffffff-1111-2222-3333-444455556666")
    assert child_name(first, Work(WorkKind.TRAIN, 1, 1)) != child_name(second, Work(WorkKind.TRAIN, 1, 1))


@pytest.mark.parametrize("kind", [WorkKind.CLEAN, WorkKind.LOGS])
def test_a_job_whose_spec_is_wrong_can_still_be_cleaned_up(make_world: MakeWorld, kind: WorkKind) -> None:
    (child,) = desired_children(make_world(has_job=False), [Work(kind, 0, 1)], SETTINGS)
    assert child["spec"]["template"]["spec"]["containers"][0]["command"] == ["python", "-m", "llamero.pods"]


def test_a_gpu_class_that_the_settings_do_not_name_is_refused_with_a_sentence(make_world: MakeWorld) -> None:
    with pytest.raises(UnknownGpuClass, match=r"`spot` is not in the operator's settings \(there: none\)"):
        desired_children(make_world(), [Work(WorkKind.TRAIN, 1, 1, gpu_class="spot", gpus=1)], SETTINGS)


def test_the_queue_is_the_jobs_label(make_world: MakeWorld, make_job: MakeJob) -> None:
    assert kueue_queue(make_world(make_job(labels={"kueue.x-k8s.io/queue-name": "team"}))) == "team"
    assert kueue_queue(make_world()) is None
    assert kueue_queue(make_world(has_job=False)) is None


def secret(name: str, key: str) -> dict[str, Any]:
    return {"uri": "https://x/y.json", "format": "alpaca", "secretRef": {"name": name, "key": key}}


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([secret("a", "token"), secret("a", "token"), secret("b", "other")], ()),
        (
            [secret("a", "token"), secret("b", "token")],
            (
                "spec.data.sources[1].secretRef: its key `token` is also that of spec.data.sources[0].secretRef, of another secret (a), "
                "and both would be the same environment variable: give one of the keys another name.",
            ),
        ),
        (
            [secret("a", "1token")],
            (
                "spec.data.sources[0].secretRef.key: `1token` can't name an environment variable: use letters, digits, dashes, "
                "underscores and dots, beginning with no digit.",
            ),
        ),
        (
            [secret("a", "LD_PRELOAD")],
            (
                "spec.data.sources[0].secretRef.key: `LD_PRELOAD` has a meaning of its own in a pod: give the secret's key another name, "
                "such as `token`.",
            ),
        ),
    ],
)
def test_secrets_that_can_not_be_variables_are_told_in_a_sentence(
    make_job: MakeJob, sources: list[dict[str, Any]], expected: tuple[str, ...]
) -> None:
    assert find_cluster_problems(make_job(data={"sources": sources}), SETTINGS) == expected


def test_the_bases_secret_and_a_sources_can_collide_too(make_job: MakeJob) -> None:
    base = {"name": "org/model", "revision": "0" * 40, "secretRef": {"name": "hub"}}
    (problem,) = find_cluster_problems(make_job(baseModel=base, data={"sources": [secret("a", "token")]}), SETTINGS)
    assert problem.startswith(
        "spec.data.sources[0].secretRef: its key `token` is also that of spec.baseModel.secretRef"
    )


def test_the_key_of_a_language_model_is_held_to_the_same_rules(make_job: MakeJob) -> None:
    judge = {"url": "https://x/v1", "model": "judge", "secretRef": {"name": "judge"}}
    data = {"sources": [secret("a", "token")], "steps": [{"judge": {"models": [judge]}}]}
    (problem,) = find_cluster_problems(make_job(data=data), SETTINGS)
    assert problem.startswith(
        "spec.data.steps[0].judge.models[0].secretRef: its key `token` is also that of spec.data.sources[0].secretRef"
    )
    judge["secretRef"] = {"name": "judge", "key": "HTTPS_PROXY"}
    (problem,) = find_cluster_problems(make_job(data=data), SETTINGS)
    assert problem.startswith(
        "spec.data.steps[0].judge.models[0].secretRef.key: `HTTPS_PROXY` has a meaning of its own"
    )


def test_a_key_may_not_take_the_place_of_the_storages_credentials(make_job: MakeJob) -> None:
    job = make_job(data={"sources": [secret("a", "AWS_SECRET_ACCESS_KEY")]})
    assert find_cluster_problems(job, SETTINGS) == ()
    with_keys = OperatorSettings(storage=StorageSettings(uri="s3://bucket", secret_name="keys"))
    (problem,) = find_cluster_problems(job, with_keys)
    assert "would take the place of the storage's credentials" in problem


@pytest.mark.parametrize(
    "variable",
    [
        "LLAMERO_STORAGE",
        "POD_IP",
        "HOME",
        "HF_HOME",
        "OMP_NUM_THREADS",
        "SSL_CERT_FILE",
        "HTTPS_PROXY",
        "NVIDIA_VISIBLE_DEVICES",
    ],
)
def test_no_secret_takes_the_place_of_what_every_pod_is_given(make_job: MakeJob, variable: str) -> None:
    assert len(find_cluster_problems(make_job(data={"sources": [secret("a", variable)]}), SETTINGS)) == 1


def test_every_variable_that_pods_are_given_is_reserved(make_world: MakeWorld, make_job: MakeJob) -> None:
    works = [Work(kind, 1, 1) for kind in WorkKind]
    given = {
        variable["name"]
        for child in desired_children(make_world(), works, SETTINGS)
        for variable in child["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    free = {n for n in given if not find_cluster_problems(make_job(data={"sources": [secret("a", n)]}), SETTINGS)}
    assert free == set()
