"""Proves which model answers: an engine that lists an adapter, or echoes its name, may still answer by the base.

With golden prompts, by where the log-probabilities of known answers lie (`lifecycle.serving.proof`), and on the very engine that made them
by equal greedy answers as well. Without, by log-probabilities that differ from the base's.
"""

from dataclasses import dataclass

from llamero.agent.engines.base import EngineClient, EngineRefusal
from llamero.agent.errors import Refusal
from llamero.lifecycle.serving.proof import judge_golden
from llamero.spec.golden import GoldenSet

GENERIC_PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Question: What is two plus two?\nAnswer: Two plus two is four.",
    "Once upon a time there was a shepherd who drove her flock to the river.",
    "def add(a, b):\n    return a + b",
)
GENERIC_TOKENS = 6
"""Of each generic prompt the last so many tokens are scored."""
LEAST_DIFFERENCE = 0.01
"""In nats over GENERIC_TOKENS tokens: less is what half precision and batching make of one and the same model."""
NOISE_FACTOR = 4.0


@dataclass(frozen=True)
class Proof:
    """Golden prompts that were asked, and those whose answer lay nearer the adapter's value; None without golden prompts."""

    golden: int | None = None
    nearer: int | None = None


class NotProven(Refusal):
    """An adapter that the engine holds by its own word, and does not answer by."""

    def __init__(self, message: str, proof: Proof) -> None:
        super().__init__(message)
        self.proof = proof


async def prove(engine: EngineClient, adapter: str, golden: GoldenSet | None) -> Proof:
    """Raise NotProven where the engine does not answer by `adapter`. Raises EngineTrouble where it can't be asked."""
    try:
        if golden is None:
            return await _prove_difference(engine, adapter)
        return await _prove_golden(engine, adapter, golden)
    except EngineRefusal as refusal:
        raise NotProven(f"{adapter} can't be proven: {refusal}", Proof()) from refusal


async def _prove_golden(engine: EngineClient, adapter: str, golden: GoldenSet) -> Proof:
    scores = [await engine.score(adapter, p.prompt, p.answer, p.answer_tokens) for p in golden.prompts]
    nearer, is_proven, sentence = judge_golden(golden, scores)
    proof = Proof(golden=len(golden.prompts), nearer=nearer)
    if not is_proven:
        raise NotProven(f"{adapter} does not answer in this engine: {sentence}", proof)
    if await _is_of_this_engine(engine, golden):
        await _require_equal_answers(engine, adapter, golden, proof)
    return proof


async def _is_of_this_engine(engine: EngineClient, golden: GoldenSet) -> bool:
    """Whether the very engine, at the very precision, made the golden prompts: then greedy answers are the same to the letter."""
    if golden.engine != "cpu" or engine.kind != "cpu":
        return False
    told = await engine.describe()
    return (told.dtype, told.quantization) == (golden.dtype, golden.quantization)


async def _require_equal_answers(engine: EngineClient, adapter: str, golden: GoldenSet, proof: Proof) -> None:
    differing = 0
    for prompt in golden.prompts:
        differing += await engine.generate(adapter, prompt.prompt, prompt.answer_tokens) != prompt.answer
    if differing:
        raise NotProven(
            f"{adapter} answers {differing} of {len(golden.prompts)} golden prompts otherwise than when it was measured on this engine.",
            proof,
        )


async def _prove_difference(engine: EngineClient, adapter: str) -> Proof:
    """Half of some plain texts must be more or less likely than to the base, by more than the base differs from itself."""
    differing = 0
    for text in GENERIC_PROMPTS:
        base = await engine.score(None, "", text, GENERIC_TOKENS)
        tuned = await engine.score(adapter, "", text, GENERIC_TOKENS)
        noise = abs(await engine.score(None, "", text, GENERIC_TOKENS) - base)
        differing += abs(tuned - base) > max(LEAST_DIFFERENCE, NOISE_FACTOR * noise)
    if differing * 2 < len(GENERIC_PROMPTS):
        raise NotProven(
            f"{adapter} has no golden prompts, and {len(GENERIC_PROMPTS) - differing} of {len(GENERIC_PROMPTS)} plain texts are as likely with "
            "it as with the base alone: the engine answers by the base, or the adapter was never trained.",
            Proof(),
        )
    return Proof()
