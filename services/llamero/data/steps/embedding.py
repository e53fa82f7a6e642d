"""Records as vectors: by hashed words, by a local model, or by an endpoint; the rounds that make them for the steps that choose.

The vectors of a shard lie as float16 in a task's folder, with the places of its training records. `hashed` hangs on the set's content, not on how it
is cut: document frequencies are integers, the projection is found in one task from records chosen by content hash.
"""

from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llamero.data.choosing import hashed, parts
from llamero.data.choosing.neighbours import measure_neighbours
from llamero.data.choosing.tables import (
    PLACE_DTYPE,
    PLACES_FILE,
    VALUES_FILE,
    list_scores,
    make_place,
    on_one_thread,
    read_array,
    read_training,
    save_places,
)
from llamero.data.errors import DataError
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.view import Report, Round, Seen, SetContext, SetTask, Task
from llamero.spec.steps import Embedding, LanguageModel

_TEXTS_AT_ONCE = 2048
_COUNT_FILES = ("starts.npy", "features.npy", "counts.npy")
_FREQUENCY_FILES = ("known.npy", "frequencies.npy")
_PROJECTION_FILES = ("features.npy", "weights.npy", "matrix.npy")
_LOCAL_BATCH = 16
_LOCAL_LENGTH_STEP = 64
_LOCAL_MOST_TOKENS = 512


def plan_vectors(embedding: Embedding, context: SetContext) -> Generator[Round, list[Shard], list[Shard]]:
    """The rounds that leave each shard's vectors, in the views' order; summaries have `records` and `dimensions`."""
    if embedding.kind != "hashed":
        options = embedding.to_json_dict()
        asking = {
            "answers": context.answers,
            "workers": context.workers,
            "allowHttp": context.allow_http,
            "preparation": context.preparation,
        }
        rest = {"embedding": options, **(asking if embedding.kind == "endpoint" else {})}
        tasks = [{"do": "embedding.encode", "view": view, **rest} for view in context.views]
        vectors = yield Round("embedding records", tasks, reusable=True, rows=context.counts)
        return vectors
    below = parts.sample_below(context.records)
    counted = yield Round(
        "counting words",
        [{"do": "embedding.count", "view": view, "below": below} for view in context.views],
        rows=context.counts,
    )
    uris = [s.uri for s in counted]
    fitted = yield Round(
        "finding directions",
        [{"do": "embedding.project", "counts": uris, "below": below, "dimensions": embedding.dimensions}],
    )
    vectors = yield Round(
        "embedding records",
        [{"do": "embedding.apply", "counts": uri, "projection": fitted[0].uri} for uri in uris],
        rows=[s.summary["records"] for s in counted],
    )
    return vectors


def count(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A shard's hashed features, and in how many of its texts each stands."""
    counter, found, places = hashed.WordCounter(), [], []
    for batch in _batches(read_training(task["view"], files, report)):
        places += [make_place(seen) for seen in batch]
        found.append(counter.count([seen.record.text for seen in batch]))
    counts = hashed.Counts.join(found)
    frequencies = hashed.count_documents(counts)
    known = np.flatnonzero(frequencies)
    save_places(folder, np.array(places, PLACE_DTYPE))
    _save(folder, _COUNT_FILES, counts.starts, counts.features, counts.counts)
    _save(folder, _FREQUENCY_FILES, known.astype(np.uint32), frequencies[known].astype(np.uint32))
    return {"records": len(places)}


def project(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """The projection, from all document frequencies and the sample's features."""
    frequencies = np.zeros(hashed.BUCKETS, np.int64)
    documents, places, sample = 0, [], []
    for uri in task["counts"]:
        own = read_array(uri, PLACES_FILE, files, [*_COUNT_FILES, *_FREQUENCY_FILES])
        documents += len(own)
        known, numbers = (read_array(uri, name, files) for name in _FREQUENCY_FILES)
        frequencies[known] += numbers
        rows = np.flatnonzero(own["hash"] < np.uint64(task["below"]))
        places.append(own[rows])
        sample.append(_read_counts(uri, files).take(rows))
    gathered = np.concatenate([np.zeros(0, PLACE_DTYPE), *places])
    order = np.lexsort((gathered["row"], gathered["shard"], gathered["hash"]))[: 2 * parts.SAMPLE]
    joined = hashed.Counts.join(sample).take(order)
    projection = hashed.fit_projection(documents, frequencies, joined, task["dimensions"])
    _save(folder, _PROJECTION_FILES, projection.features, projection.weights, projection.matrix)
    return {"records": documents, "sample": len(joined), "features": len(projection.features)}


def apply(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A shard's vectors from its features."""
    places = np.array(read_array(task["counts"], PLACES_FILE, files, _COUNT_FILES))
    matrices = [np.array(read_array(task["projection"], name, files, _PROJECTION_FILES)) for name in _PROJECTION_FILES]
    vectors = hashed.Projection(*matrices).apply(_read_counts(task["counts"], files))
    report(len(places))
    return parts.save_vectors(folder, places, vectors)


def encode(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A shard's vectors from a model."""
    embedding = Embedding.model_validate(task["embedding"])
    seen = list(read_training(task["view"], files, lambda rows: None))
    places = np.array([make_place(s) for s in seen], PLACE_DTYPE)
    texts = [s.record.text for s in seen]
    asked: list[dict[str, Any]] = []
    if embedding.kind == "local":
        vectors = _encode_locally(embedding, texts, files, report)
    else:
        vectors = _ask(embedding.model, texts, task, asked)
    if not np.isfinite(vectors).all():
        raise DataError(
            f"The embedding model ({embedding.uri or task['embedding']['model']['model']}) gives values that are no numbers: use another."
        )
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
    return parts.save_vectors(folder, places, unit) | ({"asked": asked} if asked else {})


def neighbours(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """How far the 6th nearest neighbour is for the records of a part whose index falls into one of `of` equal ranges."""
    places, vectors = parts.load_part(task, files)
    queries = np.arange(len(places) * task["number"] // task["of"], len(places) * (task["number"] + 1) // task["of"])
    distances = measure_neighbours(vectors, queries, task["neighbour"])
    save_places(folder, places[queries])
    np.save(folder / VALUES_FILE, distances[:, None].astype(np.float64))
    return {"records": len(queries)}


def _batches(seen: Iterator[Seen]) -> Iterator[list[Seen]]:
    while batch := list(islice(seen, _TEXTS_AT_ONCE)):
        yield batch


def _save(folder: Path, names: Sequence[str], *arrays: NDArray) -> None:
    for name, array in zip(names, arrays, strict=True):
        np.save(folder / name, array)


def _read_counts(uri: str, files: SharedFiles) -> hashed.Counts:
    return hashed.Counts(*(read_array(uri, name, files, [PLACES_FILE, *_COUNT_FILES]) for name in _COUNT_FILES))


def _ask(
    model: LanguageModel | None, texts: Sequence[str], task: Task, asked: list[dict[str, Any]]
) -> NDArray[np.float32]:
    """The endpoint's vectors; what that took is added to `asked`."""
    from llamero.data.asking.asker import Asker

    if model is None:
        raise DataError("An embedding of kind `endpoint` needs the endpoint in `model`.")
    if not texts:
        return np.zeros((0, 1), np.float32)
    with Asker(
        model,
        "embedding",
        task["answers"],
        task["workers"],
        allow_http=task["allowHttp"],
        preparation=task["preparation"],
    ) as asker:
        vectors = np.asarray(asker.embed(texts), np.float32)
    asked.append(asker.account.to_dict())
    return vectors


def _encode_locally(
    embedding: Embedding, texts: Sequence[str], files: SharedFiles, report: Report
) -> NDArray[np.float32]:
    """Mean of the last layer over a text's tokens (its first 512), float32 [n, width].

    Texts go through the model in batches of one shape, filled up, so that a text's vector does not hang on those beside it.
    """
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise DataError(
            "An embedding of kind `local` needs torch, which is not installed where the data is prepared: install the `training` extra "
            "there, or use kind `hashed` or `endpoint`."
        ) from error
    if embedding.uri is None:
        raise DataError("An embedding of kind `local` needs the folder of its model in `uri`.")
    path = files.fetch_named(embedding.uri)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            str(path), dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"The embedding model in {embedding.uri} can't be loaded: {error}") from error
    model.eval()
    longest = min(_LOCAL_MOST_TOKENS, getattr(model.config, "max_position_embeddings", None) or _LOCAL_MOST_TOKENS)
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"] if texts else []
    vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
    by_shape: dict[int, list[int]] = {}
    for i, row in enumerate(ids):
        by_shape.setdefault(min(-(-max(len(row), 1) // _LOCAL_LENGTH_STEP) * _LOCAL_LENGTH_STEP, longest), []).append(i)
    done = 0
    for length, rows in sorted(by_shape.items()):
        for start in range(0, len(rows), _LOCAL_BATCH):
            batch = rows[start : start + _LOCAL_BATCH]
            tokens = np.zeros((_LOCAL_BATCH, length), np.int64)
            mask = np.zeros((_LOCAL_BATCH, length), np.int64)
            mask[:, 0] = 1  # a row without any token has no mean
            for at, i in enumerate(batch):
                tokens[at, : len(ids[i])] = ids[i]
                mask[at, : len(ids[i])] = 1
            with torch.inference_mode():
                attention = torch.from_numpy(mask)
                hidden = model(input_ids=torch.from_numpy(tokens), attention_mask=attention).last_hidden_state
                means = (hidden * attention[..., None]).sum(1) / attention.sum(1, keepdim=True)
            vectors[batch] = means[: len(batch)].numpy()
            done += len(batch)
            report(done)
    return vectors


TASKS: Final[dict[str, SetTask]] = {
    "count": count,
    "project": on_one_thread(project),
    "apply": on_one_thread(apply),
    "encode": on_one_thread(encode),
    "cluster": on_one_thread(parts.cluster),
    "split": on_one_thread(parts.split),
    "label": on_one_thread(parts.label),
    "neighbours": on_one_thread(neighbours),
    "list": list_scores,
}
