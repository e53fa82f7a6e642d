"""What is served under which name: the base and its adapters, each with the tokenizer, chat template and stop tokens of its own folder.

The weights are the generation thread's; this knows names and words.
"""

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamero.engine.generation import GenerationThread
from llamero.engine.requests import EngineError, ErrorKind
from llamero.model.adapter_checks import check_adapter, shorten_faults
from llamero.model.errors import ModelError
from llamero.model.loading import read_tokenizer
from llamero.model.templates import render_prompt, stop_token_ids
from llamero.spec.names import ENGINE_BASE_NAME, MANIFEST_NAME
from llamero.spec.records import Message

log = logging.getLogger(__name__)

ENGINE: Literal["cpu"] = "cpu"


@dataclass(frozen=True)
class ServedModel:
    """A name that can be asked for. `adapter` None is the base."""

    name: str
    adapter: str | None
    folder: Path
    tokenizer: Any
    stop_token_ids: frozenset[int]
    special_ids: frozenset[int]
    created: int

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the next answer; raises EngineError where the template can't render it."""
        try:
            return render_prompt(self.tokenizer, messages, add_generation_prompt=True)
        except ModelError as error:
            raise EngineError(ErrorKind.VALIDATION, f"Template error: {error}") from error

    def text_prompt(self, text: str) -> list[int]:
        """Token ids of a plain text, with the special tokens that the tokenizer adds."""
        return list(self.tokenizer(text, add_special_tokens=True)["input_ids"])


class Catalog:
    """The served models. Lives on the event loop; adapters come and go while requests run."""

    def __init__(self, base: Path, base_name: str, thread: GenerationThread) -> None:
        self._thread = thread
        self._folder = base
        self.base = read_served(base_name, None, base, base=None)
        self._adapters: dict[str, ServedModel] = {}
        self._busy: set[str] = set()

    def models(self) -> list[ServedModel]:
        """All that can be asked for, the base first."""
        return [self.base, *self._adapters.values()]

    def find(self, name: str | None, also_base: Iterable[str] = ()) -> ServedModel:
        """The model of a name (None: the base); raises EngineError where it is not loaded: the base never stands in for it."""
        if name is None or name in (self.base.name, *also_base):
            return self.base
        if name in self._adapters:
            return self._adapters[name]
        loaded = ", ".join(self._adapters) or "none"
        raise EngineError(
            ErrorKind.ADAPTER_NOT_FOUND,
            f"The adapter {name} is not loaded. Loaded adapters: {loaded}. The base is {self.base.name}.",
        )

    async def load(self, name: str, folder: Path) -> ServedModel:
        """Check an adapter folder, load it, and serve it under `name`; raises EngineError with the reason where it is refused."""
        if name in (self.base.name, ENGINE_BASE_NAME):
            raise EngineError(ErrorKind.ADAPTER_REFUSED, f"{name} is the base's own name: give the adapter another.")
        if name in self._adapters or name in self._busy:
            raise EngineError(
                ErrorKind.ADAPTER_REFUSED, f"{name} is loaded already: unload it first, or load under a new name."
            )
        self._busy.add(name)
        try:
            served = await asyncio.to_thread(self._examine, name, folder)
            await asyncio.wrap_future(self._thread.load(name, folder))
        except EngineError:
            raise
        except ModelError as error:
            raise EngineError(ErrorKind.ADAPTER_REFUSED, str(error)) from error
        except Exception as error:
            log.exception("the adapter %s could not be loaded", name)
            reason = f"The adapter in {folder} can't be loaded: {type(error).__name__}: {str(error)[:500]}"
            raise EngineError(ErrorKind.ADAPTER_REFUSED, reason) from error
        finally:
            self._busy.discard(name)
        self._adapters[name] = served
        return served

    def _examine(self, name: str, folder: Path) -> ServedModel:
        if not (folder / "adapter_config.json").is_file():
            reason = f"{folder} holds no adapter: adapter_config.json is missing."
            raise EngineError(ErrorKind.ADAPTER_REFUSED, reason)
        faults = check_adapter(folder, self._folder, ENGINE)
        if faults:
            raise EngineError(
                ErrorKind.ADAPTER_REFUSED, f"The adapter in {folder} is refused: {shorten_faults(faults)}"
            )
        return read_served(name, name, folder, base=self.base)

    async def unload(self, name: str) -> None:
        """Serve `name` no longer. New requests for it are refused at once; returns when those that run have ended."""
        if name not in self._adapters:
            self.find(name)  # raises, unless it is the base
            raise EngineError(ErrorKind.ADAPTER_REFUSED, f"{name} is the base, which can't be unloaded.")
        del self._adapters[name]
        self._busy.add(name)
        try:
            await asyncio.shield(asyncio.wrap_future(self._thread.unload(name)))
        finally:
            self._busy.discard(name)


def read_served(name: str, adapter: str | None, folder: Path, base: ServedModel | None) -> ServedModel:
    """A model's words from its own folder; from the base where an adapter's folder holds no tokenizer."""
    own = (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()
    if base is not None and not own:
        tokenizer = base.tokenizer
    else:
        tokenizer = read_tokenizer(folder)
    stops = {int(i) for i in _configured_stops(folder, tokenizer)}
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    if tokenizer.chat_template:
        stops |= {int(i) for i in stop_token_ids(tokenizer)}
    special = frozenset(int(i) for i in tokenizer.all_special_ids)
    return ServedModel(name, adapter, folder, tokenizer, frozenset(stops), special, created=int(time.time()))


def _configured_stops(folder: Path, tokenizer: Any) -> list[int]:
    """Stop tokens that the folder's files name: an adapter's manifest, a base's generation_config.json."""
    found: list[int] = []
    manifest = _read_json(folder / MANIFEST_NAME)
    for token in manifest.get("stopTokens") or []:
        token_id = tokenizer.convert_tokens_to_ids(token)
        if token_id is not None and token_id != tokenizer.unk_token_id:
            found.append(token_id)
    eos = _read_json(folder / "generation_config.json").get("eos_token_id")
    found += eos if isinstance(eos, list) else [] if eos is None else [eos]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
