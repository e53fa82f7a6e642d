"""What a job says of its adapter's rollout, and the ModelServer that it sees to: the job itself is done at publication."""

import pytest
from services.lifecycle.simulation import START, Cluster, build_job

from llamero.lifecycle.jobs import decide
from llamero.lifecycle.publication import build_default_server, find_server_name
from llamero.spec import names
from llamero.spec.adapter import AdapterResourceStatus
from llamero.spec.job import BaseModelRef
from llamero.spec.status import Condition, ConditionType, JobPhase

DEFAULT = names.default_server_name("/models/base", None, "tgi")


def finished(**spec: object) -> Cluster:
    """A job that has succeeded where the operator serves."""
    cluster = Cluster(build_job(**spec), servers=set())
    cluster.settle()
    assert cluster.status.phase is JobPhase.SUCCEEDED
    return cluster


def tell(cluster: Cluster, **conditions: tuple[str, str]) -> tuple[str, str, str]:
    """What the job says of its rollout once its Adapter has these conditions (status, reason) by type."""
    told = [
        Condition.model_validate(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": f"said of {kind}",
                "lastTransitionTime": START,
            }
        )
        for kind, (status, reason) in conditions.items()
    ]
    cluster.adapter_statuses["tutor-r1"] = AdapterResourceStatus(conditions=told)
    cluster.reconcile()
    found = cluster.status.condition(ConditionType.ROLLED_OUT)
    assert found is not None
    return found.status, found.reason, found.message


def test_an_adapter_names_the_server_for_its_base_and_engine_which_is_made() -> None:
    cluster = finished()
    assert cluster.adapters["tutor-r1"].server == DEFAULT
    assert cluster.servers == {DEFAULT}


def test_the_server_that_the_manifest_names_is_made_where_it_is_not_there() -> None:
    cluster = finished(rollout={"server": "shared", "engine": "cpu"})
    assert cluster.adapters["tutor-r1"].server == "shared"
    assert cluster.servers == {"shared"}
    made = build_default_server(cluster.world())
    assert made is not None and (made.base, made.engine) == (BaseModelRef(uri="/models/base"), "cpu")


@pytest.mark.parametrize("serves", [True, False], ids=["by the manifest", "by the settings"])
def test_where_nothing_is_rolled_out_no_server_is_named_or_made(serves: bool) -> None:
    cluster = Cluster(build_job(rollout={"enabled": not serves}), servers=set() if serves else None)
    cluster.settle()
    assert cluster.status.phase is JobPhase.SUCCEEDED
    assert cluster.adapters["tutor-r1"].server == ""
    assert not cluster.servers


def test_a_server_that_is_refused_does_not_hold_the_job_up_and_is_told_of() -> None:
    cluster = Cluster(build_job(), servers=set())
    cluster.refuses = lambda name: "exceeded quota: modelservers" if name == DEFAULT else None
    cluster.settle()
    assert cluster.status.phase is JobPhase.SUCCEEDED
    found = cluster.status.condition(ConditionType.ROLLED_OUT)
    assert found is not None and (found.status, found.reason) == ("Unknown", "Waiting")
    assert f"the ModelServer {DEFAULT}, which is not there" in found.message


def test_a_server_that_someone_removed_later_is_not_made_again() -> None:
    cluster = finished()
    cluster.servers = set()
    cluster.settle(5)
    assert cluster.servers == set()
    found = cluster.status.condition(ConditionType.ROLLED_OUT)
    assert found is not None and "not there" in found.message


@pytest.mark.parametrize(
    "conditions, status, reason",
    [
        ({}, "Unknown", "Waiting"),
        ({"Serving": ("False", "Coming")}, "Unknown", "Waiting"),
        ({"Serving": ("False", "NoPod")}, "Unknown", "Waiting"),
        ({"Serving": ("True", "Canary")}, "Unknown", "Canary"),
        ({"Serving": ("True", "Serving"), "RolledBack": ("False", "NotRolledBack")}, "True", "Promoted"),
        ({"Serving": ("False", "NoPod"), "RolledBack": ("False", "Promoted")}, "True", "Promoted"),
        ({"Serving": ("True", "DeletionWaits")}, "True", "Promoted"),
        ({"Serving": ("False", "OtherServes"), "RolledBack": ("False", "Promoted")}, "False", "Superseded"),
        ({"Serving": ("False", "RolledBack"), "RolledBack": ("True", "ErrorRate")}, "False", "RolledBack"),
        ({"Serving": ("False", "Corrupt"), "Verified": ("False", "Corrupt")}, "False", "Corrupt"),
        ({"Serving": ("True", "Serving"), "Verified": ("True", "Proven")}, "True", "Promoted"),
    ],
)
def test_the_rollout_is_told_by_the_adapters_conditions(
    conditions: dict[str, tuple[str, str]], status: str, reason: str
) -> None:
    cluster = finished()
    assert tell(cluster, **conditions)[:2] == (status, reason)
    assert cluster.status.phase is JobPhase.SUCCEEDED
    assert cluster.reason(ConditionType.COMPLETE) == ("True", "Succeeded")


def test_the_sentence_is_the_adapters_own_and_the_same_again_is_not_written() -> None:
    cluster = finished()
    assert tell(cluster, Serving=("True", "Canary"))[2] == "tutor-r1: said of Serving"
    writes = cluster.status_writes
    tell(cluster, Serving=("True", "Canary"))
    assert cluster.status_writes == writes


def test_an_adapter_that_was_deleted_is_told_as_gone() -> None:
    cluster = finished()
    cluster.adapters.clear()
    cluster.reconcile()
    assert cluster.reason(ConditionType.ROLLED_OUT) == ("Unknown", "AdapterGone")


def test_a_job_without_an_adapter_says_nothing_of_a_rollout() -> None:
    cluster = Cluster(build_job(), servers=set())
    status = decide(cluster.world(), cluster.limits, cluster.now).status
    assert status.condition(ConditionType.ROLLED_OUT) is None


def test_a_job_that_is_not_read_names_no_server() -> None:
    cluster = Cluster(build_job(), servers=set())
    cluster.job = None
    assert find_server_name(cluster.world()) == "" and build_default_server(cluster.world()) is None
