"""What the pods of an attempt are told, as a `WorkMessage`: built purely from the world and the decision.

How it gets there (Celery, or the pod's environment) is left to the broker and to `desired`.
"""

from llamero.lifecycle.world import Work, World
from llamero.spec import names
from llamero.spec.job import (
    API_VERSION,
    KIND,
    BaseModelRef,
    DataFormat,
    DataSource,
    DataSpec,
    EvaluationSpec,
    FineTuneJob,
    FineTuneJobSpec,
    Metadata,
)
from llamero.spec.status import WorkKind
from llamero.spec.tasks import AttemptId, WorkMessage
from llamero_operator.settings import OperatorSettings

PLAIN_KINDS = frozenset({WorkKind.FETCH, WorkKind.PROBE, WorkKind.CLEAN, WorkKind.LOGS})
"""Work whose message stands in the pod's environment; the others' goes by Celery."""

MAX_ENVIRONMENT_BYTES = 120_000
"""Linux takes 128 KiB for one variable, name and all."""

_NOTHING = FineTuneJobSpec(
    base_model=BaseModelRef(uri="none:"), data=DataSpec(sources=[DataSource(uri="none:", format=DataFormat.RECORDS)])
)
"""The spec in a message to pods that need none: clean-up and logs also serve jobs whose spec is wrong by now."""


def attempt_id(world: World, work: Work) -> AttemptId:
    """Which attempt at which job this is."""
    return AttemptId(
        namespace=world.namespace, job=world.name, uid=world.uid, run=work.run, kind=work.kind, attempt=work.attempt
    )


def queue_of(attempt: AttemptId) -> str:
    """The Celery queue of the attempt alone."""
    return names.queue_name(attempt.uid, attempt.run, attempt.kind, attempt.attempt)


def task_id_of(attempt: AttemptId) -> str:
    """The Celery task id of the attempt: a doubled message carries the same."""
    return names.task_id(attempt.uid, attempt.run, attempt.kind, attempt.attempt)


def build_message(world: World, work: Work, settings: OperatorSettings) -> WorkMessage:
    """The message of an attempt: what the job wants, what was found so far, and how this attempt differs.

    Raises ValueError where the job's spec is wrong and the work needs it.
    """
    status, kind = world.status, work.kind
    return WorkMessage(
        id=attempt_id(world, work),
        storage=settings.storage_root,
        manifest=_manifest_for(world, kind),
        base=status.base if kind not in (WorkKind.FETCH, WorkKind.CLEAN, WorkKind.LOGS) else None,
        data=status.data if kind in (WorkKind.TRAIN, WorkKind.EVALUATE) else None,
        training=status.training if kind is WorkKind.EVALUATE else None,
        micro_batch_tokens=work.micro_batch_tokens,
        init_adapter=work.init_adapter,
        evaluate_too=work.evaluate_too,
        keep_adapters=list(work.keep_adapters),
        logs=work.logs,
    )


def dump_for_environment(message: WorkMessage) -> str:
    """The message as a variable's value. It holds no `$`, which Kubernetes would expand: JSON has another way to write one."""
    return message.model_dump_json(by_alias=True, exclude_none=True).replace("$", "\\u0024")


def find_size_problems(job: FineTuneJob) -> tuple[str, ...]:
    """Why a message about this job can't stand in a pod's environment, as a sentence."""
    size = len(_slim(job, WorkKind.PROBE).model_dump_json(by_alias=True, exclude_none=True).encode())
    if size <= MAX_ENVIRONMENT_BYTES - 4096:
        return ()
    return (
        f"spec.data: it comes to {size:,} bytes, where {MAX_ENVIRONMENT_BYTES - 4096:,} can be handed to a pod: name fewer sources "
        "(a folder or a glob counts once), or shorten their terms and the lists of domains.",
    )


def _manifest_for(world: World, kind: WorkKind) -> FineTuneJob:
    if kind in (WorkKind.CLEAN, WorkKind.LOGS):
        return FineTuneJob(api_version=API_VERSION, kind=KIND, metadata=Metadata(name="none"), spec=_NOTHING)
    if world.job is None:
        raise ValueError(f"{world.namespace}/{world.name}: {kind} needs the job's spec, which is wrong")
    return _slim(world.job, kind)


def _slim(job: FineTuneJob, kind: WorkKind) -> FineTuneJob:
    """The job without what the work does not need: a manifest may be a megabyte, its annotations a copy of it."""
    spec = job.spec
    if kind in (WorkKind.FETCH, WorkKind.PROBE):
        spec = spec.model_copy(update={"evaluation": EvaluationSpec()})
    if kind is WorkKind.FETCH:
        spec = spec.model_copy(update={"data": _NOTHING.data})
    metadata = Metadata(name=job.metadata.name, namespace=job.metadata.namespace)
    return job.model_copy(update={"metadata": metadata, "spec": spec, "status": None})
