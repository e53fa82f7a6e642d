"""Puts the public model name and the answer's own id into what an engine answers, without parsing it where that can be helped.

What stands before `"choices"` is the same in nearly every event of a stream, so it is rewritten once and then exchanged whole.
"""

import json
import re
from typing import Any

# Within a JSON text a quote that belongs to a string is escaped, so these can match keys only.
_CHOICES = b'"choices"'
_ID = re.compile(rb'"id"\s*:\s*(?:"(?:[^"\\]|\\.)*"|null)')
_MODEL = re.compile(rb'"model"\s*:\s*(?:"(?:[^"\\]|\\.)*"|null)')


class Head:
    """Rewrites one answer's events, or the answer as a whole."""

    def __init__(self, answer_id: str, model: str) -> None:
        self._fields = {"id": answer_id, "model": model}
        self._id = b'"id":' + json.dumps(answer_id).encode()
        self._model = b'"model":' + json.dumps(model).encode()
        self._old = b"\0"  # no event begins with it
        self._new = b""

    def rewrite(self, answer: bytes) -> bytes:
        """An event (`data: {…}`) or a whole answer under this id and model; what is no object with choices stays as it is."""
        if answer.startswith(self._old):
            return self._new + answer[len(self._old) :]
        cut = answer.find(_CHOICES)
        if cut < 0:
            return answer
        old = answer[:cut]
        with_id, ids = _ID.subn(lambda _: self._id, old, count=1)
        new, models = _MODEL.subn(lambda _: self._model, with_id, count=1)
        if not (ids and models):
            return self._rebuild(answer)
        # With `"choices"` at its end, so that it never matches the beginning of a longer head.
        self._old, self._new = old + _CHOICES, new + _CHOICES
        return new + answer[cut:]

    def _rebuild(self, answer: bytes) -> bytes:
        """For engines that leave id or model out, or write them behind the choices."""
        prefix, brace, _ = answer.partition(b"{")
        payload = read_json(answer[len(prefix) :]) if brace else None
        if not isinstance(payload, dict):
            return answer
        end = b"\n\n" if answer.endswith(b"\n\n") else b""
        return prefix + json.dumps({**payload, **self._fields}).encode() + end


def read_json(raw: bytes) -> Any:
    """The value, or None where it is no JSON."""
    try:
        return json.loads(raw)
    except ValueError:
        return None
