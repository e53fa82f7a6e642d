"""What the fields of several steps are made of."""

from typing import Annotated, Literal

from pydantic import Field

Text = Annotated[str, Field(max_length=256)]


Uri = Annotated[str, Field(min_length=1, max_length=2048)]


Share = Annotated[float, Field(ge=0, le=1)]


Field_ = Literal["prompt", "answer", "record"]
