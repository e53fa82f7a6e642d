"""The pod's log: kept in a file of the scratch disk, shown on the pod's own output, and copied to the storage while it grows.

What the pod and its processes write to standard output and error goes to the file; a thread passes it on. A storage that is away
costs the copy, never the work.
"""

import os
import sys
import threading
import time
from pathlib import Path

from llamero.storage import StorageError, is_local, local_path, write_file

SHOW_SECONDS = 0.5
UPLOAD_SECONDS = 15.0
MAX_UPLOAD_BYTES = 32 << 20
"""Of a longer log the end is kept in an object store."""
_BLOCK_BYTES = 1 << 20


class Logbook:
    """Takes over the process's standard output and error from `start()` on."""

    def __init__(self, path: Path, uri: str | None) -> None:
        self.path = path
        self._uri = uri
        self._shown = 0
        self._kept = 0
        self._kept_at = time.monotonic()
        self._is_away = False
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logbook", daemon=True)
        self._output = -1

    def start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._output = os.dup(2)
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Show the rest, and keep it if the storage takes it in time. Nothing where it was never started."""
        if self._output < 0:
            return
        self._end.set()
        self._show()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._end.wait(SHOW_SECONDS):
            self._show()
            if time.monotonic() - self._kept_at >= UPLOAD_SECONDS:
                self._keep()
        self._keep()

    def _show(self) -> None:
        with self._lock, self.path.open("rb") as stream:
            stream.seek(self._shown)
            while block := stream.read(_BLOCK_BYTES):
                self._shown += len(block)
                try:
                    os.write(self._output, block)
                except OSError:
                    return  # whoever read it is gone; the file has it all

    def _keep(self) -> None:
        """Copy what is new: appended where that can be done, whole where not."""
        self._kept_at = time.monotonic()
        size = self.path.stat().st_size
        if self._uri is None or size == self._kept:
            return
        try:
            with self.path.open("rb") as stream:
                if is_local(self._uri):
                    target = local_path(self._uri)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    stream.seek(self._kept)
                    with target.open("ab") as kept:
                        while block := stream.read(_BLOCK_BYTES):
                            kept.write(block)
                            self._kept += len(block)
                else:
                    stream.seek(max(0, size - MAX_UPLOAD_BYTES))
                    write_file(self._uri, stream.read())
                    self._kept = size
        except (OSError, StorageError) as error:
            if not self._is_away:
                os.write(self._output, f"the log can't be kept in the storage: {error}\n".encode())
            self._is_away = True
            return
        self._is_away = False
