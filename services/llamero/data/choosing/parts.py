"""Vectors of all shards, brought together part by part: one part as long as a task can hold it, else parts of space.

A part is `{"vectors": [URIs], "part": number or None, "piece": i, "pieces": m}` in a task: all records of the vectors (None), or those nearest
to one of many centres; a part that is too large is cut by hash into pieces. What is done with a part is left to the steps.
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamero.data.choosing.clusters import assign, find_agglomerative, find_k_means
from llamero.data.choosing.tables import PLACE_DTYPE, PLACES_FILE, read_array, save_places
from llamero.data.shards import Shard
from llamero.data.shared import SharedFiles
from llamero.data.steps.view import Report, Round, SetContext, Task

VECTORS_FILE = "vectors.npy"
CENTRES_FILE = "centres.npy"
STARTS_FILE = "starts.npy"
LABELS_FILE = "labels.npy"
DISTANCES_FILE = "distances.npy"

SAMPLE = 20_000
"""Records that clusters and projections are found from, chosen by content hash."""
MOST_BYTES = 320 << 20
"""Vectors of a part, in float32: 327,680 of 256 dimensions."""
_MOST_PARTS = 1024
_PER_PART = 8  # an average part is so many times smaller than the largest allowed


def sample_below(records: int) -> int:
    """Records with a hash below this are the sample: some SAMPLE of so many."""
    return min(2**64 - 1, 2**64 * SAMPLE // max(records, 1))


def plan_centres(
    context: SetContext, vectors: Sequence[Shard], clusters: int, clustering: str = "k-means"
) -> Generator[Round, list[Shard], str]:
    """One task that finds centres; its URI."""
    task = {
        "do": "embedding.cluster",
        "vectors": [s.uri for s in vectors],
        "below": sample_below(context.records),
        "clusters": clusters,
        "clustering": clustering,
    }
    found = yield Round("finding clusters", [task])
    return found[0].uri


def plan_parts(context: SetContext, vectors: Sequence[Shard]) -> Generator[Round, list[Shard], list[dict[str, Any]]]:
    """The parts, each with its number of `records`; with more than one also the URI of their `centres`."""
    total = sum(s.summary["records"] for s in vectors)
    most = max(MOST_BYTES // (4 * max((s.summary["dimensions"] for s in vectors), default=1)), 1)
    if total <= most:
        uris = [s.uri for s in vectors]
        return [{"vectors": uris, "part": None, "piece": 0, "pieces": 1, "records": total}] if total else []
    centres = yield from plan_centres(context, vectors, min(-(-total * _PER_PART // most), _MOST_PARTS))
    tasks = [{"do": "embedding.split", "vectors": s.uri, "centres": centres} for s in vectors]
    split = yield Round("parting vectors", tasks, rows=[s.summary["records"] for s in vectors])
    sizes = np.sum([s.summary["sizes"] for s in split], axis=0)
    uris = [s.uri for s in split]
    parts = []
    for part, size in enumerate(sizes.tolist()):
        pieces = -(-size // most)
        for piece in range(pieces):
            place = {"part": part, "piece": piece, "pieces": pieces, "centres": centres}
            parts.append({"vectors": uris, **place, "records": -(-size // pieces)})
    return parts


def load_part(task: Task, files: SharedFiles) -> tuple[NDArray, NDArray[np.float32]]:
    """A part's places [n] and vectors [n, d] float32, in the order of content hashes."""
    slices = [(uri, *_slice(uri, task["part"], files)) for uri in task["vectors"]]
    places = [np.array(read_array(uri, PLACES_FILE, files)[a:b]) for uri, a, b in slices]
    picked = [np.flatnonzero(p["hash"] % np.uint64(task["pieces"]) == np.uint64(task["piece"])) for p in places]
    gathered = np.concatenate([p[i] for p, i in zip(places, picked, strict=True)] or [np.zeros(0, PLACE_DTYPE)])
    order = np.lexsort((gathered["row"], gathered["shard"], gathered["hash"]))
    target = np.empty(len(order), np.int64)
    target[order] = np.arange(len(order))
    width = max((read_array(uri, VECTORS_FILE, files).shape[1] for uri, _, _ in slices), default=0)
    vectors = np.empty((len(gathered), width), np.float32)
    done = 0
    for (uri, start, end), rows in zip(slices, picked, strict=True):
        if len(rows):
            vectors[target[done : done + len(rows)]] = read_array(uri, VECTORS_FILE, files)[start:end][rows]
        done += len(rows)
    return gathered[order], vectors


def _slice(uri: str, part: int | None, files: SharedFiles) -> tuple[int, int]:
    if part is None:
        return 0, len(read_array(uri, PLACES_FILE, files, [VECTORS_FILE]))
    starts = read_array(uri, STARTS_FILE, files, [PLACES_FILE, VECTORS_FILE])
    return int(starts[part]), int(starts[part + 1])


def save_vectors(folder: Path, places: NDArray, vectors: NDArray[np.float32]) -> dict[str, Any]:
    """Leave vectors, as float16, in a task's folder."""
    save_places(folder, places)
    np.save(folder / VECTORS_FILE, vectors.astype(np.float16))
    return {"records": len(places), "dimensions": int(vectors.shape[1])}


def load_vectors(uri: str, files: SharedFiles) -> tuple[NDArray, NDArray[np.float32]]:
    """A shard's places and vectors, in its order."""
    places = np.array(read_array(uri, PLACES_FILE, files, [VECTORS_FILE]))
    return places, np.array(read_array(uri, VECTORS_FILE, files, [PLACES_FILE]), np.float32)


def cluster(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Centres of a sample, in the order of content hashes."""
    places, vectors = [], []
    for uri in task["vectors"]:
        own = read_array(uri, PLACES_FILE, files, [VECTORS_FILE])
        rows = np.flatnonzero(own["hash"] < np.uint64(task["below"]))
        if len(rows):
            places.append(own[rows])
            vectors.append(np.array(read_array(uri, VECTORS_FILE, files)[rows], np.float32))
    if not places:  # very few records, none of them in the sample
        for uri in task["vectors"]:
            own, found = load_vectors(uri, files)
            if len(own):
                places.append(own)
                vectors.append(found)
    if not places:
        np.save(folder / CENTRES_FILE, np.zeros((0, 1), np.float32))
        return {"clusters": 0, "sample": 0}
    gathered = np.concatenate(places)
    order = np.lexsort((gathered["row"], gathered["shard"], gathered["hash"]))[: 2 * SAMPLE]
    sample = np.concatenate(vectors)[order]
    if task["clustering"] == "agglomerative":
        centres = find_agglomerative(sample, task["clusters"])
    else:
        centres = find_k_means(sample, task["clusters"])
    np.save(folder / CENTRES_FILE, centres)
    return {"clusters": len(centres), "sample": len(sample)}


def split(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """A shard's vectors in the order of their nearest centres: STARTS_FILE [parts + 1] says where each begins."""
    places, vectors = load_vectors(task["vectors"], files)
    centres = np.array(read_array(task["centres"], CENTRES_FILE, files))
    labels, _ = assign(vectors, centres)
    order = np.lexsort((places["hash"], labels))
    sizes = np.bincount(labels, minlength=len(centres))
    np.save(folder / STARTS_FILE, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    report(len(places))
    return save_vectors(folder, places[order], vectors[order]) | {"sizes": sizes.tolist()}


def label(task: Task, folder: Path, files: SharedFiles, report: Report) -> dict[str, Any]:
    """Each vector's nearest centre (LABELS_FILE int32 [n]) and the distance to it, rounded to 4 digits (DISTANCES_FILE float32 [n])."""
    places, vectors = load_vectors(task["vectors"], files)
    labels, distances = assign(vectors, np.array(read_array(task["centres"], CENTRES_FILE, files)))
    np.save(folder / LABELS_FILE, labels)
    np.save(folder / DISTANCES_FILE, np.round(distances, 4))
    report(len(places))
    return {"records": len(places)}
