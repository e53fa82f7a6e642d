"""What a training has done so far, over all attempts: steps, seconds, tokens and the loss curve. It travels in each checkpoint."""

from dataclasses import dataclass, field
from typing import Any, Self

from llamero.spec.results import LossPoint, LossSummary

MAX_CURVE_POINTS = 4096
EDGE_STEPS = 5
"""Steps at either end that the summary's first and last loss are the mean of."""


@dataclass
class Journal:
    """The record of a training. `curve` has a point per step until it is full; then each stands for `stride` steps."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    target_tokens: int = 0
    curve: list[LossPoint] = field(default_factory=list)
    stride: int = 1
    pending: list[LossPoint] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)
    resumed_from: list[int] = field(default_factory=list)

    def record(self, point: LossPoint, target_tokens: int) -> None:
        """Add a finished optimiser step."""
        self.step = point.step
        self.seconds += point.seconds
        self.tokens += point.tokens
        self.target_tokens += target_tokens
        if len(self.first_losses) < EDGE_STEPS:
            self.first_losses.append(point.loss)
        self.last_losses = [*self.last_losses[-EDGE_STEPS + 1 :], point.loss]
        self.pending.append(point)
        if len(self.pending) == self.stride:
            self.curve.append(merge_points(self.pending))
            self.pending = []
        if len(self.curve) == MAX_CURVE_POINTS:
            self.curve = [merge_points(self.curve[i : i + 2]) for i in range(0, MAX_CURVE_POINTS, 2)]
            self.stride *= 2

    def whole_curve(self) -> list[LossPoint]:
        """The curve with the steps that do not fill a point yet."""
        return [*self.curve, merge_points(self.pending)] if self.pending else list(self.curve)

    def summarize_loss(self) -> LossSummary:
        """First and last loss; there must be a step."""
        return LossSummary(first=_mean(self.first_losses), last=_mean(self.last_losses))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        row = dict(self.__dict__)
        for name in ("curve", "pending"):
            row[name] = [p.to_json_dict() for p in row[name]]
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Self:
        points = {name: [LossPoint.model_validate(p) for p in row[name]] for name in ("curve", "pending")}
        return cls(**(row | points))


def merge_points(points: list[LossPoint]) -> LossPoint:
    """One point for several steps: the last one's number and rate, mean loss and gradient norm, summed tokens and seconds."""
    if len(points) == 1:
        return points[0]
    norms = [p.grad_norm for p in points if p.grad_norm is not None]
    return LossPoint(
        step=points[-1].step,
        loss=_mean([p.loss for p in points]),
        learning_rate=points[-1].learning_rate,
        grad_norm=_mean(norms) if norms else None,
        tokens=sum(p.tokens for p in points),
        seconds=sum(p.seconds for p in points),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
