"""`python -m llamero.pods`: a pod whose message stands in its environment (fetch, probe, clean, logs)."""

import logging
import os
import sys
from typing import NoReturn

from llamero.lifecycle.failures import PhaseExit
from llamero.pods.attempt import answer_failure, do_work, read_message
from llamero.pods.pod import AttemptFailure, Pod
from llamero.pods.settings import ATTEMPT, MESSAGE, PodSettings, SettingsError
from llamero.spec.status import WorkKind

PLAIN_KINDS = frozenset({WorkKind.FETCH, WorkKind.PROBE, WorkKind.CLEAN, WorkKind.LOGS})
KEPT_LOGS = frozenset({WorkKind.FETCH})
"""Whose logs are kept: a clean-up leaves nothing behind, and a probe runs too often."""

log = logging.getLogger("llamero.pods")


def main() -> NoReturn:
    """Do the work that LLAMERO_MESSAGE asks for; ends the process with the outcome's code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = PodSettings.from_environment()
    except SettingsError as error:
        log.error("%s", error)
        sys.exit(PhaseExit.BAD_CONFIG)
    kind = settings.attempt.kind
    if kind is WorkKind.LOGS:  # its output is other pods' logs: its own words stay out of them
        logging.getLogger().setLevel(logging.WARNING)
    pod = Pod(settings, keep_log=kind in KEPT_LOGS)
    pod.start(take_output=kind is not WorkKind.LOGS)
    try:
        message = read_message(os.environ.get(MESSAGE, ""))
        if message.id != settings.attempt or kind not in PLAIN_KINDS:
            raise AttemptFailure(
                PhaseExit.BAD_CONFIG,
                f"{MESSAGE} is for {message.id.kind}, {ATTEMPT} for {kind}: this program does {', '.join(sorted(PLAIN_KINDS))}.",
            )
    except AttemptFailure as failure:
        pod.end(answer_failure(failure, pod))
    pod.end(do_work(message, pod) or pod.answer(PhaseExit.DONE))


if __name__ == "__main__":
    main()
