"""`python -m llamero.training CONFIG.json`: trains an adapter, reports on standard output, and ends with a documented code.

Progress goes to standard output as JSON lines, logs to standard error; the exit code is one of `lifecycle.failures.PhaseExit`, with the
reason in failure.json. SIGUSR1 prints where all threads stand.
"""

import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

from llamero.lifecycle.failures import PhaseExit

log = logging.getLogger("llamero.training")


def main(arguments: list[str]) -> int:
    """Run the training that the configuration file names; the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    faulthandler.register(signal.SIGUSR1)
    if len(arguments) != 1:
        log.error("usage: python -m llamero.training CONFIG.json")
        return PhaseExit.BAD_CONFIG
    # Until the real handlers stand, a signal has nothing to save: importing torch takes seconds.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(PhaseExit.INTERRUPTED))
    # Nothing is fetched in here: the base is a local folder.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait cost a busy machine most of its time: two of them ran at an eighth of one's speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run(Path(arguments[0]))


def run(config_path: Path) -> int:
    """Read the configuration and train; every end has its code and its sentence."""
    from llamero.training.config import ConfigError, load_config
    from llamero.training.controls import train_all
    from llamero.training.failures import classify_error, write_failure
    from llamero.training.interruption import Interruption
    from llamero.training.reporter import Reporter

    try:
        config = load_config(config_path)
    except ConfigError as error:
        log.error("%s", error)
        return PhaseExit.BAD_CONFIG
    try:
        interruption = Interruption()
        interruption.install()
        train_all(config, interruption, Reporter())
    except BaseException as error:
        code, message = classify_error(error)
        if code == PhaseExit.BUG:
            log.exception("the training ended by an error that nobody foresaw")
        log.error("%s", message)
        write_failure(config.checkpoints, code, message)
        return code
    return PhaseExit.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
