"""Decides where a request goes: its model's route, the target by weight and caller, and the backends that have it. Pure."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from llamero.chat.errors import MODEL_NOT_FOUND, ChatError
from llamero.spec.routes import Backend, Route, Routes, Target

BASE_ALIAS = "tgi"  # what TGI and the CPU engine call their base
BUCKETS = 10_000


@dataclass(frozen=True)
class Destination:
    """Backends that may answer, in the order to try them, and the model name to ask them for."""

    route: Route
    target: Target
    backends: tuple[Backend, ...]

    def upstream_model(self, backend: Backend) -> str:
        """The name of the target at that backend."""
        if self.target.adapter is not None:
            return self.target.adapter
        return self.route.model if backend.engine == "vllm" else BASE_ALIAS


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


def choose_destination(routes: Routes, model: str, caller: str, busy: Mapping[str, int]) -> Destination:
    """Where a request goes. `busy` are the requests under way by backend URL: the least busy is tried first.

    A backend that lacks the target's adapter is never chosen; raises ChatError for an unknown model.
    """
    route = find_route(routes, model)
    target = choose_target(route, caller)
    if target is None:
        return Destination(route, Target(), ())
    able = [b for b in routes.servers.get(route.server, []) if target.adapter is None or target.adapter in b.adapters]
    return Destination(route, target, tuple(sorted(able, key=lambda b: busy.get(b.url, 0))))
