"""A server's phase and conditions, as tables from its state: Ready, Reconciling and Stalled as kstatus reads them, the others as for
Deployments."""

from dataclasses import dataclass

from llamero.lifecycle.serving.draft import ServerDraft, write_condition
from llamero.lifecycle.serving.readiness import find_share, is_heard
from llamero.lifecycle.serving.world import ServerRoutes
from llamero.lifecycle.validity import Obstacle
from llamero.spec.server import ServerPhase
from llamero.spec.status import Condition, ConditionType

Row = tuple[str, str, str]
"""A condition's status, reason and message."""

NO_POLICY = "The API server has no policy/v1: a node's drain is not held up for the engine's pods."
NO_AUTOSCALING = "The API server has no autoscaling/v2: the replicas stay at spec.autoscaling.minReplicas."


@dataclass(frozen=True)
class ServerState:
    """What phase and conditions are made from, besides the draft."""

    obstacle: Obstacle | None
    replicas: int
    routes: ServerRoutes
    too_many: tuple[str, ...] = ()  # public names for which there is no room


def find_trouble(draft: ServerDraft, state: ServerState) -> tuple[str, str] | None:
    """The worst of what is wrong, though the spec is right: a word and a sentence."""
    world = draft.world
    if world.refused:
        refused, why = sorted(world.refused.items())[0]
        return "ObjectRefused", f"The API server refuses {refused}: {why}"
    for name in draft.names.values():
        if name.state == "Conflict":
            return "NameConflict", name.message
    if state.too_many:
        return (
            "TooManyNames",
            f"There is no room for the public names {', '.join(state.too_many)[:200]}: retire others, or use another server.",
        )
    unanswered = [r.model for r in state.routes.routes if not r.targets]
    if unanswered and draft.able:
        return "NameUnanswered", f"No pod can answer {', '.join(unanswered)[:200]}."
    able = {p.pod.uid for p in draft.able}
    for pod in sorted(world.pods, key=lambda p: p.name):
        if pod.uid in able or pod.deleting:
            continue
        if pod.problem or pod.refusals:
            return "PodsFail", f"{pod.name}: {pod.problem or pod.refusals[0].message}"
        if pod.report is not None and is_heard(pod, draft.limits) and pod.report.engine_message:
            return "EngineFails", f"{pod.name}: {pod.report.engine_message}"
    if world.deployment is not None and world.deployment.message and not world.deployment.settled:
        return "DeploymentFails", world.deployment.message
    return None


def find_work(draft: ServerDraft, state: ServerState) -> tuple[str, str] | None:
    """What is under way: a word and a sentence."""
    for name in draft.names.values():
        if name.state in ("Canary", "Holding", "Paused"):
            return "RollingOut", f"{name.name}: {name.message}"
        if name.state == "Waiting" and name.canary is not None:
            return "Loading", f"{name.name}: {name.message}"
    waiting = [a for a in draft.status.adapters if a.state in ("Pending", "Loading")]
    if waiting:
        return "Loading", f"{waiting[0].name}: {waiting[0].message or 'it is being loaded.'}"
    leaving = [a.name for a in draft.status.adapters if a.state == "Draining"]
    if leaving:
        return (
            "Draining",
            f"{', '.join(leaving)[:200]}: no requests come any more; unloaded once those under way ended.",
        )
    if len(draft.able) < state.replicas:
        return "PodsStarting", f"{len(draft.able)} of {state.replicas} pods take requests."
    partly = [a for a in draft.status.adapters if a.state == "Ready" and find_share(draft.able, a.id) < 1]
    if partly:
        return "Loading", f"{partly[0].name}: {partly[0].pods} of {len(draft.able)} pods have it."
    if draft.world.deployment is not None and not draft.world.deployment.settled:
        return "PodsReplaced", "Pods are being replaced."
    return None


def find_phase(draft: ServerDraft, state: ServerState) -> ServerPhase:
    if state.obstacle is not None:
        return "Degraded" if draft.able else "Failed"
    if state.replicas == 0:
        return "Suspended"
    if find_trouble(draft, state) is not None:
        return "Degraded"
    if not draft.able:
        return "Pending"
    return "Progressing" if find_work(draft, state) is not None else "Ready"


def build_conditions(draft: ServerDraft, state: ServerState) -> list[Condition]:
    """The conditions, in a fixed order."""
    rows: list[tuple[ConditionType, Row]] = [
        (ConditionType.READY, _ready(draft, state)),
        (ConditionType.RECONCILING, _reconciling(draft, state)),
        (ConditionType.STALLED, _stalled(state)),
        (ConditionType.SUSPENDED, _suspended(state)),
        (ConditionType.AVAILABLE, _available(draft, state)),
        (ConditionType.PROGRESSING, _progressing(draft, state)),
        (ConditionType.PROTECTED, _protected(draft)),
        (ConditionType.AUTOSCALED, _autoscaled(draft)),
    ]
    old, generation = draft.world.status.conditions, draft.world.generation
    return [write_condition(old, kind, *row, now=draft.now, generation=generation) for kind, row in rows]


def _ready(draft: ServerDraft, state: ServerState) -> Row:
    if state.obstacle is not None:
        return "False", state.obstacle.reason, state.obstacle.message
    if state.replicas == 0:
        return "False", "Suspended", "spec.replicas is 0."
    if trouble := find_trouble(draft, state):
        return "False", *trouble
    if len(draft.able) < state.replicas:
        return "False", "PodsStarting", f"{len(draft.able)} of {state.replicas} pods take requests."
    first = next((n for n in draft.names.values() if n.state == "Waiting" and n.canary is not None), None)
    if first is not None:
        return "False", "Loading", f"{first.name}: {first.message}"
    return "True", "Ready", "Its pods take requests."


def _reconciling(draft: ServerDraft, state: ServerState) -> Row:
    if state.obstacle is not None or state.replicas == 0:
        return "False", "Settled", ""
    found = find_work(draft, state)
    return ("True", *found) if found else ("False", "Settled", "")


def _stalled(state: ServerState) -> Row:
    if state.obstacle is not None:
        return "True", state.obstacle.reason, state.obstacle.message
    return "False", "NotStalled", ""


def _suspended(state: ServerState) -> Row:
    return ("True", "Suspended", "spec.replicas is 0.") if state.replicas == 0 else ("False", "NotSuspended", "")


def _available(draft: ServerDraft, state: ServerState) -> Row:
    if not draft.able:
        return "False", "NoPod", "No pod takes requests."
    unanswered = [r.model for r in state.routes.routes if not r.targets]
    if unanswered:
        return "False", "NameUnanswered", f"No pod can answer {', '.join(unanswered)[:200]}."
    return "True", "Available", ""


def _progressing(draft: ServerDraft, state: ServerState) -> Row:
    if state.obstacle is not None or state.replicas == 0:
        return "False", "Settled", ""
    if (trouble := find_trouble(draft, state)) and trouble[0] in (
        "PodsFail",
        "EngineFails",
        "DeploymentFails",
        "ObjectRefused",
    ):
        return "False", *trouble
    found = find_work(draft, state)
    return ("True", *found) if found else ("False", "Settled", "")


def _protected(draft: ServerDraft) -> Row:
    if not draft.world.capabilities.disruption_budgets:
        return "False", "NoPolicyV1", NO_POLICY
    return "True", "Protected", "A PodDisruptionBudget holds up drains."


def _autoscaled(draft: ServerDraft) -> Row:
    if draft.world.server is None or draft.spec.autoscaling is None:
        return "False", "NotAsked", ""
    if not draft.world.capabilities.autoscaling:
        return "False", "NoAutoscalingV2", NO_AUTOSCALING
    return "True", "Autoscaled", "A HorizontalPodAutoscaler sets the replicas."
