"""text-generation-inference 3.3: adapters are read at start only, so that their list stands in the pod's environment.

https://huggingface.co/docs/text-generation-inference/reference/launcher
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from llamero.spec import names
from llamero.spec.serving import AdapterWanted
from llamero_operator.resources.environment import SCRATCH_PATH
from llamero_operator.resources.serving.engine import CACHE_PATH, MAX_REQUEST_BYTES, POD_IP, Launch
from llamero_operator.settings import OperatorSettings, PodSettings

_SEPARATORS = ",=@"
"""Entries are parted by `,`, ids and paths by `=`, and what follows a `@` is a revision: none may stand in an id or a path."""


class TgiPod:
    """See PodEngine."""

    type: Literal["tgi"] = "tgi"
    reads_adapters_at_start = True
    queue_metric = "tgi_queue_size"
    health_path = "/health"

    def image(self, settings: OperatorSettings) -> str:
        return settings.images.tgi

    def pod_settings(self, settings: OperatorSettings) -> PodSettings:
        return settings.pods.tgi

    def build_command(self, launch: Launch) -> Sequence[str]:
        # The variable HOSTNAME, which the launcher reads too, is the pod's name: the option counts before it.
        return ["text-generation-launcher", f"--hostname={POD_IP}", f"--port={names.ENGINE_PORT}"]

    def build_environment(self, launch: Launch) -> Mapping[str, str]:
        engine = launch.spec.engine
        variables = {
            "MODEL_ID": launch.base_path,
            "USAGE_STATS": "off",
            "JSON_OUTPUT": "true",
            "PAYLOAD_LIMIT": str(MAX_REQUEST_BYTES),
            # Adapters are proven by the log-probabilities of answers that they are given.
            "ENABLE_PREFILL_LOGPROBS": "true",
            "GRACEFUL_TERMINATION_TIMEOUT": str(launch.finish_seconds),
            "HUGGINGFACE_HUB_CACHE": f"{CACHE_PATH}/huggingface",
        }
        if launch.gpus:
            variables["NUM_SHARD"] = str(launch.gpus)
        if engine.quantization == "nf4":
            variables["QUANTIZE"] = "bitsandbytes-nf4"
        if engine.dtype is not None:
            variables["DTYPE"] = engine.dtype
        if engine.max_total_tokens is not None:
            variables["MAX_TOTAL_TOKENS"] = str(engine.max_total_tokens)
        if launch.adapters:
            variables["LORA_ADAPTERS"] = format_adapters(launch.adapters)
        return variables


def format_adapters(adapters: Iterable[AdapterWanted]) -> str:
    """`id=path,id=path`. Raises ValueError where an id or a path has a sign that the launcher parts at."""
    entries = []
    for adapter in adapters:
        path = names.engine_adapter_path(SCRATCH_PATH, adapter.id)
        if any(sign in text for sign in _SEPARATORS for text in (adapter.id, path)):
            raise ValueError(
                f"the adapter id `{adapter.id}` can't be told to TGI: `,`, `=` and `@` may not stand in it"
            )
        entries.append(f"{adapter.id}={path}")
    return ",".join(entries)
