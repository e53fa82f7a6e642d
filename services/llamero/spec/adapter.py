"""The Adapter resource: what a run publishes, immutable, belonging to no job.

What its rollout says of it later (conditions `Verified`, `Serving`, `RolledBack`) stands in its status.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from llamero.spec.base import ResultModel, SpecModel
from llamero.spec.job import API_VERSION, Metadata, ShortText, Uri
from llamero.spec.status import Condition, ConditionType, Figure

ADAPTER_KIND = "Adapter"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AdapterFigures(SpecModel):
    """What was measured on held-out records, as text."""

    base_token_perplexity: Figure | None = Field(None, description="The base's token perplexity.")
    tuned_token_perplexity: Figure | None = Field(None, description="The tuned model's.")
    records: int = Field(0, ge=0, description="Held-out records measured.")
    last_loss: Figure | None = Field(None, description="Mean loss of the last five training steps.")


class AdapterSource(SpecModel):
    """The run that made it; text alone, since the job may be gone."""

    job: ShortText = Field(description="Name of the FineTuneJob.")
    uid: ShortText = Field(description="Its uid.")
    run: int = Field(ge=1, description="The run's number.")


class AdapterSpec(SpecModel):
    """A trained adapter: where it lies and what it belongs to. Never changed once written."""

    uri: Uri = Field(description="Folder of its files.")
    sha256: Digest = Field(description="sha256 over the sorted lines `<sha256>  <name>` of its files.")
    base: Uri = Field(description="The base model: hub id or URI.")
    base_revision: ShortText | None = Field(None, description="The hub revision that it is pinned to.")
    base_sha256: ShortText = Field(description="sha256 of the base's files.")
    template: ShortText = Field("base", description="The chat template that it was trained with.")
    stop_tokens: Annotated[list[ShortText], Field(max_length=16)] = Field(
        default_factory=list, description="Tokens that end an answer."
    )
    recipe_digest: ShortText = Field("", description="Digest of the training recipe.")
    data_digest: ShortText = Field("", description="Digest of the data.")
    licenses: Annotated[list[ShortText], Field(max_length=64)] = Field(
        default_factory=list, description="Licences of the data."
    )
    terms: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=64)] = Field(
        default_factory=list, description="Terms of use of the data."
    )
    model: ShortText = Field(description="The public model name that it was made for.")
    server: Annotated[str, Field(max_length=63)] = Field(
        "", description="The ModelServer that is to serve it; empty: none by itself, only where a ModelServer pins it."
    )
    golden_sha256: Digest | None = Field(
        None,
        description="Digest of its golden prompts, which lie beside its files; a rollout proves by them which model answers.",
    )
    figures: AdapterFigures = Field(default_factory=AdapterFigures, description="What was measured.")
    source: AdapterSource | None = Field(None, description="The run that made it; none where it was imported.")


class AdapterResourceStatus(ResultModel):
    """What has become of it since. Conditions: `Verified`, `Serving`, `RolledBack`."""

    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(default_factory=list, description="By type.")
    id: Annotated[str, Field(max_length=160)] = Field("", description="The id that engines serve it under.")
    server: Annotated[str, Field(max_length=63)] = Field("", description="The ModelServer that it is served by.")
    weight: int = Field(0, ge=0, le=100, description="Percent of its public name's callers that it answers.")
    retry: int = Field(
        0,
        ge=0,
        description="The `retry` of its public name under which it was rolled back: a higher one gives it another try.",
    )
    attempted_at: datetime | None = Field(None, description="When its rollout last began.")

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of a type, if it is set."""
        return next((c for c in self.conditions if c.type == kind), None)


class AdapterMetadata(Metadata):
    """As a job's, but with room for the run behind the job's name."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)] = Field(
        description="The adapter's name: `<job>-r<run>` for those that runs publish."
    )


class Adapter(SpecModel):
    """A published adapter."""

    api_version: Literal["llamero.dev/v1alpha1"] = Field(API_VERSION, description="`llamero.dev/v1alpha1`.")
    kind: Literal["Adapter"] = Field("Adapter", description="`Adapter`.")
    metadata: AdapterMetadata = Field(description="Name and labels.")
    spec: AdapterSpec = Field(description="What it is.")
    status: dict[str, Any] | None = Field(None, description="Written by the operator; ignored when read.")
