"""What the operator must know of an engine to run it in a pod. Each engine's own launcher stands in a module beside.

How adapters get in and out at run time, and how one is proven, is the agent's (`llamero.agent`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llamero.spec import names
from llamero.spec.server import EngineType, ModelServerSpec
from llamero.spec.serving import AdapterWanted
from llamero_operator.resources.environment import SCRATCH_PATH
from llamero_operator.settings import OperatorSettings, PodSettings

POD_IP = "$(POD_IP)"
"""Kubernetes puts the variable's value in its place: engines listen on the pod's own address alone."""

CACHE_PATH = "/llamero/cache"
"""What libraries write beside the model: compiled kernels and the like. The root is read-only."""

MAX_REQUEST_BYTES = 4 << 20
"""Longest body of a request: more than the chat service lets through, since it renders the prompt of a whole conversation."""


@dataclass(frozen=True)
class Launch:
    """One server's engine as it is started. `adapters` counts for engines that read them at start."""

    spec: ModelServerSpec
    adapters: tuple[AdapterWanted, ...]
    gpus: int
    settings: OperatorSettings
    spread_by_template: bool = False

    @property
    def base_path(self) -> str:
        """Where the agent puts the base model."""
        return names.engine_base_path(SCRATCH_PATH)

    @property
    def finish_seconds(self) -> int:
        """What answers under way get when the engine is told to end."""
        return self.settings.serving.finish_seconds


class PodEngine(Protocol):
    """An engine's half of its pod. `queue_metric` is how a metrics adapter tells its waiting requests, by pod."""

    reads_adapters_at_start: bool
    queue_metric: str
    health_path: str

    @property
    def type(self) -> EngineType:
        """How manifests call it."""

    def image(self, settings: OperatorSettings) -> str:
        """What its container runs in."""

    def pod_settings(self, settings: OperatorSettings) -> PodSettings:
        """What its container asks for, where the ModelServer says nothing."""

    def build_command(self, launch: Launch) -> Sequence[str]:
        """Program and options that llamero sets; the ModelServer's own come after. `$(POD_IP)` is put in by Kubernetes."""

    def build_environment(self, launch: Launch) -> Mapping[str, str]:
        """Variables that it reads besides those of all engines. Raises ValueError where an adapter can't be said in them."""
