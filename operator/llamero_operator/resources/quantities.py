"""Kubernetes' quantities (`500m`, `16Gi`) as numbers, and back where whole bytes are wanted."""

import math
import re
from decimal import Decimal
from typing import Annotated

from pydantic import Field

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

Quantity = Annotated[str, Field(pattern=QUANTITY_PATTERN, max_length=32)]
"""A quantity as Kubernetes writes it: a number with `m`, a power of ten (`k`, `M`, `G` …) or of two (`Ki`, `Mi`, `Gi` …)."""

_FACTORS: dict[str, Decimal] = {
    "": Decimal(1),
    "m": Decimal(1) / 1000,
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P"), start=1)},
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), start=1)},
}
_MIB = 1 << 20


def parse_quantity(text: str) -> Decimal:
    """The number that a quantity stands for: cores or bytes. Raises ValueError where it is none."""
    if not re.match(QUANTITY_PATTERN, text):
        raise ValueError(f"{text!r} is not a quantity such as 500m, 2 or 16Gi")
    number = re.sub(r"[A-Za-z]+$", "", text)
    return Decimal(number) * _FACTORS[text[len(number) :]]


def add_quantities(*texts: str) -> str:
    """Their sum in bytes, rounded up to `Mi`, written as Kubernetes does: `13Gi` rather than `13312Mi`."""
    mib = math.ceil(sum(map(parse_quantity, texts)) / _MIB)
    return f"{mib}Mi" if mib % 1024 else f"{mib // 1024}Gi"


def round_up_cores(text: str) -> int:
    """Whole cores that a CPU quantity comes to, at least 1."""
    return max(1, math.ceil(parse_quantity(text)))
