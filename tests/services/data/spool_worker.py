"""A data worker for tests: takes tasks from a spool folder as a queue's worker would, one at a time.

`python spool_worker.py SPOOL SCRATCH DOOM`; says `ready` when all is imported. With DOOM a task's name, it ends itself by SIGKILL
when it has made such a shard and not yet its manifest.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import transformers.models.auto.tokenization_auto  # noqa: F401 (the import that takes time)

from llamero.data import clean, shards  # noqa: F401
from llamero.data.queue import run_shard_task


def main(spool: Path, scratch: Path, doom: str) -> None:
    original = shards.describe_files

    def die(folder: Path):
        if at == doom:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(folder)

    shards.describe_files = die
    print("ready", flush=True)
    while True:
        for message in sorted(spool.glob("*.json")):
            mine = message.with_suffix(f".taken-{os.getpid()}")
            with suppress(FileNotFoundError):
                message.rename(mine)
                task = json.loads(mine.read_text())
                at = task["task"]
                run_shard_task(task, scratch)
        time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
