"""A status stays below its size: the worst that can come, the likely worst with its whole history, and what is cut first."""

import json
from datetime import timedelta

import pytest
from services.lifecycle.simulation import START, Cluster, build_job

from llamero.lifecycle.bounds import MAX_STATUS_BYTES, fits, shorten, shrink
from llamero.lifecycle.jobs import decide
from llamero.spec.digest import digest_json
from llamero.spec.status import (
    AdapterStatus,
    AttemptStatus,
    BaseStatus,
    DataStatus,
    EvaluationStatus,
    FailureStatus,
    JobStatus,
    ProgressStatus,
    RetrainStatus,
    RunRecord,
    TrainingStatus,
    TriesStatus,
    WorkKind,
)

LIMIT = 10_000


def size(status: JobStatus) -> int:
    return len(json.dumps(status.to_json_dict()))


def fill(letter: str, uri: int, records: int = 8) -> JobStatus:
    """A status of a run at hand with every text at its greatest length; URIs of `uri` letters."""
    digest, figure, place = "f" * 64, "1" * 32, "/" + letter * (uri - 1)
    record = RunRecord(
        run=1, phase="Failed", reason="R" * 64, message=letter * 200, cause="C" * 64, started_at=START, finished_at=START,
        loss=figure, base_token_perplexity=figure, token_perplexity=figure, adapter="a" * 63, adapter_uri=place,
    )  # fmt: skip
    return JobStatus(
        run=9, run_digest=digest, run_cause="C" * 64, started_at=START, active_since=START, base_ref=digest,
        base=BaseStatus(uri=place, digest=digest), attempts=dict.fromkeys(WorkKind, 99),
        data=DataStatus(
            uri=place, digest=digest, read=10**12, kept=1, rejected=1, train_examples=10**9, evaluation_examples=1, tokens=10**12,
            reasons={f"{n:064}": 10**9 for n in range(12)},
        ),
        training=TrainingStatus(
            uri=place, steps=10**7, tokens=10**12, first_loss=figure, last_loss=figure, tokens_per_second=figure, adapter_sha256=digest
        ),
        evaluation=EvaluationStatus(
            uri=place, records=10**6, base_token_perplexity="4.0", tuned_token_perplexity="2.0", passed=True, reason=letter * 512
        ),
        adapter=AdapterStatus(name="a" * 63, uri=place, sha256=digest), failure=FailureStatus(reason="R" * 64, message=letter * 512),
        candidate=json.dumps({"uri": place, "stopTokens": ["s" * 60] * 3, "recipeDigest": digest})[:4096],
        work=AttemptStatus(
            kind=WorkKind.EVALUATE, attempt=99, job="j" * 63, started_at=START, pod="p" * 64, pod_name="p" * 253, node="n" * 253,
            running_since=START, sent_at=START, sends=3, step=1, step_at=START, gpu_class="g" * 63, seen=True,
        ),
        tries=TriesStatus(message=letter * 300, retry_at=START, ended_at=START),
        progress=ProgressStatus(percent=1, activity=letter * 64, loss=figure, tokens_per_second=figure, written_at=START),
        retrain=RetrainStatus(next_at=START, checked_at=START, schedule_digest="f" * 16, data_digest=digest),
        history=[record.model_copy(update={"run": n + 1}) for n in range(records)],
    )  # fmt: skip


@pytest.mark.parametrize("letter", ["x", "ü", "🦙", '"'])
@pytest.mark.parametrize("uri", [64, 300, 700, 2048])
@pytest.mark.parametrize("happens", ["goes on", "suspended", "edited", "over", "refused"])
def test_no_status_that_is_decided_on_is_too_large(letter: str, uri: int, happens: str) -> None:
    status = fill(letter, uri)
    changes: dict[str, object] = {"suspend": happens == "suspended"}
    job = build_job(baseModel={"uri": "/" + "m" * 200}, **changes)
    cluster = Cluster(job)
    if happens != "edited":
        first = decide(cluster.world(), cluster.limits, cluster.now).status
        status = status.model_copy(
            update={"run_digest": first.run_digest, "base_ref": digest_json(job.spec.base_model.to_json_dict())}
        )
    if happens == "over":
        status = status.model_copy(update={"finished_at": START, "work": None})
    cluster.status = status
    if happens == "refused":
        cluster.job, cluster.problems = None, (letter * 400,) * 20
    for _ in range(4):
        decision = decide(cluster.world(), cluster.limits, cluster.now)
        assert size(decision.status) < LIMIT
        cluster.status = JobStatus.model_validate_json(json.dumps(decision.status.to_json_dict()))
        cluster.wait(1)
    assert decide(cluster.world(), cluster.limits, cluster.now - timedelta(seconds=1)).status == cluster.status


def test_the_likely_worst_keeps_its_whole_history() -> None:
    """A storage with a long address, every figure and pod name at its length, sentences of the length that ours have."""
    job = build_job()
    cluster = Cluster(job)
    first = decide(cluster.world(), cluster.limits, cluster.now).status
    status = fill("x", 256)
    figures = {"loss": "12.3456", "base_token_perplexity": "1234.56", "token_perplexity": "1234.56"}
    words = {"reason": "GateRefused", "cause": "DataChanged", **figures}
    status = status.model_copy(
        update={
            "run_digest": first.run_digest,
            "base_ref": digest_json(job.spec.base_model.to_json_dict()),
            "failure": None,
            "history": [r.model_copy(update=words) for r in status.history],
        }
    )
    cluster.status = status
    written = decide(cluster.world(), cluster.limits, cluster.now).status
    assert written.phase == "RollingOut"
    assert [r.run for r in written.history] == list(range(1, 9))
    assert size(written) < LIMIT


def test_addresses_of_old_runs_go_first_and_the_newest_stays() -> None:
    status = fill("x", 100, 8).model_copy(update={"failure": None})
    cut = shrink(status)
    assert fits(cut)
    kept = [r.adapter_uri is not None for r in cut.history]
    assert kept == sorted(kept), "older ones go before newer ones"
    assert [r.run for r in cut.history] == list(range(1, 9))


def test_a_status_that_fits_is_left_as_it_is() -> None:
    cluster = Cluster(build_job())
    cluster.settle()
    assert shrink(cluster.status) is cluster.status
    assert size(cluster.status) < 5_000


def test_a_run_whose_addresses_leave_no_room_fails_with_a_sentence_and_stays_so() -> None:
    cluster = Cluster(build_job())
    cluster.go_to(WorkKind.EVALUATE)
    long = "/" + "x" * 2040
    status = cluster.status
    assert status.data is not None and status.training is not None and status.base is not None
    cluster.status = status.model_copy(
        update={
            "data": status.data.model_copy(update={"uri": long}), "training": status.training.model_copy(update={"uri": long}),
            "base": status.base.model_copy(update={"uri": long}), "adapter": AdapterStatus(name="a", uri=long, sha256="f"),
            "candidate": "x" * 2000,
        }
    )  # fmt: skip
    cluster.settle(5)
    assert cluster.status.failure is not None
    assert cluster.status.failure.reason == "StatusTooLarge"
    written = cluster.status_writes
    cluster.settle(5)
    assert cluster.status_writes == written
    assert size(cluster.status) < LIMIT


@pytest.mark.parametrize("text", ["", "short", "x" * 500, "ü" * 500, "🦙" * 500, '"' * 500])
def test_a_shortened_text_is_as_long_as_was_asked_for_and_says_so(text: str) -> None:
    cut = shorten(text, 100)
    assert len(json.dumps(cut)) - 2 <= 100
    assert cut == text or cut.endswith(" ...")
    assert MAX_STATUS_BYTES < LIMIT
