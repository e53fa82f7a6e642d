"""What pods are told: what the job wants, what was found so far, and no more than a pod needs."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from llamero.lifecycle.world import Work, World
from llamero.spec.job import FineTuneJob
from llamero.spec.status import BaseStatus, DataStatus, JobStatus, TrainingStatus, WorkKind
from llamero.spec.tasks import LogRequest, WorkMessage
from llamero_operator.messages import (
    MAX_ENVIRONMENT_BYTES,
    PLAIN_KINDS,
    attempt_id,
    build_message,
    dump_for_environment,
    find_size_problems,
    queue_of,
    task_id_of,
)
from llamero_operator.settings import OperatorSettings, StorageSettings

MakeJob = Callable[..., FineTuneJob]
MakeWorld = Callable[..., World]

BASE = BaseStatus(uri="s3://bucket/models/x", digest="b" * 64)
DATA = DataStatus(
    uri="s3://bucket/data",
    digest="d" * 64,
    read=10,
    kept=9,
    rejected=1,
    train_examples=8,
    evaluation_examples=1,
    tokens=99,
)
TRAINING = TrainingStatus(
    uri="s3://bucket/t",
    steps=3,
    tokens=99,
    first_loss="3",
    last_loss="2",
    tokens_per_second="9",
    adapter_sha256="a" * 64,
)
STATUS = JobStatus(base=BASE, data=DATA, training=TRAINING)
SETTINGS = OperatorSettings(storage=StorageSettings(uri="s3://bucket"))


@pytest.mark.parametrize(
    ("kind", "base", "data", "training"),
    [
        (WorkKind.FETCH, None, None, None),
        (WorkKind.PROBE, BASE, None, None),
        (WorkKind.PREPARE, BASE, None, None),
        (WorkKind.TRAIN, BASE, DATA, None),
        (WorkKind.EVALUATE, BASE, DATA, TRAINING),
        (WorkKind.CLEAN, None, None, None),
        (WorkKind.LOGS, None, None, None),
    ],
)
def test_a_message_says_what_earlier_work_found(
    make_world: MakeWorld,
    kind: WorkKind,
    base: BaseStatus | None,
    data: DataStatus | None,
    training: TrainingStatus | None,
) -> None:
    message = build_message(make_world(status=STATUS), Work(kind, run=2, attempt=3), SETTINGS)
    assert (message.base, message.data, message.training) == (base, data, training)
    assert message.storage == "s3://bucket"
    assert (message.id.run, message.id.attempt, message.id.kind) == (2, 3, kind)


def test_a_message_says_how_the_attempt_differs(make_world: MakeWorld) -> None:
    work = Work(
        WorkKind.TRAIN,
        run=1,
        attempt=2,
        micro_batch_tokens=512,
        init_adapter="s3://bucket/adapters/r0",
        evaluate_too=True,
    )
    message = build_message(make_world(), work, SETTINGS)
    assert (message.micro_batch_tokens, message.init_adapter, message.evaluate_too) == (512, work.init_adapter, True)
    clean = build_message(make_world(), Work(WorkKind.CLEAN, 0, 1, keep_adapters=("a" * 64,)), SETTINGS)
    assert clean.keep_adapters == ["a" * 64]
    request = LogRequest(number=7, run=1)
    assert build_message(make_world(), Work(WorkKind.LOGS, 0, 7, logs=request), SETTINGS).logs == request


@pytest.mark.parametrize("kind", [k for k in WorkKind if k not in (WorkKind.CLEAN, WorkKind.LOGS)])
def test_a_job_with_a_wrong_spec_gets_no_message_that_needs_it(make_world: MakeWorld, kind: WorkKind) -> None:
    with pytest.raises(ValueError, match=r"team-a/tutor: .* needs the job's spec, which is wrong"):
        build_message(make_world(has_job=False), Work(kind, 1, 1), SETTINGS)


@pytest.mark.parametrize("kind", [WorkKind.CLEAN, WorkKind.LOGS])
def test_a_job_with_a_wrong_spec_or_name_can_still_be_cleaned_up_and_read(
    make_world: MakeWorld, kind: WorkKind
) -> None:
    world = replace(make_world(has_job=False), name="a.name-that-no-valid-job-has-" + "x" * 40)
    message = WorkMessage.model_validate_json(dump_for_environment(build_message(world, Work(kind, 0, 1), SETTINGS)))
    assert message.id == attempt_id(world, Work(kind, 0, 1))


def test_annotations_and_labels_do_not_travel(make_world: MakeWorld, make_job: MakeJob) -> None:
    job = make_job(labels={"a": "b"}, annotations={"kubectl.kubernetes.io/last-applied-configuration": "x" * 100_000})
    for kind in WorkKind:
        message = build_message(make_world(job), Work(kind, 1, 1), SETTINGS)
        assert message.manifest.metadata.annotations == {} == message.manifest.metadata.labels


def test_celery_work_gets_the_whole_spec(make_world: MakeWorld, make_job: MakeJob) -> None:
    job = make_job(evaluation={"promptSets": [{"prompts": ["why?"]}]})
    for kind in set(WorkKind) - PLAIN_KINDS:
        assert build_message(make_world(job), Work(kind, 1, 1), SETTINGS).manifest.spec == job.spec


@pytest.mark.parametrize("kind", sorted(PLAIN_KINDS))
def test_a_message_in_the_environment_survives_kubernetes_expansion_and_comes_back_the_same(
    make_world: MakeWorld, make_job: MakeJob, kind: WorkKind
) -> None:
    job = make_job(data={"sources": [{"uri": "s3://d/$(POD_IP)/$$x.json", "format": "alpaca", "terms": "$(HOME) é"}]})
    message = build_message(make_world(job), Work(kind, 1, 1), SETTINGS)
    text = dump_for_environment(message)
    assert "$" not in text
    assert WorkMessage.model_validate_json(text) == message


def test_a_probe_is_told_all_sources_and_its_message_fits_a_variable(make_world: MakeWorld, make_job: MakeJob) -> None:
    prompts = [{"name": f"set-{n}", "prompts": ["x" * 8000] * 20} for n in range(8)]
    job = make_job(evaluation={"promptSets": prompts})
    assert find_size_problems(job) == ()
    message = build_message(make_world(job), Work(WorkKind.PROBE, 0, 1), SETTINGS)
    assert message.manifest.spec.data == job.spec.data
    assert len(dump_for_environment(message).encode()) < MAX_ENVIRONMENT_BYTES


def test_data_too_large_for_a_variable_is_told_in_a_sentence(make_job: MakeJob) -> None:
    sources = [{"uri": f"s3://d/{n}/" + "x" * 2000, "format": "alpaca", "terms": "y" * 1000} for n in range(64)]
    (problem,) = find_size_problems(make_job(data={"sources": sources}))
    assert problem.startswith("spec.data: it comes to ") and "fewer sources" in problem


def test_queue_and_task_belong_to_one_attempt_alone(make_world: MakeWorld) -> None:
    ids = [
        attempt_id(make_world(), Work(kind, run, attempt)) for kind in WorkKind for run in (1, 2) for attempt in (1, 2)
    ]
    assert len({queue_of(i) for i in ids}) == len({task_id_of(i) for i in ids}) == len(ids)


def test_a_message_holds_no_secret(make_world: MakeWorld, make_job: MakeJob) -> None:
    settings = OperatorSettings(redis_url="redis://:secret-word@redis", storage=StorageSettings(claim="files"))
    for kind in WorkKind:
        text = json.dumps(build_message(make_world(), Work(kind, 1, 1), settings).to_json_dict())
        assert "secret-word" not in text
