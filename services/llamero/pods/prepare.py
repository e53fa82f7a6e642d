"""The data pods: the first to get the message coordinates the preparation, the others do shards as long as a coordinator lives.

Shards lie in the job's storage by content, so that a preparation that is taken up again does only what is missing.
"""

import logging
from pathlib import Path

from llamero.lifecycle.failures import PhaseExit
from llamero.model.failures import is_storage_failure
from llamero.phases.data import describe_data
from llamero.pods.inputs import bring_base, list_predecessors, place_job
from llamero.pods.keeping import keep_trying
from llamero.pods.pod import AttemptFailure, Pod
from llamero.spec.job import FineTuneJob
from llamero.spec.names import MANIFEST_NAME, AttemptFolder
from llamero.spec.results import DataResult
from llamero.spec.run import Phase
from llamero.spec.status import WorkKind
from llamero.spec.tasks import Outcome, WorkMessage
from llamero.storage import commit_folder, find_missing, is_local, join_uri, local_path, read_file, write_file

PHASE = Phase.PREPARING.value
REJECTED_FILE = "rejected.jsonl"

log = logging.getLogger(__name__)


def prepare(message: WorkMessage, pod: Pod) -> Outcome:
    """Coordinate a `prepare` attempt. Raises AttemptFailure, StorageError, ModelError."""
    from llamero.data.prepare import DataError, plan_data

    job = place_job(message.manifest, pod.settings.storage)
    pod.tell(PHASE, "bringing the base's tokenizer")
    base, base_status = bring_base(message, job.spec, pod, with_weights=False)
    pod.tell(PHASE, "looking at the sources")
    try:
        plan = plan_data(job.spec, base.digest)
    except DataError as error:
        raise AttemptFailure(PhaseExit.DATA_ERROR, str(error)) from error
    found = find_finished(pod, plan.digest)
    if found is not None:
        place, result = found
        log.info("this data is prepared already: %s", place.data)
    else:
        place = pod.settings.own
        result = run_preparation(job, plan, base.folder, pod)
    return pod.answer(PhaseExit.DONE).model_copy(
        update={"base": base_status, "data": describe_data(result, place.data)}
    )


def run_preparation(job: FineTuneJob, plan: object, base_folder: Path, pod: Pod) -> DataResult:
    """Prepare into the pod's prefix. Raises AttemptFailure, StorageError."""
    from llamero.data.prepare import DataError, prepare_data

    own, scratch = pod.settings.own, pod.settings.scratch
    is_near = is_local(pod.settings.storage)
    output = local_path(own.data) if is_near else scratch / "data"
    shards = local_path(pod.settings.places.shards) if is_near else scratch / "shards"
    try:
        with pod.hang_watched():
            result = prepare_data(job.spec, plan, base_folder, output, shards, pod.progress.tell)  # type: ignore[arg-type]
    except DataError as error:
        if is_storage_failure(error):
            raise AttemptFailure(PhaseExit.STORAGE, str(error)) from error
        raise AttemptFailure(PhaseExit.DATA_ERROR, _keep_rejected(str(error), output, own)) from error
    if not is_near:
        keep_trying("the prepared data", lambda: commit_folder(output, own.data))
    return result


def _keep_rejected(message: str, output: Path, own: AttemptFolder) -> str:
    """The message with a place that can still be read when the pod is gone."""
    path = output / REJECTED_FILE
    uri = join_uri(own.data, REJECTED_FILE)
    if path.is_file() and str(path) != uri:
        write_file(uri, path.read_bytes())
    return message.replace(str(path), uri)


def find_finished(pod: Pod, digest: str) -> tuple[AttemptFolder, DataResult] | None:
    """Data of this digest that any earlier pod of the run prepared to its end."""
    for _, place in list_predecessors(pod, WorkKind.PREPARE):
        content = read_file(join_uri(place.data, MANIFEST_NAME))
        try:
            result = DataResult.model_validate_json(content) if content is not None else None
        except ValueError:
            continue
        if result is not None and result.digest == digest and find_missing(place.data, result.files) is None:
            return place, result
    return None
