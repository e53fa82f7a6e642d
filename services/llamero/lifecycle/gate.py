"""Whether an adapter may be rolled out, by the manifest's gate and the figures measured."""

from dataclasses import dataclass

from llamero.spec.job import GateSpec


@dataclass(frozen=True)
class GateFigures:
    """Held-out token perplexity of base and tuned model, and how many of the tuned model's answers ran on without a stop.

    The perplexities are None where nothing was held out.
    """

    base_token_perplexity: float | None
    tuned_token_perplexity: float | None
    answers: int
    unfinished_answers: int


@dataclass(frozen=True)
class GateVerdict:
    passed: bool
    reason: str


def judge_gate(gate: GateSpec, figures: GateFigures) -> GateVerdict:
    """The first limit that is missed refuses; the reason names it with the figure."""
    base, tuned = figures.base_token_perplexity, figures.tuned_token_perplexity
    if base is None or tuned is None:
        return GateVerdict(False, "No held-out record to measure on: raise data.evaluationFraction or add data.")
    improvement = 1 - tuned / base
    change = f"Held-out token perplexity went from {base:.3f} to {tuned:.3f} ({tuned / base - 1:+.1%})"
    if not improvement >= gate.min_perplexity_improvement:
        return GateVerdict(
            False, f"{change}, but the gate asks for a fall of at least {gate.min_perplexity_improvement:.1%}."
        )
    if gate.max_token_perplexity is not None and tuned > gate.max_token_perplexity:
        return GateVerdict(False, f"{change}, but the gate's upper bound is {gate.max_token_perplexity:.3f}.")
    unfinished = figures.unfinished_answers / figures.answers if figures.answers else 0.0
    if unfinished > gate.max_unfinished_fraction:
        return GateVerdict(
            False,
            f"{figures.unfinished_answers} of {figures.answers} answers ran on without a stop token, "
            f"more than the gate's {gate.max_unfinished_fraction:.0%}.",
        )
    return GateVerdict(True, f"{change}.")
