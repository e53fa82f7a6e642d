"""`python -m llamero.chat`: exit code 0 after SIGTERM or SIGINT, 2 where it can't listen."""

import asyncio
import logging
import sys

from llamero.chat.server import serve
from llamero.chat.settings import parse_settings

BAD_SETTINGS = 2


def main() -> int:
    """Run the chat service."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = parse_settings(sys.argv[1:])
    try:
        asyncio.run(serve(settings))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_SETTINGS
    return 0


if __name__ == "__main__":
    sys.exit(main())
