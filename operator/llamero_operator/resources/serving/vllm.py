"""vLLM: adapters come and go at run time, in each process for itself; room for them is set aside at start.

https://docs.vllm.ai/en/stable/cli/serve/
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from llamero.spec import names
from llamero_operator.resources.serving.engine import CACHE_PATH, POD_IP, Launch
from llamero_operator.settings import OperatorSettings, PodSettings


class VllmPod:
    """See PodEngine."""

    type: Literal["vllm"] = "vllm"
    reads_adapters_at_start = False
    # `vllm:num_requests_waiting` by the name that a metrics adapter gives it: see docs/install.md.
    queue_metric = "vllm_num_requests_waiting"
    health_path = "/health"

    def image(self, settings: OperatorSettings) -> str:
        return settings.images.vllm

    def pod_settings(self, settings: OperatorSettings) -> PodSettings:
        return settings.pods.vllm

    def build_command(self, launch: Launch) -> Sequence[str]:
        engine = launch.spec.engine
        command = [
            "vllm",
            "serve",
            launch.base_path,
            f"--host={POD_IP}",
            f"--port={names.ENGINE_PORT}",
            f"--served-model-name={names.ENGINE_BASE_NAME}",
            "--enable-lora",
            f"--max-loras={engine.max_adapters}",
            f"--max-cpu-loras={engine.max_adapters}",
            f"--max-lora-rank={engine.max_lora_rank}",
            # Without it answers under way are broken off when the pod is told to end.
            f"--shutdown-timeout={launch.finish_seconds}",
        ]
        if launch.gpus > 1:
            command.append(f"--tensor-parallel-size={launch.gpus}")
        if engine.quantization == "nf4":
            command.append("--quantization=bitsandbytes")
        if engine.dtype is not None:
            command.append(f"--dtype={engine.dtype}")
        if engine.max_total_tokens is not None:
            command.append(f"--max-model-len={engine.max_total_tokens}")
        return command

    def build_environment(self, launch: Launch) -> Mapping[str, str]:
        return {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CACHE_ROOT": f"{CACHE_PATH}/vllm",
            "VLLM_CONFIG_ROOT": f"{CACHE_PATH}/vllm-config",
        }
