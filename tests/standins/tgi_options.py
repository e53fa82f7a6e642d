"""The options of text-generation-inference's launcher, as its documentation lists them; each is an environment variable as well.

https://huggingface.co/docs/text-generation-inference/reference/launcher
"""

import os
import sys
from collections.abc import Mapping

FLAGS = (
    "trust-remote-code",
    "disable-custom-kernels",
    "json-output",
    "ngrok",
    "disable-grammar-support",
    "env",
    "enable-prefill-logprobs",
)
VALUES: Mapping[str, str | None] = {
    "model-id": "bigscience/bloom-560m",
    "revision": None,
    "validation-workers": "2",
    "sharded": None,
    "num-shard": None,
    "quantize": None,
    "speculate": None,
    "dtype": None,
    "kv-cache-dtype": None,
    "max-concurrent-requests": "128",
    "max-best-of": "2",
    "max-stop-sequences": "4",
    "max-top-n-tokens": "5",
    "max-input-tokens": None,
    "max-input-length": None,
    "max-total-tokens": None,
    "waiting-served-ratio": "0.3",
    "max-batch-prefill-tokens": None,
    "max-batch-total-tokens": None,
    "max-waiting-tokens": "20",
    "max-batch-size": None,
    "cuda-graphs": None,
    "hostname": "0.0.0.0",
    "port": "3000",
    "prometheus-port": "9000",
    "shard-uds-path": "/tmp/text-generation-server",
    "master-addr": "localhost",
    "master-port": "29500",
    "huggingface-hub-cache": None,
    "weights-cache-override": None,
    "cuda-memory-fraction": "1.0",
    "rope-scaling": None,
    "rope-factor": None,
    "otlp-endpoint": None,
    "otlp-service-name": "text-generation-inference.router",
    "cors-allow-origin": None,
    "api-key": None,
    "watermark-gamma": None,
    "watermark-delta": None,
    "ngrok-authtoken": None,
    "ngrok-edge": None,
    "tokenizer-config-path": None,
    "max-client-batch-size": "4",
    "lora-adapters": None,
    "usage-stats": "on",
    "payload-limit": "2000000",
    "graceful-termination-timeout": "90",
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "dtype": ("float16", "bfloat16"),
    "usage-stats": ("on", "off", "no-stack"),
    "quantize": (
        "awq",
        "compressed-tensors",
        "eetq",
        "exl2",
        "gptq",
        "marlin",
        "bitsandbytes",
        "bitsandbytes-nf4",
        "bitsandbytes-fp4",
        "fp8",
    ),
}
BAD_USAGE = 2


def parse_options(arguments: list[str], environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Values by option; flags are `true` or None. Ends the process with 2 where an option or a value is unknown."""
    found: dict[str, str | None] = dict(VALUES)
    for name in (*VALUES, *FLAGS):
        value = environment.get(name.upper().replace("-", "_"))
        if value is not None:
            found[name] = _flag(name, value) if name in FLAGS else value
    words = iter(arguments)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (name not in VALUES and name not in FLAGS):
            _refuse(f"unexpected argument '{word}' found")
        if name in FLAGS:
            found[name] = "true"
            continue
        given = value if equals else next(words, None)
        if given is None:
            _refuse(f"a value is required for '--{name}' but none was supplied")
        found[name] = given
    for name, choices in CHOICES.items():
        value_given = found[name]
        if value_given is not None and value_given not in choices:
            _refuse(f"invalid value '{value_given}' for '--{name}' [possible values: {', '.join(choices)}]")
    for name in ("port", "max-total-tokens", "max-concurrent-requests", "max-input-tokens", "max-batch-size"):
        if found[name] is not None and not str(found[name]).isdigit():
            _refuse(f"invalid value '{found[name]}' for '--{name}': invalid digit found in string")
    return found


def _flag(name: str, value: str) -> str | None:
    if value not in ("true", "false"):
        _refuse(f"invalid value '{value}' for '--{name}' [possible values: true, false]")
    return "true" if value == "true" else None


def _refuse(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence}\n\nFor more information, try '--help'.\n")
    raise SystemExit(BAD_USAGE)
