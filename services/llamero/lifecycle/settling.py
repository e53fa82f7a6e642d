"""Whether a change of the status may wait for the next one: what a pod passes through on its way up is seldom worth a write each.

A write that is put off is one that the operator might have died before: the next pass decides the same from the status that stands.
"""

from llamero.spec.status import ConditionType, JobStatus

SETTLE_SECONDS = 1.0
"""How long such a change must have stood before it is written."""


def may_settle(old: JobStatus, new: JobStatus) -> bool:
    """Whether the two differ only in where the pod at hand stands and in the words about it."""
    if old.work is None or new.work is None or old.phase is not new.phase:
        return False
    passing = {"node": new.work.node, "running_since": new.work.running_since}
    if old.work.model_copy(update=passing) != new.work or _verdicts(old) != _verdicts(new):
        return False
    return old.model_copy(update={"work": new.work, "conditions": new.conditions}) == new


def _verdicts(status: JobStatus) -> list[tuple[str, str, int | None]]:
    """What the conditions say, less the reasons; where the pods have a place is no verdict."""
    return [(c.type, c.status, c.observed_generation) for c in status.conditions if c.type != ConditionType.SCHEDULED]
