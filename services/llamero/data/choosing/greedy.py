"""Greedy choices among vectors: farthest first (k-center), and best first with a limit on similarity.

Pure and exact: the same records as the plain loops choose, up to ties in the last bits of a distance. Both loops look at one record
after another; here they run over a block of candidates, so that the work on all records is one matrix product per block.
"""

import numpy as np
from numpy.typing import NDArray

_LEAST_CANDIDATES, _MOST_CANDIDATES = 64, 2048
_ROWS = 2048
_NEVER = np.float32(-1.0)


def k_center(
    vectors: NDArray[np.float32], centres: NDArray[np.float32] | NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Indices of `count` vectors: those of the centres first, then always the one farthest from its nearest chosen one.

    `vectors` [n, d] float32. `centres`: indices of vectors, or points [k, d] for each of which the nearest vector is taken (one that
    was taken already: none). Euclidean distance; of equally far ones the first. Returns min(count, n) distinct indices in the order of
    choice. Gonzalez' algorithm (1985), a 2-approximation of the smallest covering radius.
    """
    return k_center_distances(vectors, centres, count)[0]


def k_center_distances(
    vectors: NDArray[np.float32], centres: NDArray[np.float32] | NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`k_center`'s indices, and how far each was from the nearest chosen one when it was chosen (float32; the centres': infinite).

    Why blocks give what one step at a time gives: distances only shrink, so that of the candidates, the records that are farthest at the
    block's start, each one is the farthest of all as long as it is farther than every record outside was at the start.
    """
    n = len(vectors)
    count = min(count, n)
    chosen = _find_first(vectors, centres)[:count]
    if not n or not count:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    norms = _square_norms(vectors)
    squares = np.full(n, np.inf, np.float32)
    if not len(chosen):
        chosen = np.zeros(1, np.int64)
    _shrink(squares, vectors, norms, chosen)
    order, distances = [chosen], [np.full(len(chosen), np.inf, np.float32)]
    left, candidates = count - len(chosen), _LEAST_CANDIDATES
    while left:
        picks, found = _pick_block(squares, vectors, norms, left, candidates)
        if len(picks) > candidates // 4:
            candidates = min(2 * candidates, _MOST_CANDIDATES)
        elif len(picks) < candidates // 16:
            candidates = max(candidates // 2, _LEAST_CANDIDATES)
        _shrink(squares, vectors, norms, picks)
        order.append(picks)
        distances.append(np.sqrt(np.maximum(found, 0)))
        left -= len(picks)
    return np.concatenate(order), np.concatenate(distances)


def _find_first(vectors: NDArray[np.float32], centres: NDArray) -> NDArray[np.int64]:
    if centres.dtype.kind in "iu":
        return np.asarray(list(dict.fromkeys(centres.tolist())), np.int64)
    if not len(centres) or not len(vectors):
        return np.zeros(0, np.int64)
    return np.asarray(list(dict.fromkeys(find_nearest_rows(vectors, centres).tolist())), np.int64)


def find_nearest_rows(vectors: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each point [k, d] the index of the nearest vector [n, d]; of equally near ones the first."""
    best = np.full(len(points), np.inf, np.float32)
    found = np.zeros(len(points), np.int64)
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        squares = _square_norms(block)[:, None] - 2 * (block @ points.T)
        rows = squares.argmin(axis=0)
        values = squares[rows, np.arange(len(points))]
        nearer = values < best
        best[nearer], found[nearer] = values[nearer], rows[nearer] + start
    return found


def _pick_block(
    squares: NDArray[np.float32], vectors: NDArray[np.float32], norms: NDArray[np.float32], most: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The next picks, as many as are certain, and their squared distances when they were picked. `squares` is left alone."""
    n = len(squares)
    first = int(squares.argmax())
    if n > width:
        split = np.argpartition(squares, n - width)
        bound = float(squares[split[: n - width]].max())
        candidates = np.union1d(split[n - width :], [first])
    else:
        bound, candidates = -np.inf, np.arange(n)
    own, own_norms = vectors[candidates], norms[candidates]
    mutual = own_norms[:, None] + own_norms[None, :] - 2 * (own @ own.T)
    now = squares[candidates].copy()
    picks: list[int] = []
    found: list[np.float32] = []
    at = int(np.searchsorted(candidates, first))
    while len(picks) < most:
        picks.append(at)
        found.append(now[at])
        np.minimum(now, mutual[at], out=now)
        now[picks] = _NEVER  # chosen, even where copies of it are not
        at = int(now.argmax())
        if now[at] <= max(bound, float(_NEVER)):
            break
    return candidates[picks], np.asarray(found, np.float32)


def _shrink(
    squares: NDArray[np.float32], vectors: NDArray[np.float32], norms: NDArray[np.float32], picks: NDArray[np.int64]
) -> None:
    """Bring each record's squared distance to its nearest chosen one up to date; chosen ones never come again."""
    own, own_norms = np.ascontiguousarray(vectors[picks].T), norms[picks]
    for start in range(0, len(squares), _ROWS):
        part = slice(start, start + _ROWS)
        products = vectors[part] @ own
        products *= -2
        products += own_norms
        nearest = products.min(axis=1) + norms[part]
        np.minimum(squares[part], np.maximum(nearest, 0), out=squares[part])
    squares[picks] = _NEVER


def _square_norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = np.einsum("ij,ij->i", vectors, vectors)
    return norms


def find_nearest(
    vectors: NDArray[np.float32], chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each vector the index of its nearest chosen one (the first of equally near ones), and the Euclidean distance."""
    norms = _square_norms(vectors)
    nearest, distances = np.zeros(len(vectors), np.int64), np.zeros(len(vectors), np.float32)
    if not len(chosen):
        return nearest, np.full(len(vectors), np.inf, np.float32)
    own, own_norms = np.ascontiguousarray(vectors[chosen].T), norms[chosen]
    for start in range(0, len(vectors), _ROWS):
        part = slice(start, start + _ROWS)
        squares = own_norms - 2 * (vectors[part] @ own)
        best = squares.argmin(axis=1)
        nearest[part] = chosen[best]
        distances[part] = np.sqrt(np.maximum(squares[np.arange(len(best)), best] + norms[part], 0))
    return nearest, distances


def keep_dissimilar(
    vectors: NDArray[np.float32], limit: float, count: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Walk down the vectors and keep what is not too similar to a kept one.

    `vectors` [n, d], best first, of norm 1. A vector whose cosine similarity to a kept one is greater than `limit` is dropped, and
    with `count` every one after so many kept ones.
    Returns the indices of those kept, ascending; for each vector the index of the most similar kept one before it where it was dropped
    for that, else -1; and that similarity (float32; -1 where nothing was compared).
    Similarities are rounded to 6 digits before they are compared, so that the shape of a matrix product decides nothing.
    """
    n = len(vectors)
    other, similarity = np.full(n, -1, np.int64), np.full(n, -1, np.float32)
    kept: NDArray[np.int64] = np.zeros(0, np.int64)
    store = np.empty((0, vectors.shape[1]), np.float32)
    for start in range(0, n, _ROWS):
        rows = np.arange(start, min(start + _ROWS, n))
        block = vectors[rows]
        _compare_with_kept(block, rows, store[: len(kept)], kept, limit, other, similarity)
        fresh = rows[other[rows] < 0]
        added = _keep_within_block(
            vectors[fresh], fresh, limit, None if count is None else count - len(kept), other, similarity
        )
        if len(kept) + len(added) > len(store):
            grown = np.empty((max(2 * len(store), len(kept) + len(added), _ROWS), vectors.shape[1]), np.float32)
            grown[: len(kept)] = store[: len(kept)]
            store = grown
        store[len(kept) : len(kept) + len(added)] = vectors[added]
        kept = np.concatenate([kept, added])
        if count is not None and len(kept) >= count:
            break
    return kept, other, similarity


def _compare_with_kept(
    block: NDArray[np.float32],
    rows: NDArray[np.int64],
    store: NDArray[np.float32],
    kept: NDArray[np.int64],
    limit: float,
    other: NDArray[np.int64],
    similarity: NDArray[np.float32],
) -> None:
    for at in range(0, len(kept), 2 * _ROWS):
        products = block @ store[at : at + 2 * _ROWS].T
        best = products.argmax(axis=1)
        found = np.round(products[np.arange(len(rows)), best], 6)
        nearer = found > similarity[rows]
        similarity[rows[nearer]] = found[nearer]
        other[rows[nearer]] = np.where(found[nearer] > limit, kept[at + best[nearer]], -1)


def _keep_within_block(
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    limit: float,
    most: int | None,
    other: NDArray[np.int64],
    similarity: NDArray[np.float32],
) -> NDArray[np.int64]:
    """The rows of a block that are kept; the others are marked."""
    products = np.round(vectors @ vectors.T, 6)
    best, by = similarity[rows], np.full(len(rows), -1, np.int64)
    kept: list[int] = []
    for i in range(len(rows)):
        if by[i] >= 0 and best[i] > limit:
            continue
        if most is not None and len(kept) >= most:
            break
        kept.append(i)
        later = slice(i + 1, None)
        nearer = products[i, later] > best[later]
        np.copyto(best[later], products[i, later], where=nearer)
        by[later][nearer] = i
    similarity[rows] = best
    dropped = np.flatnonzero((by >= 0) & (best > limit))
    other[rows[dropped]] = rows[by[dropped]]
    return rows[kept]
