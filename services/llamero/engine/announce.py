"""How a server says that it serves: a line on stdout and a port file. aiohttp only."""

import sys
from pathlib import Path

from aiohttp import web

from llamero.storage import write_atomically


def announce(runner: web.AppRunner, host: str, port_file: Path | None) -> int:
    """Print `ready http://host:port` and write the port file; returns the port."""
    port = int(runner.addresses[0][1])
    if port_file is not None:
        write_atomically(port_file, f"{port}\n")
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"ready http://{shown}:{port}\n")
    sys.stdout.flush()
    return port
