"""Which pods a node started, for whom and when: so that tests can say `at most one pod an attempt`. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class PodRun:
    """One pod that a node started: who owns it, and from when to when it ran (`time.monotonic`; None: it still runs)."""

    namespace: str
    name: str
    uid: str
    labels: dict[str, str]
    owner_kind: str
    owner_name: str
    began: float
    ended: float | None = None


def count_by_owner(runs: Iterable[PodRun], namespace: str | None = None) -> Counter[str]:
    """How many pods were started for each owner (a Job's name), of one namespace or of all."""
    return Counter(run.owner_name for run in runs if namespace in (None, run.namespace))


def most_at_once(runs: Iterable[PodRun]) -> int:
    """The largest number of these pods that ran at the same moment."""
    moments = [(run.began, 1) for run in runs] + [(run.ended, -1) for run in runs if run.ended is not None]
    peak = now = 0
    for _, change in sorted(moments):
        now += change
        peak = max(peak, now)
    return peak
