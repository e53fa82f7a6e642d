"""Steps that compare records with one another, or with evaluation sets."""

from typing import Annotated, Literal

from pydantic import Field

from llamero.spec.base import SpecModel
from llamero.spec.steps.fields import Field_, Share, Text, Uri


class DuplicatesStep(SpecModel):
    """Drops records that share a key with an earlier one. Equal records are dropped in any case, before the first such step."""

    by: Literal["record", "prompt", "id", "first-turns"] = Field(
        "prompt",
        description="What two records must share: everything, the prompt, the source's id, or the first two turns.",
    )
    keep: Literal["first", "longest", "best"] = Field(
        "longest",
        description="Which of them stays: the first, the one with the longest answer, or the best by `score`. A held-out "
        "record stays before any other.",
    )
    score: Text | None = Field(None, description="For `best`: a score's name.")
    conflicting: Literal["keep", "drop", "drop-instruction"] = Field(
        "keep",
        description="What becomes of records of one instruction that give the same input (not none) different answers. "
        "drop: they all go. drop-instruction: so do all others of the instruction (Self-Instruct, code).",
    )


class NearDuplicatesStep(SpecModel):
    """Finds near duplicates by MinHash, verifies each pair, and keeps the best of each cluster.

    Numbers count: records that differ in a number are not the same.
    """

    field: Field_ = Field("record", description="What is compared.")
    ngram: int = Field(1, ge=1, le=10, description="Words in a shingle.")
    permutations: int = Field(128, ge=16, le=1024, description="Length of a MinHash sketch.")
    threshold: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Least verified similarity of two duplicates. Of two texts that differ in one word in ten, 97% are at "
        "least as alike as the default; prompts alone are short and want more (0.9).",
    )
    verify: Literal["jaccard", "rouge-l"] = Field(
        "jaccard",
        description="jaccard: exact, of the shingles of the field. rouge-l: F of the prompts' longest common "
        "subsequence of words.",
    )
    keep: Literal["best", "longest", "first"] = Field(
        "longest",
        description="Which of a cluster stays: the best by `score`, the one with the longest answer, or the first. Of "
        "equal ones the one with the smallest content hash. A held-out record stays before any other.",
    )
    score: Text | None = Field(None, description="For `best`: a score's name.")


class EvaluationSet(SpecModel):
    """A set that training records must not overlap."""

    uri: Uri = Field(
        description="A file of prompts and answers: JSONL, JSON, CSV, Parquet, or text with a passage a line."
    )
    columns: Annotated[list[Text], Field(max_length=16)] = Field(
        default_factory=list, description="Columns that hold text; by default all texts of a row."
    )


class DecontaminateStep(SpecModel):
    """Drops training records that overlap an evaluation set; the job's own held-out split is always one of them.

    Texts are compared as words: case, punctuation, operators and white space don't count, numbers do.
    """

    against: Annotated[list[EvaluationSet], Field(max_length=32)] = Field(
        default_factory=list, description="Evaluation sets besides the held-out split."
    )
    ngram: int = Field(
        12,
        ge=2,
        le=64,
        description="So many words in a row, in the prompt or in an answer, that also stand in an evaluation record are an "
        "overlap.",
    )
    min_words: int = Field(
        5,
        ge=1,
        le=64,
        description="A prompt of fewer words than `ngram` but at least so many is an overlap where it equals a text of a "
        "set in `against` as a whole. A shorter one never is, nor one that equals a held-out prompt alone.",
    )
    jaccard_ngram: int = Field(13, ge=2, le=64, description="Words in a shingle of the Jaccard rule (Gopher).")
    max_jaccard: Share = Field(
        0.8,
        description="Greatest Jaccard similarity of a record's shingles to an evaluation record's (Gopher). A record of "
        "fewer words is one shingle.",
    )
    boilerplate: int = Field(
        10,
        ge=1,
        description="Words in a row, or short prompts, that stand in more evaluation records than this are boilerplate (a "
        "template, a licence) and no overlap.",
    )
