"""The engine's settings, each documented at its option, and the choices made from the model at hand."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ONE_THREAD_PARAMETERS = 150_000_000  # below this the hand-over between threads costs more than a second core gives
DEFAULT_WINDOW_TOKENS = 4096
PACKED_PARAMETERS = 400_000_000  # the second copy of larger weights would take more than 1.6 GB in float32
MAX_BODY_BYTES = 4 << 20
DRAIN_SECONDS = 1.5


@dataclass(frozen=True)
class EngineSettings:
    """What `python -m llamero.engine` was told."""

    base: Path
    adapters: tuple[tuple[str, Path], ...]
    name: str
    quantization: Literal["nf4"] | None
    dtype: Literal["float32", "bfloat16"]
    max_batch: int
    max_queue: int
    max_total_tokens: int | None
    threads: int | None
    host: str
    port: int
    port_file: Path | None
    drain_seconds: float
    packed_weights: Literal["auto", "always", "never"] = "auto"


def parse_settings(arguments: list[str]) -> EngineSettings:
    """Settings from command-line arguments; exits with a message where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m llamero.engine", description="Serve a base model and its adapters on CPU."
    )
    parser.add_argument(
        "--base", type=Path, required=True, metavar="DIR", help="Folder of the base model (safetensors)."
    )
    parser.add_argument(
        "--name", help="The base's name in /v1/models; by default its folder's name. `tgi` is always the base."
    )
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=DIR", help="An adapter to load; may be repeated."
    )
    parser.add_argument(
        "--quantization",
        choices=["none", "nf4"],
        default="none",
        help="nf4: serve the base with the very numbers that a QLoRA adapter was trained against (quantised, then dequantised).",
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="Type of the weights served."
    )
    parser.add_argument("--max-batch", type=_positive, default=16, help="Requests generated at a time.")
    parser.add_argument(
        "--max-queue", type=_positive, default=128, help="Requests that may wait; more are refused with 429."
    )
    parser.add_argument(
        "--max-total-tokens",
        type=_positive,
        help=f"Prompt and answer together, by request; by default the model's window, at most {DEFAULT_WINDOW_TOKENS}.",
    )
    parser.add_argument(
        "--threads", type=_positive, help="Threads of one operation; by default 1 for small models, else all cores."
    )
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, default=0, help="Port; 0 takes a free one.")
    parser.add_argument("--port-file", type=Path, help="File to write the port to when the engine serves.")
    parser.add_argument(
        "--drain-seconds", type=float, default=DRAIN_SECONDS, help="Seconds that running answers have after SIGTERM."
    )
    parser.add_argument(
        "--packed-weights",
        choices=["auto", "always", "never"],
        default="auto",
        help="Keep a second copy of the weights, laid out for small batches, which doubles the base's memory and speeds answers up; "
        f"auto: for bases of up to {PACKED_PARAMETERS // 1_000_000} million parameters.",
    )
    told = parser.parse_args(arguments)
    return EngineSettings(
        base=told.base,
        adapters=tuple(_adapter(parser, text) for text in told.adapter),
        name=told.name or told.base.resolve().name,
        quantization="nf4" if told.quantization == "nf4" else None,
        dtype=told.dtype,
        max_batch=told.max_batch,
        max_queue=told.max_queue,
        max_total_tokens=told.max_total_tokens,
        threads=told.threads,
        host=told.host,
        port=told.port,
        port_file=told.port_file,
        drain_seconds=told.drain_seconds,
        packed_weights=told.packed_weights,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _adapter(parser: argparse.ArgumentParser, text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        parser.error(f"--adapter {text}: write NAME=DIR")
    return name, Path(folder)


def choose_threads(parameters: int, asked: int | None) -> int:
    """Threads of one operation for a model of that many parameters."""
    if asked is not None:
        return asked
    return 1 if parameters < ONE_THREAD_PARAMETERS else len(os.sched_getaffinity(0))


def choose_packing(parameters: int, asked: Literal["auto", "always", "never"]) -> bool:
    """Whether a model of that many parameters gets a second, packed copy of its weights."""
    return asked == "always" or (asked == "auto" and parameters <= PACKED_PARAMETERS)


def choose_window(model_window: int | None, asked: int | None) -> int:
    """Tokens of prompt and answer together. A window beyond the model's own is refused: positions past it were never trained."""
    if asked is None:
        return min(model_window or DEFAULT_WINDOW_TOKENS, DEFAULT_WINDOW_TOKENS)
    if model_window is not None and asked > model_window:
        raise ValueError(
            f"--max-total-tokens {asked} is more than the model's window of {model_window} tokens: ask for less."
        )
    return asked
