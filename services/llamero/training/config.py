"""What the training process is told: one JSON file, written by whoever starts it and read by nobody else."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from llamero.spec.base import SpecModel
from llamero.spec.job import TrainingSpec


class ConfigError(Exception):
    """A configuration file that can't be used; the message says where and what to do."""


class ControlConfig(SpecModel):
    """One further training on other records of the same data (`data.controls`)."""

    name: str = Field(description="`random`, or `at-<threshold>`.")
    threshold: float | None = Field(None, description="The choosing step's threshold; none for `random`.")
    train_tokens: list[Path] = Field(description="Its token folders.")


class TrainingConfig(SpecModel):
    """`python -m llamero.training CONFIG.json` reads this (camelCase in the file; paths absolute)."""

    base: Path = Field(description="Folder of the base model: config, tokenizer, safetensors.")
    spec: TrainingSpec = Field(default_factory=TrainingSpec, description="The manifest's `training`.")
    template: str = Field("base", description="The chat template's name, as in the manifest's `data.template`.")
    train_tokens: list[Path] = Field(description="Token folders (`model.tokens`) of the training split, in order.")
    evaluation_tokens: list[Path] = Field(default_factory=list, description="Those of the held-out split.")
    checkpoints: Path = Field(description="Folder for checkpoints, result.json and failure.json.")
    adapter: Path = Field(description="Folder for the finished adapter.")
    merged: Path | None = Field(None, description="Folder for the merged export, where `spec.merge` asks for one.")
    recipe_digest: str = Field(description="`digest_json(training_recipe(spec))`: what the training was told.")
    data_digest: str = Field(description="Digest of the data phase's output.")
    base_digest: str = Field(description="Digest of the base model's files.")
    base_name: str = Field(description="How the manifest calls the base: its hub id, or its folder or URI.")
    base_revision: str | None = Field(None, description="The hub revision it is pinned to.")
    licenses: list[str] = Field(default_factory=list, description="Licences of the data; they travel with the adapter.")
    terms: list[str] = Field(default_factory=list, description="Terms of use of the data; they travel too.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one.")
    threads: int | None = Field(
        None,
        ge=1,
        description="torch threads on CPU; by default one for a model under 30 million parameters, else one a core.",
    )
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="Tokens of one forward pass; by default chosen by device, model and sequence length."
    )
    controls: list[ControlConfig] = Field(
        default_factory=list, description="Further trainings to set beside this one, after it."
    )
    measure_held_out: bool = Field(
        False, description="Measure the adapter on the held-out split and tell it in result.json's `controls`."
    )
    init_adapter: Path | None = Field(None, description="Adapter folder to go on from (`spec.initFrom`, resolved).")


def load_config(path: Path) -> TrainingConfig:
    """The configuration in a file. Raises ConfigError with one line for each mistake."""
    try:
        return TrainingConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from error
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path} is no training configuration: {mistakes}.") from error
