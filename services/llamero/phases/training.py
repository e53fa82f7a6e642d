"""What a training's process needs and what it leaves: its configuration, its folders, its results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamero.phases.base import Base
from llamero.phases.data import token_folders
from llamero.spec.digest import digest_json, training_recipe
from llamero.spec.job import FineTuneJobSpec
from llamero.spec.names import ARM_THRESHOLD, ARMS_FOLDER, MANIFEST_NAME
from llamero.spec.results import AdapterManifest, TrainingResult
from llamero.spec.status import TrainingStatus
from llamero.storage import find_damage, write_atomically

MODULE = "llamero.training"
CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class TrainingFolders:
    """Where a training's files lie on this machine."""

    data: Path
    checkpoints: Path
    adapter: Path
    merged: Path

    @property
    def config(self) -> Path:
        return self.checkpoints / CONFIG_FILE

    @property
    def result(self) -> Path:
        return self.checkpoints / RESULT_FILE


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    result: TrainingResult
    adapter: AdapterManifest


def identify_training(spec: FineTuneJobSpec, base_digest: str, data_digest: str) -> dict[str, str]:
    """What makes a checkpoint or an adapter one of this training, as `training.recipe` writes it into each."""
    return {"recipe": digest_json(training_recipe(spec)), "data": data_digest, "base": base_digest}


def write_config(
    spec: FineTuneJobSpec,
    base: Base,
    data_digest: str,
    folders: TrainingFolders,
    init_adapter: Path | None,
    micro_batch_tokens: int,
    device: str = "auto",
) -> Path:
    """Write the configuration that `python -m llamero.training` reads; its path. `micro_batch_tokens` 0 leaves them to the training."""
    reference, sources = spec.base_model, spec.data.sources
    identity = identify_training(spec, base.digest, data_digest)
    config = {
        "base": str(base.folder),
        "baseName": reference.name or reference.uri,
        "baseRevision": reference.revision,
        "baseDigest": identity["base"],
        "spec": spec.training.to_json_dict(),
        "template": spec.data.template,
        "trainTokens": token_folders(folders.data, "train"),
        "evaluationTokens": token_folders(folders.data, "evaluation"),
        "controls": list_controls(folders.data),
        "measureHeldOut": spec.data.controls is not None,
        "checkpoints": str(folders.checkpoints),
        "adapter": str(folders.adapter),
        "merged": str(folders.merged) if spec.training.merge else None,
        "recipeDigest": identity["recipe"],
        "dataDigest": identity["data"],
        "licenses": sorted({s.license for s in sources if s.license}),
        "terms": sorted({s.terms for s in sources if s.terms}),
        "device": device,
        "microBatchTokens": micro_batch_tokens or None,
        "initAdapter": str(init_adapter) if init_adapter else None,
    }
    write_atomically(folders.config, json.dumps(config, indent=2))
    return folders.config


def list_controls(data: Path) -> list[dict[str, Any]]:
    """The trainings that `data.controls` asked for, as the data phase laid them out: token folders by the arm's name."""
    folder = data / "tokens" / ARMS_FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    thresholds = {n: float(n.removeprefix(ARM_THRESHOLD)) if n.startswith(ARM_THRESHOLD) else None for n in names}
    return [
        {"name": name, "threshold": threshold, "trainTokens": token_folders(data, f"{ARMS_FOLDER}/{name}")}
        for name, threshold in sorted(thresholds.items(), key=lambda item: (item[1] is not None, item[1] or 0.0))
    ]


def read_micro_batch(config: Path) -> int:
    """The bin capacity that an earlier start had come down to, from its configuration; 0 where there was none."""
    try:
        return int(json.loads(config.read_bytes()).get("microBatchTokens") or 0)
    except (OSError, ValueError):
        return 0


def read_training(folders: TrainingFolders) -> Trained | None:
    """What the training left, where result and adapter are whole."""
    try:
        result = TrainingResult.model_validate_json(folders.result.read_bytes())
        manifest = AdapterManifest.model_validate_json((folders.adapter / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    if result.controls_pending:
        return None
    return Trained(result, manifest) if find_damage(folders.adapter, manifest.files) is None else None


def describe_training(trained: Trained, uri: str) -> TrainingStatus:
    """A status's words for a training whose results lie at `uri`."""
    result = trained.result
    return TrainingStatus(
        uri=uri,
        steps=result.steps,
        tokens=result.tokens,
        first_loss=f"{result.loss.first:.4f}",
        last_loss=f"{result.loss.last:.4f}",
        tokens_per_second=f"{result.tokens_per_second:.1f}",
        adapter_sha256=trained.adapter.sha256,
    )
