"""How far each vector's k-th nearest neighbour is, exactly, by blocks of matrix products."""

import numpy as np
from numpy.typing import NDArray

_QUERIES = 512
_GROUP = 32


def measure_neighbours(
    vectors: NDArray[np.float32], queries: NDArray[np.int64], neighbour: int = 6
) -> NDArray[np.float32]:
    """Euclidean distance of each queried vector [m] to its `neighbour`-th nearest other one, float32, rounded to 4 digits.

    `vectors` [n, d] of norm 1, `queries` indices of some. With fewer than `neighbour` others the farthest counts, with none 0.

    Similarities are looked through by groups: the k-th greatest of the groups' maxima is a lower bound of the k-th greatest of all, and
    few lie above it.
    """
    n = len(vectors)
    wanted = min(neighbour, n - 1)
    distances = np.zeros(len(queries), np.float32)
    if wanted <= 0:
        return distances
    groups = n // _GROUP
    for start in range(0, len(queries), _QUERIES):
        own = queries[start : start + _QUERIES]
        similar = vectors[own] @ vectors.T
        similar[np.arange(len(own)), own] = -2
        if groups > 4 * wanted:
            # The group of a vector is its index modulo `groups`: whole rows are compared, which is fast.
            maxima = similar[:, :groups].copy()
            for at in range(groups, groups * _GROUP, groups):
                np.maximum(maxima, similar[:, at : at + groups], out=maxima)
            bound = np.partition(maxima, groups - wanted, axis=1)[:, groups - wanted]
            rows, columns = np.nonzero(similar >= bound[:, None])
            values = similar[rows, columns]
            order = np.lexsort((-values, rows))
            firsts = np.searchsorted(rows, np.arange(len(own)))
            found = values[order][firsts + wanted - 1]
        else:
            found = np.partition(similar, n - wanted, axis=1)[:, n - wanted]
        distances[start : start + len(own)] = np.sqrt(np.maximum(2 - 2 * found, 0))
    return np.round(distances, 4)
