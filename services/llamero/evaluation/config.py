"""What the evaluation's process is told: the folders, the manifest's `evaluation` and the machine. Read from one JSON file."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from llamero import storage
from llamero.spec.base import ResultModel
from llamero.spec.digest import digest_json
from llamero.spec.job import EvaluationSpec
from llamero.spec.names import MANIFEST_NAME

METHOD_VERSION = 1
"""Raised when the same inputs would give other figures, so that older results are not taken for new ones."""


class ConfigError(Exception):
    """A configuration file that can't be used; the message says where and what to do."""


class EvaluationConfig(ResultModel):
    """`python -m llamero.evaluation CONFIG.json` reads this (camelCase in the file; paths absolute)."""

    base: Path = Field(description="Folder of the base model: config, tokenizer, safetensors.")
    adapter: Path = Field(description="Folder of the finished adapter.")
    adapter_sha256: str | None = Field(None, description="What its manifest must say; by default whatever it says.")
    method: Literal["qlora", "lora"] = Field("qlora", description="As trained: qlora measures on the base in NF4.")
    template: str = Field("base", description="The chat template's name, as in the manifest's `data.template`.")
    system: str | None = Field(None, description="The manifest's `data.system`: what prompts of prompt sets open with.")
    allow_http: bool = Field(False, description="The manifest's `data.allowHttp`, for the prompt sets' files.")
    evaluation_tokens: list[Path] = Field(
        default_factory=list, description="Token folders (`model.tokens`) of the held-out split, in order."
    )
    evaluation_records: list[Path] = Field(
        default_factory=list, description="The same split as JSONL files of `spec.records.Conversation`."
    )
    spec: EvaluationSpec = Field(default_factory=EvaluationSpec, description="The manifest's `evaluation`.")
    output: Path = Field(description="Folder for result.json and failure.json.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one.")
    threads: int | None = Field(None, ge=1, description="torch threads on CPU; by default chosen by the model's size.")


def load_config(path: Path) -> EvaluationConfig:
    """The configuration in a file. Raises ConfigError with every mistake."""
    try:
        return EvaluationConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from error
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path} is no evaluation configuration: {mistakes}.") from error


def read_adapter_sha256(config: EvaluationConfig) -> str:
    """The digest in the adapter's manifest. Raises ConfigError where there is none, or another than the one asked for."""
    path = config.adapter / MANIFEST_NAME
    try:
        found = str(json.loads(path.read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} can't be read, so that there is no finished adapter to measure.") from error
    if config.adapter_sha256 not in (None, found):
        raise ConfigError(
            f"The adapter in {config.adapter} is {found}, where {config.adapter_sha256} was to be measured."
        )
    return found


def digest_evaluation(config: EvaluationConfig, base_digest: str, adapter_sha256: str) -> str:
    """What counts as the same evaluation, by content: where files lie, the machine and the gate make no difference.

    Raises storage.StorageError where a file of prompts can't be read.
    """
    spec = config.spec.to_json_dict()
    spec.pop("gate", None)
    return digest_json(
        {
            "version": METHOD_VERSION,
            "base": base_digest,
            "adapter": adapter_sha256,
            "method": config.method,
            "template": config.template,
            "system": config.system,
            "spec": spec,
            "prompts": [
                storage.fingerprint_uri(s.uri, allow_http=config.allow_http) for s in config.spec.prompt_sets if s.uri
            ],
            "tokens": [_digest_folder(folder) for folder in config.evaluation_tokens],
            "records": [storage.sha256_file(path) for path in config.evaluation_records],
        }
    )


def _digest_folder(folder: Path) -> str:
    lines = (f"{entry.sha256}  {entry.name}\n" for entry in storage.describe_files(folder))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
