"""Checkpoints on disk: written whole or not at all, believed only after their digests, kept to a number.

A checkpoint is a folder `step-XXXXXXXX`. It is written beside its place, synced, renamed, and its manifest (sizes, sha256) comes
last: what has no manifest does not exist. What is in the files is for `trainer.py` to say; nothing here unpickles anything before
its digest was found right, and nothing is unpickled but tensors and plain values (`weights_only`).
"""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from llamero.spec.base import ResultModel
from llamero.spec.names import MANIFEST_NAME, checkpoint_name, parse_checkpoint_name
from llamero.spec.results import SCHEMA_VERSION, FileEntry
from llamero.storage import describe_files, find_damage, write_atomically

WEIGHTS_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
RNG_FILE = "rng.safetensors"
STATE_FILE = "state.json"
TRAINER_STATE_FILE = "trainer_state.json"
"""transformers' TrainerState; Trainer reads it by this name."""

_FILES = (WEIGHTS_FILE, OPTIMIZER_FILE, RNG_FILE, STATE_FILE, TRAINER_STATE_FILE)

log = logging.getLogger(__name__)


class CheckpointManifest(ResultModel):
    """manifest.json of a checkpoint. `identity` is what the training is of: digests of recipe, data and base."""

    schema_version: int = SCHEMA_VERSION
    step: int
    identity: dict[str, str]
    files: list[FileEntry]


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds. `weights`: every trained parameter by name; `rng`: the generators' states as integer tensors;
    `state`: plain JSON (scheduler, journal); `trainer_state`: transformers' TrainerState."""

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    rng: dict[str, torch.Tensor]
    state: dict[str, Any]
    trainer_state: dict[str, Any]


def write_checkpoint(folder: Path, snapshot: Snapshot, identity: dict[str, str]) -> Path:
    """Write a checkpoint into the checkpoints folder and return its own; one of the same step is replaced."""
    target = folder / checkpoint_name(snapshot.step)
    partial = folder / f".{target.name}.partial"
    _remove(partial)
    partial.mkdir(parents=True)
    save_file({n: t.detach().contiguous().cpu() for n, t in snapshot.weights.items()}, partial / WEIGHTS_FILE)
    torch.save(snapshot.optimizer, partial / OPTIMIZER_FILE)
    save_file(snapshot.rng, partial / RNG_FILE)
    (partial / STATE_FILE).write_text(json.dumps(snapshot.state))
    (partial / TRAINER_STATE_FILE).write_text(json.dumps(snapshot.trainer_state))
    for path in partial.iterdir():
        _sync(path)
    _sync(partial)
    files = describe_files(partial)
    _remove(target)
    partial.rename(target)
    manifest = CheckpointManifest(step=snapshot.step, identity=identity, files=files)
    write_atomically(target / MANIFEST_NAME, json.dumps(manifest.to_json_dict(), indent=2))
    _sync(target)
    _sync(folder)
    return target


def find_damaged_checkpoint(folder: Path, identity: dict[str, str]) -> str | None:
    """Why a checkpoint can't be resumed, as a sentence; None where it can."""
    manifest_path = folder / MANIFEST_NAME
    try:
        manifest = CheckpointManifest.model_validate_json(manifest_path.read_bytes())
    except FileNotFoundError:
        return f"{folder} has no {MANIFEST_NAME}: it was not written to its end."
    except (OSError, ValidationError) as error:
        return f"{manifest_path} can't be read: {type(error).__name__}."
    if not {f.name for f in manifest.files}.issuperset(_FILES):
        return f"{manifest_path} does not name all of {', '.join(_FILES)}."
    differing = sorted(k for k in identity if manifest.identity.get(k) != identity[k])
    if differing:
        return f"{folder} is of another training: its {' and '.join(differing)} differ."
    return find_damage(folder, manifest.files)


def find_resumable(folder: Path, identity: dict[str, str]) -> Path | None:
    """The newest checkpoint that is whole and of this training; why newer ones are passed over is logged."""
    for candidate in _list_checkpoints(folder):
        damage = find_damaged_checkpoint(candidate, identity)
        if damage is None:
            return candidate
        log.warning("A checkpoint is passed over: %s", damage)
    return None


def read_checkpoint(folder: Path, device: str) -> Snapshot:
    """The content of a checkpoint that `find_resumable` gave, its optimiser's tensors on `device`."""
    return Snapshot(
        step=parse_checkpoint_name(folder.name) or 0,
        weights=load_file(folder / WEIGHTS_FILE),
        optimizer=torch.load(folder / OPTIMIZER_FILE, map_location=device, weights_only=True),
        rng=load_file(folder / RNG_FILE),
        state=json.loads((folder / STATE_FILE).read_bytes()),
        trainer_state=json.loads((folder / TRAINER_STATE_FILE).read_bytes()),
    )


def prune_checkpoints(folder: Path, keep: int, identity: dict[str, str]) -> None:
    """Delete all but the newest `keep` whole checkpoints of this training, and what was left half-written.

    Where fewer than `keep` are whole, nothing whole goes. Sizes are compared and contents are not read: the newest was just written.
    """
    whole = [c for c in _list_checkpoints(folder) if _looks_whole(c, identity)]
    kept = set(whole[:keep])
    if not kept:
        return
    for candidate in [*_list_checkpoints(folder), *folder.glob(".step-*.partial")]:
        if candidate not in kept:
            _remove(candidate)


def _looks_whole(folder: Path, identity: dict[str, str]) -> bool:
    try:
        manifest = CheckpointManifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError):
        return False
    return manifest.identity == identity and find_damage(folder, manifest.files, read_content=False) is None


def _list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders, newest step first."""
    if not folder.is_dir():
        return []
    steps = [(parse_checkpoint_name(p.name), p) for p in folder.iterdir() if p.is_dir()]
    return [p for _, p in sorted(((s, p) for s, p in steps if s is not None), reverse=True)]


def _remove(folder: Path) -> None:
    """Delete a checkpoint, its manifest first: a deletion that is cut short leaves nothing that looks whole."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
