"""Supervises a phase's process in a pod: passes its progress on, stops it when the pod is told to, and says what its end means."""

from pathlib import Path

from llamero.lifecycle.failures import PhaseExit
from llamero.model.failures import read_failure
from llamero.phases.processes import PhaseEnd, run_phase
from llamero.pods.pod import AttemptFailure, Pod, Stopped
from llamero.spec.status import WorkKind

# Signals that end a process without a code of its own.
_BY_SIGNAL = {-9: PhaseExit.OUT_OF_MEMORY, -15: PhaseExit.INTERRUPTED, -2: PhaseExit.INTERRUPTED}
_CODES = frozenset(int(code) for code in PhaseExit)
SAVE_SHARE = 0.75
"""Of the usable grace, for the process to end in; the rest is for what it left to be saved."""


def supervise(pod: Pod, module: str, config: Path, kind: WorkKind) -> None:
    """Run the phase to its end. Raises Stopped where the pod was told to stop, AttemptFailure for any other end but a good one."""
    end = run_phase(
        module,
        config,
        pod.logbook.path,
        pod.progress.tell,
        pod.settings.progress_deadline_seconds,
        stop=pod.is_stopped,
        grace_seconds=pod.usable_grace_seconds * SAVE_SHARE,
    )
    if end.returncode == PhaseExit.DONE and not end.hung:
        return
    if end.stopped:
        raise Stopped(f"The pod was told to stop; the process ended with code {end.returncode}.")
    raise AttemptFailure(*_explain(end, config, pod), kind)


def _explain(end: PhaseEnd, config: Path, pod: Pod) -> tuple[PhaseExit, str]:
    if end.hung:
        seconds = pod.settings.progress_deadline_seconds
        return (
            PhaseExit.HUNG,
            f"No progress for {seconds:.0f} s: the process was ended; the log says where its threads stood.",
        )
    told = read_failure(config.parent)
    code = _BY_SIGNAL.get(end.returncode)
    if code is not None:
        return code, told or f"The process was ended by signal {-end.returncode}."
    known = PhaseExit(end.returncode) if end.returncode in _CODES else PhaseExit.BUG
    return known, told or f"The process ended with code {end.returncode}; see the log."
