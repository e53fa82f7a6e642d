"""The finished adapter's folder, and the merged export: written beside their places, renamed, manifest last."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from llamero.model.adapters import describe_adapter, merge_adapter, save_adapter
from llamero.model.loading import dequantize_base, load_base
from llamero.model.templates import stop_tokens
from llamero.model.tokens import TokenSet
from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import AdapterManifest, MergeResult
from llamero.storage import describe_files, find_damage, write_atomically
from llamero.training.config import TrainingConfig
from llamero.training.loss import measure_loss

MAX_MERGE_EXAMPLES = 1000
"""Held-out examples that the merge's change of loss is measured on."""


def publish_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, config: TrainingConfig) -> AdapterManifest:
    """Save the adapter with all that a server needs to use it; an older folder in its place goes."""

    def fill(folder: Path) -> None:
        save_adapter(model, folder, tokenizer, base_name=config.base_name)

    _replace_folder(config.adapter, fill)
    files, sha256 = describe_adapter(config.adapter)
    manifest = AdapterManifest(
        files=files,
        sha256=sha256,
        base=config.base_name,
        base_revision=config.base_revision,
        base_sha256=config.base_digest,
        template=config.template,
        stop_tokens=stop_tokens(tokenizer),
        data_digest=config.data_digest,
        recipe_digest=config.recipe_digest,
        licenses=config.licenses,
        terms=config.terms,
    )
    write_atomically(config.adapter / MANIFEST_NAME, json.dumps(manifest.to_json_dict(), indent=2) + "\n")
    return manifest


def find_published(config: TrainingConfig) -> AdapterManifest | None:
    """The manifest of the adapter that this very training left whole in its place; None where there is none."""
    try:
        manifest = AdapterManifest.model_validate_json((config.adapter / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    wanted = (config.recipe_digest, config.data_digest, config.base_digest)
    if (manifest.recipe_digest, manifest.data_digest, manifest.base_sha256) != wanted:
        return None
    return manifest if find_damage(config.adapter, manifest.files) is None else None


def quantization_of(config: TrainingConfig) -> Literal["nf4"] | None:
    """How the method holds the base."""
    return "nf4" if config.spec.method == "qlora" else None


def publish_merged(
    config: TrainingConfig,
    target: Path,
    tokenizer: PreTrainedTokenizerBase,
    adapter_loss: float | None,
    held_out: TokenSet | None,
    *,
    device: str,
    bin_tokens: int,
    autocast_dtype: torch.dtype | None,
) -> MergeResult:
    """Merge the published adapter into the dequantised base, save it as bf16 safetensors, and measure what that changed.

    The sums are made on the CPU in fp32: memory for 4 bytes a parameter is needed. `adapter_loss` is the held-out loss with
    the adapter beside the base, in nats a token, or None where nothing was held out.
    """

    def fill(folder: Path) -> None:
        base = load_base(config.base, quantization=quantization_of(config), device="cpu", training=False)
        merge_adapter(dequantize_base(base), config.adapter).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    _replace_folder(target, fill)
    files = [f.to_json_dict() for f in describe_files(target)]
    write_atomically(target / MANIFEST_NAME, json.dumps({"files": files}, indent=2) + "\n")
    if held_out is None or adapter_loss is None:
        return MergeResult(uri=str(target))
    exported = load_base(target, quantization=None, device=device, training=True)
    merged_loss = measure_loss(exported, held_out, device, bin_tokens, autocast_dtype, MAX_MERGE_EXAMPLES)
    return MergeResult(
        uri=str(target), adapter_loss=adapter_loss, merged_loss=merged_loss, change=merged_loss - adapter_loss
    )


def _replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new folder, force it to disk and put it in the place of an older one."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    for path in [*partial.rglob("*"), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    (target / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
