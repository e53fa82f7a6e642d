"""What must exist in the cluster for a job, purely: a batch Job for each piece of work that was decided on.

Whether it exists already, and how it is made or removed, is the caller's business.
"""

from collections.abc import Iterable
from typing import Any

from llamero.lifecycle.world import Work, World
from llamero.spec import names
from llamero.spec.job import API_VERSION, KIND, FineTuneJob
from llamero.spec.status import WorkKind
from llamero_operator.messages import (
    PLAIN_KINDS,
    attempt_id,
    build_message,
    dump_for_environment,
    find_size_problems,
    queue_of,
)
from llamero_operator.resources.environment import (
    build_attempt_environment,
    build_hub_environment,
    build_process_environment,
    build_secret_environment,
    find_secret_problems,
)
from llamero_operator.resources.jobs import build_job
from llamero_operator.resources.pods import build_command, build_pod_template, settings_of_pod
from llamero_operator.settings import OperatorSettings

Manifest = dict[str, Any]

QUEUED_KINDS = frozenset({WorkKind.FETCH, WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE})
"""Work of a run, which waits in Kueue's queue; helpers (a look at the data, a clean-up, a print of logs) do not."""


def find_cluster_problems(job: FineTuneJob, settings: OperatorSettings) -> tuple[str, ...]:
    """What in a valid job can't be served in pods, a sentence each: for `World.problems`."""
    return (*find_secret_problems(job, settings), *find_size_problems(job))


def desired_children(world: World, works: Iterable[Work], settings: OperatorSettings) -> list[Manifest]:
    """The child Jobs of a decision's work, in its order. Raises as `build_child` does."""
    return [build_child(world, work, settings) for work in works]


def build_child(world: World, work: Work, settings: OperatorSettings) -> Manifest:
    """The batch Job of one attempt. Its name and all it says derive from the job's uid, run, kind and attempt.

    Raises UnknownGpuClass (a ValueError), and ValueError where the work needs the job's spec and that is wrong.
    """
    attempt = attempt_id(world, work)
    celery_queue = queue_of(attempt)
    labels = names.child_labels(world.name, world.uid, work.run, work.kind, work.attempt)
    env = [
        *build_attempt_environment(attempt, celery_queue, settings),
        *build_process_environment(settings_of_pod(work.kind, settings)),
        *build_hub_environment(settings.hub),
    ]
    if work.kind in PLAIN_KINDS:
        env.append({"name": "LLAMERO_MESSAGE", "value": dump_for_environment(build_message(world, work, settings))})
    if world.job is not None:
        deadline = str(world.job.spec.progress_deadline_seconds)
        env.append({"name": "LLAMERO_PROGRESS_DEADLINE_SECONDS", "value": deadline})
        env += build_secret_environment(world.job, work.kind)
    template = build_pod_template(
        work.kind, labels, build_command(work.kind, celery_queue), env, settings, work.gpu_class, work.gpus
    )
    return build_job(
        name=child_name(world, work),
        namespace=world.namespace,
        labels=labels,
        owner=_owner(world),
        template=template,
        pods=work.pods,
        is_work_queue=work.kind is WorkKind.PREPARE,
        deadline_seconds=None if work.kind in QUEUED_KINDS else settings.intervals.helper_deadline_seconds,
        queue=kueue_queue(world) if work.kind in QUEUED_KINDS else None,
        capabilities=world.capabilities,
    )


def child_name(world: World, work: Work) -> str:
    """The name of the attempt's batch Job."""
    return names.child_job_name(world.name, world.uid, work.run, work.kind, work.attempt)


def kueue_queue(world: World) -> str | None:
    """The Kueue queue that the job's label names."""
    return world.job.metadata.labels.get(names.QUEUE_LABEL) or None if world.job is not None else None


def _owner(world: World) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": world.name,
        "uid": world.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
