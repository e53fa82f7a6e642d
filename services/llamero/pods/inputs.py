"""Where a pod finds what its attempt goes on from: base model, prepared data, adapters, and what earlier attempts left.

On a mounted disk things are used where they lie; from an object store they are fetched into the scratch folder.
"""

import logging
from pathlib import Path

from llamero.data.segments import place_files
from llamero.lifecycle.failures import PhaseExit
from llamero.phases.base import Base, find_base
from llamero.phases.data import read_data
from llamero.pods.pod import AttemptFailure, Pod
from llamero.pods.settings import PodSettings
from llamero.spec.job import FineTuneJob, FineTuneJobSpec
from llamero.spec.names import AttemptFolder, parse_attempt_folder
from llamero.spec.results import DataResult
from llamero.spec.status import BaseStatus, WorkKind
from llamero.spec.tasks import WorkMessage
from llamero.storage import (
    StorageError,
    TornFolder,
    download_folder,
    fetch_folder,
    is_local,
    join_uri,
    list_names,
    local_path,
    read_manifest,
)

_ADAPTER_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")

log = logging.getLogger(__name__)


def place_job(job: FineTuneJob, root: str) -> FineTuneJob:
    """The job with its relative paths made absolute: on a cluster they lie below the storage's root."""
    spec = job.spec

    def place(uri: str) -> str:
        return uri if "://" in uri or uri.startswith("/") else join_uri(root, uri)

    base = spec.base_model
    if base.uri is not None:
        base = base.model_copy(update={"uri": place(base.uri)})
    sources = [s.model_copy(update={"uri": place(s.uri)}) for s in spec.data.sources]
    prompts = [s.model_copy(update={"uri": place(s.uri)}) if s.uri else s for s in spec.evaluation.prompt_sets]
    data = spec.data.model_copy(update={"sources": sources, "steps": place_files(spec.data.steps, place)})
    evaluation = spec.evaluation.model_copy(update={"prompt_sets": prompts})
    placed = spec.model_copy(update={"base_model": base, "data": data, "evaluation": evaluation})
    return job.model_copy(update={"spec": placed})


def locate_base(message: WorkMessage, spec: FineTuneJobSpec, pod: Pod) -> BaseStatus:
    """Where the base model lies for every pod: as an earlier pod found it, or as the manifest says. Raises ModelError, StorageError."""
    known = message.base
    if known is None:
        base = find_base(spec.base_model, pod.settings.scratch / "models", pod.progress.tell)
        return BaseStatus(uri=str(base.folder), digest=base.digest)
    if is_local(known.uri) and not (local_path(known.uri) / "config.json").is_file():
        raise StorageError(f"The base model is no longer at {known.uri}: bring it back, or change the job's baseModel.")
    return known


def bring_base(base: BaseStatus, pod: Pod) -> Base:
    """The base model on this machine. Raises StorageError."""
    if is_local(base.uri):
        return Base(local_path(base.uri), base.digest)
    log.info("fetching the base model from %s", base.uri)
    return Base(fetch_folder(base.uri, pod.settings.scratch / "base"), base.digest)


def bring_data(message: WorkMessage, pod: Pod) -> tuple[Path, DataResult]:
    """The prepared data on this machine, and what it came to. Raises AttemptFailure, StorageError."""
    known = message.data
    if known is None:
        raise AttemptFailure(PhaseExit.BAD_CONFIG, f"The message for {message.id.kind} names no prepared data.")
    folder = local_path(known.uri) if is_local(known.uri) else fetch_folder(known.uri, pod.settings.scratch / "data")
    result = read_data(folder, known.digest)
    if result is None:
        raise TornFolder(f"The prepared data at {known.uri} is damaged or gone.")
    return folder, result


def bring_adapter(uri: str, target: Path) -> Path:
    """An adapter's folder on this machine: a published one by its manifest, any other as it stands. Raises StorageError, AttemptFailure."""
    if is_local(uri):
        folder = local_path(uri)
    elif read_manifest(uri) is not None:
        folder = fetch_folder(uri, target)
    else:
        folder = download_folder(uri, target, _ADAPTER_FILES)
    if not (folder / "adapter_config.json").is_file():
        raise AttemptFailure(
            PhaseExit.BAD_CONFIG,
            f"The adapter to start from, {uri}, holds no adapter_config.json: mend training.initFrom.",
        )
    return folder


def list_predecessors(settings: PodSettings, kind: WorkKind) -> list[tuple[int, AttemptFolder]]:
    """What earlier (or lost) pods of this run left at a kind of work, newest attempt first; this pod's own prefix is left out."""
    attempts = settings.places.attempts(settings.attempt.run, kind)
    found = [(parse_attempt_folder(name), AttemptFolder(join_uri(attempts, name))) for name in list_names(attempts)]
    others = [(number, folder) for number, folder in found if number is not None and folder != settings.own]
    return sorted(others, key=lambda pair: (-pair[0], pair[1].prefix))
