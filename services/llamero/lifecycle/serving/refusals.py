"""Adapters that can't be served: those that pods refuse, and those that never become ready. The verdict stands in the Adapter itself."""

from llamero.lifecycle.serving.draft import ServerDraft
from llamero.lifecycle.serving.loading import find_refusals
from llamero.lifecycle.serving.readiness import count_ready
from llamero.lifecycle.serving.world import AdapterView
from llamero.spec.status import ConditionType


def judge_refusals(draft: ServerDraft) -> None:
    """Condemn what pods refuse. An adapter that serves a name is left alone: other pods have it, and nothing better is known."""
    serving = {n.adapter for n in draft.world.status.models}
    for told in draft.world.status.adapters:
        adapter = draft.by_name.get(told.name)
        if adapter is None or told.state in ("Pending", "Draining") or told.name in serving:
            continue
        if refusals := find_refusals(draft, adapter.served_id):
            condemn(draft, adapter, "Refused", refusals[0])
        elif is_overdue(draft, adapter):
            seconds = int(draft.limits.start_seconds)
            condemn(draft, adapter, "NotReady", f"No pod had it loaded and proven within {seconds} s.")


def condemn(draft: ServerDraft, adapter: AdapterView, reason: str, message: str) -> None:
    """The adapter is not served until somebody raises `retry`."""
    draft.tell(adapter, ConditionType.VERIFIED, "False", reason, message)
    draft.note("AdapterRefused", f"{adapter.name} can't be served: {message}", warning=True)


def is_overdue(draft: ServerDraft, adapter: AdapterView) -> bool:
    """Whether pods that take requests were told of the adapter long ago and none has it. A start with it is `gathering`'s to judge."""
    status = draft.status_of(adapter)
    verified, attempted_at = status.condition(ConditionType.VERIFIED), status.attempted_at
    if (
        verified is not None and verified.status == "True"
    ):  # it was ready once: pods that were started anew load it again
        return False
    if draft.gathers or attempted_at is None or count_ready(draft.able, adapter.served_id):
        return False
    if not any(p.heard for p in draft.able):
        return False
    return draft.seconds_since(attempted_at) >= draft.limits.start_seconds
