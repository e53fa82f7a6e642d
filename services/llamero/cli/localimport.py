"""Adapters of a local server: a folder from anywhere becomes the newest adapter for a public name, with a copy of its files of its own."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llamero.cli.adapterfolders import (
    BaseAtHand,
    ImportRefused,
    Told,
    add_golden,
    check_folder,
    describe_import,
    find_base_at_hand,
    put_adapter,
    read_adapter_folder,
)
from llamero.cli.localserver import LocalAdapter, LocalServer, LocalServerError, find_entry
from llamero.spec.names import GROUP
from llamero.storage import local_path

BASE_DIGEST_ANNOTATION = f"{GROUP}/base-sha256"
MAX_SLUG = 50
Say = Callable[[str], None]


@dataclass(frozen=True)
class Imported:
    """An adapter of a local server, and whether it was there before."""

    adapter: LocalAdapter
    is_new: bool


def import_locally(server: LocalServer, model: str, folder: Path, now: datetime, say: Say) -> Imported:
    """Check the folder against the server's base and take it as the newest adapter for the name; one with the same files stays as it is.

    Raises ImportRefused, LocalServerError, StorageError.
    """
    manifest = server.read_manifest()
    if manifest.server is None:
        raise LocalServerError(f"{server.manifest_file} is wrong: {' '.join(manifest.problems)}")
    spec = manifest.server.spec
    entry = find_entry(manifest.raw["spec"], model)
    if entry.get("base") or entry.get("retired"):
        why = "is answered by the base itself" if entry.get("base") else "is retired"
        raise LocalServerError(
            f"{model} {why}, as {server.manifest_file} says: give another public name, or change its entry."
        )
    adapter = read_adapter_folder(folder)
    with server.adding():
        known = next(
            (a for a in server.read_adapters() if (a.spec.model, a.spec.sha256) == (model, adapter.sha256)), None
        )
        if known is not None:
            return Imported(known, False)
        base = _find_base(server)
        check_folder(adapter, base, spec.engine.type)
        name = _next_name(server, model)
        with tempfile.TemporaryDirectory(prefix="llamero-golden-") as made:
            if adapter.golden is None:
                say(f"{folder}: making golden prompts, by which a rollout proves which model answers ...")
            adapter = add_golden(adapter, base, spec.engine.quantization, Path(made))
            if adapter.golden is None:
                say(f"{folder}: base and adapter answer alike, so that nothing can prove which of them answers.")
            told = Told(
                model,
                server.name,
                base=spec.base_model.name or spec.base_model.uri,
                base_revision=spec.base_model.revision,
                engine=spec.engine.type,
                quantization=spec.engine.quantization,
            )
            described = describe_import(adapter, f"file://{server.files_of(name).resolve()}", told, base)
            put_adapter(adapter, described)
        return Imported(server.add_adapter(name, described, now), True)


def _find_base(server: LocalServer) -> BaseAtHand:
    raw = server.read_manifest().raw
    folder = local_path(raw["spec"]["baseModel"]["uri"])
    digest = (raw["metadata"].get("annotations") or {}).get(BASE_DIGEST_ANNOTATION)
    if digest is None:
        return find_base_at_hand(folder)
    if not folder.is_dir():
        raise ImportRefused(f"The base model's folder {folder} does not exist.")
    return BaseAtHand(folder, digest)


def _next_name(server: LocalServer, model: str) -> str:
    """`tutor-3`: the public name as resources may be called, with the next number."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:MAX_SLUG].rstrip("-")
    taken = [re.fullmatch(rf"{re.escape(slug)}-(\d+)", a.name) for a in server.read_adapters()]
    return f"{slug}-{max((int(m[1]) for m in taken if m), default=0) + 1}"
