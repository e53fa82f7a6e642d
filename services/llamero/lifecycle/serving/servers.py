"""What is to be done about a ModelServer now: one pure function from what is seen to what follows.

It is called again and again, with whatever is true by then: nothing here remembers, and what must survive stands in the status. A
cluster's operator and a laptop's controller call the same.
"""

from datetime import datetime

from llamero.lifecycle.serving.bounds import shrink
from llamero.lifecycle.serving.choosing import find_names
from llamero.lifecycle.serving.conditions import ServerState, build_conditions, find_phase
from llamero.lifecycle.serving.deleting import take_down
from llamero.lifecycle.serving.draft import ServerDraft, cut
from llamero.lifecycle.serving.gathering import gather, judge_starts
from llamero.lifecycle.serving.loading import build_wanted, load_at_run_time
from llamero.lifecycle.serving.readiness import is_heard
from llamero.lifecycle.serving.refusals import judge_refusals
from llamero.lifecycle.serving.rollout import advance, mend
from llamero.lifecycle.serving.routing import build_routes
from llamero.lifecycle.serving.validity import find_obstacle
from llamero.lifecycle.serving.verdicts import tell_verdicts
from llamero.lifecycle.serving.world import EnginePodView, ServerDecision, ServerRoutes, ServerWorld, ServingLimits
from llamero.lifecycle.validity import Obstacle
from llamero.spec.server import MAX_PODS_TOLD, ModelServerStatus, ServerPodStatus


def decide(world: ServerWorld, limits: ServingLimits, now: datetime) -> ServerDecision:
    """What follows from the world as it is. The same world and time give the same decision."""
    draft = ServerDraft(world, limits, now.replace(microsecond=0), world.status, moment=now)
    if world.deleting:
        return take_down(draft)
    obstacle = find_obstacle(world, limits)
    if obstacle is not None:
        return hold(draft, obstacle)
    return go_on(draft)


def go_on(draft: ServerDraft) -> ServerDecision:
    """The story of a server: condemn what can't be served, take each name a step on, tell pods what to have, route to what they have."""
    judge_refusals(draft)
    if draft.gathers:
        judge_starts(draft)
    names, too_many = find_names(draft)
    draft.names = {name: advance(draft, name) for name in names}
    adapters = gather(draft) if draft.gathers else load_at_run_time(draft)
    wanted = build_wanted(draft, adapters)
    ids = frozenset(a.served_id for a in adapters)
    routes = build_routes(draft, ids)
    state = ServerState(None, count_replicas(draft), routes, tuple(too_many))
    changed = tell_verdicts(draft, routes, ids)
    return ServerDecision(
        status=write_status(draft, state),
        routes=routes,
        wanted=wanted,
        replicas=state.replicas,
        adapter_statuses=changed,
        hold=frozenset(a.name for a in adapters if a.held or not a.deleting),
        release=find_releases(draft, ids),
        notes=tuple(draft.notes),
        wake_after=find_wake(draft, state),
    )


def hold(draft: ServerDraft, obstacle: Obstacle) -> ServerDecision:
    """The server can't be as its manifest says: what is served goes on, by the pods that are there."""
    world = draft.world
    names = [n.name for n in world.status.models] + [r.model for r in world.routed.routes]
    told = {n.name: n for n in world.status.models}
    draft.names = {n: told.get(n) or mend(draft, n) for n in dict.fromkeys(names)}
    draft.base_names = {r.model for r in world.routed.routes if any(t.adapter is None for t in r.targets)}
    ids = {a.id for a in world.status.adapters} | {i for b in world.routed.backends for i in b.adapters}
    routes = build_routes(draft, ids)
    replicas = world.deployment.replicas if world.deployment is not None else 0
    state = ServerState(obstacle, replicas, routes)
    return ServerDecision(
        status=write_status(draft, state),
        routes=routes,
        wanted=None,
        replicas=replicas,
        deploy=False,
        wake_after=draft.limits.poll_seconds,
    )


def count_replicas(draft: ServerDraft) -> int:
    """How many pods there are to be. With an autoscaler, as many as it has set."""
    scaling = draft.spec.autoscaling
    if scaling is None:
        return draft.spec.replicas
    if not draft.world.capabilities.autoscaling or draft.world.deployment is None:
        return scaling.min_replicas
    return min(max(draft.world.deployment.replicas, scaling.min_replicas), scaling.max_replicas)


def find_releases(draft: ServerDraft, wanted: frozenset[str]) -> frozenset[str]:
    """The Adapters that no pod has any more, as far as anybody can be asked: nothing holds up their deletion."""
    held = {
        report.id
        for pod in draft.world.pods
        if not pod.deleting and pod.report is not None and is_heard(pod, draft.limits)
        for report in pod.report.adapters
        if report.stage != "refused"
    }
    if draft.gathers:
        held = set()  # what a pod was started with lies in the pod itself
    return frozenset(
        a.name
        for a in draft.world.adapters
        if a.held and a.served_id not in wanted and a.served_id not in held and _is_released_here(draft, a.name)
    )


def _is_released_here(draft: ServerDraft, name: str) -> bool:
    adapter = draft.by_name[name]
    return adapter.status.server == draft.world.name or (
        not adapter.status.server and adapter.spec.server == draft.world.name
    )


def write_status(draft: ServerDraft, state: ServerState) -> ModelServerStatus:
    """The status with its phase, conditions and pods. One that says the same as the old one is the old one."""
    routes: ServerRoutes = state.routes
    draft.put(
        observed_generation=draft.world.generation,
        replicas=sum(not p.deleting for p in draft.world.pods),
        ready_replicas=len(draft.able),
        models=list(draft.names.values()),
        pods=[_tell_pod(draft, p, routes) for p in _list_pods(draft)[:MAX_PODS_TOLD]],
        deleting_since=None,
        deletion_message="",
    )
    draft.put(phase=find_phase(draft, state), conditions=build_conditions(draft, state))
    return shrink(draft.status)


def _list_pods(draft: ServerDraft) -> list[EnginePodView]:
    return sorted((p for p in draft.world.pods if not p.deleting), key=lambda p: p.name)


def _tell_pod(draft: ServerDraft, pod: EnginePodView, routes: ServerRoutes) -> ServerPodStatus:
    backend = next((b for b in routes.backends if b.pod == pod.name), None)
    if backend is not None:
        return ServerPodStatus(name=pod.name, ready=True, adapters=backend.adapters)
    why = pod.problem or (pod.refusals[0].message if pod.refusals else "")
    if not why and pod.report is not None:
        why = pod.report.engine_message if is_heard(pod, draft.limits) else "Its agent is silent."
    return ServerPodStatus(name=pod.name, message=cut(why, 200))


def find_wake(draft: ServerDraft, state: ServerState) -> float:
    """Seconds to the next look where nothing happens before."""
    starting = state.replicas > 0 and (len(draft.able) < state.replicas or any(p.deleting for p in draft.world.pods))
    draft.wake(draft.limits.busy_poll_seconds if draft.busy or starting else draft.limits.poll_seconds)
    return draft.wake_after if draft.wake_after is not None else draft.limits.poll_seconds
