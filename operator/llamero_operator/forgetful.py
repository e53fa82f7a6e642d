"""kopf's memory of objects, left empty: the operator's handlers ask neither for differences nor for progress.

kopf would otherwise copy each object that a watch shows several times over, to compare it with what it remembers in annotations
(which it never writes here): a fifth of the operator's whole CPU time where a thousand jobs run.
"""

from collections.abc import Iterable
from typing import Any

import kopf


class NoDifferences(kopf.DiffBaseStorage):
    """Every object is as it was."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing to keep."""


class NoProgress(kopf.ProgressStorage):
    """No handler has a progress: each runs once and is never tried again."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        return None

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing to keep."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing is kept."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """The object stays as it is."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence
