"""Lengths within bounds: of the prompt, the answer or the whole record, in characters or words."""

from collections.abc import Sequence

from llamero.data.errors import DataError
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.spec.steps import LengthStep


class _Length:
    def __init__(self, options: LengthStep) -> None:
        self._options = options
        self._is_words = options.unit == "words"

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        return [self._judge(record) for record in records]

    def _judge(self, record: Record) -> Record | Drop:
        text = record.get_field(self._options.field)
        length = len(text.split()) if self._is_words else len(text)
        least, most = self._options.min, self._options.max
        if least is not None and length < least:
            return self._drop("min", length, least)
        if most is not None and length > most:
            return self._drop("max", length, most)
        return record

    def _drop(self, rule: str, length: int, wanted: int) -> Drop:
        least = "at least" if rule == "min" else "at most"
        name, unit = self._options.field, self._options.unit
        return Drop(rule, f"The {name} has {length} {unit}, where {least} {wanted} are wanted.", length, wanted)


def build(options: LengthStep, context: StepContext) -> _Length:
    """The step. Raises DataError where no length can satisfy it."""
    if options.min is not None and options.max is not None and options.min > options.max:
        raise DataError(f"The length step's min ({options.min}) is greater than its max ({options.max}): swap them.")
    return _Length(options)
