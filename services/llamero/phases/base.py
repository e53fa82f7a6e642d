"""Where a phase finds its base model: the token that opens it, its folder and its digest."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamero.model.bases import base_digest, resolve_base
from llamero.spec.job import BaseModelRef
from llamero.spec.progress import Progress

HUB_TOKEN = "HF_TOKEN"


@dataclass(frozen=True)
class Base:
    """A base model on this machine."""

    folder: Path
    digest: str


def read_token(reference: BaseModelRef) -> str | None:
    """The token that the reference's secret holds, from the environment variable of its key; without a secret the hub's own, for the hub."""
    if reference.secret_ref is not None:
        return os.environ.get(reference.secret_ref.key) or None
    is_on_hub = reference.uri is None or reference.uri.startswith("hf://")
    return os.environ.get(HUB_TOKEN) or None if is_on_hub else None


def find_base(reference: BaseModelRef, cache: Path, on_progress: Callable[[Progress], None] | None = None) -> Base:
    """The base model, fetched into `cache` where it is not on this machine. Raises ModelError."""
    folder = resolve_base(reference, cache, token=read_token(reference), on_progress=on_progress)
    return Base(folder, base_digest(folder))
