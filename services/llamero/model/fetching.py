"""A base model's files: what is fetched of them, from the hub or an object store, and whether the weights are all there.

Files that are already on this machine are never asked for again, so that everything works with the hub offline. What is done
with the folder is left to `loading`.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamero import storage
from llamero.model.errors import ModelError, Unreachable
from llamero.spec.progress import Progress

OnProgress = Callable[[Progress], None]

BASE_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is fetched of a base: weights as safetensors, configs, tokenizer files. Pickled weights and code are not."""

_HUB = "https://huggingface.co"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_WEB_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", _WEIGHTS_INDEX, "model.safetensors",
)  # fmt: skip
_MAX_INDEX_BYTES = 64 << 20


def fetch_from_hub(
    name: str, revision: str | None, cache: Path, token: str | None, on_progress: OnProgress | None
) -> Path:
    """The folder of a hub model: from the user's own cache or ours, else downloaded into ours. HF_ENDPOINT and HF_HUB_OFFLINE are obeyed.

    Raises ModelError.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    endpoint = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    api = HfApi(endpoint=endpoint, token=token)
    caches = (Path(constants.HF_HUB_CACHE), cache / "hub")
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(BASE_FILES)}
    for place in caches:
        try:
            found = Path(api.snapshot_download(name, cache_dir=place, local_files_only=True, **wanted))
        except (LocalEntryNotFoundError, FileNotFoundError):
            continue
        if (found / "config.json").is_file() and not missing_weights(found):
            return found
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelError(
            f"{name}@{revision} is not in the local cache ({caches[0]}) and HF_HUB_OFFLINE is set: fetch it beforehand with "
            f"`hf download {name} --revision {revision}`, or name a local folder by baseModel.uri."
        )
    try:
        bar = _progress_bar(name, on_progress)
        return Path(api.snapshot_download(name, cache_dir=caches[1], tqdm_class=bar, **wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise _explain(error, name, revision, endpoint) from error


def _explain(error: BaseException, name: str, revision: str | None, endpoint: str) -> ModelError:
    """What the hub's refusal means and what to do, in one sentence; Unreachable where it may answer another time."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__  # the library wraps a refusal in "not in the local cache"
    page = f"{endpoint}/{name}"
    if cause is None:
        return Unreachable(
            f"{name}@{revision} is not in the local cache and {endpoint} can't be reached ({type(error).__name__}): check the network or "
            "HF_ENDPOINT, or name a local folder by baseModel.uri."
        )
    status = cause.response.status_code
    if isinstance(cause, GatedRepoError):
        return ModelError(
            f"{name} asks for its licence to be accepted (HTTP {status}): accept it at {page} and give a token of that account by "
            "baseModel.secretRef."
        )
    if isinstance(cause, RevisionNotFoundError):
        return ModelError(f"{name} has no revision {revision} (HTTP {status}): take a commit from {page}/commits/main.")
    if isinstance(cause, RepositoryNotFoundError):
        return ModelError(
            f"{name} does not exist or is private (HTTP {status}): check the name at {page}; a private or gated model needs its licence "
            "accepted there and a token by baseModel.secretRef."
        )
    if status in (401, 403):
        return ModelError(
            f"{name} may not be read with this token (HTTP {status}): see its licence page {page} and baseModel.secretRef."
        )
    return Unreachable(f"{name}@{revision} can't be fetched from {endpoint} (HTTP {status}): try again later.")


def _progress_bar(name: str, on_progress: OnProgress | None) -> type | None:
    """A bar in the hub's form that reports the bytes fetched instead of drawing."""
    if on_progress is None:
        return None
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    report = on_progress

    class Reported(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["disable"] = False
            kwargs["file"] = open(os.devnull, "w")  # noqa: SIM115, PTH123 - lives as long as the bar
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            unit = str(self.unit)
            report(Progress("Preparing", f"fetch {name}", float(self.n), self.total, unit))
            return shown

        def close(self) -> None:
            super().close()
            self.fp.close()

    return Reported


def fetch_from_store(uri: str, cache: Path, token: str | None) -> Path:
    """A base in an object store, kept in the cache by the digest of its file list, so that changed files are fetched anew.

    Raises ModelError.
    """
    try:
        folder = cache / "bases" / tag_store(uri, token)
        done = folder / ".complete"
        if not done.is_file():
            if storage.is_web(uri):
                for file in _list_web_base(uri, token):
                    storage.fetch_file(file, folder / file.rsplit("/", 1)[-1], token)
            else:
                storage.download_folder(uri, folder, BASE_FILES, token)
            done.touch()
    except storage.StorageError as error:
        raise Unreachable(f"The base model can't be fetched: {error}") from error
    return folder


def tag_store(uri: str, token: str | None) -> str:
    """What changes when the files of a base in an object store do. Raises Unreachable."""
    try:
        listed = _list_web_base(uri, token) if storage.is_web(uri) else storage.list_files(uri, token)
        wanted = [f for f in listed if any(Path(f).match(p) for p in BASE_FILES)]
        lines = [f"{f} {storage.fingerprint_uri(f, token)}\n" for f in wanted]
    except storage.StorageError as error:
        raise Unreachable(f"The base model can't be fetched: {error}") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def _list_web_base(uri: str, token: str | None) -> list[str]:
    """A base's files on a web server, which lists no folder: those of known names that are there, and the weights that the index names."""
    names = [n for n in _WEB_FILES if storage.exists_on_web(storage.join_uri(uri, n), token)]
    if _WEIGHTS_INDEX in names:
        with storage.open_packed(storage.join_uri(uri, _WEIGHTS_INDEX), token) as stream:
            index = stream.read(_MAX_INDEX_BYTES)
        try:
            weights = sorted({str(name) for name in json.loads(index)["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise storage.StorageError(f"{storage.join_uri(uri, _WEIGHTS_INDEX)} is no index of weights.") from error
        # A name is the server's word: it must stay in the folder.
        names += [name for name in weights if re.fullmatch(r"[\w.-]+\.safetensors", name)]
    if "config.json" not in names:
        raise storage.StorageError(
            f"{storage.join_uri(uri, 'config.json')} does not exist: name the folder of a base model's files."
        )
    return [storage.join_uri(uri, name) for name in dict.fromkeys(names)]


def missing_weights(folder: Path) -> str | None:
    """What is missing of the safetensors, in words; None where all are there."""
    index = read_json(folder / "model.safetensors.index.json")
    if index is not None:
        names = sorted(set(index.get("weight_map", {}).values()))
        absent = [n for n in names if not (folder / n).is_file()]
        return f"{', '.join(absent[:3])} of {len(names)} files not found" if absent or not names else None
    if (folder / "model.safetensors").is_file():
        return None
    pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
    if pickled:
        return f"only pickled weights ({pickled[0]}), which can hold code; convert them to safetensors"
    return "model.safetensors not found"


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file is missing. Raises ModelError where it is no JSON."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}
