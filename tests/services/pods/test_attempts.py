"""Whole attempts by message: prepare, train and evaluate end with their outcomes, and nothing is done twice."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamero.spec.adapter import AdapterSpec
from llamero.spec.names import queue_name, redis_patterns
from llamero.spec.results import AdapterManifest, Report
from llamero.spec.status import WorkKind
from llamero.storage import commit_folder, find_damage

MakeJob = Callable[..., Any]


def test_a_job_goes_from_data_to_a_published_adapter_by_its_messages(make_job: MakeJob) -> None:
    job = make_job()
    prepared = job.run(WorkKind.PREPARE)
    first = prepared.outcome()
    assert first.data is not None and first.base is not None
    assert first.data.read == 60 == first.data.kept + first.data.rejected
    assert first.data.uri == prepared.own.data
    assert not (Path(prepared.own.prefix) / "staging").exists()

    second = job.run(WorkKind.TRAIN, base=first.base, data=first.data).outcome()
    assert second.training is not None and second.training.steps == 3 and second.resumed_from is None

    third = job.run(WorkKind.EVALUATE, base=first.base, data=first.data, training=second.training).outcome()
    assert third.evaluation is not None and third.evaluation.records == 4
    folder = Path(third.adapter_uri)
    assert folder == Path(job.places.adapter(1, second.training.adapter_sha256))
    manifest = AdapterManifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert find_damage(folder, manifest.files) is None
    spec = AdapterSpec.model_validate(third.adapter_spec)
    assert (spec.uri, spec.sha256, spec.licenses, spec.model) == (str(folder), manifest.sha256, ["MIT"], "small")
    assert spec.figures.tuned_token_perplexity == third.evaluation.tuned_token_perplexity
    report = Report.model_validate_json(Path(third.evaluation.uri, "report.json").read_bytes())
    assert report.adapter.uri == third.adapter_uri and report.seconds["Training"] > 0
    assert Path(third.evaluation.uri, "report.html").is_file()

    logs = sorted(p.name for p in Path(job.places.logs(1)).iterdir())
    assert logs == ["evaluate-a1-pod-2.log", "prepare-a1-pod-0.log", "train-a1-pod-1.log"]
    assert "checkpoint of step 3 written" in Path(job.places.logs(1), logs[2]).read_text()


def test_an_attempt_finds_what_an_earlier_one_finished_and_reports_it(make_job: MakeJob) -> None:
    job = make_job()
    first = job.run(WorkKind.PREPARE).outcome()
    again = job.run(WorkKind.PREPARE, attempt=2)
    assert again.outcome().data == first.data
    assert "prepared already" in again.log

    second = job.run(WorkKind.TRAIN, base=first.base, data=first.data).outcome()
    again = job.run(WorkKind.TRAIN, attempt=2, base=first.base, data=first.data)
    assert again.outcome().training == second.training
    assert "finished already" in again.log and not Path(again.own.prefix).exists()

    fields = {"base": first.base, "data": first.data, "training": second.training}
    third = job.run(WorkKind.EVALUATE, **fields).outcome()
    job.manifest["spec"]["evaluation"]["gate"] = {"minPerplexityImprovement": 0.99}
    again = job.run(WorkKind.EVALUATE, attempt=2, **fields)
    fourth = again.outcome()
    assert "finished already" in again.log
    assert fourth.adapter_uri == third.adapter_uri
    assert fourth.evaluation.tuned_token_perplexity == third.evaluation.tuned_token_perplexity
    assert third.evaluation.passed != fourth.evaluation.passed or "99" in fourth.evaluation.reason


def test_a_training_pod_evaluates_too_where_it_is_told(prepared_job: MakeJob) -> None:
    job, fields = prepared_job()
    outcome = job.run(WorkKind.TRAIN, evaluate_too=True, **fields).outcome()
    assert outcome.training is not None and outcome.evaluation is not None
    assert Path(outcome.adapter_uri, "manifest.json").is_file()


def test_an_evaluation_that_fails_in_a_training_pod_keeps_the_training(prepared_job: MakeJob) -> None:
    job, fields = prepared_job()
    job.manifest["spec"]["evaluation"]["promptSets"] = [{"uri": "prompts.jsonl"}]
    outcome = job.run(WorkKind.TRAIN, evaluate_too=True, **fields).outcome(3)
    assert outcome.kind is WorkKind.EVALUATE and "prompts.jsonl" in outcome.message
    assert outcome.training is not None and outcome.training.steps == 3


def test_a_doubled_message_does_nothing(prepared_job: MakeJob) -> None:
    job, fields = prepared_job()
    id = job.identify(WorkKind.TRAIN)
    message = job.message(id, **fields)
    for _ in range(3):
        job.send(id, message)
    assert job.start(id).outcome().training.steps == 3
    assert len(list(Path(job.places.attempts(1, "train")).iterdir())) == 1


def test_data_pods_share_the_shards_of_one_and_all_end_well(make_job: MakeJob) -> None:
    job = make_job(rows=400, data__shardRecords=20, data__workers=3)
    id = job.identify(WorkKind.PREPARE)
    pods = [job.start(id) for _ in range(3)]
    for pod in pods:
        pod.wait_for_log("ready.")
    job.send(id, job.message(id))
    outcomes = [pod.outcome() for pod in pods]
    coordinators = [o for o in outcomes if o.data is not None]
    assert len(coordinators) == 1 and coordinators[0].data.read == 400
    helpers = [p for p, o in zip(pods, outcomes, strict=True) if o.data is None]
    assert any("llamero.shard.v1" in p.log and "received" in p.log for p in helpers)
    alone = make_job(rows=400, data__shardRecords=20, data__workers=1)
    other = alone.run(WorkKind.PREPARE).outcome()
    assert (other.data.kept, other.data.tokens, other.data.train_examples) == (
        coordinators[0].data.kept,
        coordinators[0].data.tokens,
        coordinators[0].data.train_examples,
    )


def test_a_data_pod_takes_over_when_the_coordinator_is_lost(make_job: MakeJob) -> None:
    job = make_job(rows=2000, data__shardRecords=20, data__workers=2)
    id = job.identify(WorkKind.PREPARE)
    job.send(id, job.message(id))
    first = job.start(id)
    first.wait_for_log("looking at the sources")
    second = job.start(id)
    second.wait_for_log("ready.")
    first.process.kill()
    first.process.wait()
    # As if the last beat had been long ago: the operator sends the message again.
    Path(first.own.coordinator).unlink()
    job.send(id, job.message(id))
    assert second.outcome().data.read == 2000


def test_the_worker_that_supervises_never_loads_torch(repository: Path) -> None:
    modules = "llamero.worker, llamero.pods.tasks, llamero.pods.train, llamero.pods.prepare, llamero.data.queue"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(repository / "services")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_what_a_job_leaves_in_redis_is_found_by_its_patterns(prepared_job: MakeJob) -> None:
    job, fields = prepared_job()
    before = set(job.redis.client.keys("*"))
    job.run(WorkKind.TRAIN, **fields).outcome()
    left = set(job.redis.client.keys("*")) - before
    assert left and any(queue_name(job.uid, 1, "train", 1) in k for k in left)
    found = {key for pattern in redis_patterns(job.uid) for key in job.redis.client.keys(pattern)}
    assert left == found, left - found


def test_a_published_adapter_is_put_in_its_place_once(prepared_job: MakeJob, tmp_path: Path) -> None:
    job, fields = prepared_job()
    training = job.run(WorkKind.TRAIN, **fields).outcome().training
    uri = job.places.adapter(1, training.adapter_sha256)
    commit_folder(Path(training.uri, "adapter"), uri)
    before = {p.name: p.stat().st_mtime_ns for p in Path(uri).iterdir()}
    outcome = job.run(WorkKind.EVALUATE, training=training, **fields).outcome()
    assert outcome.adapter_uri == uri
    assert {p.name: p.stat().st_mtime_ns for p in Path(uri).iterdir()} == before
    assert json.loads(Path(uri, "manifest.json").read_text())["sha256"] == training.adapter_sha256
