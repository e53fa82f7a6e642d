"""Steps that choose fewer, better records, what they are measured by, and the controls beside a choice."""

from typing import Annotated, Final, Literal

from pydantic import Field

from llamero.spec.base import SpecModel
from llamero.spec.steps.asking import Embedding
from llamero.spec.steps.fields import Text

SCORES: Final = (
    "judge", "quality", "complexity", "perplexity", "ifd", "sourceScore", "questionScore",
    "promptWords", "answerWords", "answerCharacters", "neighbourDistance", "rarity",
)  # fmt: skip
"""Names of scores: written by steps into a record's `scores`, or computed from the record when asked for (words, characters)."""


class ScoreStep(SpecModel):
    """Measures records under the base model; the scores can be chosen by later."""

    indicators: Annotated[list[Literal["perplexity", "ifd"]], Field(min_length=1, max_length=2)] = Field(
        description="perplexity: of the answer given the prompt. ifd: that loss over the loss of the answer alone "
        "(instruction-following difficulty, arXiv:2308.12032)."
    )
    max_tokens: int = Field(512, ge=16, le=8192, description="Longer records are measured on their beginning.")


class ThresholdStep(SpecModel):
    """Keeps training records whose score lies within bounds."""

    score: Text = Field(description="A score's name.")
    min: float | None = Field(None, description="Least score.")
    max: float | None = Field(None, description="Greatest score.")


class KCenterStep(SpecModel):
    """LTD: greedy k-center from cluster centres; always the record farthest from its nearest centre (arXiv:2305.09246)."""

    fraction: float | None = Field(
        0.05, gt=0, le=1, description="Share of the training records to keep (LTD: 0.005 to 0.1)."
    )
    records: int | None = Field(None, ge=1, description="Records to keep, instead of `fraction`.")
    clusters: int = Field(64, ge=1, le=4096, description="Clusters whose centres' nearest records come first.")
    clustering: Literal["k-means", "agglomerative"] = Field(
        "k-means", description="How the clusters are found; agglomerative (Ward) on a sample of 4,096."
    )
    embedding: Embedding = Field(default_factory=lambda: Embedding(), description="How records become vectors.")


class DiversityStep(SpecModel):
    """DEITA: from the best by quality times complexity downwards, keep what is not too similar to a kept one (arXiv:2312.15685)."""

    scores: Annotated[list[Text], Field(min_length=1, max_length=4)] = Field(
        default_factory=lambda: ["quality", "complexity"], description="Scores that are multiplied."
    )
    max_similarity: float = Field(0.9, gt=0, le=1, description="Greatest cosine similarity to a kept record.")
    records: int | None = Field(None, ge=1, description="Stop after so many; by default none.")
    embedding: Embedding = Field(default_factory=lambda: Embedding(), description="How records become vectors.")


class RankStep(SpecModel):
    """InstructionGPT-4: several indicators, normalised, weighted, and ranked within clusters, the best of each kept (arXiv:2308.12067)."""

    weights: Annotated[dict[Text, float], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: {"answerWords": 1.0, "rarity": 1.0},
        description="Weights by score; each score is first scaled to 0…1 by its 5th and 95th percentile.",
    )
    fraction: float | None = Field(0.2, gt=0, le=1, description="Share of each cluster to keep.")
    records: int | None = Field(
        None, ge=1, description="Records to keep in all, by the clusters' sizes, instead of `fraction`."
    )
    clusters: int = Field(64, ge=1, le=4096, description="Clusters.")
    embedding: Embedding = Field(default_factory=lambda: Embedding(), description="How records become vectors.")


class MiningStep(SpecModel):
    """Instruction Mining: rank by a linear rule over cheap indicators, keep the lowest (arXiv:2307.06290)."""

    coefficients: Annotated[dict[Text, float], Field(min_length=1, max_length=16)] = Field(
        description="Coefficients by score; the sum estimates a loss: lower is better."
    )
    intercept: float = Field(0.0, description="Added to the sum.")
    fraction: float | None = Field(0.2, gt=0, le=1, description="Share of the training records to keep.")
    records: int | None = Field(None, ge=1, description="Records to keep, instead of `fraction`.")
    embedding: Embedding = Field(default_factory=lambda: Embedding(), description="For `neighbourDistance`.")


class SampleStep(SpecModel):
    """LIMA: sample over groups with a temperature, the best-scored of each first (arXiv:2305.11206)."""

    group_by: Literal["tags", "domain", "source"] = Field("tags", description="The groups; of several tags the rarest.")
    temperature: float = Field(
        3.0, gt=0, le=100, description="A group's chance is its share to the power 1/temperature (LIMA: 3)."
    )
    records: int = Field(1000, ge=1, description="Records to keep (LIMA: 1,000).")
    order: Text = Field("questionScore", description="The score that the best of a group is told by.")
    min_answer_score: float | None = Field(
        10.0, description="Stack Exchange answers with a lower score are dropped (LIMA: 10)."
    )


class RandomStep(SpecModel):
    """Keeps a random part of the training records, by content hash and seed."""

    fraction: float | None = Field(None, gt=0, le=1, description="Share to keep.")
    records: int | None = Field(None, ge=1, description="Records to keep, instead of `fraction`.")


class ControlsSpec(SpecModel):
    """Further trainings beside the chosen data, to see what the last choosing step is worth.

    Choosing steps: judge (by its minScore), threshold, kCenter, diversity, rank, mining, sample.
    """

    random: bool = Field(
        False, description="Train an equal number of random records of what was there before the choice."
    )
    thresholds: Annotated[list[float], Field(max_length=8)] = Field(
        default_factory=list,
        description="Train what the step would keep at these thresholds (minScore, min, maxSimilarity or fraction).",
    )
