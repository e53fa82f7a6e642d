"""Decides where a request goes: its model's route, the target by weight and caller, and the backend that has it. Pure.

Asked anew before each try, with the routes of that moment: a request that waited for one backend never goes by old routes to
the next.
"""

import hashlib
from collections.abc import Callable, Set
from dataclasses import dataclass

from llamero.chat.errors import MODEL_NOT_FOUND, ChatError
from llamero.spec import names
from llamero.spec.routes import Backend, Route, Routes, Target

BUCKETS = 10_000

Ask = tuple[str, str | None]
"""A backend's URL and the adapter that it is asked for (None: its base)."""

Busyness = tuple[int, int]
"""Requests under way at a backend, and requests that it was ever sent: the less, the sooner it is asked."""


@dataclass(frozen=True)
class Destination:
    """A backend that is to answer, for a target of a route."""

    route: Route
    target: Target
    backend: Backend

    @property
    def ask(self) -> Ask:
        return self.backend.url, self.target.adapter

    @property
    def upstream_model(self) -> str:
        """The name of the target at the backend."""
        return names.ENGINE_BASE_NAME if self.target.adapter is None else self.target.adapter

    @property
    def is_rendered_here(self) -> bool:
        """Whether the prompt is rendered by the chat service: TGI and vLLM know their base's template alone."""
        return self.target.template is not None and self.backend.engine != "cpu"


@dataclass(frozen=True)
class Standing:
    """What the chat service knows of backends at the moment."""

    busy: Callable[[str], Busyness]
    is_resting: Callable[[Ask], bool]


IDLE = Standing(busy=lambda url: (0, 0), is_resting=lambda ask: False)


def find_route(routes: Routes, model: str) -> Route:
    """The route of a public name; raises ChatError where there is none: no other model ever stands in for it."""
    for route in routes.routes:
        if route.model == model:
            return route
    known = ", ".join(r.model for r in routes.routes) or "none"
    raise ChatError(MODEL_NOT_FOUND, f"The model `{model}` does not exist. Models here: {known}.", param="model")


def choose_target(route: Route, caller: str) -> Target | None:
    """A target by weight. A caller keeps its target, and when weight moves from one to the next only as many callers move as must."""
    total = sum(t.weight for t in route.targets)
    if total == 0:
        return None
    digest = hashlib.sha256(f"{route.model}\0{caller}".encode()).digest()
    point = int.from_bytes(digest[:8]) % BUCKETS * total / BUCKETS
    passed = 0
    for target in route.targets:
        passed += target.weight
        if point < passed:
            return target
    return None


def order_targets(route: Route, caller: str) -> list[Target]:
    """The caller's own target, then the others that have any weight, the heavier first: they answer where the first can't."""
    own = choose_target(route, caller)
    if own is None:
        return []
    others = [t for t in route.targets if t is not own and t.weight > 0]
    return [own, *sorted(others, key=lambda t: -t.weight)]


def choose_destination(
    routes: Routes,
    model: str,
    caller: str,
    standing: Standing = IDLE,
    tried: Set[Ask] = frozenset(),
    given_up: Set[str | None] = frozenset(),
) -> Destination | None:
    """The backend to ask next; None where no target of the route has one left. Raises ChatError for an unknown model.

    A backend that lacks the target's adapter is never chosen. `tried` has been asked for this request already; `given_up` are
    adapters that failed it. Among able ones those that failed just now come last, and the least busy comes first.
    """
    route = find_route(routes, model)
    backends = routes.servers.get(route.server, [])
    for target in order_targets(route, caller):
        if target.adapter in given_up:
            continue
        able = [
            b
            for b in backends
            if (target.adapter is None or target.adapter in b.adapters) and (b.url, target.adapter) not in tried
        ]
        if able:
            return Destination(route, target, min(able, key=lambda b: _rank(b, target, standing)))
    return None


def _rank(backend: Backend, target: Target, standing: Standing) -> tuple[bool, Busyness]:
    return standing.is_resting((backend.url, target.adapter)), standing.busy(backend.url)
