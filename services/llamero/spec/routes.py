"""Routes: public model names and where their requests go. A ConfigMap in a cluster, a file of the same form on a laptop."""

from pydantic import Field

from llamero.spec.base import ResultModel


class Backend(ResultModel):
    """One engine process that a route may use, and the ids it has loaded: no request goes to one that lacks its adapter."""

    url: str = Field(description="Base URL of the engine, such as http://127.0.0.1:8081.")
    engine: str = Field("cpu", description="tgi, vllm or cpu.")
    adapters: list[str] = Field(default_factory=list, description="Served adapter ids that this backend has.")
    pod: str = Field("", description="Name of the pod, on a cluster.")


class Target(ResultModel):
    """Where a share of a route's requests goes. `adapter` None is the base itself."""

    adapter: str | None = None
    weight: int = Field(100, ge=0, le=100)
    template: str | None = Field(
        None,
        description="A named chat template (`spec.job.DataSpec.template`) that the chat service renders prompts with, for engines that know "
        "their base's alone; None: the engine renders.",
    )
    stop: list[str] = Field(default_factory=list, description="With `template`: what ends an answer.")


class Route(ResultModel):
    """A public model name."""

    model: str
    server: str = Field(description="Key into `servers`.")
    targets: list[Target]
    description: str = ""
    step: str = Field("", description="The rollout's step at hand; requests and votes are counted by it.")


class Routes(ResultModel):
    """The whole table."""

    version: int = 1
    revision: str = Field("", description="Digest of the rest: a chat service tells which one it works by.")
    servers: dict[str, list[Backend]] = Field(default_factory=dict)
    routes: list[Route] = Field(default_factory=list)
