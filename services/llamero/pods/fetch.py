"""The pod that fetches a base model once into the shared storage, from the hub or from another store.

What lies there already is not fetched again, by whichever job it was asked for.
"""

import logging
import shutil
from pathlib import Path

from llamero.lifecycle.failures import PhaseExit
from llamero.model import fetching
from llamero.model.bases import check_base, digest_base_files
from llamero.phases.base import read_token
from llamero.pods.keeping import keep_trying
from llamero.pods.pod import AttemptFailure, Pod
from llamero.spec.job import BaseModelRef
from llamero.spec.names import base_key, base_storage
from llamero.spec.results import FileEntry
from llamero.spec.run import Phase
from llamero.spec.status import BaseStatus
from llamero.spec.tasks import Outcome, WorkMessage
from llamero.storage import commit_folder, find_missing, is_local, local_path, read_manifest

log = logging.getLogger(__name__)


def fetch(message: WorkMessage, pod: Pod) -> Outcome:
    """Do a `fetch` attempt. Raises AttemptFailure, ModelError, StorageError."""
    reference = message.manifest.spec.base_model
    token = read_token(reference)
    root = pod.settings.storage
    if reference.name is not None:
        uri = base_storage(root, base_key(reference.name, str(reference.revision)))
    elif reference.uri is not None and not is_local(reference.uri):
        uri = base_storage(root, base_key(reference.uri, fetching.tag_store(reference.uri, token)))
    else:
        raise AttemptFailure(
            PhaseExit.BAD_CONFIG, f"{reference.uri} needs no fetching: the pods read it where it lies."
        )
    files = find_fetched(uri)
    if files is None:
        files = bring(reference, token, uri, pod)
    digest = digest_base_files(files)
    log.info("the base model lies at %s", uri)
    return pod.answer(PhaseExit.DONE).model_copy(update={"base": BaseStatus(uri=uri, digest=digest)})


def find_fetched(uri: str) -> list[FileEntry] | None:
    """The files of a base that was fetched before, where all are there."""
    files = read_manifest(uri)
    return files if files and find_missing(uri, files) is None else None


def bring(reference: BaseModelRef, token: str | None, uri: str, pod: Pod) -> list[FileEntry]:
    """Fetch the base into a folder beside its place (in scratch for an object store), check it and put it in its place."""
    if is_local(uri):
        place = local_path(uri)
        cache = place.with_name(f".fetch-{place.name}-{pod.settings.pod_uid}")
    else:
        cache = pod.settings.scratch / "models"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        if reference.name is not None:
            found = fetching.fetch_from_hub(reference.name, reference.revision, cache, token, pod.progress.tell)
        else:
            found = fetching.fetch_from_store(str(reference.uri), cache, token)
        check_base(found)
        pod.tell(Phase.PENDING.value, "storing the base model")
        chosen = _choose_files(found, cache / "chosen")
        files: list[FileEntry] = []
        keep_trying("the base model", lambda: files.extend(commit_folder(chosen, uri)))
        return files
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _choose_files(found: Path, chosen: Path) -> Path:
    """The folder's files that a base consists of, by links: a hub's cache may hold others."""
    shutil.rmtree(chosen, ignore_errors=True)
    chosen.mkdir()
    for pattern in fetching.BASE_FILES:
        for path in found.glob(pattern):
            if not (chosen / path.name).exists():
                (chosen / path.name).symlink_to(path.resolve())
    return chosen
