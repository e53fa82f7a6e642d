"""What a phase's exit code means and what to do about it.

A phase runs as a process of its own and ends with one of these codes, so that its supervisor (a CLI on a laptop, a worker in
a pod) decides from the code alone. A process that can say more writes `failure.json` beside its results first.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class PhaseExit(IntEnum):
    """Exit codes of a phase's process."""

    DONE = 0
    BUG = 1  # an error that nobody foresaw
    BAD_CONFIG = 2
    DATA_ERROR = 3
    OUT_OF_MEMORY = 10
    SELF_TEST_FAILED = 11  # packed and single logits differ: refuse to train
    DIVERGED = 12  # loss became NaN or infinite
    HUNG = 13  # no new step for progressDeadlineSeconds: stacks were dumped, the process ended
    STORAGE = 14  # the storage can't be written or read: full, away, refused
    IDLE = 15  # a worker that was given no task
    INTERRUPTED = 75  # SIGTERM or SIGINT: a checkpoint was written; start again to resume (EX_TEMPFAIL)


class FailureClass(StrEnum):
    INTERRUPTED = "Interrupted"
    OUT_OF_MEMORY = "OutOfMemory"
    DATA_ERROR = "DataError"
    BAD_CONFIG = "BadConfig"
    DIVERGED = "Diverged"
    BUG = "Bug"
    HUNG = "Hung"
    STORAGE = "Storage"
    IDLE = "Idle"
    PREEMPTED = "Preempted"  # the pod or its node went away
    UNSCHEDULABLE = "Unschedulable"  # no node for this GPU class in time: the next class is tried


class NextStep(StrEnum):
    RETRY_FREE = "retry-free"  # resume, without counting against backoffLimit
    RETRY_HALVED = "retry-halved"  # halve the micro-batch, keep the global batch, resume
    RETRY_COUNTED = "retry-counted"
    FINAL = "final"


@dataclass(frozen=True)
class FailureRule:
    failure: FailureClass
    next_step: NextStep
    advice: str


RULES: dict[int, FailureRule] = {
    PhaseExit.BUG: FailureRule(FailureClass.BUG, NextStep.RETRY_COUNTED, "see the phase's log for the traceback"),
    PhaseExit.BAD_CONFIG: FailureRule(FailureClass.BAD_CONFIG, NextStep.FINAL, "mend the manifest and start again"),
    PhaseExit.DATA_ERROR: FailureRule(
        FailureClass.DATA_ERROR, NextStep.FINAL, "mend the data or data.maxRejectedFraction and start again"
    ),
    PhaseExit.OUT_OF_MEMORY: FailureRule(
        FailureClass.OUT_OF_MEMORY,
        NextStep.RETRY_HALVED,
        "lower training.sequenceLength, or use a machine with more memory",
    ),
    PhaseExit.SELF_TEST_FAILED: FailureRule(
        FailureClass.BAD_CONFIG,
        NextStep.FINAL,
        "this model's attention can't be packed without leaking between documents",
    ),
    PhaseExit.DIVERGED: FailureRule(
        FailureClass.DIVERGED, NextStep.FINAL, "lower training.learningRate or training.lora.alpha"
    ),
    PhaseExit.INTERRUPTED: FailureRule(
        FailureClass.INTERRUPTED, NextStep.RETRY_FREE, "start again to resume from the checkpoint"
    ),
    PhaseExit.HUNG: FailureRule(FailureClass.HUNG, NextStep.RETRY_COUNTED, "see the log for where its threads stood"),
    PhaseExit.STORAGE: FailureRule(
        FailureClass.STORAGE, NextStep.RETRY_COUNTED, "free space on the storage, or mend its address or credentials"
    ),
    PhaseExit.IDLE: FailureRule(FailureClass.IDLE, NextStep.RETRY_FREE, "its task was lost; it is sent again"),
    -15: FailureRule(FailureClass.INTERRUPTED, NextStep.RETRY_FREE, "start again to resume from the last checkpoint"),
    -9: FailureRule(
        FailureClass.OUT_OF_MEMORY,
        NextStep.RETRY_HALVED,
        "the system ended the process, most likely for want of memory",
    ),
}


def classify_exit(returncode: int) -> FailureRule:
    """The rule for a process's return code (negative: ended by that signal); an unknown one is a bug."""
    if returncode > 128 and -(returncode - 128) in RULES:
        return RULES[-(returncode - 128)]
    return RULES.get(returncode, RULES[PhaseExit.BUG])
