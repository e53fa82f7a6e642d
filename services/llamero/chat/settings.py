"""The chat service's settings and limits, each documented once."""

import argparse
from dataclasses import dataclass
from pathlib import Path

MAX_BODY_BYTES = 1 << 20
MAX_MESSAGES = 512
MAX_STOPS = 4
MAX_EVENT_BYTES = 1 << 20
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 300.0  # an engine that sends nothing for so long is given up
RELOAD_SECONDS = 0.5
DRAIN_SECONDS = 1.5


@dataclass(frozen=True)
class ChatSettings:
    """What `python -m llamero.chat` was told."""

    routes: Path
    host: str
    port: int
    port_file: Path | None
    drain_seconds: float


def parse_settings(arguments: list[str]) -> ChatSettings:
    """Settings from command-line arguments; exits with a message where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m llamero.chat", description="OpenAI-compatible chat service and page."
    )
    parser.add_argument(
        "--routes", type=Path, required=True, metavar="FILE", help="Routes file; read again when it changes."
    )
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, default=8080, help="Port; 0 takes a free one.")
    parser.add_argument("--port-file", type=Path, help="File to write the port to when the service serves.")
    parser.add_argument(
        "--drain-seconds", type=float, default=DRAIN_SECONDS, help="Seconds that running answers have after SIGTERM."
    )
    told = parser.parse_args(arguments)
    return ChatSettings(told.routes, told.host, told.port, told.port_file, told.drain_seconds)
