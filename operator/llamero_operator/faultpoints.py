"""Counted points at which a test can end the operator: before and after every API write and every send.

`LLAMERO_FAULT=kill:<n>` ends the process with SIGKILL at the n-th point; `LLAMERO_FAULT_LOG` names a file that every passed point is
appended to. With neither set, `point` is a function that does nothing.
"""

import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

FAULT = "LLAMERO_FAULT"
FAULT_LOG = "LLAMERO_FAULT_LOG"

When = Literal["before", "after"]
Point = Callable[[When, str, str], None]


class FaultSettingError(ValueError):
    """LLAMERO_FAULT does not read `kill:<n>`."""


def _nothing(when: When, verb: str, kind: str) -> None:
    return


def build_point(environment: Mapping[str, str], kill: Callable[[], None] | None = None) -> Point:
    """The function to call at each point. Raises FaultSettingError. `kill` ends the process (SIGKILL by default)."""
    setting, log = environment.get(FAULT), environment.get(FAULT_LOG)
    if not setting and not log:
        return _nothing
    found = re.fullmatch(r"kill:([1-9]\d*)", setting or "")
    if setting and found is None:
        raise FaultSettingError(f"{FAULT} is {setting!r}: write `kill:<n>`, with n from 1, or leave it unset")
    last = int(found[1]) if found else 0
    file = Path(log) if log else None
    end = kill or (lambda: os.kill(os.getpid(), signal.SIGKILL))
    count = 0

    def point(when: When, verb: str, kind: str) -> None:
        nonlocal count
        count += 1
        if file is not None:
            # One write of one line: whoever reads it after the kill sees the point that it happened at.
            with file.open("a") as out:
                out.write(f"{count} {when} {verb} {kind}\n")
        if count == last:
            end()

    return point


point: Point = build_point(os.environ) if os.environ.get(FAULT) or os.environ.get(FAULT_LOG) else _nothing
