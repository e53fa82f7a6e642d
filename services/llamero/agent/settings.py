"""What an agent is told by its pod's environment, and where the list of wanted adapters comes from at its start.

The list stands in LLAMERO_WANTED (TGI: it is part of the pod's template) or in the file that LLAMERO_WANTED_FILE names, a mounted
ConfigMap's key; an agent that serves also keeps the last list that it was told in the scratch folder, since a mounted file may lag.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from pydantic import ValidationError

from llamero.spec.names import AGENT_PORT
from llamero.spec.server import EngineType
from llamero.spec.serving import SERVING_VERSION, AgentWanted

ENGINE = "LLAMERO_ENGINE"
ENGINE_URL = "LLAMERO_ENGINE_URL"
SCRATCH = "LLAMERO_SCRATCH"
STORAGE = "LLAMERO_STORAGE"
POD_NAME = "LLAMERO_POD_NAME"
POD_IP = "LLAMERO_POD_IP"
PORT = "LLAMERO_AGENT_PORT"
WANTED = "LLAMERO_WANTED"
WANTED_FILE = "LLAMERO_WANTED_FILE"
TERMINATION_LOG = "LLAMERO_TERMINATION_LOG"
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
MAX_WANTED_BYTES = 1 << 20


class SettingsError(Exception):
    """An environment that no agent can run with; the message says which variable."""


@dataclass(frozen=True)
class AgentSettings:
    """An agent's environment. Exactly one of `wanted` and `wanted_file` is set."""

    engine: EngineType
    engine_url: str
    scratch: Path
    storage: str
    pod: str
    host: str
    port: int
    wanted: AgentWanted | None
    wanted_file: Path | None
    termination_log: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "AgentSettings":
        """Raises SettingsError for what is missing or can't be read."""

        def need(name: str) -> str:
            if not environment.get(name):
                raise SettingsError(
                    f"The environment variable {name} is not set: this program runs beside an engine of a ModelServer."
                )
            return environment[name]

        engine = need(ENGINE)
        if engine not in get_args(EngineType):
            raise SettingsError(
                f"The environment variable {ENGINE} is {engine}: it must be one of {', '.join(get_args(EngineType))}."
            )
        text, file = environment.get(WANTED), environment.get(WANTED_FILE)
        if bool(text) == bool(file):
            raise SettingsError(f"Exactly one of the environment variables {WANTED} and {WANTED_FILE} must be set.")
        settings = cls(
            engine=engine,  # type: ignore[arg-type]
            engine_url=_check_url(need(ENGINE_URL)),
            scratch=Path(need(SCRATCH)),
            storage=need(STORAGE),
            pod=environment.get(POD_NAME) or "pod",
            host=_check_address(need(POD_IP)),
            port=_read_port(environment.get(PORT)),
            wanted=parse_wanted(text, WANTED) if text else None,
            wanted_file=Path(file) if file else None,
            termination_log=Path(environment.get(TERMINATION_LOG) or DEFAULT_TERMINATION_LOG),
        )
        if settings.wanted is not None:
            require_engine(settings.wanted, settings.engine, f"The environment variable {WANTED}")
        return settings

    def read_wanted(self) -> AgentWanted:
        """The list that the pod starts with. Raises SettingsError."""
        if self.wanted is not None:
            return self.wanted
        assert self.wanted_file is not None
        try:
            text = self.wanted_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{self.wanted_file} ({WANTED_FILE}) can't be read: {error}.") from error
        wanted = parse_wanted(text, str(self.wanted_file))
        require_engine(wanted, self.engine, str(self.wanted_file))
        return wanted

    @property
    def kept_wanted(self) -> Path:
        """Where the agent keeps the last list that it was told."""
        return self.scratch / "agent" / "wanted.json"


def parse_wanted(text: str | bytes, where: str) -> AgentWanted:
    """A list of wanted adapters; `where` names its place in messages. Raises SettingsError."""
    if len(text) > MAX_WANTED_BYTES:
        raise SettingsError(f"{where} is longer than {MAX_WANTED_BYTES} bytes.")
    try:
        wanted = AgentWanted.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"{where} is no list of wanted adapters: {place + ': ' if place else ''}{first['msg']}."
        ) from error
    if wanted.version > SERVING_VERSION:
        raise SettingsError(
            f"{where} has version {wanted.version}, this agent knows {SERVING_VERSION}: give it the operator's image."
        )
    if (wanted.base.name is None) == (wanted.base.uri is None):
        raise SettingsError(f"{where} must give the base exactly one of name and uri.")
    return wanted


def require_engine(wanted: AgentWanted, engine: EngineType, where: str) -> None:
    """Raise SettingsError where the list is for another engine."""
    if wanted.engine != engine:
        raise SettingsError(f"{where} is for {wanted.engine}, and {ENGINE} is {engine}.")


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"The environment variable {ENGINE_URL} is {url}: give it as http://HOST:PORT.")
    return url


def _check_address(address: str) -> str:
    try:
        ip_address(address)
    except ValueError:
        raise SettingsError(f"The environment variable {POD_IP} is no IP address: {address}.") from None
    return address


def _read_port(text: str | None) -> int:
    if not text:
        return AGENT_PORT
    if not text.isdigit() or int(text) > 65_535:
        raise SettingsError(f"The environment variable {PORT} is no port: {text}.")
    return int(text)
