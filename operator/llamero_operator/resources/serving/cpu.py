"""llamero's own CPU engine in a pod: `python -m llamero.engine`, to which adapters come and go at run time."""

from collections.abc import Mapping, Sequence
from typing import Literal

from llamero.spec import names
from llamero.spec.job import BaseModelRef
from llamero_operator.resources.quantities import round_up_cores
from llamero_operator.resources.serving.engine import POD_IP, Launch
from llamero_operator.settings import OperatorSettings, PodSettings


class CpuPod:
    """See PodEngine."""

    type: Literal["cpu"] = "cpu"
    reads_adapters_at_start = False
    queue_metric = "tgi_queue_size"  # it tells its metrics by TGI's names
    health_path = "/health"

    def image(self, settings: OperatorSettings) -> str:
        return settings.images.engine

    def pod_settings(self, settings: OperatorSettings) -> PodSettings:
        return settings.pods.cpu

    def build_command(self, launch: Launch) -> Sequence[str]:
        engine = launch.spec.engine
        command = [
            "python",
            "-m",
            "llamero.engine",
            f"--base={launch.base_path}",
            f"--name={describe_base(launch.spec.base_model)}",
            f"--host={POD_IP}",
            f"--port={names.ENGINE_PORT}",
            f"--drain-seconds={launch.finish_seconds}",
        ]
        if engine.quantization is not None:
            command.append(f"--quantization={engine.quantization}")
        if engine.dtype is not None:
            command.append(f"--dtype={engine.dtype}")
        if engine.max_total_tokens is not None:
            command.append(f"--max-total-tokens={engine.max_total_tokens}")
        return command

    def build_environment(self, launch: Launch) -> Mapping[str, str]:
        cores = launch.spec.resources.cpu
        # Torch counts the node's cores, not the pod's share, and would be throttled; small models take one thread in any case.
        return {"OMP_NUM_THREADS": str(round_up_cores(cores))} if cores is not None else {}


def describe_base(base: BaseModelRef) -> str:
    """The base by a name for people, in /info and messages; requests know it as `names.ENGINE_BASE_NAME` besides."""
    return base.name or (base.uri or "").rstrip("/").rpartition("/")[2] or names.ENGINE_BASE_NAME
