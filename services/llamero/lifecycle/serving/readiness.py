"""Which pods take requests, and which adapters each has: from its agent's last word, or from the last routes while the agent is silent."""

from dataclasses import dataclass

from llamero.lifecycle.serving.world import EnginePodView, ServerWorld, ServingLimits
from llamero.spec import names


@dataclass(frozen=True)
class AblePod:
    """A pod that requests may go to. `heard`: its agent spoke of late; else `ids` is what the last routes say of it."""

    pod: EnginePodView
    url: str
    ids: frozenset[str]
    heard: bool


def engine_url(pod: EnginePodView) -> str:
    """Where the engine of the pod answers; empty where it has no address yet."""
    return pod.url or (f"http://{pod.ip}:{names.ENGINE_PORT}" if pod.ip else "")


def is_heard(pod: EnginePodView, limits: ServingLimits) -> bool:
    """Whether the pod's agent spoke of late."""
    return pod.report is not None and pod.report_age is not None and pod.report_age <= limits.report_seconds


def find_able(world: ServerWorld, limits: ServingLimits) -> tuple[AblePod, ...]:
    """The pods that take requests, by name.

    An agent's word counts at once, whatever it says: an engine that lost an adapter must get no request for it. An agent that is silent
    (the operator was just started, or the network between is broken) takes nothing away from a pod that Kubernetes calls ready.
    """
    routed = {(b.pod, b.url): frozenset(b.adapters) for b in world.routed.backends}
    able = []
    for pod in sorted(world.pods, key=lambda p: (p.name, p.uid)):
        url = engine_url(pod)
        if pod.deleting or not url or pod.phase in ("Succeeded", "Failed"):
            continue
        if is_heard(pod, limits) and pod.report is not None:
            if pod.report.engine_ready:
                able.append(AblePod(pod, url, pod.report.ready_ids, heard=True))
        elif pod.ready and (pod.name, url) in routed:
            able.append(AblePod(pod, url, routed[pod.name, url], heard=False))
    return tuple(able)


def count_ready(able: tuple[AblePod, ...], served_id: str) -> int:
    """Pods that take requests for the adapter."""
    return sum(served_id in pod.ids for pod in able)


def find_share(able: tuple[AblePod, ...], served_id: str) -> float:
    """The share of the pods that have the adapter, from 0 to 1. Pods with silent agents can't learn of it, so they don't count."""
    heard = [p for p in able if p.heard] or list(able)
    return count_ready(tuple(heard), served_id) / len(heard) if heard else 0.0
