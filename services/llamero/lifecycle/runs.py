"""Which run a start of a job continues, and whether a failed phase is tried again."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llamero.lifecycle.failures import FailureRule, NextStep
from llamero.spec.run import RunState

RETRY_BASE_SECONDS = 2.0
RETRY_MAX_SECONDS = 60.0
FREE_RETRIES_LIMIT = 20
"""Interruptions are free, but something that interrupts for ever is a fault of its own."""


@dataclass(frozen=True)
class ChosenRun:
    """The run's number; `state` is its earlier state where it is continued, None where it is new."""

    run: int
    state: RunState | None


def choose_run(states: Iterable[RunState], digest: str, fresh: bool = False) -> ChosenRun:
    """The newest run with the same digest goes on; otherwise, or when `fresh` is asked for, the next number starts."""
    known = sorted(states, key=lambda s: s.run)
    if not fresh:
        for state in reversed(known):
            if state.digest == digest:
                return ChosenRun(state.run, state)
    return ChosenRun(known[-1].run + 1 if known else 1, None)


@dataclass(frozen=True)
class Attempts:
    """What became of the attempts at a phase so far.

    `micro_batch_tokens` is the bin capacity of the next one; 0 leaves it to the training.
    """

    counted: int = 0
    free: int = 0
    micro_batch_tokens: int = 0


@dataclass(frozen=True)
class Retry:
    """Try again after `delay_seconds`, with these attempts on the books."""

    attempts: Attempts
    delay_seconds: float
    why: str


def decide_retry(
    rule: FailureRule,
    attempts: Attempts,
    backoff_limit: int,
    sequence_length: int,
    free_limit: int | None = FREE_RETRIES_LIMIT,
    free_delays: bool = False,
) -> Retry | None:
    """What follows a failed attempt: a retry, or None where the phase has failed for good.

    `free_limit` None never gives up on interruptions; with `free_delays` those in a row are spaced out (a cluster that
    takes each pod at once must not be asked for a new one ten times a second).

    Out of memory, bins shrink to `sequence_length` tokens and are halved from there, down to an eighth of it: smaller ones would
    save no memory worth having, since an example fills a bin alone.
    """
    match rule.next_step:
        case NextStep.FINAL:
            return None
        case NextStep.RETRY_FREE:
            if free_limit is not None and attempts.free >= free_limit:
                return None
            delay = _backoff(attempts.free - 1) if free_delays and attempts.free else 0.0
            return Retry(replace(attempts, free=attempts.free + 1), delay, "it was interrupted, which is not its fault")
        case NextStep.RETRY_HALVED:
            smaller = attempts.micro_batch_tokens // 2 if attempts.micro_batch_tokens else sequence_length
            if smaller < max(sequence_length // 8, 1):
                return None
            return Retry(
                replace(attempts, micro_batch_tokens=smaller),
                0.0,
                f"it ran out of memory: bins of {smaller} tokens instead",
            )
        case NextStep.RETRY_COUNTED:
            if attempts.counted >= backoff_limit:
                return None
            delay = _backoff(attempts.counted)
            counted = attempts.counted + 1
            return Retry(
                replace(attempts, counted=counted), delay, f"retry {counted} of {backoff_limit} (backoffLimit)"
            )


def _backoff(earlier: int) -> float:
    """Seconds before the next try after `earlier` tries."""
    return min(RETRY_BASE_SECONDS * 2.0 ** min(earlier, 16), RETRY_MAX_SECONDS)
