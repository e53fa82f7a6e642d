"""The Celery tasks: a whole attempt, and one shard of data.

Loaded by the worker (`llamero.worker`) alone, which this makes a pod. What the work is stands in `attempt` and what that loads.
"""

import logging
from typing import Any

from celery import bootsteps

from llamero.lifecycle.failures import PhaseExit
from llamero.pods.attempt import ONE_RELEASE, answer_failure, do_work, read_message
from llamero.pods.pod import AttemptFailure, Pod
from llamero.pods.settings import PodSettings, SettingsError
from llamero.spec.status import WorkKind
from llamero.spec.tasks import TaskName
from llamero.worker import app, message_refused

log = logging.getLogger(__name__)

_pod: Pod | None = None


def current_pod() -> Pod:
    """This process as a pod."""
    if _pod is None:
        raise RuntimeError("no worker is running in this process")
    return _pod


class PodStep(bootsteps.StartStopStep):
    """Makes the worker a pod before it connects: Celery's own handlers would end it with a code that says nothing."""

    requires = ("celery.worker.components:Pool",)

    def create(self, worker: Any) -> None:
        global _pod
        try:
            _pod = Pod(PodSettings.from_environment())
        except SettingsError as error:
            log.error("%s", error)
            raise SystemExit(int(PhaseExit.BAD_CONFIG)) from error

    def start(self, worker: Any) -> None:
        pod = current_pod()
        pod.start()
        if pod.settings.attempt.kind is WorkKind.PREPARE:
            from llamero.pods.prepare import help_out

            pod.watch_idleness(help_out(pod))
        else:
            pod.watch_idleness()
        message_refused.connect(_refuse, weak=False)


app.steps["worker"].add(PodStep)


def _refuse(reason: str, **unused: Any) -> None:
    pod = current_pod()
    pod.end(pod.answer(PhaseExit.BAD_CONFIG, f"{reason}. {ONE_RELEASE}"))


@app.task(name=TaskName.WORK.value, acks_late=False, ignore_result=True)
def work(message: dict[str, Any] | str) -> None:
    """A whole attempt, to the end of the pod."""
    pod = current_pod()
    with pod.busy():
        try:
            parsed = read_message(message)
        except AttemptFailure as failure:
            pod.end(answer_failure(failure, pod))
        if parsed.id != pod.settings.attempt:
            log.warning("a message for another attempt came and is passed over: %s", parsed.id)
            return
        outcome = do_work(parsed, pod)
        if outcome is not None:
            pod.end(outcome)


@app.task(name=TaskName.SHARD.value, acks_late=True, ignore_result=True)
def shard(task: dict[str, Any]) -> None:
    """One data task of the attempt's coordinator."""
    from llamero.data.queue import run_shard_task
    from llamero.pods.prepare import SHARD_SCRATCH

    pod = current_pod()
    with pod.busy():
        run_shard_task(task, pod.settings.scratch / SHARD_SCRATCH)
