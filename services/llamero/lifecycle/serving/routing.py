"""What the routes say of a server: its backends with the adapters each has, and where each public name goes."""

from collections.abc import Iterable

from llamero.lifecycle.serving.draft import ServerDraft
from llamero.lifecycle.serving.world import AdapterView, ServerRoutes
from llamero.spec import names
from llamero.spec.routes import Backend, Route, Target
from llamero.spec.server import NameStatus

ANSWERED = frozenset({"Serving", "Canary", "Holding", "Paused", "RolledBack"})


def build_routes(draft: ServerDraft, wanted: Iterable[str]) -> ServerRoutes:
    """The routes of the moment. `wanted` are the ids that pods are told of: one that is on its way out is listed no more."""
    engine = draft.engine
    if engine is None:
        return ServerRoutes()
    known = frozenset(wanted)
    backends = tuple(
        Backend(url=p.url, engine=engine, adapters=sorted(p.ids & known), pod=p.pod.name) for p in draft.able
    )
    routes = [_build_route(draft, engine, backends, n) for n in draft.names.values() if is_answered(draft, n)]
    return ServerRoutes(backends=backends, routes=tuple(sorted(routes, key=lambda r: r.model)))


def is_answered(draft: ServerDraft, name: NameStatus) -> bool:
    """Whether the name has somebody to answer it, be it that no pod is there at the moment: callers are told to come again then."""
    return name.state in ANSWERED and (name.adapter is not None or name.name in draft.base_names)


def _build_route(draft: ServerDraft, engine: str, backends: tuple[Backend, ...], name: NameStatus) -> Route:
    """A name's route. Whoever has no backend gets no requests, and the other gets them all."""
    shares: list[tuple[AdapterView | None, int]] = []
    stable = draft.by_name.get(name.adapter) if name.adapter is not None else None
    if stable is not None or name.name in draft.base_names:
        shares.append((stable, 100 - name.weight))
    canary = draft.by_name.get(name.canary) if name.canary is not None else None
    if canary is not None and name.weight > 0:
        shares.append((canary, name.weight))
    able = [(a, w) for a, w in shares if _has_backend(backends, a)]
    if len(able) == 1:
        able = [(able[0][0], 100)]
    return Route(
        model=name.name,
        server=names.server_key(draft.world.namespace, draft.world.name),
        targets=[_build_target(engine, a, w) for a, w in able if w > 0],
        step=name.step_id,
    )


def _has_backend(backends: tuple[Backend, ...], adapter: AdapterView | None) -> bool:
    return any(adapter is None or adapter.served_id in b.adapters for b in backends)


def _build_target(engine: str, adapter: AdapterView | None, weight: int) -> Target:
    """The cpu engine renders prompts by the adapter's own template; the others know their base's alone."""
    if adapter is None:
        return Target(adapter=None, weight=weight)
    if engine == "cpu" or adapter.spec.template == "base":
        return Target(adapter=adapter.served_id, weight=weight)
    return Target(
        adapter=adapter.served_id, weight=weight, template=adapter.spec.template, stop=list(adapter.spec.stop_tokens)
    )
