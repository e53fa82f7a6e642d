"""Folders and processes that outlive a test run that was killed: named after the run's process id, so that the next run removes them."""

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

MARK = "container="


def make_folder(kind: str, parent: Path | None = None) -> Path:
    """A new folder `llamero-<kind>-<process id>-…`; those of dead processes are removed first."""
    place = parent or Path(tempfile.gettempdir())
    prefix = f"llamero-{kind}-"
    for folder in place.glob(f"{prefix}*"):
        owner = folder.name.removeprefix(prefix).split("-")[0]
        if owner.isdigit() and not is_alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=place))


def mark_of(container_id: str) -> str:
    """The value of the variable `container` by which a container's processes are known."""
    return f"process:{os.getpid()}:{container_id}"


def kill_marked(container_id: str) -> None:
    """SIGKILL for every process of this container, in whatever session it runs."""
    for pid, mark in _marked_processes():
        if mark == mark_of(container_id):
            _kill(pid)


def kill_orphans() -> None:
    """SIGKILL for every container's process whose test run is dead."""
    for pid, mark in _marked_processes():
        owner = mark.split(":")[1]
        if owner.isdigit() and not is_alive(int(owner)):
            _kill(pid)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _marked_processes() -> list[tuple[int, str]]:
    wanted = f"{MARK}process:".encode()
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for variable in Path(entry.path, "environ").read_bytes().split(b"\0"):
                if variable.startswith(wanted):
                    found.append((int(entry.name), variable.decode(errors="replace").removeprefix(MARK)))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
