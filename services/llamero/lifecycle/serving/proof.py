"""Whether an engine's scores of golden answers prove that the adapter answers, and not the base."""

from collections.abc import Sequence
from math import isfinite

from llamero.spec.golden import MIN_NEARER_SHARE, GoldenPrompt, GoldenSet


def is_nearer(prompt: GoldenPrompt, score: float) -> bool:
    """Whether the answer's log-probability (a sum, in nats) lies nearer the adapter's value than the base's."""
    return isfinite(score) and abs(score - prompt.tuned_log_prob) < abs(score - prompt.base_log_prob)


def judge_golden(golden: GoldenSet, scores: Sequence[float]) -> tuple[int, bool, str]:
    """How many scores lie nearer the adapter's values, whether that proves it, and a sentence.

    `scores` are the engine's log-probabilities of the golden answers, a sum over the answer's tokens in nats, in the set's order. Raises
    ValueError where there are not as many as prompts.
    """
    if len(scores) != len(golden.prompts):
        raise ValueError(f"{len(scores)} scores for {len(golden.prompts)} golden prompts: one for each is needed")
    total = len(golden.prompts)
    if total == 0:
        return 0, False, "It has no golden prompts: nothing proves which model answers."
    nearer = sum(is_nearer(p, s) for p, s in zip(golden.prompts, scores, strict=True))
    if nearer >= MIN_NEARER_SHARE * total - 1e-9:
        return nearer, True, f"{nearer} of {total} golden answers lie nearer the adapter's value than the base's."
    return (
        nearer,
        False,
        f"Only {nearer} of {total} golden answers lie nearer the adapter's value than the base's, {MIN_NEARER_SHARE:.0%} are needed: "
        "the engine does not answer by this adapter.",
    )
