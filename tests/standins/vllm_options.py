"""The options of `vllm serve` that a deployment of one model with adapters may use.

https://docs.vllm.ai/en/stable/cli/serve/
"""

import argparse
from typing import NoReturn

FLAGS = (
    "enable-lora",
    "trust-remote-code",
    "enforce-eager",
    "disable-log-stats",
    "disable-log-requests",
    "disable-uvicorn-access-log",
    "enable-prefix-caching",
    "no-enable-prefix-caching",
    "enable-chunked-prefill",
)
VALUES = (
    "api-key",
    "chat-template",
    "cpu-offload-gb",
    "download-dir",
    "dtype",
    "generation-config",
    "gpu-memory-utilization",
    "kv-cache-dtype",
    "load-format",
    "max-logprobs",
    "max-num-batched-tokens",
    "max-num-seqs",
    "pipeline-parallel-size",
    "quantization",
    "revision",
    "root-path",
    "seed",
    "swap-space",
    "tensor-parallel-size",
    "tokenizer",
    "uvicorn-log-level",
)
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vllm serve: error: {message}\n")


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Ends the process with 2 where an option is unknown or wrong."""
    parser = _Parser(prog="vllm", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    serve = commands.add_parser("serve", allow_abbrev=False)
    serve.add_argument("model_tag", nargs="?")
    serve.add_argument("--model")
    serve.add_argument("--host", default="0.0.0.0")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--served-model-name", nargs="+")
    serve.add_argument("--max-model-len", type=int)
    serve.add_argument("--max-loras", type=int, default=1)
    serve.add_argument("--max-cpu-loras", type=int)
    serve.add_argument("--max-lora-rank", type=int, choices=RANKS, default=16)
    serve.add_argument("--shutdown-timeout", type=int, default=0)
    serve.add_argument("--lora-modules", nargs="+", default=[])
    for name in FLAGS:
        serve.add_argument(f"--{name}", action="store_true")
    for name in VALUES:
        serve.add_argument(f"--{name}")
    told = parser.parse_args([w.replace("_", "-") if w.startswith("--") and "=" not in w else w for w in arguments])
    told.folder = told.model_tag or told.model
    if told.folder is None:
        serve.error("the following arguments are required: model_tag")
    if told.max_cpu_loras is not None and told.max_cpu_loras < told.max_loras:
        serve.error(f"max_cpu_loras ({told.max_cpu_loras}) must be >= max_loras ({told.max_loras})")
    return told
