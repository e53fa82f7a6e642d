"""`python -m llamero.evaluation CONFIG.json`: the evaluation as a process, with progress on stdout and an exit code for each class of failure.

Exit codes are `lifecycle.failures.PhaseExit`; failure.json {class, message} in the output folder says more.
"""

import faulthandler
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from llamero.evaluation.config import load_config
from llamero.evaluation.failures import FAILURE_FILE, Interrupted, classify_error, write_failure
from llamero.lifecycle.failures import PhaseExit
from llamero.spec.progress import Progress

USAGE = "usage: python -m llamero.evaluation CONFIG.json"


def main(arguments: Sequence[str]) -> int:
    """Run one evaluation; the exit code."""
    _listen_to_signals()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if len(arguments) != 1:
        sys.stderr.write(f"{USAGE}\n")
        return PhaseExit.BAD_CONFIG
    output: Path | None = None
    try:
        config = load_config(Path(arguments[0]))
        output = config.output
        output.mkdir(parents=True, exist_ok=True)
        (output / FAILURE_FILE).unlink(missing_ok=True)
        # Late: transformers and torch take seconds, and a signal or a wrong file should not have to wait for them.
        from llamero.evaluation.evaluate import evaluate

        result = evaluate(config, _print_progress)
    except (Exception, Interrupted) as error:
        return _tell_failure(error, output)
    pair = result.token_perplexity
    if pair.base is not None and pair.tuned is not None:
        logging.info("token perplexity %.4f -> %.4f over %d records", pair.base, pair.tuned, result.records)
    return PhaseExit.DONE


def _tell_failure(error: BaseException, output: Path | None) -> PhaseExit:
    code, message = classify_error(error)
    if code is PhaseExit.BUG:
        traceback.print_exception(error)
    sys.stderr.write(f"{message}\n")
    if output is not None:
        write_failure(output, code, message)
    return code


def _print_progress(event: Progress) -> None:
    sys.stdout.write(event.to_line() + "\n")
    sys.stdout.flush()


def _listen_to_signals() -> None:
    """SIGTERM and SIGINT raise Interrupted wherever the process stands; SIGUSR1 writes all stacks to stderr."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"{signal.Signals(number).name} came")

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
