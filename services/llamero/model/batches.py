"""Batches without padding: which examples go together, and how they are laid end to end in one row.

A bin is a row of at most `capacity` tokens that holds whole documents; positions restart at each, and the attention of
`attention.py` keeps them apart. All choices are functions of lengths, seed and epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end.

    `input_ids`, `position_ids`: int64 [1, T], positions restart per document. `starts`: int32 [documents + 1], the
    documents' bounds (cu_seqlens), last entry T. `lengths`: their lengths, on the host. `target_positions`: int64 [M],
    the row positions whose hidden state predicts a trained token; `target_ids`: int64 [M], those tokens;
    `target_documents`: int64 [M], which document each belongs to.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    starts: torch.Tensor
    lengths: tuple[int, ...]
    target_positions: torch.Tensor
    target_ids: torch.Tensor
    target_documents: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def targets(self) -> int:
        return self.target_ids.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "position_ids", "starts", "target_positions", "target_ids", "target_documents")
        }
        return replace(self, **moved)


def lay_out(examples: Sequence[tuple[ArrayLike, ArrayLike]]) -> Batch:
    """Lay examples (ids [n], mask [n]; 1 = trained) end to end in the order given.

    A document's first token is never a target, since nothing before it predicts it. Raises ValueError where there is no
    example or an empty one.
    """
    id_rows = [np.asarray(ids, dtype=np.int64) for ids, _ in examples]
    mask_rows = [np.asarray(mask, dtype=bool) for _, mask in examples]
    lengths = [len(row) for row in id_rows]
    if not lengths or min(lengths) == 0:
        raise ValueError("a batch needs at least one example, and no empty one")
    starts = np.cumsum([0, *lengths])
    ids = np.concatenate(id_rows)
    mask = np.concatenate(mask_rows)
    mask[starts[:-1]] = False
    documents = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(len(ids)) - starts[documents]
    targets = np.flatnonzero(mask)
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        starts=torch.from_numpy(starts.astype(np.int32)),
        lengths=tuple(lengths),
        target_positions=torch.from_numpy(targets - 1),
        target_ids=torch.from_numpy(ids[targets]),
        target_documents=torch.from_numpy(documents[targets]),
    )


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `count` examples in an epoch: a permutation that seed and epoch decide."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def plan_bins(lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> list[list[int]]:
    """First-fit decreasing: bins of indices into `lengths`, none over `capacity` tokens, each index exactly once.

    Raises ValueError for an example that fits no bin.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and int(sizes.max()) > capacity:
        worst = int(sizes.argmax())
        raise ValueError(f"example {worst} has {sizes[worst]} tokens, more than the {capacity} of a bin")
    order = np.argsort(-sizes, kind="stable")
    free = _FirstFit(len(sizes), capacity)
    bins: list[list[int]] = []
    for index in order.tolist():
        chosen = free.take(int(sizes[index]))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(index)
    return bins


class _FirstFit:
    """A tree of maxima over the bins' free space, so that the first bin with room is found in log time."""

    def __init__(self, bins: int, capacity: int) -> None:
        self._leaves = 1
        while self._leaves < max(bins, 1):
            self._leaves *= 2
        self._tree = [capacity] * (2 * self._leaves)

    def take(self, size: int) -> int:
        """Take `size` from the first bin that has it; its index."""
        tree, node = self._tree, 1
        while node < self._leaves:
            node = 2 * node if tree[2 * node] >= size else 2 * node + 1
        tree[node] -= size
        found = node - self._leaves
        node //= 2
        while node:
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
            node //= 2
        return found


def plan_dataset_bins(
    lengths: Sequence[int] | NDArray[np.int64], capacity: int, seed: int, epoch: int
) -> list[list[int]]:
    """Bins packed over the whole set, in an order that seed and epoch decide; equal lengths meet differently each epoch."""
    sizes = np.asarray(lengths, dtype=np.int64)
    order = epoch_order(len(sizes), seed, epoch)
    bins = [[int(order[i]) for i in chosen] for chosen in plan_bins(sizes[order], capacity)]
    turn = np.random.default_rng([seed, epoch, 1]).permutation(len(bins))
    return [bins[i] for i in turn]
