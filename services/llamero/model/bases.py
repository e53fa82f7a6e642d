"""Base models on disk: where one is found, whether its folder may be used, its digest and its tokenizer.

No weights are loaded and torch is not needed, so that a worker that only supervises or prepares data stays light. How files
get here is `fetching`'s business, loading a model is `loading`'s.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llamero import storage
from llamero.model import fetching
from llamero.model.errors import ModelError
from llamero.model.fetching import OnProgress, missing_weights, read_json
from llamero.spec.job import BaseModelRef
from llamero.spec.results import FileEntry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DIGESTED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


def resolve_base(
    ref: BaseModelRef, cache: Path, token: str | None = None, on_progress: OnProgress | None = None
) -> Path:
    """The local folder of a base model, fetched into `cache` if it is not on this machine.

    Raises ModelError, whose sentence says what is wrong and what to do: no such model, a licence to accept, no network,
    no safetensors, code of its own.
    """
    if ref.name:
        folder = fetching.fetch_from_hub(ref.name, ref.revision, cache, token, on_progress)
    elif ref.uri and storage.is_local(ref.uri):
        folder = storage.local_path(ref.uri)
    else:
        folder = fetching.fetch_from_store(str(ref.uri), cache, token)
    check_base(folder)
    return folder


def check_base(folder: Path) -> None:
    """Refuse a folder that holds no loadable base. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"The base model's folder {folder} does not exist.")
    config = read_json(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder} is no model folder: config.json is missing.")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in (read_json(folder / name) or {}):
            raise ModelError(
                f"{folder / name} has an auto_map, which names code of the model's own; llamero never runs such code. Use a base that "
                "transformers loads by itself."
            )
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise ModelError(f"{folder} has no tokenizer: tokenizer.json is missing.")
    missing = missing_weights(folder)
    if missing:
        raise ModelError(f"{folder} has no complete safetensors weights: {missing}.")
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} is already quantised; name the unquantised model, which llamero quantises itself where the method asks for it."
        )


def base_digest(folder: Path) -> str:
    """sha256 in hex over the lines `<sha256>  <name>`, sorted by name, of config, tokenizer and weights.

    In the hub's cache a weight file is a link to a blob that is named by its sha256, which saves reading it.
    """
    names = (p.name for p in folder.iterdir() if _is_digested(p.name) and p.is_file())
    return _digest_lines({name: _digest_file(folder / name) for name in names})


def digest_base_files(files: Iterable[FileEntry]) -> str:
    """`base_digest` of the folder that a manifest speaks of, without reading it."""
    return _digest_lines({f.name: f.sha256 for f in files if _is_digested(f.name)})


def _is_digested(name: str) -> bool:
    return name in _DIGESTED or (name.endswith(".safetensors") and "/" not in name)


def _digest_lines(digests: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{digests[n]}  {n}\n" for n in sorted(digests)).encode()).hexdigest()


def load_tokenizer(folder: Path, template: str = "base", new_tokens: Sequence[str] = ()) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer with the chosen chat template installed (`tokenizer.chat_template`) and checked.

    `template`: `base` for the folder's own, or a name of `templates.TEMPLATES`. `new_tokens` are added to the vocabulary;
    they are not special, so that they can stand in the data. Raises ModelError, or TemplateError for a bad template.
    """
    from llamero.model import templates

    tokenizer = read_tokenizer(folder)
    if new_tokens:
        tokenizer.add_tokens(list(new_tokens))
    if template != "base":
        if template not in templates.TEMPLATES:
            raise ModelError(f"There is no chat template {template}: use base, {', '.join(templates.TEMPLATES)}.")
        tokenizer.chat_template = templates.template_source(tokenizer, template)
    templates.check_template(tokenizer)
    return tokenizer


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer as it stands in the folder, unchecked. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The tokenizer in {folder} can't be read: {error}") from error


def _digest_file(path: Path) -> str:
    blob = path.resolve().name if path.is_symlink() else ""
    return blob if _BLOB_NAME.fullmatch(blob) else storage.sha256_file(path)
