"""The engines at run time, as an agent talks to them; what their pods look like is the operator's business."""

from llamero.agent.engines.base import EngineClient as EngineClient
from llamero.agent.engines.cpu import CpuEngine
from llamero.agent.engines.tgi import TgiEngine
from llamero.agent.engines.vllm import VllmEngine
from llamero.spec.server import EngineType


def build_client(engine: EngineType, url: str) -> EngineClient:
    """The client of an engine at a URL such as `http://10.0.0.7:8080`."""
    if engine == "tgi":
        return TgiEngine(url)
    return VllmEngine(url) if engine == "vllm" else CpuEngine(url)
