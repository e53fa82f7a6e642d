"""When an adapter that gets no requests any more may be unloaded: once every chat service works by routes without it and none has a
request under way to it; or after a bound, so that nobody who is silent holds it for ever."""

from datetime import datetime

from llamero.lifecycle.serving.draft import ServerDraft
from llamero.lifecycle.serving.world import ServerWorld, ServingLimits


def find_routed_ids(world: ServerWorld) -> frozenset[str]:
    """The adapters that the last routes send requests to."""
    return frozenset(t.adapter for r in world.routed.routes for t in r.targets if t.adapter is not None)


def find_drain_starts(draft: ServerDraft, ids: set[str]) -> dict[str, datetime]:
    """Since when each gets no requests. As long as the routes still name it, the time has not begun to run."""
    routed = find_routed_ids(draft.world)
    old = draft.world.status.drains
    return {i: draft.now if i in routed else min(old.get(i, draft.now), draft.now) for i in sorted(ids)}


def has_drained(draft: ServerDraft, served_id: str, since: datetime) -> bool:
    """Whether no request can be under way to the adapter, and none can come."""
    world, limits = draft.world, draft.limits
    if served_id in find_routed_ids(world):
        return False
    elapsed = draft.seconds_since(since)
    if elapsed >= limits.drain_seconds:
        return True
    return is_quiet(world, served_id) and are_routes_taken_in(world, limits, elapsed)


def is_quiet(world: ServerWorld, served_id: str) -> bool:
    """Whether no chat service that answered has a request under way to the adapter."""
    return not any(f.requests > 0 and f.adapter == served_id for chat in world.chats for f in chat.in_flight)


def are_routes_taken_in(world: ServerWorld, limits: ServingLimits, elapsed: float) -> bool:
    """Whether every chat service works by the last routes. Where none is known at all, a while settles it."""
    if world.silent_chats:
        return False
    if world.chats:
        return all(chat.revision == world.revision for chat in world.chats)
    return (elapsed if world.routes_age is None else world.routes_age) >= limits.settle_seconds
