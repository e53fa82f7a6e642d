"""What a pod is told by its environment: which attempt it is, where its files go, and how long it may wait."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamero.spec.names import AttemptFolder, JobStorage
from llamero.spec.tasks import AttemptId
from llamero.worker import QUEUE, REDIS_URL

ATTEMPT = "LLAMERO_ATTEMPT"
MESSAGE = "LLAMERO_MESSAGE"
STORAGE = "LLAMERO_STORAGE"
SCRATCH = "LLAMERO_SCRATCH"
TERMINATION_LOG = "LLAMERO_TERMINATION_LOG"
POD_UID = "LLAMERO_POD_UID"
POD_NAME = "LLAMERO_POD_NAME"
NODE = "LLAMERO_NODE"
IDLE_SECONDS = "LLAMERO_IDLE_SECONDS"
GRACE_SECONDS = "LLAMERO_GRACE_SECONDS"
PROGRESS_DEADLINE_SECONDS = "LLAMERO_PROGRESS_DEADLINE_SECONDS"


class SettingsError(Exception):
    """An environment that no pod can run with; the message says which variable."""


@dataclass(frozen=True)
class PodSettings:
    """A pod's environment."""

    attempt: AttemptId
    storage: str
    scratch: Path
    termination_log: Path
    pod_uid: str
    pod_name: str
    node: str
    redis_url: str | None
    queue: str | None
    idle_seconds: float
    grace_seconds: float
    progress_deadline_seconds: float

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "PodSettings":
        """Raises SettingsError for what is missing or can't be read."""

        def need(name: str) -> str:
            if not environment.get(name):
                raise SettingsError(
                    f"The environment variable {name} is not set: this program runs in a pod of llamero's operator."
                )
            return environment[name]

        def number(name: str, default: float) -> float:
            try:
                return float(environment.get(name) or default)
            except ValueError as error:
                raise SettingsError(f"The environment variable {name} is no number: {environment[name]}.") from error

        try:
            attempt = AttemptId.model_validate_json(need(ATTEMPT))
        except ValueError as error:
            raise SettingsError(f"The environment variable {ATTEMPT} is no attempt: {error}") from error
        return cls(
            attempt=attempt,
            storage=need(STORAGE),
            scratch=Path(need(SCRATCH)),
            termination_log=Path(environment.get(TERMINATION_LOG) or "/dev/termination-log"),
            pod_uid=need(POD_UID),
            pod_name=environment.get(POD_NAME) or "pod",
            node=environment.get(NODE, ""),
            redis_url=environment.get(REDIS_URL) or None,
            queue=environment.get(QUEUE) or None,
            idle_seconds=number(IDLE_SECONDS, 120),
            grace_seconds=number(GRACE_SECONDS, 120),
            progress_deadline_seconds=number(PROGRESS_DEADLINE_SECONDS, 1800),
        )

    @property
    def places(self) -> JobStorage:
        """Where the job's files lie."""
        return JobStorage(self.storage, self.attempt.namespace, self.attempt.job, self.attempt.uid)

    @property
    def own(self) -> AttemptFolder:
        """The pod's own prefix: no other pod writes there, and this one writes nowhere else but to places named by content."""
        a = self.attempt
        return AttemptFolder(self.places.attempt(a.run, a.kind, a.attempt, self.pod_uid))

    @property
    def log_uri(self) -> str:
        a = self.attempt
        return self.places.log(a.run, a.kind, a.attempt, self.pod_name)
