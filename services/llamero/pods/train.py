"""The training pod: brings base, data and the newest checkpoint, trains in scratch, keeps checkpoints and the adapter in storage.

A training that an earlier attempt finished is reported, not repeated. With `evaluateToo` the pod evaluates afterwards.
"""

import json
import logging
from pathlib import Path

from llamero.lifecycle.failures import PhaseExit
from llamero.phases import training
from llamero.phases.base import Base
from llamero.phases.training import Trained, TrainingFolders
from llamero.pods.evaluate import evaluate_trained
from llamero.pods.inputs import bring_adapter, bring_base, bring_data, list_predecessors, locate_base, place_job
from llamero.pods.keeping import CheckpointKeeper, bring_checkpoint, keep_trying
from llamero.pods.pod import AttemptFailure, Pod, Stopped
from llamero.pods.supervise import supervise
from llamero.spec.job import FineTuneJobSpec
from llamero.spec.names import MANIFEST_NAME, AttemptFolder
from llamero.spec.results import AdapterManifest, TrainingResult
from llamero.spec.run import Phase
from llamero.spec.status import WorkKind
from llamero.spec.tasks import Outcome, WorkMessage
from llamero.storage import commit_folder, find_missing, join_uri, read_file, write_file

PHASE = Phase.TRAINING.value
LAST_SAVE_SECONDS = 30.0
"""For the last checkpoint of a training that failed."""

log = logging.getLogger(__name__)


def train(message: WorkMessage, pod: Pod) -> Outcome:
    """Do a `train` attempt. Raises AttemptFailure, Stopped, StorageError, ModelError."""
    job = place_job(message.manifest, pod.settings.storage)
    pod.tell(PHASE, "bringing base and data")
    located = locate_base(message, job.spec, pod)
    base = bring_base(located, pod)
    data_folder, data = bring_data(message, pod)
    identity = training.identify_training(job.spec, base.digest, data.digest)
    resumed_from: int | None = None
    found = find_finished(pod, identity)
    if found is not None:
        place, trained = found
        log.info("this training is finished already: %s", place.prefix)
    else:
        place = pod.settings.own
        folders = TrainingFolders(
            data_folder,
            pod.settings.scratch / "checkpoints",
            pod.settings.scratch / "adapter",
            pod.settings.scratch / "merged",
        )
        resumed_from = set_up_training(message, job.spec, base, data.digest, folders, identity, pod)
        with pod.saving():
            run_training(job.spec, folders, resumed_from, pod)
            trained = publish_training(folders, place)
    outcome = pod.answer(PhaseExit.DONE).model_copy(
        update={
            "base": located,
            "training": training.describe_training(trained, place.prefix),
            "resumed_from": resumed_from,
        }
    )
    if not message.evaluate_too:
        return outcome
    try:
        return evaluate_trained(outcome, message, job, base, data_folder, data, place, trained, pod)
    except AttemptFailure as failure:
        update = {"exit_code": int(failure.code), "message": str(failure)[:1024], "kind": WorkKind.EVALUATE}
        return outcome.model_copy(update=update)


def set_up_training(
    message: WorkMessage,
    spec: FineTuneJobSpec,
    base: Base,
    data_digest: str,
    folders: TrainingFolders,
    identity: dict[str, str],
    pod: Pod,
) -> int | None:
    """Lay out in scratch what the training goes on from; the step of the newest kept checkpoint, None where it starts anew."""
    pod.tell(PHASE, "looking for checkpoints")
    resumed_from = bring_checkpoint(pod, identity, folders.checkpoints)
    if resumed_from is None:
        log.info("no checkpoint of an earlier attempt is whole: the training starts at step 0")
    init_adapter = _find_initial_adapter(message, spec, pod)
    training.write_config(spec, base, data_digest, folders, init_adapter, message.micro_batch_tokens)
    return resumed_from


def run_training(spec: FineTuneJobSpec, folders: TrainingFolders, resumed_from: int | None, pod: Pod) -> None:
    """Train in scratch to the end. Raises Stopped, AttemptFailure; the newest checkpoint is kept by then, as far as time allows."""
    with CheckpointKeeper(
        folders.checkpoints, pod.settings.own, spec.training.keep_checkpoints, resumed_from
    ) as keeper:
        try:
            supervise(pod, training.MODULE, folders.config, WorkKind.TRAIN)
        except Stopped:
            kept = keeper.save_last(pod.seconds_left() - 1.0)
            told = f"its checkpoint of step {kept} is kept" if kept is not None else "no checkpoint of it is kept"
            raise Stopped(f"The training was told to stop; {told}.") from None
        except AttemptFailure:
            keeper.save_last(LAST_SAVE_SECONDS)
            raise


def _find_initial_adapter(message: WorkMessage, spec: FineTuneJobSpec, pod: Pod) -> Path | None:
    wanted = message.init_adapter or (
        spec.training.init_from if spec.training.init_from not in ("base", "previous") else None
    )
    if wanted is None:
        return None
    uri = wanted if "://" in wanted or wanted.startswith("/") else join_uri(pod.settings.storage, wanted)
    return bring_adapter(uri, pod.settings.scratch / "initial-adapter")


def publish_training(folders: TrainingFolders, place: AttemptFolder) -> Trained:
    """Put adapter and merged export into the pod's prefix, and at last the result. Raises AttemptFailure, StorageError."""
    trained = training.read_training(folders)
    if trained is None:
        message = "The training ended without an adapter that matches its manifest; see the log."
        raise AttemptFailure(PhaseExit.BUG, message, WorkKind.TRAIN)
    result = trained.result
    keep_trying("the adapter", lambda: commit_folder(folders.adapter, place.adapter))
    if result.merge is not None:
        keep_trying("the merged model", lambda: commit_folder(folders.merged, place.merged))
        result = result.model_copy(update={"merge": result.merge.model_copy(update={"uri": place.merged})})
    content = json.dumps(result.to_json_dict(), indent=2) + "\n"
    keep_trying("the training's result", lambda: write_file(place.training_result, content))
    return Trained(result, trained.adapter)


def find_finished(pod: Pod, identity: dict[str, str]) -> tuple[AttemptFolder, Trained] | None:
    """The newest finished training of the same recipe, data and base that any earlier pod of the run left."""
    for _, place in list_predecessors(pod.settings, WorkKind.TRAIN):
        trained = read_finished(place)
        if trained is None:
            continue
        adapter = trained.adapter
        found = {"recipe": adapter.recipe_digest, "data": adapter.data_digest, "base": adapter.base_sha256}
        if found == identity:
            return place, trained
    return None


def read_finished(place: AttemptFolder) -> Trained | None:
    """The finished training in a pod's prefix, where result and adapter are there. Raises StorageError."""
    result, manifest = read_file(place.training_result), read_file(join_uri(place.adapter, MANIFEST_NAME))
    if result is None or manifest is None:
        return None
    try:
        trained = Trained(TrainingResult.model_validate_json(result), AdapterManifest.model_validate_json(manifest))
    except ValueError:
        return None
    return trained if find_missing(place.adapter, trained.adapter.files) is None else None
