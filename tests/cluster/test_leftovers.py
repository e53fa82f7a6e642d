"""A test run that is killed leaves nothing for long: its servers end with it, the rest is removed by the next run."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from cluster.leftovers import is_alive, kill_orphans, make_folder
from cluster.processes import accepts_connections
from cluster.waiting import until

RUN = """
import asyncio, json, sys, time
from pathlib import Path
from cluster.containers import ProcessRuntime
from cluster.leftovers import make_folder
from cluster.redis_server import RedisServer
from cluster.runtimes import Launch

async def main():
    folder = make_folder("cluster")
    redis = RedisServer()
    redis.start()
    container = {"name": "main", "command": ["sh", "-c", "sleep 600 & echo $!; wait"]}
    running = await ProcessRuntime().start(Launch({}, container, "process://one", 0, folder))
    log = folder / "0.log"
    while not log.exists() or not log.read_text().strip():
        await asyncio.sleep(0.05)
    print(json.dumps([str(folder), redis.port, running.pid, int(log.read_text())]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_what_a_killed_run_leaves_is_removed_by_the_next(repository: Path) -> None:
    environment = {"PYTHONPATH": str(repository / "tests"), "PATH": "/usr/bin:/bin"}
    run = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout is not None
    folder, port, main, child = json.loads(run.stdout.readline())
    assert is_alive(child)
    run.send_signal(signal.SIGKILL)
    run.wait()
    until(lambda: not accepts_connections(port), "the killed run's Redis to end with it")
    until(lambda: not is_alive(main), "the container's first process to end with it")

    kill_orphans()
    until(lambda: not is_alive(child), "the orphan to be killed")
    make_folder("cluster").rmdir()
    assert not Path(folder).exists()
