"""What each phase hands on as JSON: data/manifest.json, checkpoints/result.json, adapter/manifest.json,
evaluation/result.json, and report.json, which gathers them. Field names are camelCase in the files."""

import math
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from llamero.spec.base import ResultModel

SCHEMA_VERSION = 1


class FileEntry(ResultModel):
    """A file of a folder's manifest; `name` is relative to the folder."""

    name: str
    size: int
    sha256: str


class LengthSummary(ResultModel):
    """Token lengths over records: mean, median and largest."""

    mean: float
    median: float
    max: int


class StatisticsRow(ResultModel):
    """One domain of the statistics table; `stage` is `read` or `kept`, `domain` `overall` for the last row of a stage.

    `tokens` are all tokens (inputs and outputs); `input_tokens` and `output_tokens` its parts.
    """

    stage: str
    domain: str
    samples: int
    tokens: int
    input_tokens: int
    output_tokens: int
    input: LengthSummary
    output: LengthSummary


class Histogram(ResultModel):
    """Counts of records by length in tokens: `edges` has one more entry than `counts`."""

    name: str
    edges: list[int]
    counts: list[int]


class LengthChoice(ResultModel):
    """What a sequence length would cut: the share of kept records longer than it (template + prompt + answer)."""

    sequence_length: int
    cut_fraction: float


class SourceCounts(ResultModel):
    """A source's part: read = kept + sum(rejected). `growth`: of records made by a language model, how far their pool grew and why it ended."""

    name: str
    uri: str
    format: str
    license: str | None = None
    terms: str | None = None
    read: int
    kept: int
    rejected: dict[str, int] = Field(default_factory=dict)
    growth: str = ""


class SplitCounts(ResultModel):
    """One side of the split: records, the examples (chunks) made of them, their tokens and those that are trained on."""

    records: int
    examples: int
    tokens: int
    target_tokens: int


class StepRef(ResultModel):
    """A step of `data.steps` by its number (from 1, profiles put in) and kind."""

    number: int
    kind: str


class RejectedSample(ResultModel):
    """A line of rejected.jsonl. `reason` is one of `RejectionReason`, or the kind of the step that dropped the record.

    For a step: `rule` is the field of its options that decided, `value` what was found and `threshold` what was wanted. `repeats` is the
    record that this one is the same as: {source, file, line, id}.
    """

    reason: str
    source: str
    file: str
    line: int
    detail: str = ""
    text: str = ""
    id: str | None = None
    step: StepRef | None = None
    rule: str | None = None
    value: float | None = None
    threshold: float | None = None
    repeats: dict[str, Any] | None = None


class FunnelStep(ResultModel):
    """What one step did: `before` records came to it, `dropped` did not leave it (`reasons`: how many by rule), `changed` left it changed.

    Built-in steps have no number: `read`, `parse` (rows that are no records), `equal`, `caps`, `cut` (records too long). Along the list
    before - dropped is the next one's before; the last one's is `DataResult.kept`.
    """

    number: int | None = None
    kind: str
    profile: str | None = None
    place: str = ""
    before: int
    dropped: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)
    changed: int = 0


class ScoreHistogram(ResultModel):
    """How many records have which score, `edges` one more than `counts`, the last bin closed. `threshold` steps' bounds where they use it."""

    name: str
    edges: list[float]
    counts: list[int]
    min: float | None = None
    max: float | None = None


class ModelAccount(ResultModel):
    """What asking one model for one purpose took, over all shards, when their answers were got.

    Questions: `asked`, of these `answered` by the endpoint or `cached`, and `unanswered`. Tokens as the endpoint reported them (for
    `estimated` answers it reported none); cached tokens were paid for earlier and are in no `cost`.
    """

    purpose: str
    model: str
    endpoint: str
    asked: int = 0
    answered: int = 0
    cached: int = 0
    unanswered: int = 0
    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cached_output_tokens: int = 0
    estimated: int = 0
    cost: float = 0.0


class DataArm(ResultModel):
    """A further training set of `data.controls`, beside the chosen one; the held-out split is the same for all.

    Its examples lie in data/arms/<name>/part-NNNNN.jsonl and its tokens in data/tokens/arms/<name>/part-NNNNN/, as the chosen ones do in
    data/train and data/tokens/train. `name` is `random` (`kind` random: as many records as were chosen, of those that there were before the
    choice) or `at-<threshold>` (`kind` is the choosing step's, `threshold` what it was done with instead of its own).
    """

    name: str
    kind: str
    threshold: float | None = None
    counts: SplitCounts


class DataResult(ResultModel):
    """data/manifest.json, written last. read = kept + sum(rejected); kept = train.records + evaluation.records.

    Lengths, statistics and histograms are in `unit`: tokens, or words where the preparation had no tokenizer (then nothing was cut, there
    are no token files, and no sequence length is recommended). `arms`: see `DataArm` for where their files are.
    """

    schema_version: int = SCHEMA_VERSION
    digest: str = Field(
        description="sha256 over recipe, source contents and tokenizer: the same digest means the same output."
    )
    files: list[FileEntry]
    read: int
    kept: int
    rejected: dict[str, int]
    train: SplitCounts
    evaluation: SplitCounts
    sources: list[SourceCounts]
    statistics: list[StatisticsRow]
    histograms: list[Histogram]
    recommended_sequence_length: int
    length_choices: list[LengthChoice]
    rejected_samples: list[RejectedSample]
    template: str
    seconds: float
    shards: int
    reused_shards: int = 0
    unit: Literal["tokens", "words"] = "tokens"
    funnel: list[FunnelStep] = Field(default_factory=list)
    scores: list[ScoreHistogram] = Field(default_factory=list)
    arms: list[DataArm] = Field(default_factory=list)
    asked: list[ModelAccount] = Field(default_factory=list)


class LossPoint(ResultModel):
    """One optimiser step of the loss curve. `loss` is the mean over the step's target tokens, in nats."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    tokens: int
    seconds: float


class LossSummary(ResultModel):
    """First and last step's loss (mean over the first and last 5 steps, or fewer where there are fewer)."""

    first: float
    last: float


class MergeResult(ResultModel):
    """The merged export: held-out loss with the adapter beside the base, and merged into it."""

    uri: str
    adapter_loss: float | None = None
    merged_loss: float | None = None
    change: float | None = None


class ControlResult(ResultModel):
    """One of the trainings that `data.controls` sets side by side: the same recipe on other records of the same data.

    `kind` is `chosen` (the run's own adapter), `random` or `threshold`; `held_out_loss` is in nats a trained token.
    """

    name: str
    kind: str
    threshold: float | None = None
    examples: int
    tokens: int
    steps: int
    loss: LossSummary
    held_out_loss: float | None = None
    seconds: float

    @property
    def held_out_perplexity(self) -> float | None:
        """Token perplexity on the held-out split."""
        return math.exp(min(self.held_out_loss, 700.0)) if self.held_out_loss is not None else None


class TrainingResult(ResultModel):
    """checkpoints/result.json. `tokens` counts all tokens that went through the model, `seconds` training time over all attempts."""

    schema_version: int = SCHEMA_VERSION
    method: str
    steps: int
    epochs: float
    examples: int
    tokens: int
    target_tokens: int
    tokens_per_second: float
    seconds: float
    loss: LossSummary
    curve: list[LossPoint]
    resumed_from: list[int] = Field(default_factory=list, description="Steps that the run was resumed at.")
    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int | None = None
    device: str
    attention: str
    optimizer: str
    notes: list[str] = Field(default_factory=list, description="What differs from the recipe, and why.")
    merge: MergeResult | None = None
    controls: list[ControlResult] = Field(
        default_factory=list, description="The run's own training and those of data.controls, side by side."
    )
    controls_pending: bool = Field(False, description="The adapter is done, the controls are not.")


class AdapterManifest(ResultModel):
    """adapter/manifest.json, written last: what the adapter is made of and what it belongs to.

    `sha256` is over the sorted lines `<sha256>  <name>\\n` of `files`.
    """

    schema_version: int = SCHEMA_VERSION
    files: list[FileEntry]
    sha256: str
    base: str
    base_revision: str | None = None
    base_sha256: str
    template: str
    stop_tokens: list[str]
    data_digest: str
    recipe_digest: str
    licenses: list[str] = Field(default_factory=list)
    terms: list[str] = Field(default_factory=list)


class PerplexityPair(ResultModel):
    """Base and tuned; None where nothing was held out."""

    base: float | None
    tuned: float | None


class Answer(ResultModel):
    """One answer: its text, whether a stop token ended it, and its length in tokens."""

    text: str
    finished: bool
    tokens: int


class Sample(ResultModel):
    """A prompt answered side by side; `reference` is the held-out answer where there is one."""

    prompt_set: str
    prompt: str
    base: Answer
    tuned: Answer
    reference: str | None = None


class EvaluationResult(ResultModel):
    """evaluation/result.json.

    `perplexity` is the mean over records of exp(-log P / n), `token_perplexity` exp of the mean over all target tokens.
    """

    schema_version: int = SCHEMA_VERSION
    records: int
    target_tokens: int
    perplexity: PerplexityPair
    token_perplexity: PerplexityPair
    samples: list[Sample]
    seconds: float
    digest: str = Field(
        "", description="sha256 over base, adapter, held-out examples, prompts and settings: the same digest is reused."
    )
    notes: list[str] = Field(default_factory=list, description="What was measured otherwise than asked, and why.")
    golden_sha256: str | None = Field(
        None, description="sha256 of golden-<sha8>.json in the same folder (`spec.golden`); none where none was made."
    )


class GateResult(ResultModel):
    passed: bool
    reason: str


class AdapterRef(ResultModel):
    uri: str
    sha256: str


class Report(ResultModel):
    """report.json: one run from data to verdict."""

    schema_version: int = SCHEMA_VERSION
    job: str
    run: int
    phase: str
    base_model: str
    data: DataResult
    training: TrainingResult
    evaluation: EvaluationResult
    gate: GateResult
    adapter: AdapterRef
    seconds: dict[str, float] = Field(default_factory=dict, description="Seconds by phase.")
    recipe: dict[str, Any] = Field(default_factory=dict, description="The manifest's training recipe, as it was run.")
    finished_at: datetime | None = None
    version: str = Field("", description="The version of llamero that wrote the report.")
