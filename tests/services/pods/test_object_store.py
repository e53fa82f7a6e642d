"""The same pods with their storage in an object store: nothing is renamed there, and manifests come last."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.waiting import until

from llamero.lifecycle.failures import PhaseExit
from llamero.spec.results import Report
from llamero.spec.status import WorkKind
from llamero.storage import fetch_folder, list_names, read_file, read_manifest

MakeJob = Callable[..., Any]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server of this machine with a bucket that holds the data."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="llamero")
    rows = [
        {"instruction": f"What is {n} plus {n}?", "input": "", "output": f"The answer is {n + n}."} for n in range(60)
    ]
    client.put_object(Bucket="llamero", Key="root/data.json", Body=json.dumps(rows).encode())
    yield client
    server.stop()


def test_a_job_runs_with_all_its_files_in_an_object_store(make_job: MakeJob, bucket: Any, tmp_path: Path) -> None:
    job = make_job(storage="s3://llamero/root", data__workers=2, data__shardRecords=20)
    id = job.identify(WorkKind.PREPARE)
    pods = [job.start(id) for _ in range(2)]
    job.send(id, job.message(id))
    first = next(o for o in (p.outcome() for p in pods) if o.data is not None)
    assert first.data.uri.startswith("s3://llamero/root/jobs/team/small-") and first.data.read == 60
    fields = {"base": first.base, "data": first.data}

    long = job.manifest["spec"]["training"] | {"maxSteps": 30, "epochs": 1000, "saveIntervalSeconds": 1}
    job.manifest["spec"]["training"] = long
    stopped = job.run(WorkKind.TRAIN, **fields)
    until(lambda: "is kept in s3://" in stopped.log, "a kept checkpoint", 90)
    stopped.terminate()
    stopped.outcome(PhaseExit.INTERRUPTED)
    second = job.run(WorkKind.TRAIN, attempt=2, **fields).outcome()
    assert second.resumed_from is not None and second.training.steps == 30

    third = job.run(WorkKind.EVALUATE, training=second.training, **fields).outcome()
    assert third.adapter_uri == f"s3://llamero/root/adapters/team/small-r1/{second.training.adapter_sha256}"
    folder = fetch_folder(third.adapter_uri, tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").is_file()
    report = Report.model_validate_json(read_file(f"{third.evaluation.uri}/report.json") or b"")
    assert report.training.resumed_from == [second.resumed_from]
    assert "resuming" in (read_file(job.places.log(1, "train", 2, "pod-3")) or b"").decode()

    again = job.run(WorkKind.TRAIN, attempt=3, **fields)
    assert again.outcome().training == second.training and "finished already" in again.log
    printed = job.run(WorkKind.LOGS, logs={"number": 1, "kind": "train"})
    printed.outcome()
    assert "==> r1 train attempt 3" in (printed.folder / "out").read_text()
    job.run(WorkKind.CLEAN, keep_adapters=[second.training.adapter_sha256]).outcome()
    assert list_names(job.places.prefix) == [] and read_manifest(third.adapter_uri) is not None


def test_a_base_in_an_object_store_is_fetched_into_the_storage(
    make_job: MakeJob, bucket: Any, random_base: Path
) -> None:
    for file in random_base.iterdir():
        bucket.upload_file(str(file), "llamero", f"bases/tiny/{file.name}")
    job = make_job(storage="s3://llamero/root", baseModel={"uri": "s3://llamero/bases/tiny"})
    base = job.run(WorkKind.FETCH).outcome().base
    assert base.uri.startswith("s3://llamero/root/models/")
    assert job.run(WorkKind.PREPARE, base=base).outcome().data.read == 60


def test_a_storage_that_is_away_is_told_as_such(make_job: MakeJob, bucket: Any) -> None:
    job = make_job(storage="s3://nowhere/root")
    outcome = job.run(WorkKind.PREPARE, attempt=1).outcome(PhaseExit.DATA_ERROR)
    assert "s3://nowhere" in outcome.message
    job.environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    outcome = job.run(WorkKind.CLEAN).outcome(PhaseExit.STORAGE)
    assert "s3://nowhere" in outcome.message
