"""The data pods: the first to get the message coordinates the preparation, the others do shards as long as a coordinator lives.

Shards lie in the job's storage by content, so that a preparation that is taken up again does only what is missing.
"""

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamero.lifecycle.failures import PhaseExit
from llamero.model.failures import is_storage_failure
from llamero.phases.data import describe_data
from llamero.pods.coordinator import CoordinatorWatch, Sign, beat
from llamero.pods.inputs import list_predecessors, locate_base, place_job
from llamero.pods.keeping import keep_trying
from llamero.pods.pod import AttemptFailure, Pod
from llamero.spec.job import FineTuneJob
from llamero.spec.names import MANIFEST_NAME, AttemptFolder
from llamero.spec.results import DataResult
from llamero.spec.run import Phase
from llamero.spec.status import WorkKind
from llamero.spec.tasks import Outcome, TaskName, WorkMessage
from llamero.storage import (
    Away,
    commit_folder,
    find_missing,
    is_local,
    join_uri,
    local_path,
    read_file,
    write_file,
)

if TYPE_CHECKING:
    from llamero.data.prepare import DataError, DataPlan

PHASE = Phase.PREPARING.value
REJECTED_FILE = "rejected.jsonl"
SHARD_SCRATCH = "shards"
"""Below the scratch folder: what data tasks fetch from an object store and make for it."""
_NETWORK_ERRORS = frozenset(
    {
        "ClientConnectorError",
        "ClientConnectorDNSError",
        "ConnectionTimeoutError",
        "ServerDisconnectedError",
        "ServerTimeoutError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "ReadTimeoutError",
    }
)

log = logging.getLogger(__name__)


def prepare(message: WorkMessage, pod: Pod) -> Outcome | None:
    """Coordinate a `prepare` attempt; None where another pod does. Raises AttemptFailure, StorageError, ModelError."""
    if CoordinatorWatch(pod.settings).look() is Sign.ALIVE:
        log.info("another pod coordinates already: the message was doubled")
        return None
    with beat(pod.settings):
        return coordinate(message, pod)


def coordinate(message: WorkMessage, pod: Pod) -> Outcome:
    """Find the data prepared by an earlier pod, or prepare it. Raises AttemptFailure, StorageError, ModelError."""
    from llamero.data.prepare import DataError, plan_data

    job = place_job(message.manifest, pod.settings.storage)
    pod.tell(PHASE, "looking at the sources")
    base = locate_base(message, job.spec, pod)
    try:
        plan = plan_data(job.spec, base.digest)
    except DataError as error:
        raise explain_data_error(error) from error
    found = find_finished(pod, plan.digest)
    if found is not None:
        place, result = found
        log.info("this data is prepared already: %s", place.data)
    else:
        place = pod.settings.own
        result = run_preparation(job, plan, base.uri, pod)
    return pod.answer(PhaseExit.DONE).model_copy(update={"base": base, "data": describe_data(result, place.data)})


def run_preparation(job: FineTuneJob, plan: "DataPlan", base_uri: str, pod: Pod) -> DataResult:
    """Prepare into the pod's prefix, the shards shared with the other pods. Raises AttemptFailure, StorageError."""
    from llamero.data.prepare import DataError, prepare_data
    from llamero.data.queue import QueueRunner

    own, scratch = pod.settings.own, pod.settings.scratch
    is_near = is_local(pod.settings.storage)
    output = local_path(own.data) if is_near else scratch / "data"
    shards = scratch / SHARD_SCRATCH
    try:
        with pod.hang_watched():
            result = prepare_data(
                job.spec,
                plan,
                base_uri,
                output,
                pod.settings.places.shards,
                pod.progress.tell,
                runner=QueueRunner(_choose_sender(job, pod), scratch=shards),
                staging=join_uri(own.prefix, "staging"),
                scratch=shards,
            )
    except DataError as error:
        failure = explain_data_error(error)
        raise AttemptFailure(failure.code, _keep_rejected(str(failure), output, own)) from error
    if not is_near:
        keep_trying("the prepared data", lambda: commit_folder(output, own.data))
    return result


def _choose_sender(job: FineTuneJob, pod: Pod) -> Callable[[dict[str, Any]], None]:
    """How shards go to the other pods; a pod that is alone sends none."""
    if job.spec.data.workers < 2 or not pod.settings.queue:
        return lambda task: None
    from llamero.worker import app

    queue = pod.settings.queue

    def send(task: dict[str, Any]) -> None:
        app.send_task(TaskName.SHARD.value, args=[task], queue=queue, retry=False, ignore_result=True)

    return send


def explain_data_error(error: "DataError") -> AttemptFailure:
    """What a data error means for the attempt: data that won't do is final, a full disk or a source that does not answer is not."""
    from llamero.data.errors import NoSpaceError

    if isinstance(error, NoSpaceError) or is_storage_failure(error) or is_away(error):
        return AttemptFailure(PhaseExit.STORAGE, str(error))
    return AttemptFailure(PhaseExit.DATA_ERROR, str(error))


def is_away(error: BaseException | None) -> bool:
    """Whether the error came of a network that failed, not of an answer."""
    while error is not None:
        if (
            isinstance(error, (Away, ConnectionError, TimeoutError, socket.gaierror))
            or type(error).__name__ in _NETWORK_ERRORS
        ):
            return True
        error = error.__cause__
    return False


def _keep_rejected(message: str, output: Path, own: AttemptFolder) -> str:
    """The message with a place that can still be read when the pod is gone."""
    path = output / REJECTED_FILE
    uri = join_uri(own.data, REJECTED_FILE)
    if path.is_file() and str(path) != uri:
        write_file(uri, path.read_bytes())
    return message.replace(str(path), uri)


def help_out(pod: Pod) -> Callable[[], Outcome | None]:
    """What a data pod does between tasks: it ends well when the attempt is done, and is not idle while a coordinator lives."""
    watch = CoordinatorWatch(pod.settings)

    def look() -> Outcome | None:
        match watch.look():
            case Sign.ENDED:
                return pod.answer(PhaseExit.DONE, "Another pod of the attempt coordinated it to its end.")
            case Sign.ALIVE:
                pod.stay()
        return None

    return look


def find_finished(pod: Pod, digest: str) -> tuple[AttemptFolder, DataResult] | None:
    """Data of this digest that any earlier pod of the run prepared to its end."""
    for _, place in list_predecessors(pod.settings, WorkKind.PREPARE):
        content = read_file(join_uri(place.data, MANIFEST_NAME))
        try:
            result = DataResult.model_validate_json(content) if content is not None else None
        except ValueError:
            continue
        if result is not None and result.digest == digest and find_missing(place.data, result.files) is None:
            return place, result
    return None
