"""The one base class of all models: camelCase outside, snake_case inside, unknown fields refused."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class SpecModel(BaseModel):
    """A part of a manifest: strict about names, immutable once read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_json_dict(self) -> dict[str, object]:
        """The camelCase form, as it stands in a manifest or a JSON file; absent optional fields are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ResultModel(SpecModel):
    """A result that a phase writes: a newer version's fields are read past, so that old runs stay readable."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, ser_json_inf_nan="null"
    )
