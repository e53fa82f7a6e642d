"""How a manifest names a secret: never its value."""

from typing import Annotated

from pydantic import Field

from llamero.spec.base import SpecModel


class SecretRef(SpecModel):
    """A secret of the job's namespace; on a laptop the environment variables of the same names are read."""

    name: Annotated[str, Field(max_length=253)] = Field(description="The secret's name.")
    key: Annotated[str, Field(max_length=253)] = Field(
        "token", description="The key in the secret that holds the token."
    )
