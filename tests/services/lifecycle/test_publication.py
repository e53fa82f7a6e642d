"""From the evaluation's answer to the Adapter: what the status keeps, names that are taken, answers that describe nothing."""

import asyncio
import json
from typing import Any

import pytest
from services.lifecycle.simulation import Cluster, build_job

from llamero.kube import Conflict, Refused, objects
from llamero.kube.children import ensure_adapter
from llamero.lifecycle.publication import MAX_CANDIDATE_BYTES, OTHER_FILES
from llamero.spec.status import ConditionType, WorkKind

SOURCES = [
    {"uri": f"/data/{n}.jsonl", "format": "alpaca", "license": f"L{n}-" + "x" * 200, "terms": "t" * 1000}
    for n in range(12)
]


def spec(cluster: Cluster, **more: Any) -> dict[str, Any]:
    return {**cluster.results(WorkKind.EVALUATE)["adapter_spec"], **more}


def test_licences_and_terms_too_long_for_the_status_still_reach_the_adapter() -> None:
    cluster = Cluster(build_job(data={"sources": SOURCES, "workers": 1}))
    evaluate = cluster.go_to(WorkKind.EVALUATE)
    licenses, terms = sorted(str(s["license"]) for s in SOURCES), ["t" * 1000]
    cluster.finish(evaluate.name, adapter_spec=spec(cluster, licenses=licenses, terms=terms, stopTokens=["</s>"]))
    cluster.reconcile()
    assert cluster.status.candidate is not None
    assert len(json.dumps(cluster.status.candidate)) <= MAX_CANDIDATE_BYTES
    cluster.settle(5)
    published = cluster.adapters["tutor-r1"]
    assert (published.licenses, published.terms, published.stop_tokens) == (licenses, terms, ["</s>"])


def test_an_answer_that_had_no_room_for_the_adapters_spec_is_made_up_for_from_job_and_status() -> None:
    cluster = Cluster(build_job(data={"sources": SOURCES[:1], "workers": 1}))
    evaluate = cluster.go_to(WorkKind.EVALUATE)
    cluster.finish(evaluate.name, adapter_spec=None)
    cluster.settle(5)
    published = cluster.adapters["tutor-r1"]
    assert (published.sha256, published.base, published.base_sha256) == ("a" * 64, "/models/base", "b" * 64)
    assert published.licenses == [SOURCES[0]["license"]]
    assert published.figures.last_loss == "1.0"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"adapter_uri": "/" + "x" * 3000}, id="an address that is too long"),
        pytest.param({"adapter_spec": {"stopTokens": ["s" * 250] * 16}}, id="too many stop tokens"),
        pytest.param({"adapter_spec": {"sha256": "no digest"}}, id="a digest that is none"),
    ],
)
def test_an_answer_that_describes_no_adapter_ends_the_run_and_is_not_asked_for_again(answer: dict[str, Any]) -> None:
    cluster = Cluster(build_job())
    evaluate = cluster.go_to(WorkKind.EVALUATE)
    cluster.finish(evaluate.name, **answer)
    cluster.settle(20)
    assert cluster.status.failure is not None
    assert cluster.status.failure.reason == "AdapterUnknown"
    assert [w.kind for w in cluster.sent] == ["prepare", "train", "evaluate"]
    assert not cluster.adapters


def test_a_name_that_an_adapter_with_other_files_has_ends_the_run() -> None:
    cluster = Cluster(build_job())
    cluster.settle()
    mine = cluster.adapters["tutor-r1"]
    other = Cluster(build_job())
    evaluate = other.go_to(WorkKind.EVALUATE)
    other.adapters["tutor-r1"] = mine.model_copy(update={"sha256": "c" * 64})
    other.finish(evaluate.name)
    other.settle(5)
    assert other.status.failure is not None
    assert other.status.failure.reason == "AdapterConflict"
    assert "tutor-r1" in other.status.failure.message and "c" * 12 in other.status.failure.message
    assert other.reason(ConditionType.STALLED) == ("True", "AdapterConflict")
    other.edit(training={"epochs": 1, "resources": {"gpus": 0}})
    other.settle()
    assert (other.status.phase, other.status.adapter.name if other.status.adapter else "") == ("Succeeded", "tutor-r2")


def test_a_run_passes_over_numbers_that_an_adapter_of_the_jobs_name_has() -> None:
    cluster = Cluster(build_job())
    cluster.settle()
    again = Cluster(build_job(), adapters=dict(cluster.adapters))
    again.settle()
    assert (again.status.run, sorted(again.adapters)) == (2, ["tutor-r1", "tutor-r2"])


def test_an_adapter_refused_for_other_causes_is_tried_until_it_is_taken() -> None:
    cluster = Cluster(build_job())
    cluster.refuses = lambda name: "exceeded quota" if name == "tutor-r1" else None
    cluster.settle(20)
    assert cluster.status.phase == "RollingOut"
    assert cluster.reason(ConditionType.READY) == ("False", "AdapterRefused")
    cluster.refuses = lambda _: None
    cluster.settle(3)
    assert cluster.status.phase == "Succeeded"


def test_the_clients_refusal_of_a_taken_name_is_known_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence is made in `kube.children`, and read in `lifecycle.publication`."""
    cluster = Cluster(build_job())
    cluster.settle()
    published = cluster.adapters["tutor-r1"]

    async def create(*_: Any) -> None:
        raise Conflict("it is there already", "AlreadyExists")

    async def read(*_: Any) -> dict[str, Any]:
        return {"spec": {"sha256": "c" * 64}}

    monkeypatch.setattr(objects, "create", create)
    monkeypatch.setattr(objects, "read", read)
    manifest = {"metadata": {"namespace": "default", "name": "tutor-r1"}, "spec": published.to_json_dict()}
    with pytest.raises(Refused) as refusal:
        asyncio.run(ensure_adapter(None, manifest))  # type: ignore[arg-type]
    assert OTHER_FILES in str(refusal.value)
    again = Cluster(build_job())
    evaluate = again.go_to(WorkKind.EVALUATE)
    again.refuses = lambda name: str(refusal.value) if name == "tutor-r1" else None
    again.finish(evaluate.name)
    again.settle(5)
    assert again.status.failure is not None
    assert again.status.failure.reason == "AdapterConflict"
