"""What operator, agents and chat services tell each other over HTTP: versioned JSON, rewritten whole, never a delta.

An agent runs beside the engine in each of its pods. It is told the list of adapters that are wanted (`AgentWanted`: in the pod's
environment, in a mounted file, or by `PUT /v1/wanted`, whichever has the highest serial) and tells what has become of them (`AgentReport`
at `GET /v1/report`). A chat service tells what requests came to (`ChatReport` at `GET /v1/report` of its inner port).
"""

from bisect import bisect_left
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from llamero.spec.base import ResultModel
from llamero.spec.server import EngineType

SERVING_VERSION = 1

AGENT_REPORT_PATH = "/v1/report"
AGENT_WANTED_PATH = "/v1/wanted"
CHAT_REPORT_PATH = "/v1/report"

REFUSED_EXIT = 3
"""Exit code of an agent's fetch that refused an adapter; its termination message is an `AgentRefusal`."""


class BaseWanted(ResultModel):
    """The base model of an engine's pod. Exactly one of `name` and `uri`."""

    name: str | None = None
    uri: str | None = None
    revision: str | None = None


class AdapterWanted(ResultModel):
    """An adapter that a pod is to serve."""

    id: str = Field(description="The id to serve it under, never reused (`names.served_adapter_id`).")
    name: str = Field(description="The Adapter resource.")
    uri: str = Field(description="Folder of its files.")
    sha256: str = Field(description="sha256 over its files, as in the Adapter's spec.")
    golden_sha256: str | None = Field(None, description="Digest of its golden prompts' file; none where it has none.")


class AgentWanted(ResultModel):
    """All that a pod is to serve. The one with the higher serial counts."""

    version: int = SERVING_VERSION
    serial: int = Field(0, ge=0)
    engine: EngineType
    base: BaseWanted
    adapters: list[AdapterWanted] = Field(default_factory=list)


AdapterStage = Literal["fetching", "loading", "proving", "ready", "refused", "unloading"]


class AdapterReport(ResultModel):
    """An adapter in a pod."""

    id: str
    stage: AdapterStage
    message: Annotated[str, Field(max_length=512)] = Field("", description="Why it is refused, or what is tried again.")
    nearer: int | None = Field(None, description="Golden prompts whose answer lay nearer the adapter's value.")
    golden: int | None = Field(None, description="Golden prompts asked.")
    seconds: float = Field(0.0, description="From the first byte fetched to ready.")


class AgentReport(ResultModel):
    """A pod's engine and its adapters, as its agent sees them."""

    version: int = SERVING_VERSION
    pod: str = Field(description="Name of the pod.")
    started_at: datetime
    serial: int = Field(0, description="The wanted list that it works by.")
    engine_ready: bool = Field(False, description="Whether the engine gave a real token of late.")
    engine_message: Annotated[str, Field(max_length=512)] = ""
    adapters: list[AdapterReport] = Field(default_factory=list)

    @property
    def ready_ids(self) -> frozenset[str]:
        """The adapters that requests may go to."""
        return frozenset(a.id for a in self.adapters if a.stage == "ready") if self.engine_ready else frozenset()


class AgentRefusal(ResultModel):
    """Why a pod can't start: the termination message of the agent's fetch. `id` None: it is not an adapter's fault."""

    id: str | None = None
    message: Annotated[str, Field(max_length=1024)]


# -- counts --------------------------------------------------------------------------------------------------------------------

FIRST_TOKEN_BOUNDS: tuple[float, ...] = tuple(round(0.002 * 1.25**k, 6) for k in range(48))
"""Upper bounds of the buckets of times to the first token, in seconds (2 ms to 71 s); one more bucket holds the rest."""


class TargetCounts(ResultModel):
    """Requests and votes of one target of one route since one step began. `adapter` is the served id; None is the base."""

    model: str
    step: str
    adapter: str | None = None
    requests: int = 0
    errors: int = Field(
        0, description="Failed by the engine's or the chat service's fault; a caller's mistake is none."
    )
    first_token: list[int] = Field(
        default_factory=lambda: [0] * (len(FIRST_TOKEN_BOUNDS) + 1), description="By bucket of FIRST_TOKEN_BOUNDS."
    )
    votes_up: int = 0
    votes_down: int = 0


class InFlight(ResultModel):
    """Requests under way to an adapter (None: the base) at a backend."""

    backend: str
    adapter: str | None = None
    requests: int


class ChatReport(ResultModel):
    """What one chat service saw; counts are from its start, kept for the steps in its routes."""

    version: int = SERVING_VERSION
    instance: str = Field(description="Random, new with every start.")
    revision: str = Field("", description="Revision of the routes that it works by.")
    targets: list[TargetCounts] = Field(default_factory=list)
    in_flight: list[InFlight] = Field(default_factory=list)


def first_token_bucket(seconds: float) -> int:
    """Index of the bucket that a time to the first token falls into."""
    return bisect_left(FIRST_TOKEN_BOUNDS, seconds)
