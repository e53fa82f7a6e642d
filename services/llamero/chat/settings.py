"""The chat service's settings and limits, each documented once."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

MAX_BODY_BYTES = 1 << 20
MAX_MESSAGES = 512
MAX_STOPS = 4
MAX_EVENT_BYTES = 1 << 20
CONNECT_SECONDS = 3.0
SILENCE_SECONDS = 300.0  # an engine that sends nothing for so long is given up
IDLE_SECONDS = (
    3.0  # shorter than any engine keeps an idle connection open (vLLM: 5 s), so that none is used as it closes
)
RELOAD_SECONDS = 0.2
DRAIN_SECONDS = 1.5
REST_SECONDS = 2.0  # a backend that could not answer is asked last for so long
MAX_ANSWERS_KEPT = 50_000  # answers that can still be voted on
ANSWER_SECONDS = 86_400.0  # how long an answer can be voted on

# The API server ends a watch after so long; a connection that falls silent is noticed a little later.
WATCH_SECONDS = 20
SILENT_WATCH_SECONDS = 25.0


@dataclass(frozen=True)
class ConfigMapName:
    """Where a cluster keeps the routes."""

    namespace: str
    name: str


@dataclass(frozen=True)
class ChatSettings:
    """What `python -m llamero.chat` was told. `routes` is a file, or a ConfigMap of the cluster."""

    routes: Path | ConfigMapName
    host: str = "127.0.0.1"
    port: int = 8080
    port_file: Path | None = None
    inner_port: int | None = None
    inner_port_file: Path | None = None
    drain_seconds: float = DRAIN_SECONDS
    trust_forwarded_for: bool = False


def parse_settings(arguments: list[str]) -> ChatSettings:
    """Settings from command-line arguments; exits with a message where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m llamero.chat", description="OpenAI-compatible chat service and page."
    )
    routes = parser.add_mutually_exclusive_group(required=True)
    routes.add_argument("--routes", type=Path, metavar="FILE", help="Routes file; read again when it changes.")
    routes.add_argument(
        "--routes-config-map",
        type=_config_map,
        metavar="NAMESPACE/NAME",
        help="ConfigMap with the routes, watched through the Kubernetes API (by KUBECONFIG, else the pod's service account).",
    )
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, default=8080, help="Port; 0 takes a free one.")
    parser.add_argument("--port-file", type=Path, help="File to write the port to when the service serves.")
    parser.add_argument(
        "--inner-port",
        type=int,
        help="Port for the operator and for probes (/v1/report, /healthz, /readyz); 0 takes a free one, absent: none. Not for clients.",
    )
    parser.add_argument("--inner-port-file", type=Path, help="File to write the inner port to.")
    parser.add_argument(
        "--drain-seconds", type=float, default=DRAIN_SECONDS, help="Seconds that running answers have after SIGTERM."
    )
    parser.add_argument(
        "--trust-forwarded-for",
        action="store_true",
        help="Tell callers apart by the last entry of X-Forwarded-For: only behind a proxy that writes it.",
    )
    told = parser.parse_args(arguments)
    return ChatSettings(
        routes=told.routes if told.routes is not None else told.routes_config_map,
        host=told.host,
        port=told.port,
        port_file=told.port_file,
        inner_port=told.inner_port,
        inner_port_file=told.inner_port_file,
        drain_seconds=told.drain_seconds,
        trust_forwarded_for=told.trust_forwarded_for,
    )


def _config_map(text: str) -> ConfigMapName:
    found = re.fullmatch(r"([a-z0-9][-a-z0-9]*)/([a-z0-9][-a-z0-9.]*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAMESPACE/NAME, such as llamero/llamero-routes")
    return ConfigMapName(found[1], found[2])
