"""Digests that say when two things are the same: canonical JSON, sha256 in hex."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from llamero.spec.job import FineTuneJobSpec
from llamero.spec.results import FileEntry


def digest_json(value: Any) -> str:
    """sha256 of the value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def digest_files(files: Iterable[FileEntry]) -> str:
    """sha256 over the sorted lines `<sha256>  <name>\\n`, as `sha256sum` prints them."""
    lines = sorted(f"{f.sha256}  {f.name}\n" for f in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# What can change without changing the result: who does the work, and how often it is saved.
_DATA_NEUTRAL = {"workers"}
_MODEL_NEUTRAL = {
    *("secretRef", "concurrency", "requestsPerMinute", "tokensPerMinute", "timeoutSeconds", "retries"),
    *("pricePerMillionInputTokens", "pricePerMillionOutputTokens", "maxCost", "maxTotalTokens"),
}
"""Of a language model that is asked: how fast, by which key and for how much."""
_TRAINING_NEUTRAL = {"resources", "saveIntervalSeconds", "keepCheckpoints"}


def data_recipe(spec: FineTuneJobSpec) -> dict[str, Any]:
    """What the manifest says of the data: an edit of it starts the next run."""
    recipe = {k: v for k, v in spec.data.to_json_dict().items() if k not in _DATA_NEUTRAL}
    return recipe | {"sequenceLength": spec.training.sequence_length}


def data_outcome(spec: FineTuneJobSpec) -> dict[str, Any]:
    """What decides the data phase's output besides the sources' contents and the tokenizer.

    A run that ended at a language model's cap goes on as the next one when the cap is raised: the same preparation, which spends on.
    """
    return {name: _strip_models(value) for name, value in data_recipe(spec).items()}


def _strip_models(value: Any) -> Any:
    """The value without what is neutral in language models, which are told by their `url` and `model`."""
    if isinstance(value, list):
        return [_strip_models(item) for item in value]
    if not isinstance(value, dict):
        return value
    is_model = {"url", "model"} <= value.keys()
    return {k: _strip_models(v) for k, v in value.items() if not (is_model and k in _MODEL_NEUTRAL)}


def training_recipe(spec: FineTuneJobSpec) -> dict[str, Any]:
    """What decides the adapter besides data and base."""
    return {k: v for k, v in spec.training.to_json_dict().items() if k not in _TRAINING_NEUTRAL}


def run_digest(spec: FineTuneJobSpec, data_digest: str, base_digest: str) -> str:
    """What counts as the same run: base, data and training. A change of anything else takes effect on the run at hand."""
    return digest_json({"base": base_digest, "data": data_digest, "training": training_recipe(spec)})


def inputs_digest(spec: FineTuneJobSpec) -> str:
    """What the manifest alone says of a run's inputs: an edit that changes it starts the next run, any other does not."""
    return digest_json(
        {"base": spec.base_model.to_json_dict(), "data": data_recipe(spec), "training": training_recipe(spec)}
    )
