"""How a deleted server goes: its routes first, then, once no request is under way to it, its pods; given up rather than hung."""

from llamero.lifecycle.serving.draft import ServerDraft, write_condition
from llamero.lifecycle.serving.draining import are_routes_taken_in
from llamero.lifecycle.serving.routing import build_routes
from llamero.lifecycle.serving.world import ServerDecision, ServerRoutes, ServerWorld
from llamero.spec.status import Condition, ConditionType


def take_down(draft: ServerDraft) -> ServerDecision:
    """Nobody is routed here from now on; what is under way may end."""
    is_routed = bool(draft.world.routed.routes)
    since = draft.now if is_routed else min(draft.status.deleting_since or draft.now, draft.now)
    draft.put(deleting_since=since)
    elapsed = draft.seconds_since(since)
    is_quiet = are_routes_taken_in(draft.world, draft.limits, elapsed) and not count_in_flight(draft.world)
    has_gone = not draft.world.routed.backends and not is_routed
    if not is_routed and (has_gone or is_quiet or elapsed >= draft.limits.drain_seconds):
        return _let_go(draft, given_up=not (is_quiet or has_gone))
    message = "It is routed away from, and waits until no request is under way to it."
    draft.put(deletion_message=message, conditions=_tell_deletion(draft, message))
    told = {i for b in draft.world.routed.backends for i in b.adapters}
    return ServerDecision(
        status=draft.status,
        routes=ServerRoutes(backends=build_routes(draft, told).backends),
        wanted=None,
        deploy=False,
        notes=tuple(draft.notes),
        wake_after=draft.limits.busy_poll_seconds,
    )


def _tell_deletion(draft: ServerDraft, message: str) -> list[Condition]:
    rows = [(ConditionType.READY, "False"), (ConditionType.RECONCILING, "True")]
    old = draft.world.status.conditions
    told = [write_condition(old, k, t, "Deleting", message, draft.now, draft.world.generation) for k, t in rows]
    return [*told, *(c for c in old if c.type not in dict(rows))]


def count_in_flight(world: ServerWorld) -> int:
    """Requests under way to the server's backends."""
    urls = {b.url for b in world.routed.backends}
    return sum(f.requests for chat in world.chats for f in chat.in_flight if f.backend in urls)


def _let_go(draft: ServerDraft, given_up: bool) -> ServerDecision:
    """The pods go with the server; its Adapters stay, and say that nobody serves them."""
    world = draft.world
    ours = [a for a in world.adapters if draft.status_of(a).server == world.name]
    for adapter in ours:
        draft.tell(
            adapter, ConditionType.SERVING, "False", "ServerDeleted", f"The ModelServer {world.name} was deleted."
        )
        draft.amend(adapter, server="", weight=0)
    if given_up:
        draft.note("DrainGivenUp", "Requests were still under way when the server was taken down.", warning=True)
    release = {
        a.name
        for a in world.adapters
        if a.held and (a.status.server == world.name or (not a.status.server and a.spec.server == world.name))
    }
    draft.put(deletion_message="", drains={})
    return ServerDecision(
        status=draft.status, routes=ServerRoutes(), wanted=None, deploy=False, let_go=True, notes=tuple(draft.notes),
        adapter_statuses=dict(sorted(draft.verdicts.items())), release=frozenset(release),
    )  # fmt: skip
