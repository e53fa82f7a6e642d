"""Which options of an engine's own launcher a ModelServer may not set: those that llamero sets, and those that would break serving.

Facts about the launchers: text-generation-launcher 3.3, `vllm serve`, `python -m llamero.engine`. Pure; `server_rules.py` asks.
"""

from collections.abc import Iterator, Mapping, Sequence

from llamero.spec.server import EngineType

_BASE = "`baseModel` says which model is served"
_ADDRESS = "the pod's address is the operator's to choose"
_ADAPTERS = "adapters come from the Adapter resources and from `models`"
_GPUS = "set `resources.gpus`"
_QUANTIZATION = "set `engine.quantization`"
_DTYPE = "set `engine.dtype`"
_TOKENS = "set `engine.maxTotalTokens`"
_RANK = "set `engine.maxLoraRank`"
_ROOM = "set `engine.maxAdapters`"
_KEYS = "keys are checked by the chat service, and the engine is closed off by network policies"
_CODE = "code that comes with a model, or beside it, is never run"
_FOLDERS = "the pod's folders are the operator's to choose"
_PROMPTS = "prompts stand in no log"
_ENDS = "it prints something and ends"
_PER_POD = "adapters are loaded for each process: raise `replicas` instead"

RESERVED: Mapping[EngineType, Mapping[str, str]] = {
    "tgi": {
        "--model-id": _BASE,
        "--revision": _BASE,
        "--sharded": _GPUS,
        "--num-shard": _GPUS,
        "--quantize": _QUANTIZATION,
        "--dtype": _DTYPE,
        "--max-total-tokens": _TOKENS,
        "--hostname": _ADDRESS,
        "--port": _ADDRESS,
        "-p": _ADDRESS,
        "--lora-adapters": _ADAPTERS,
        "--huggingface-hub-cache": _FOLDERS,
        "--weights-cache-override": _FOLDERS,
        "--shard-uds-path": _FOLDERS,
        "--json-output": "the operator sets it",
        "--payload-limit": "the operator sets it",
        "--enable-prefill-logprobs": "the operator sets it: adapters are proven by it",
        "--usage-stats": "nothing is told to anyone",
        "--trust-remote-code": _CODE,
        "--api-key": _KEYS,
        "--ngrok": "it would open the engine to the internet",
        "--ngrok-authtoken": "it would open the engine to the internet",
        "--ngrok-edge": "it would open the engine to the internet",
        "--env": "it would print the pod's environment",
        "-e": "it would print the pod's environment",
        "--help": _ENDS,
        "-h": _ENDS,
        "--version": _ENDS,
        "-V": _ENDS,
    },
    "vllm": {
        "--model": _BASE,
        "--served-model-name": _BASE,
        "--revision": _BASE,
        "--code-revision": _CODE,
        "--host": _ADDRESS,
        "--port": _ADDRESS,
        "--uds": _ADDRESS,
        "--root-path": _ADDRESS,
        "--headless": _ADDRESS,
        "--tensor-parallel-size": _GPUS,
        "-tp": _GPUS,
        "--pipeline-parallel-size": _GPUS,
        "-pp": _GPUS,
        "--data-parallel-size": _PER_POD,
        "-dp": _PER_POD,
        "--api-server-count": _PER_POD,
        "-asc": _PER_POD,
        "--quantization": _QUANTIZATION,
        "-q": _QUANTIZATION,
        "--dtype": _DTYPE,
        "--max-model-len": _TOKENS,
        "--enable-lora": _ADAPTERS,
        "--lora-modules": _ADAPTERS,
        "--max-loras": _ROOM,
        "--max-cpu-loras": _ROOM,
        "--max-lora-rank": _RANK,
        "--shutdown-timeout": "the operator sets it",
        "--download-dir": _FOLDERS,
        "--allowed-local-media-path": "requests must not read the pod's files",
        "--config": "options stand in `engine.args`, where they are checked",
        "--api-key": _KEYS,
        "--ssl-keyfile": _KEYS,
        "--ssl-certfile": _KEYS,
        "--ssl-ca-certs": _KEYS,
        "--ssl-cert-reqs": _KEYS,
        "--hf-token": "give `baseModel.secretRef`",
        "--trust-remote-code": _CODE,
        "--middleware": _CODE,
        "--tool-parser-plugin": _CODE,
        "--reasoning-parser-plugin": _CODE,
        "--logits-processors": _CODE,
        "--worker-cls": _CODE,
        "--worker-extension-cls": _CODE,
        "--enable-log-requests": _PROMPTS,
        "--enable-log-outputs": _PROMPTS,
        "--help": _ENDS,
        "-h": _ENDS,
        "--version": _ENDS,
        "-v": _ENDS,
    },
    "cpu": {
        "--base": _BASE,
        "--name": _BASE,
        "--adapter": _ADAPTERS,
        "--host": _ADDRESS,
        "--port": _ADDRESS,
        "--port-file": _ADDRESS,
        "--quantization": _QUANTIZATION,
        "--dtype": _DTYPE,
        "--max-total-tokens": _TOKENS,
        "--drain-seconds": "the operator sets it",
        "--help": _ENDS,
        "-h": _ENDS,
    },
}
"""By engine: an option, and why it can't be set, or what sets it."""

_ABBREVIATES: frozenset[EngineType] = frozenset({"vllm", "cpu"})
"""Engines whose launchers take the beginning of an option for it (argparse)."""


def find_wrong_args(engine: EngineType, args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The options that may not be set: their places in the list, and a sentence for each."""
    if args and not args[0].startswith("-"):
        yield 0, f"`{args[0]}` is no option: begin with one, such as `--name=value`"
    for index, arg in enumerate(args):
        if arg == "--":
            yield index, "`--` ends the options, and further models can't be named: remove it"
            continue
        option = find_reserved(engine, arg)
        if option is not None:
            yield index, f"`{arg.partition('=')[0]}` can't be set: {RESERVED[engine][option]}"


def find_reserved(engine: EngineType, arg: str) -> str | None:
    """The reserved option that an argument sets, whichever way it is written; None where it sets none."""
    reserved = RESERVED[engine]
    if not arg.startswith("-"):
        return None
    if not arg.startswith("--"):
        # A short option's value may follow at once: `-p8080`.
        return next((o for o in reserved if not o.startswith("--") and arg.startswith(o)), None)
    # vLLM takes underscores for dashes, `--no-` before a switch, and fields of a part behind a dot.
    name = "--" + arg[2:].partition("=")[0].partition(".")[0].replace("_", "-")
    for form in (name, name.replace("--no-", "--", 1)):
        if form in reserved:
            return form
        if engine in _ABBREVIATES and len(form) > 2:
            found = next((o for o in reserved if o.startswith(form)), None)
            if found is not None:
                return found
    return None
