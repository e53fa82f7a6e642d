"""A worker process: takes tasks as JSON lines on stdin, answers on stdout, and ends with its parent.

Started by `pool`; `python -m llamero.data PARENT_PID [MODULE ...]`, where the modules are imported while there is no task yet.
"""

import ctypes
import os
import signal
import sys
from typing import IO

_PR_SET_PDEATHSIG = 1


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def _take_stdout() -> IO[bytes]:
    """The real stdout for answers; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return answers


def main() -> None:
    _die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = _take_stdout()
    from llamero.data.worker import serve_tasks

    serve_tasks(sys.stdin.buffer, answers, sys.argv[2:])


if __name__ == "__main__":
    main()
