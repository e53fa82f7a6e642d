"""`python -m llamero.engine`: exit code 0 after SIGTERM or SIGINT, 2 where base, adapters or settings can't be served."""

import asyncio
import logging
import os
import sys

from transformers.utils.logging import disable_progress_bar

from llamero.engine.requests import EngineError
from llamero.engine.runner import UnsupportedModel
from llamero.engine.server import serve
from llamero.engine.settings import parse_settings
from llamero.model.errors import ModelError

BAD_SETTINGS = 2
INTERRUPTED = 130


def main() -> int:
    """Run the engine."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("transformers", "httpx", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    disable_progress_bar()
    settings = parse_settings(sys.argv[1:])
    try:
        asyncio.run(serve(settings))
    except (ModelError, UnsupportedModel, EngineError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return BAD_SETTINGS
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking torch's modules apart takes the interpreter a second or more, in which a supervisor would lose patience.
    os._exit(code)
