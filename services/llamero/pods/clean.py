"""The pod that removes what a deleted job leaves in the storage: all of its own prefix, and adapters that nobody published.

Done twice it changes nothing. What is not provably this job's (an adapter of an older job of the same name) is left alone.
"""

import json
import logging

from llamero.lifecycle.failures import PhaseExit
from llamero.pods.pod import Pod
from llamero.spec.names import MANIFEST_NAME, AttemptFolder, JobStorage, parse_attempt_folder, parse_run_name
from llamero.spec.status import WorkKind
from llamero.spec.tasks import Outcome, WorkMessage
from llamero.storage import delete_tree, join_uri, list_names, read_file

log = logging.getLogger(__name__)


def clean(message: WorkMessage, pod: Pod) -> Outcome:
    """Do a `clean` attempt. Raises StorageError."""
    places = pod.settings.places
    kept = set(message.keep_adapters)
    # The adapters first: it is the prefix that tells which are the job's.
    for run, sha256 in find_adapters(places):
        if sha256 not in kept:
            delete_tree(places.adapter(run, sha256))
            log.info("removed the adapter %s of run %d, which is not published", sha256, run)
    delete_tree(places.prefix)
    log.info("removed %s", places.prefix)
    return pod.answer(PhaseExit.DONE)


def find_adapters(places: JobStorage) -> list[tuple[int, str]]:
    """Run and sha256 of every adapter that this job's trainings made."""
    found = set()
    for name in list_names(places.prefix):
        run = parse_run_name(name)
        if run is None:
            continue
        attempts = places.attempts(run, WorkKind.TRAIN)
        for attempt in list_names(attempts):
            if parse_attempt_folder(attempt) is None:
                continue
            manifest = read_file(join_uri(AttemptFolder(join_uri(attempts, attempt)).adapter, MANIFEST_NAME))
            try:
                if manifest is not None:
                    found.add((run, str(json.loads(manifest)["sha256"])))
            except (ValueError, KeyError, TypeError):
                continue
    return sorted(found)
