"""An adapter that was made elsewhere, on its way to a cluster: checked, put where pods can read it, and described as an Adapter resource."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llamero.cli.adapterfolders import (
    BaseAtHand,
    ImportRefused,
    Told,
    add_golden,
    bring_adapter,
    check_folder,
    describe_import,
    find_base_at_hand,
    put_adapter,
    read_adapter_folder,
)
from llamero.spec.adapter import ADAPTER_KIND, Adapter, AdapterSpec
from llamero.spec.job import API_VERSION
from llamero.storage import is_local, join_uri

Object = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class ImportOptions:
    """What `llamero adapters import` was told besides NAME and SOURCE."""

    to: str | None
    base_folder: Path | None
    golden: bool
    told: Told


def prepare_import(name: str, source: str, options: ImportOptions, work: Path, say: Say) -> AdapterSpec:
    """Check what lies at the source and put it where pods can read it. Raises ImportRefused, StorageError."""
    if options.to is None and "://" not in source:
        raise ImportRefused(
            f"{source} lies on this machine, where pods can't see it: --to names storage that they can read (or write file://… "
            "where the same path is mounted in pods)."
        )
    adapter = read_adapter_folder(bring_adapter(source, work / "adapter"))
    base = find_base_at_hand(options.base_folder) if options.base_folder else None
    check_folder(adapter, base, options.told.engine)
    uri = source
    if options.to is not None:
        uri = join_uri(_as_uri(options.to), name, adapter.sha256)
        if options.golden and base is not None:
            adapter = add_golden(adapter, base, options.told.quantization, work / "golden")
    spec = describe_import(adapter, uri, options.told, base)
    _say_what_is_missing(spec, base, say)
    build_adapter(name, spec)  # what the API server would refuse is not uploaded first
    if options.to is not None:
        put_adapter(adapter, spec)
    return spec


def _as_uri(to: str) -> str:
    return f"file://{Path(to).resolve()}" if is_local(to) and "://" not in to else to


def _say_what_is_missing(spec: AdapterSpec, base: BaseAtHand | None, say: Say) -> None:
    if base is None:
        say("Without --base-folder the adapter's shapes are not checked here: pods refuse one that does not fit.")
    if spec.golden_sha256 is None:
        say("Without golden prompts a rollout can't prove that it is this adapter that answers.")


def build_adapter(name: str, spec: AdapterSpec) -> Object:
    """The resource. Raises ImportRefused where the name can't be one."""
    raw = {"apiVersion": API_VERSION, "kind": ADAPTER_KIND, "metadata": {"name": name}, "spec": spec.to_json_dict()}
    try:
        Adapter.model_validate(raw)
    except ValidationError as error:
        if any(detail["loc"][:2] == ("metadata", "name") for detail in error.errors()):
            raise ImportRefused(
                f"{name} is no name for an Adapter: lower-case letters, digits and dashes, at most 63."
            ) from error
        raise ImportRefused(f"{name} can't become an Adapter: {error.errors()[0]['msg']}.") from error
    return raw
