"""Brings the base model and adapters to where an engine's pod sees them, and checks that they are the very files that were published.

An adapter appears in its place whole or not at all; one that is there already is not fetched again. Blocking: agents call it in a thread.
What is in the files is `checking`'s business, what engines make of them `proving`'s.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from llamero import storage
from llamero.agent.errors import Refusal, Trouble
from llamero.model import fetching
from llamero.model.adapter_checks import CONFIG, WEIGHTS
from llamero.model.bases import base_digest, check_base, digest_base_files
from llamero.model.errors import ModelError, Unreachable
from llamero.spec.digest import digest_files
from llamero.spec.golden import GoldenSet
from llamero.spec.names import (
    MANIFEST_NAME,
    base_key,
    base_storage,
    engine_adapter_path,
    engine_base_path,
    golden_name,
)
from llamero.spec.results import FileEntry
from llamero.spec.serving import AdapterWanted, BaseWanted
from llamero.storage import Refused, StorageError, TornFolder, is_local, join_uri, local_path

HUB_TOKEN = "HF_TOKEN"
"""Where a pod finds the token of its ModelServer's baseModel.secretRef. It is the hub's, and goes nowhere else."""
BROUGHT = ".brought.json"
"""Beside a brought adapter's files: their digests, written before the folder is put in its place."""
MAX_GOLDEN_BYTES = 1 << 20

_NEEDED_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_GOLDEN = re.compile(re.escape(golden_name("0" * 8)).replace("0" * 8, "[0-9a-f]{8}"))
"""Golden prompts lie beside an adapter's files and are none of them."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl")

log = logging.getLogger(__name__)


# -- the base ------------------------------------------------------------------------------------------------------------------


def bring_base(wanted: BaseWanted, scratch: Path, root: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The base at `names.engine_base_path`, a link to where it lies on this machine; fetched first where it is not.

    `root` is the storage's root: relative URIs lie below it, and so do bases that were fetched for a job. Raises Refusal, Trouble.
    """
    place = Path(engine_base_path(str(scratch)))
    with _explained("The base model"):
        if _is_base(place):
            return place
        folder = _find_base(wanted, scratch, root, environment).absolute()
        check_base(folder)
        _link(place, folder)
    log.info("the base model is %s", folder)
    return place


def digest_base(folder: Path) -> str:
    """`bases.base_digest`, from the manifest of a base that was stored with one: its weights need not be read. Raises Refusal, Trouble."""
    with _explained("The base model"):
        files = storage.read_manifest(str(folder))
        return base_digest(folder) if files is None else digest_base_files(files)


def _find_base(wanted: BaseWanted, scratch: Path, root: str, environment: Mapping[str, str]) -> Path:
    cache = scratch / "models"
    token = environment.get(HUB_TOKEN) or None
    if wanted.uri is not None:
        uri = place_uri(wanted.uri, root)
        if is_local(uri):
            return local_path(uri)
        token = token if uri.startswith("hf://") else None
        stored = base_storage(root, base_key(uri, fetching.tag_store(uri, token)))
        return _take_stored(stored, scratch) or fetching.fetch_from_store(uri, cache, token)
    if wanted.name is None:
        raise Refusal("The base model has neither a name nor a URI.")
    if wanted.revision is not None:
        stored = base_storage(root, base_key(wanted.name, wanted.revision))
        found = _take_stored(stored, scratch)
        if found is not None:
            return found
    return fetching.fetch_from_hub(wanted.name, wanted.revision, cache, token, None)


def _take_stored(uri: str, scratch: Path) -> Path | None:
    """A base that a fetch pod stored: on a disk where it lies, else a copy of it; None where it is not there whole."""
    files = storage.read_manifest(uri)
    if not files or storage.find_missing(uri, files) is not None:
        return None
    return local_path(uri) if is_local(uri) else storage.fetch_folder(uri, scratch / "models" / "stored")


def _is_base(place: Path) -> bool:
    return (place / "config.json").is_file() and fetching.missing_weights(place) is None


def _link(place: Path, folder: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}")
    partial.symlink_to(folder, target_is_directory=True)
    try:
        partial.replace(place)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def place_uri(uri: str, root: str) -> str:
    """A URI as every pod means it: relative paths lie below the storage's root."""
    return uri if "://" in uri or uri.startswith("/") else join_uri(root, uri)


# -- adapters ------------------------------------------------------------------------------------------------------------------


def bring_adapter(wanted: AdapterWanted, scratch: Path, root: str) -> Path:
    """The adapter at `names.engine_adapter_path`: its config, one file of weights, and the words (tokenizer, template) beside.

    Every digest is checked, and all of them against `wanted.sha256`. Raises Refusal where the files are others than were published,
    Trouble where the storage is away.
    """
    target = Path(engine_adapter_path(str(scratch), wanted.id))
    if is_brought(target, wanted.sha256):
        return target
    uri = place_uri(wanted.uri, root)
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    with _explained(f"The adapter {wanted.name}"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            files = storage.read_manifest(uri)
            if files is None:
                _copy_unlisted(wanted, uri, staging)
            else:
                _copy_listed(wanted, uri, files, staging)
            shutil.rmtree(target, ignore_errors=True)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def drop_adapter(adapter: str, scratch: Path) -> None:
    """Remove a brought adapter's files; none is no error."""
    shutil.rmtree(engine_adapter_path(str(scratch), adapter), ignore_errors=True)


def is_brought(target: Path, sha256: str) -> bool:
    """Whether this very adapter lies in its place, undamaged."""
    try:
        told = json.loads((target / BROUGHT).read_bytes())
        files = [FileEntry.model_validate(f) for f in told["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return told.get("sha256") == sha256 and storage.find_damage(target, files) is None


def _copy_listed(wanted: AdapterWanted, uri: str, files: list[FileEntry], staging: Path) -> None:
    """What is needed of a published folder, whose manifest names all of its files."""
    _require_digest(wanted, uri, files)
    chosen = _choose(wanted, [f.name for f in files])
    storage.fetch_folder(uri, staging, chosen)
    kept = [f for f in files if f.name in chosen]
    manifest = json.loads((staging / MANIFEST_NAME).read_bytes())
    # The manifest must speak of the files that are here: whoever checks the folder goes by it. One that names files alone (of an adapter
    # that was made elsewhere) has done its work.
    manifest["files"] = [f.to_json_dict() for f in kept]
    if "baseSha256" in manifest:
        (staging / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    else:
        (staging / MANIFEST_NAME).unlink()
    _mark(staging, wanted, kept)


def _copy_unlisted(wanted: AdapterWanted, uri: str, staging: Path) -> None:
    """A folder without a manifest, such as other tools leave: all of its files are needed to tell whether they are the right ones."""
    if storage.is_web(uri):
        raise Refusal(
            f"The adapter {wanted.name} lies at {uri}, a web server, which lists no folder: give a store's URI."
        )
    found = {name: file for file in storage.list_files(uri) if (name := _name_in(uri, file)) is not None}
    found = {name: file for name, file in found.items() if not _GOLDEN.fullmatch(name)}
    _choose(wanted, list(found))
    staging.mkdir(parents=True)
    for name, place in found.items():
        storage.fetch_file(place, staging / name)
    files = storage.describe_files(staging, found)
    _require_digest(wanted, uri, files)
    chosen = _choose(wanted, list(found))
    for file in files:
        if file.name not in chosen:
            (staging / file.name).unlink()
    _mark(staging, wanted, [f for f in files if f.name in chosen])


def _name_in(uri: str, file: str) -> str | None:
    """A file's name where it lies right in the folder; None for one further below."""
    parent, _, name = file.rpartition("/")
    same = parent.split("://", 1)[-1].strip("/") == str(uri).split("://", 1)[-1].strip("/")
    return name if same and not name.startswith(".") else None


def _choose(wanted: AdapterWanted, names: list[str]) -> set[str]:
    """The files that engines need. TGI merges all safetensors of a folder into the adapter, so there must be only one."""
    if WEIGHTS not in names or CONFIG not in names:
        pickled = next((n for n in names if n.endswith(_PICKLES)), None)
        if WEIGHTS not in names and pickled is not None:
            raise Refusal(
                f"The adapter {wanted.name} has its weights in {pickled}, a pickle, which can hold code: save them as {WEIGHTS}."
            )
        missing = WEIGHTS if WEIGHTS not in names else CONFIG
        raise Refusal(f"The adapter {wanted.name} is none: {missing} is not among its files.")
    words = {n for n in names if n.endswith(_NEEDED_SUFFIXES) and "/" not in n and n != MANIFEST_NAME}
    return words | {WEIGHTS, CONFIG}


def _require_digest(wanted: AdapterWanted, uri: str, files: list[FileEntry]) -> None:
    found = digest_files(files)
    if found != wanted.sha256:
        raise Refusal(
            f"The files of the adapter {wanted.name} at {uri} are not those that were published (sha256 {found[:12]}…, where the Adapter "
            f"says {wanted.sha256[:12]}…): publish it again under a new name."
        )


def _mark(staging: Path, wanted: AdapterWanted, files: list[FileEntry]) -> None:
    told = {"sha256": wanted.sha256, "files": [f.to_json_dict() for f in files]}
    (staging / BROUGHT).write_text(json.dumps(told) + "\n", encoding="utf-8")


# -- golden prompts ------------------------------------------------------------------------------------------------------------


def bring_golden(wanted: AdapterWanted, root: str) -> GoldenSet | None:
    """The adapter's golden prompts; None where it was published without. Raises Refusal, Trouble."""
    if wanted.golden_sha256 is None:
        return None
    uri = join_uri(place_uri(wanted.uri, root), golden_name(wanted.golden_sha256))
    with _explained(f"The golden prompts of {wanted.name}"):
        content = storage.read_file(uri)
        if content is None:
            if not storage.list_names(place_uri(wanted.uri, root)):
                raise Trouble(f"There is nothing at {wanted.uri}: is the storage mounted?")
            raise Refusal(
                f"The golden prompts of {wanted.name} are not at {uri}: nothing else proves that it answers; publish it again."
            )
    if len(content) > MAX_GOLDEN_BYTES or hashlib.sha256(content).hexdigest() != wanted.golden_sha256:
        raise Refusal(
            f"The golden prompts at {uri} are not those that were published with {wanted.name} (other digest)."
        )
    try:
        golden = GoldenSet.model_validate_json(content)
    except ValidationError as error:
        raise Refusal(f"{uri} holds no golden prompts: {error.errors()[0]['msg']}.") from error
    return golden if golden.prompts else None


# -- what errors mean ----------------------------------------------------------------------------------------------------------


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what storage and hub raise into Refusal, where it is final, or Trouble."""
    try:
        yield
    except (Refusal, Trouble):
        raise
    except (TornFolder, Refused) as error:
        raise Refusal(f"{what} can't be used: {error}") from error
    except Unreachable as error:
        raise Trouble(f"{what} can't be had now: {error}") from error
    except ModelError as error:
        raise Refusal(str(error)) from error
    except StorageError as error:
        raise Trouble(f"{what} can't be had now: {error}") from error
    except OSError as error:
        raise Trouble(f"{what} can't be put in its place: {error.strerror or error}.") from error
