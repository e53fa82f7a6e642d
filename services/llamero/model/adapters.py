"""LoRA adapters: built from a job's recipe, attached to a base, saved as plain LoRA, checked for what engines would drop.

Adapter weights are float32 from the first step to the file: a bfloat16 adapter loses most updates of a small learning rate, and a
float32 file resumes, merges and measures exactly what was trained. Engines cast it when they load it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from peft import EvaConfig, LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llamero import storage
from llamero.model.batches import Batch
from llamero.model.errors import ModelError as ModelError
from llamero.spec import digest
from llamero.spec.job import LoraSpec
from llamero.spec.results import FileEntry

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def build_lora_config(
    spec: LoraSpec, method: Literal["qlora", "lora"], new_token_ids: Iterable[int] = ()
) -> LoraConfig:
    """PEFT's configuration of a job's adapter. Raises ModelError for PiSSA on a 4-bit base."""
    if spec.init == "pissa" and method != "lora":
        raise ModelError("training.lora.init pissa needs the weights in full: use training.method lora, or init eva.")
    token_ids = sorted(new_token_ids)
    options: dict[str, Any] = {}
    if spec.init == "eva":
        # rho 1 keeps every layer at the recipe's rank: ranks that differ by layer are served by no engine.
        options = {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)}
    elif spec.init == "pissa":
        options = {"init_lora_weights": "pissa"}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        use_dora=spec.use_dora,
        target_modules=list(spec.target_modules) if spec.target_modules else "all-linear",
        layers_to_transform=list(spec.layers) if spec.layers else None,
        rank_pattern=dict(spec.rank_pattern),
        alpha_pattern=dict(spec.alpha_pattern),
        modules_to_save=list(spec.modules_to_save) or None,
        trainable_token_indices=token_ids or None,
        bias="none",
        **options,
    )


def attach_adapter(
    base: PreTrainedModel,
    spec: LoraSpec,
    method: Literal["qlora", "lora"] = "qlora",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    init_from: Path | None = None,
    eva_batches: Iterable[Batch] | None = None,
) -> PeftModel:
    """A trainable adapter on the base: a new one by the recipe, or the one in `init_from` to go on from.

    `tokenizer` with the recipe's new tokens added is needed where there are any. `eva_batches` (on the base's device) are needed for init
    `eva`. Seed torch before: the A matrices are random. Raises ModelError.
    """
    raise NotImplementedError


def load_adapter(base: PreTrainedModel | PeftModel, folder: Path, name: str = "default") -> PeftModel:
    """Put the adapter in `folder` on the base, frozen, under `name`; a further one joins those already there."""
    raise NotImplementedError


def check_adapter(folder: Path, base_folder: Path, engine: str = "tgi") -> list[str]:
    """What is wrong with an adapter folder for an engine (`tgi`, `vllm`, `cpu`), a sentence each; empty where it can be served whole."""
    raise NotImplementedError


def save_adapter(model: PeftModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write the adapter as plain LoRA (float32 safetensors and config), and with `tokenizer` its files and chat_template.jinja."""
    raise NotImplementedError


def describe_adapter(folder: Path) -> tuple[list[FileEntry], str]:
    """The folder's files but its manifest, and the sha256 that names the adapter (see AdapterManifest)."""
    names = [p.name for p in folder.iterdir() if p.is_file() and p.name != "manifest.json" and p.name[0] != "."]
    files = storage.describe_files(folder, names)
    return files, digest.digest_files(files)


def merge_adapter(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The base with the adapter merged into its weights; `base` must be plain (see loading.dequantize_base)."""
    raise NotImplementedError
