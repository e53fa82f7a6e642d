"""Which of the records that are alike stay: clusters by union-find, and in each the best, in whose favour others are dropped.

A record is dropped only if it is verified against the very one that stays. In a chain (A like B, B like C, A unlike C) the best
stays with those that are unlike it, of which the next best stays, and so on.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llamero.data.near.pairs import Pairs, Similarities
from llamero.data.near.sketch import spread_ranges

CENTRES = 16
"""The best so many of a cluster are compared with all its members, also where no band led to the pair."""

Measure = Callable[[Pairs], Similarities]


def connect(parents: NDArray[np.int32], edges: Pairs) -> None:
    """Union-find: `parents` [records] afterwards leads from both ends of each edge to one root, the least of its cluster."""
    nodes = np.unique(edges)
    while True:
        compress(parents, nodes)
        left, right = parents[edges[:, 0]], parents[edges[:, 1]]
        apart = left != right
        if not apart.any():
            return
        edges, left, right = edges[apart], left[apart], right[apart]
        nodes = np.unique(np.concatenate([edges.ravel(), left, right]))
        np.minimum.at(parents, np.maximum(left, right), np.minimum(left, right))


def compress(parents: NDArray[np.int32], nodes: NDArray[np.int64]) -> None:
    """Lead the nodes straight to their roots."""
    while True:
        above = parents[nodes]
        root = parents[above]
        if (above == root).all():
            return
        parents[nodes] = root


def complete_edges(
    edges: Pairs, similarities: Similarities, roots: NDArray[np.int64], measure: Measure, threshold: float
) -> tuple[Pairs, Similarities]:
    """The edges, and those that lie between the best `CENTRES` of each cluster and its other members.

    Nodes are numbered from the best downwards; `roots` [nodes] names each one's cluster.
    """
    order = np.argsort(roots, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], roots[order][1:] != roots[order][:-1]]))
    first = np.repeat(starts, np.diff(np.append(starts, len(order))))
    counts = np.minimum(np.arange(len(order)) - first, CENTRES)
    wanted = np.stack([order[spread_ranges(first, counts)], np.repeat(order, counts)], axis=1)
    codes = wanted[:, 0] * len(roots) + wanted[:, 1]
    known = np.sort(edges, axis=1)
    wanted = wanted[~np.isin(codes, known[:, 0] * len(roots) + known[:, 1])]
    measured = measure(wanted)
    alike = measured >= threshold
    return np.concatenate([known, wanted[alike]]), np.concatenate([similarities, measured[alike]])


def choose_kept(count: int, edges: Pairs, similarities: Similarities) -> tuple[NDArray[np.int64], Similarities]:
    """For each of `count` nodes, numbered from the best downwards, the one in whose favour it is dropped, -1 where it stays.

    Returns these [count], and how similar the two are.
    """
    ends = np.concatenate([edges, edges[:, ::-1]])
    values = np.concatenate([similarities, similarities])
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    others, values = ends[order, 1], values[order]
    bounds = np.searchsorted(ends[order, 0], np.arange(count + 1))
    favoured = np.full(count, -1, np.int64)
    found = np.zeros(count)
    for node in range(count):
        if favoured[node] >= 0:
            continue
        alike = slice(bounds[node], bounds[node + 1])
        worse = (others[alike] > node) & (favoured[others[alike]] < 0)
        favoured[others[alike][worse]] = node
        found[others[alike][worse]] = values[alike][worse]
    return favoured, found
