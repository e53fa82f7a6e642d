"""Golden prompts: what a trained adapter answers to a few prompts, by which a rollout proves which model answers.

Made by the evaluation and kept beside the adapter's files; checked by the agent in an engine's pod.
"""

from typing import Annotated

from pydantic import Field

from llamero.spec.base import ResultModel

GOLDEN_VERSION = 1
MAX_GOLDEN_PROMPTS = 10
MAX_GOLDEN_TOKENS = 32
MIN_NEARER_SHARE = 0.8
"""So many of the golden prompts must lie nearer the adapter's value than the base's."""


class GoldenPrompt(ResultModel):
    """A prompt with the adapter's own greedy answer, scored by adapter and base.

    `prompt` and `answer` are texts as an engine takes them in `inputs`: the engine's tokenizer adds its special tokens to prompt + answer,
    and the last `answer_tokens` of the tokens are the answer's.
    """

    prompt: str = Field(description="The prompt, rendered, without a beginning-of-text token.")
    answer: str = Field(description="The adapter's greedy answer, cut to a few tokens.")
    answer_tokens: int = Field(ge=1, description="Tokens of the answer.")
    tuned_log_prob: float = Field(description="Sum of the answer's token log-probabilities under the adapter, in nats.")
    base_log_prob: float = Field(description="The same under the base alone.")


class GoldenSet(ResultModel):
    """golden-<sha8>.json in the adapter's folder; the Adapter's `goldenSha256` is the digest of the file."""

    version: int = GOLDEN_VERSION
    engine: str = Field("", description="The engine that made the reference: `cpu`, or empty for transformers' own.")
    dtype: str = Field(description="Precision of the reference: float32, bfloat16 or float16.")
    quantization: str | None = Field(None, description="nf4 where the base was in four bits (dequantised or not).")
    prompts: Annotated[list[GoldenPrompt], Field(max_length=MAX_GOLDEN_PROMPTS)]
