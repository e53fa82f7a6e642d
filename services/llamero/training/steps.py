"""Which examples an optimiser step takes, and the bins that they are laid into. Pure: lengths, seed and step decide.

A step's examples are the recipe's, whatever the bins: their capacity changes how the work is laid out, never its result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llamero.model.batches import epoch_order, plan_bins, plan_dataset_bins


@dataclass(frozen=True, eq=False)
class StepPlan:
    """The optimiser steps of a training. `lengths`: int64 [n], tokens of each example.

    `packing` batch: a step takes `batch_size` examples. dataset: it takes `batch_size` bins of `sequence_length` tokens
    that were filled over the whole set, so that an epoch has fewer, fuller steps.
    """

    lengths: NDArray[np.int64]
    batch_size: int
    packing: Literal["batch", "dataset"]
    sequence_length: int
    seed: int
    epochs: float
    max_steps: int | None

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch takes what is left."""
        return math.ceil(self._items / self.batch_size)

    @property
    def total_steps(self) -> int:
        """`max_steps` where given, else the epochs' steps, a fraction of an epoch rounded up to whole steps."""
        if self.max_steps is not None:
            return self.max_steps
        # A hair is taken off, so that 0.1 epochs of 30 steps are 3 steps and not 4.
        return max(1, math.ceil(self.epochs * self.steps_per_epoch - 1e-9))

    @property
    def _items(self) -> int:
        return len(self.lengths) if self.packing == "batch" else len(_dataset_bins(self, 0))

    def examples_of(self, step: int) -> list[int]:
        """The examples of optimiser step `step`, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.batch_size
        if self.packing == "batch":
            return [int(i) for i in _order(self, epoch)[first : first + self.batch_size]]
        return [i for chosen in _dataset_bins(self, epoch)[first : first + self.batch_size] for i in chosen]

    def bins_of(self, step: int, capacity: int) -> list[list[int]]:
        """The step's examples in bins of at most `capacity` tokens; a longer example gets a bin to itself."""
        return lay_into_bins(self.examples_of(step), self.lengths, capacity)


@lru_cache(maxsize=2)
def _order(plan: StepPlan, epoch: int) -> NDArray[np.int64]:
    return epoch_order(len(plan.lengths), plan.seed, epoch)


@lru_cache(maxsize=2)
def _dataset_bins(plan: StepPlan, epoch: int) -> list[list[int]]:
    return plan_dataset_bins(plan.lengths, plan.sequence_length, plan.seed, epoch)


def lay_into_bins(examples: Sequence[int], lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """First-fit decreasing over `examples`; one that is longer than `capacity` gets a bin to itself, first of all."""
    long = [[i] for i in examples if lengths[i] > capacity]
    short = [i for i in examples if lengths[i] <= capacity]
    return long + [[short[k] for k in chosen] for chosen in plan_bins(lengths[short], capacity)]
