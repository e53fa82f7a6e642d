"""The pod that prints kept logs, for a while after it has ended."""

from llamero.lifecycle.draft import Draft
from llamero.lifecycle.world import Work
from llamero.spec.status import LogsStatus, WorkKind

LOGS_SECONDS = 120.0


def print_logs(draft: Draft) -> None:
    """A pod that prints kept logs, for a while after it has ended."""
    request = draft.world.log_request
    if request is None:
        return
    logs = draft.status.logs
    if logs is None or logs.number != request.number:
        logs = LogsStatus(number=request.number)
    child = next((c for c in draft.world.children if c.kind is WorkKind.LOGS and c.attempt == request.number), None)
    if child is not None and logs.ended_at is None and (child.complete or child.failed):
        logs = logs.model_copy(update={"ended_at": draft.now})
    draft.put(logs=logs)
    if logs.ended_at is not None:
        left = LOGS_SECONDS - (draft.now - logs.ended_at).total_seconds()
        if left <= 0 or child is None:
            return
        draft.wake(left)
    draft.work.append(Work(WorkKind.LOGS, request.run or 0, request.number, logs=request))
