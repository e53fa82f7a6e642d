"""When a training has run away: a loss or gradient that is no number, or one that stays far worse than guessing."""

import math

from llamero.training.failures import Diverged

PATIENCE_STEPS = 50
HOPELESS_FACTOR = 2.0


class DivergenceGuard:
    """Looks at each step's loss and gradient norm before the optimiser acts on them.

    Guessing each token with equal odds has a loss of ln(vocabulary). Where every one of `PATIENCE_STEPS` steps on end is
    worse than `HOPELESS_FACTOR` times that, and worse than the first step, nothing is being learnt: the learning rate or the
    adapter's scale threw the model out, and it does not come back.
    """

    def __init__(self, vocabulary_size: int) -> None:
        self._bound = HOPELESS_FACTOR * math.log(vocabulary_size)
        self._first: float | None = None
        self._bad_steps = 0

    def check(self, step: int, loss: float, gradient_norm: float | None = None) -> None:
        """Raise Diverged where `loss` (mean over the step's tokens, nats) or the norm shows it. `step` counts from 1."""
        for name, value in (("loss", loss), ("gradient's norm", gradient_norm)):
            if value is not None and not math.isfinite(value):
                raise Diverged(f"The {name} became {value} at step {step}.")
        self._first = loss if self._first is None else self._first
        self._bad_steps = self._bad_steps + 1 if loss > max(self._bound, self._first) else 0
        if self._bad_steps >= PATIENCE_STEPS:
            raise Diverged(
                f"The loss stood at {loss:.1f} at step {step}, and for {PATIENCE_STEPS} steps was worse than {self._bound:.1f}, "
                "twice that of guessing at random."
            )
