"""Which adapters pods are started with, for an engine that reads them at start only: every change is a restart, so that several finished
jobs are gathered into one. An adapter that the engine does not start with is taken out again."""

from collections.abc import Callable
from datetime import datetime, timedelta

from llamero.lifecycle.retrain import find_next_time
from llamero.lifecycle.serving.draft import ServerDraft
from llamero.lifecycle.serving.draining import find_routed_ids
from llamero.lifecycle.serving.loading import Load, find_gathered, plan_load, tell_adapters
from llamero.lifecycle.serving.refusals import condemn
from llamero.lifecycle.serving.world import AdapterView, EnginePodView
from llamero.spec.server import WindowSpec
from llamero.spec.status import ConditionType


def gather(draft: ServerDraft) -> list[AdapterView]:
    """The adapters that pods are started with from now on; the status says where each stands."""
    load = plan_load(draft)
    old = find_gathered(draft)
    suspects = [n for n in draft.status.suspects if any(a.name == n for a in [*load.stay, *load.come, *load.wait])]
    suspects = [n for n in suspects if not is_proven_here(draft, draft.by_name[n])]
    draft.put(suspects=suspects)
    wanted, waiting = _restart_for(draft, load, old)
    names = sorted(a.name for a in wanted)
    if names != sorted(draft.status.gathered) or draft.status.gathered_at is None:
        draft.put(gathered=names, gathered_at=draft.now)
        draft.busy = True
    here = {a.served_id for a in wanted}
    drains = {i: since for i, since in {**load.gone, **load.leave}.items() if i in here}
    draft.put(drains=drains, adapters=tell_adapters(draft, wanted, load, waiting))
    draft.busy = draft.busy or bool(load.leave)
    return wanted


def is_proven_here(draft: ServerDraft, adapter: AdapterView) -> bool:
    return any(adapter.served_id in pod.ids for pod in draft.able)


def _restart_for(draft: ServerDraft, load: Load, old: list[AdapterView]) -> tuple[list[AdapterView], str]:
    """The next set, and what the adapters wait for that have room but are not in it."""
    routed = find_routed_ids(draft.world)
    stays = {a.served_id for a in load.stay} | set(load.leave) | routed
    expelled = [a for a in old if a.served_id not in routed and _is_expelled(draft, load, a)]
    kept = [a for a in old if a.served_id in stays and a not in expelled]
    if expelled:
        return kept, "It waits for the engine to start without those that it does not start with."
    tried = _choose_tried(draft, [a for a in [*load.stay, *load.come] if a not in old], old)
    if draft.world.deployment is None:
        return _start_with(draft, kept, tried), ""
    is_left = any(a.deleting for a in old if a not in kept)  # its deletion waits for the pods
    if not tried and not is_left:
        return old, "It waits until another one was tried alone."
    if obstacle := _find_obstacle(draft, tried):
        return old, obstacle
    what = ", ".join(a.name for a in tried) or "none that is new"
    draft.note("Restarting", f"Pods are started anew for their adapters: {what}.")
    return _start_with(draft, kept, tried), ""


def _start_with(draft: ServerDraft, kept: list[AdapterView], tried: list[AdapterView]) -> list[AdapterView]:
    for adapter in tried:
        draft.amend(adapter, attempted_at=draft.now)
    return [*kept, *tried]


def _is_expelled(draft: ServerDraft, load: Load, adapter: AdapterView) -> bool:
    """Whether the adapter was found to be bad, and no request can be under way to it: no pod answers by it, or it has drained."""
    verified = draft.status_of(adapter).condition(ConditionType.VERIFIED)
    is_needed = any(adapter.name in (n.adapter, n.canary) for n in draft.names.values())
    if verified is None or verified.status != "False" or is_needed:
        return False
    return adapter.served_id in load.gone or not is_proven_here(draft, adapter)


def _choose_tried(draft: ServerDraft, new: list[AdapterView], old: list[AdapterView]) -> list[AdapterView]:
    """The adapters that come next: all that have room, or one alone while some are suspected."""
    suspects = draft.status.suspects
    if not suspects:
        return new
    if any(a.name in suspects for a in old):
        return []
    return [a for a in new if a.name in suspects][:1]


def _find_obstacle(draft: ServerDraft, tried: list[AdapterView]) -> str:
    """Why pods are not started anew now; empty where nothing is in the way."""
    rules: tuple[Callable[[ServerDraft, list[AdapterView]], str], ...] = (_is_starting, _is_gathering, _is_closed)
    return next((why for rule in rules if (why := rule(draft, tried))), "")


def _is_starting(draft: ServerDraft, tried: list[AdapterView]) -> str:
    deployment = draft.world.deployment
    if deployment is None or deployment.settled or draft.spec.replicas == 0:
        return ""
    if draft.seconds_since(draft.status.gathered_at or draft.now) >= draft.limits.start_seconds:
        return ""  # they never will, and the old ones go on
    draft.busy = True
    return "It waits until the pods that are starting have started."


def _is_gathering(draft: ServerDraft, tried: list[AdapterView]) -> str:
    """Other jobs may finish too: the first to come is waited with for a while. One that somebody pinned is old enough."""
    if not tried:
        return ""
    since = min(min(a.created_at for a in tried), draft.now)
    left = draft.limits.gather_seconds - draft.seconds_since(since)
    if left <= 0:
        return ""
    draft.wake(left)
    return "It waits a while for others that can be started with it."


def _is_closed(draft: ServerDraft, tried: list[AdapterView]) -> str:
    window = draft.spec.window
    if draft.spec.update_strategy != "Recreate" or window is None or not draft.able:
        return ""
    opens = find_opening(window, draft.now)
    if opens is not None and opens <= draft.now:
        return ""
    if opens is None:
        return f"It waits for a window that never opens: spec.window.schedule {window.schedule!r}."
    draft.wake_at(opens)
    return f"It waits for the window that opens at {opens:%Y-%m-%d %H:%M} UTC."


def find_opening(window: WindowSpec, now: datetime) -> datetime | None:
    """When the window opens next, or opened where it is open now; None where it never does."""
    return find_next_time(window.schedule, window.time_zone, now - timedelta(seconds=window.duration_seconds))


# -- starts that fail ----------------------------------------------------------------------------------------------------------


def judge_starts(draft: ServerDraft) -> None:
    """Find who is to blame for new pods that do not come up: the one adapter that came last, or all that did, to be tried one by one."""
    failed = find_failed_start(draft)
    if failed is None:
        return
    added = find_unproven(draft)
    if not added:
        return
    why = failed.problem or "its engine was not ready in time."
    if len(added) == 1:
        condemn(draft, added[0], "EngineFailed", f"The engine does not start with it: {why}")
        draft.put(suspects=[n for n in draft.status.suspects if n != added[0].name])
        return
    names = [a.name for a in added]
    draft.put(suspects=names, gathered=[n for n in draft.status.gathered if n not in names], gathered_at=draft.now)
    draft.note(
        "StartFailed",
        f"Pods do not start with {', '.join(names)}: they are tried one by one. {why}",
        warning=True,
    )


def find_failed_start(draft: ServerDraft) -> EnginePodView | None:
    """A pod with the adapters at hand whose engine does not come up. One that has no place to run yet has not failed."""
    gathered = {a.served_id for a in find_gathered(draft)}
    able = {p.pod.uid: p.ids for p in draft.able}
    for pod in draft.world.pods:
        if pod.deleting or pod.ready or pod.refusals or set(pod.gathered) != gathered:
            continue
        if pod.uid in able and gathered <= able[pod.uid]:
            continue
        is_late = pod.phase == "Running" and draft.seconds_since(pod.created_at) >= draft.limits.start_seconds
        is_looping = pod.restarts >= draft.limits.crash_restarts and pod.uid not in able
        if is_looping or is_late:
            return pod
    return None


def find_unproven(draft: ServerDraft) -> list[AdapterView]:
    """The adapters at hand that no engine ever answered by: not in a pod that takes requests, serving no name, never verified."""
    serving = {n.adapter for n in draft.world.status.models}
    found = []
    for adapter in find_gathered(draft):
        verified = draft.status_of(adapter).condition(ConditionType.VERIFIED)
        is_known = verified is not None and verified.status != "Unknown"
        if adapter.name not in serving and not is_known and not is_proven_here(draft, adapter):
            found.append(adapter)
    return found
