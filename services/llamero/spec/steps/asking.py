"""Steps that ask language models, and what may be asked of one: endpoint, limits, prices, caps."""

from typing import Annotated, Literal

from pydantic import Field

from llamero.spec.base import SpecModel
from llamero.spec.secrets import SecretRef
from llamero.spec.steps.fields import Share, Text, Uri

Kept = Literal["code", "numbers", "names"]


Operation = Literal["constraints", "deepen", "concretise", "reasoning", "complicate", "broaden"]


def _keep_all() -> list[Kept]:
    return ["code", "numbers", "names"]


def _all_operations() -> list[Operation]:
    return ["constraints", "deepen", "concretise", "reasoning", "complicate", "broaden"]


class LanguageModel(SpecModel):
    """A language model behind an OpenAI-compatible endpoint, and how much may be asked of it."""

    url: Uri = Field(
        description="The endpoint's base, such as `https://host/v1`; `/chat/completions` or `/embeddings` is added."
    )
    model: Text = Field(description="The model's name as the endpoint knows it.")
    secret_ref: SecretRef | None = Field(None, description="The API key.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature.")
    max_tokens: int = Field(1024, ge=1, le=32_768, description="Longest answer.")
    concurrency: int = Field(8, ge=1, le=256, description="Requests under way at once, over all workers together.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Requests a minute, over all workers together; by default unlimited."
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="Tokens a minute (asked and answered), over all workers together."
    )
    timeout_seconds: float = Field(120.0, gt=0, le=3600, description="Longest wait for one answer.")
    retries: int = Field(
        6,
        ge=0,
        le=20,
        description="Times a request is sent again after 408, 409, 429, 5xx or a broken connection, with growing "
        "pauses; Retry-After is kept to.",
    )
    price_per_million_input_tokens: float = Field(0.0, ge=0, description="For the account and `maxCost`.")
    price_per_million_output_tokens: float = Field(0.0, ge=0, description="For the account and `maxCost`.")
    max_cost: float | None = Field(
        None,
        gt=0,
        description="The most a preparation may spend on this step; past it the job stops with a sentence, and what "
        "was answered is kept.",
    )
    max_total_tokens: int | None = Field(None, gt=0, description="The most tokens a preparation may use on this step.")


class Embedding(SpecModel):
    """How a record becomes a vector (of L2 norm 1)."""

    kind: Literal["hashed", "local", "endpoint"] = Field(
        "hashed",
        description="hashed: hashed TF-IDF reduced by SVD, needs no model. local: mean-pooled last layer of a "
        "transformers model in `uri`. endpoint: `model`'s /embeddings.",
    )
    dimensions: int = Field(256, ge=2, le=4096, description="Length of `hashed` vectors.")
    uri: Uri | None = Field(None, description="For `local`: a folder with the model's files.")
    model: LanguageModel | None = Field(None, description="For `endpoint`.")


class JudgeStep(SpecModel):
    """AlpaGasus: language models score each training record; what they score too low is dropped (arXiv:2307.08701)."""

    models: Annotated[list[LanguageModel], Field(min_length=1, max_length=8)] = Field(
        description="The judges; more than one vote."
    )
    dimension: Literal["accuracy", "helpfulness", "quality", "complexity"] = Field(
        "accuracy", description="What is scored."
    )
    scale: int = Field(5, ge=2, le=100, description="Scores run from 0 to this.")
    min_score: float | None = Field(
        4.5, ge=0, description="Records below it are dropped (AlpaGasus: 4.5); null only scores."
    )
    vote: Literal["mean", "median", "min"] = Field("mean", description="How several judges' scores become one.")
    score: Text = Field("judge", description="The name that the score gets.")


class RewriteStep(SpecModel):
    """A model rewrites each answer in one given style (arXiv:2307.01003, 2306.11644); the original stays in the lineage."""

    model: LanguageModel = Field(description="Who rewrites.")
    mode: Literal["style", "textbook"] = Field(
        "style",
        description="style: the answer in the words of `style`. textbook: the passage as a lesson with exercises.",
    )
    style: Annotated[str, Field(max_length=2048)] = Field(
        "Polite, clear and complete, in whole sentences.", description="What the answers should be like."
    )
    keep: Annotated[list[Kept], Field(max_length=3)] = Field(
        default_factory=_keep_all,
        description="A rewrite that loses one of them is quarantined: the record keeps its original answer and says "
        "so.",
    )


class EvolveStep(SpecModel):
    """A model deepens or broadens each instruction and answers it (Evol-Instruct, arXiv:2304.12244)."""

    model: LanguageModel = Field(description="Who evolves and answers.")
    operations: Annotated[
        list[Operation],
        Field(min_length=1, max_length=6),
    ] = Field(
        default_factory=_all_operations,
        description="One is chosen for a record by its content hash.",
    )
    rounds: int = Field(1, ge=1, le=4, description="Times each instruction is evolved.")
    max_rouge: Share = Field(
        0.9,
        description="An evolved instruction whose ROUGE-L F with the one it came from is greater is refused: it says the same.",
    )
    refusal_words: int = Field(
        80, ge=0, description="An answer with fewer words that says `sorry` is a refusal (Evol-Instruct: 80)."
    )


class BackTranslateStep(SpecModel):
    """A model writes the instruction that a text answers, scores the pair, and the best are kept (arXiv:2308.06259)."""

    model: LanguageModel = Field(description="Who writes and scores.")
    min_score: float = Field(4.0, ge=0, le=5, description="Pairs scored lower are dropped.")


class PrinciplesStep(SpecModel):
    """A model answers each prompt anew, guided by principles (arXiv:2305.03047)."""

    model: LanguageModel = Field(description="Who answers.")
    principles: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(min_length=1, max_length=32)] = Field(
        description="The principles, a sentence each."
    )


class GenerateSpec(SpecModel):
    """Makes the source's records with a language model: grows a pool of instructions from the seeds that `uri` names."""

    model: LanguageModel = Field(description="Who writes.")
    variant: Literal["self-instruct", "alpaca"] = Field(
        "self-instruct",
        description="self-instruct: 8 examples a prompt, classification tasks recognised first, output-first "
        "instances for them (arXiv:2212.10560). alpaca: 3 seeds, 20 new tasks a call, instances with "
        "them.",
    )
    records: int = Field(1000, ge=1, le=1_000_000, description="Instructions to make.")
    human_examples: int | None = Field(
        None, ge=1, le=32, description="Seeds in a prompt; by default 6, for alpaca 3 (code)."
    )
    machine_examples: int | None = Field(
        None,
        ge=0,
        le=32,
        description="Machine-made instructions in a prompt, once there are some; by default 2, for alpaca 0 (code).",
    )
    tasks_per_call: int | None = Field(
        None, ge=1, le=64, description="New tasks asked for in a call; by default 8, for alpaca 20 (code)."
    )
    max_instances: int = Field(5, ge=1, le=32, description="self-instruct: most instances of an instruction (code: 5).")
    min_words: int = Field(
        4, ge=1, description="Instructions with fewer words are dropped (Self-Instruct: 3 or fewer are)."
    )
    max_words: int = Field(150, ge=1, description="Instructions with more words are dropped.")
    blocked_words: Annotated[list[Text], Field(max_length=256)] | None = Field(
        None,
        description="Instructions with one of these words are dropped; by default Self-Instruct's list, for alpaca with video, audio, "
        "music, flowchart and diagram (code).",
    )
    max_rouge: Share = Field(
        0.7, description="Instructions whose ROUGE-L F with any of the pool is greater are dropped."
    )
    max_calls: int | None = Field(
        None,
        ge=1,
        description="Stop after so many questions, however many records there are; by default 20 for each record asked "
        "for.",
    )
