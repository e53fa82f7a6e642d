"""Which run goes on, and what follows a failure."""

import pytest

from llamero.lifecycle.failures import FailureClass, NextStep, PhaseExit, classify_exit
from llamero.lifecycle.runs import FREE_RETRIES_LIMIT, Attempts, choose_run, decide_retry
from llamero.spec.run import RunState


def states(*digests: str) -> list[RunState]:
    return [RunState(job="j", run=n, digest=d) for n, d in enumerate(digests, 1)]


@pytest.mark.parametrize(
    ("known", "digest", "fresh", "run", "goes_on"),
    [
        ((), "a", False, 1, False),
        (("a",), "a", False, 1, True),
        (("a",), "b", False, 2, False),
        (("a", "b"), "a", False, 1, True),
        (("a", "b", "a"), "a", False, 3, True),
        (("a", "b"), "b", True, 3, False),
    ],
)
def test_the_newest_run_with_the_same_digest_goes_on(
    known: tuple[str, ...], digest: str, fresh: bool, run: int, goes_on: bool
) -> None:
    chosen = choose_run(states(*known), digest, fresh)
    assert (chosen.run, chosen.state is not None) == (run, goes_on)


@pytest.mark.parametrize(
    ("code", "failure", "next_step"),
    [
        (PhaseExit.INTERRUPTED, FailureClass.INTERRUPTED, NextStep.RETRY_FREE),
        (-15, FailureClass.INTERRUPTED, NextStep.RETRY_FREE),
        (143, FailureClass.INTERRUPTED, NextStep.RETRY_FREE),
        (-9, FailureClass.OUT_OF_MEMORY, NextStep.RETRY_HALVED),
        (137, FailureClass.OUT_OF_MEMORY, NextStep.RETRY_HALVED),
        (PhaseExit.OUT_OF_MEMORY, FailureClass.OUT_OF_MEMORY, NextStep.RETRY_HALVED),
        (PhaseExit.DATA_ERROR, FailureClass.DATA_ERROR, NextStep.FINAL),
        (PhaseExit.BAD_CONFIG, FailureClass.BAD_CONFIG, NextStep.FINAL),
        (PhaseExit.DIVERGED, FailureClass.DIVERGED, NextStep.FINAL),
        (PhaseExit.SELF_TEST_FAILED, FailureClass.BAD_CONFIG, NextStep.FINAL),
        (1, FailureClass.BUG, NextStep.RETRY_COUNTED),
        (-11, FailureClass.BUG, NextStep.RETRY_COUNTED),
        (99, FailureClass.BUG, NextStep.RETRY_COUNTED),
    ],
)
def test_each_exit_code_has_its_class(code: int, failure: FailureClass, next_step: NextStep) -> None:
    rule = classify_exit(code)
    assert (rule.failure, rule.next_step) == (failure, next_step)
    assert rule.advice


def test_a_bug_is_tried_again_up_to_the_backoff_limit_and_ever_later() -> None:
    attempts, delays = Attempts(), []
    while retry := decide_retry(classify_exit(1), attempts, backoff_limit=3, sequence_length=64):
        attempts = retry.attempts
        delays.append(retry.delay_seconds)
    assert delays == [2, 4, 8]


def test_out_of_memory_halves_the_bins_down_to_an_eighth_of_the_sequence_length() -> None:
    attempts, sizes = Attempts(), []
    while retry := decide_retry(classify_exit(-9), attempts, backoff_limit=0, sequence_length=1024):
        attempts = retry.attempts
        sizes.append(attempts.micro_batch_tokens)
    assert sizes == [1024, 512, 256, 128]


def test_interruptions_are_free_but_not_for_ever() -> None:
    attempts, count = Attempts(), 0
    while retry := decide_retry(classify_exit(-15), attempts, backoff_limit=0, sequence_length=64):
        attempts, count = retry.attempts, count + 1
    assert count == FREE_RETRIES_LIMIT
    assert attempts.counted == 0


def test_a_data_error_is_final() -> None:
    assert decide_retry(classify_exit(PhaseExit.DATA_ERROR), Attempts(), 3, 1) is None
