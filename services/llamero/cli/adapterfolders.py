"""Adapter folders from anywhere, made into what an Adapter resource speaks of: checked, digested, copied, with golden prompts beside them.

What is wrong with a folder `model.adapter_checks` says, what golden prompts are `evaluation.golden`. Where adapters are listed is left to
those who call.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from llamero.cli.errors import CommandError
from llamero.model.adapter_checks import CONFIG, WEIGHTS, check_adapter, shorten_faults
from llamero.model.bases import base_digest, check_base
from llamero.model.errors import ModelError
from llamero.phases.processes import PROCESS_ENVIRONMENT
from llamero.spec.adapter import AdapterSpec
from llamero.spec.digest import digest_files
from llamero.spec.golden import GoldenSet
from llamero.spec.names import MANIFEST_NAME, golden_name
from llamero.spec.results import AdapterManifest, FileEntry
from llamero.spec.server import EngineType
from llamero.storage import (
    StorageError,
    commit_folder,
    describe_files,
    download_folder,
    fetch_folder,
    find_damage,
    is_local,
    join_uri,
    local_path,
    read_manifest,
    sha256_file,
    write_file,
)

Quantization = Literal["nf4"] | None
GOLDEN_MODULE = "llamero.cli.goldenmaking"
GOLDEN_PATTERN = "golden-*.json"
UNKNOWN_BASE = "unknown"
"""Stands for the digest of a base that nobody told: an adapter from elsewhere whose base's files are not at hand."""


class ImportRefused(CommandError):
    """Why a folder is not taken."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter's folder as read. `manifest` None: it was made elsewhere."""

    folder: Path
    files: tuple[FileEntry, ...]
    sha256: str
    manifest: AdapterManifest | None
    golden: Path | None


@dataclass(frozen=True)
class BaseAtHand:
    """A base whose files lie on this machine."""

    folder: Path
    sha256: str


@dataclass(frozen=True)
class Told:
    """What a person says of an adapter that its folder does not."""

    model: str
    server: str
    base: str | None = None
    base_revision: str | None = None
    template: str | None = None
    stop_tokens: tuple[str, ...] = ()
    engine: EngineType = "cpu"
    quantization: Quantization = None


def find_base_at_hand(folder: Path) -> BaseAtHand:
    """The base in a folder. Raises ImportRefused."""
    try:
        check_base(folder)
        return BaseAtHand(folder.resolve(), base_digest(folder))
    except ModelError as error:
        raise ImportRefused(str(error)) from error


def read_adapter_folder(folder: Path) -> AdapterFolder:
    """The folder's files and their digest, each file read. Raises ImportRefused where it holds no adapter, or one that is damaged."""
    if not folder.is_dir():
        raise ImportRefused(f"There is no folder {folder}.")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickled = (
                "; a pickle can hold code and is not read: save it as safetensors" if any(folder.glob("*.bin")) else ""
            )
            raise ImportRefused(f"{folder} holds no adapter: {name} is missing{pickled}.")
    manifest = _read_own_manifest(folder)
    if manifest is not None:
        if damage := find_damage(folder, manifest.files):
            raise ImportRefused(f"{folder} is damaged: {damage}")
        files = manifest.files
    else:
        names = [p.name for p in folder.iterdir() if p.is_file() and _is_adapters_own(p)]
        files = describe_files(folder, names)
    return AdapterFolder(folder, tuple(files), digest_files(files), manifest, _find_golden(folder))


def _read_own_manifest(folder: Path) -> AdapterManifest | None:
    """The manifest where a training of llamero's wrote it; one that names files alone says nothing of the adapter."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        return AdapterManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        if read_manifest(str(folder)) is not None:
            return None
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise ImportRefused(
            f"{path} is no adapter manifest ({where}: {first['msg']}): take it away, or copy the folder anew."
        ) from error


def _is_adapters_own(path: Path) -> bool:
    return path.name != MANIFEST_NAME and not path.name.startswith(".") and not path.match(GOLDEN_PATTERN)


def _find_golden(folder: Path) -> Path | None:
    """The golden prompts that lie beside the files, where they are whole."""
    for path in sorted(folder.glob(GOLDEN_PATTERN)):
        if path.name != golden_name(sha256_file(path)):
            continue
        with suppress(ValidationError):
            if GoldenSet.model_validate_json(path.read_bytes()).prompts:
                return path
    return None


def check_folder(adapter: AdapterFolder, base: BaseAtHand | None, engine: EngineType) -> None:
    """Refuse what the engine would not serve whole. Raises ImportRefused with every reason."""
    manifest = adapter.manifest
    if manifest is not None and base is not None and manifest.base_sha256 != base.sha256:
        raise ImportRefused(
            f"{adapter.folder} was trained on another base ({manifest.base}) than {base.folder}: serve it on that one."
        )
    if base is None:
        return
    problems = check_adapter(adapter.folder, base.folder, engine, base_sha256=base.sha256)
    if problems:
        raise ImportRefused(f"{adapter.folder} can't be served: {shorten_faults(problems)}")


def describe_import(adapter: AdapterFolder, uri: str, told: Told, base: BaseAtHand | None) -> AdapterSpec:
    """The Adapter's spec, of what the folder's manifest says and what was told. Raises ImportRefused."""
    manifest = adapter.manifest
    named = told.base or (manifest.base if manifest else None)
    if named is None:
        raise ImportRefused(f"{adapter.folder} does not say which base it belongs to: --base names it.")
    if manifest is not None and base is not None:
        digest = manifest.base_sha256
    elif base is not None:
        digest = base.sha256
    else:
        digest = manifest.base_sha256 if manifest else UNKNOWN_BASE
    try:
        return AdapterSpec(
            uri=uri,
            sha256=adapter.sha256,
            base=named,
            base_revision=told.base_revision or (manifest.base_revision if manifest and told.base is None else None),
            base_sha256=digest,
            template=told.template or (manifest.template if manifest else "base"),
            stop_tokens=list(told.stop_tokens or (manifest.stop_tokens if manifest else ())),
            recipe_digest=manifest.recipe_digest if manifest else "",
            data_digest=manifest.data_digest if manifest else "",
            licenses=(manifest.licenses if manifest else [])[:64],
            terms=(manifest.terms if manifest else [])[:64],
            model=told.model,
            server=told.server,
            golden_sha256=sha256_file(adapter.golden) if adapter.golden else None,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])
        raise ImportRefused(f"{adapter.folder} can't become an Adapter: {where}: {first['msg']}.") from error


def put_adapter(adapter: AdapterFolder, spec: AdapterSpec) -> None:
    """Copy it to `spec.uri` with a manifest of its own, written last, and its golden prompts beside. Raises StorageError."""
    with tempfile.TemporaryDirectory(prefix="llamero-import-") as folder:
        staged = Path(folder)
        for entry in adapter.files:
            (staged / entry.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(adapter.folder / entry.name, staged / entry.name)
        manifest = adapter.manifest or build_manifest(adapter, spec)
        (staged / MANIFEST_NAME).write_text(json.dumps(manifest.to_json_dict(), indent=2) + "\n")
        commit_folder(staged, spec.uri)
    if adapter.golden is not None:
        write_file(join_uri(spec.uri, adapter.golden.name), adapter.golden.read_bytes())


def build_manifest(adapter: AdapterFolder, spec: AdapterSpec) -> AdapterManifest:
    """What a training would have written beside the files."""
    return AdapterManifest(
        files=list(adapter.files),
        sha256=adapter.sha256,
        base=spec.base,
        base_revision=spec.base_revision,
        base_sha256=spec.base_sha256,
        template=spec.template,
        stop_tokens=list(spec.stop_tokens),
        data_digest=spec.data_digest,
        recipe_digest=spec.recipe_digest,
        licenses=list(spec.licenses),
        terms=list(spec.terms),
    )


def bring_adapter(uri: str, target: Path) -> Path:
    """The folder on this machine: itself where it is local, else a copy in `target`. Raises ImportRefused."""
    if is_local(uri):
        return local_path(uri)
    try:
        if read_manifest(uri) is not None:
            fetch_folder(uri, target)
            with suppress(StorageError):  # golden prompts are no part of the manifest, and there may be none
                download_folder(uri, target, (GOLDEN_PATTERN,))
            return target
        return download_folder(uri, target, ("[!.]*",))
    except StorageError as error:
        raise ImportRefused(str(error)) from error


def add_golden(adapter: AdapterFolder, base: BaseAtHand, quantization: Quantization, target: Path) -> AdapterFolder:
    """The adapter with golden prompts, made into `target` where it has none; without any where base and adapter can't be told apart.

    A process of its own loads the models, so that this one stays light. Raises ImportRefused where they can't be loaded.
    """
    if adapter.golden is not None:
        return adapter
    options = ["--quantization", quantization] if quantization else []
    command = [sys.executable, "-m", GOLDEN_MODULE, str(base.folder), str(adapter.folder), str(target), *options]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**PROCESS_ENVIRONMENT, **os.environ}
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines()[-1:] or [f"its check ended with code {ended.returncode}"]
        raise ImportRefused(f"{adapter.folder} can't be served: {said[0]}")
    name = ended.stdout.strip()
    return replace(adapter, golden=target / name) if name else adapter
