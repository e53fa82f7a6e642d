"""`python -m llamero.agent fetch|serve`: exit code 2 where the settings are wrong; for the others of `fetch` see there."""

import asyncio
import logging
import os
import signal
import sys
from types import FrameType

from llamero.agent.fetch import fetch
from llamero.agent.server import serve
from llamero.agent.settings import AgentSettings, SettingsError

BAD_SETTINGS = 2
STOPPED = 143  # told to stop before it was done

log = logging.getLogger("llamero.agent")


def main(arguments: list[str]) -> int:
    """Run the agent; the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "httpcore", "asyncio", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if arguments not in (["fetch"], ["serve"]):
        sys.stderr.write("usage: python -m llamero.agent fetch|serve\n")
        return BAD_SETTINGS
    try:
        settings = AgentSettings.from_environment()
        if arguments == ["fetch"]:
            signal.signal(signal.SIGTERM, _stop)
            return fetch(settings)
        asyncio.run(serve(settings))
    except (SettingsError, OSError) as error:
        log.error("%s", error)
        return BAD_SETTINGS
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    os._exit(STOPPED)  # whatever is half brought is not in its place


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    os._exit(code)  # a download that a thread is at must not hold the end up
