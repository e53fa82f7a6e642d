"""Keeps a server's status below its size: what is least needed goes first. What a rollout is remembered by is not cut."""

import json
from collections.abc import Callable

from llamero.lifecycle.bounds import MAX_STATUS_BYTES, shorten
from llamero.spec.server import ModelServerStatus

Cut = Callable[[ModelServerStatus], ModelServerStatus]


def fits(status: ModelServerStatus) -> bool:
    """Whether the status is as small as it must be."""
    return len(json.dumps(status.to_json_dict())) <= MAX_STATUS_BYTES


def shrink(status: ModelServerStatus) -> ModelServerStatus:
    """The status, cut until it fits, or until only what a rollout needs is left."""
    for cut in CUTS:
        if fits(status):
            break
        status = cut(status)
    return status


def _cut_conditions(size: int) -> Cut:
    return lambda status: status.model_copy(
        update={"conditions": [c.model_copy(update={"message": shorten(c.message, size)}) for c in status.conditions]}
    )


def _cut_sentences(size: int) -> Cut:
    def apply(status: ModelServerStatus) -> ModelServerStatus:
        def short(text: str) -> str:
            return shorten(text, size) if size else ""

        return status.model_copy(
            update={
                "models": [m.model_copy(update={"message": short(m.message)}) for m in status.models],
                "adapters": [a.model_copy(update={"message": short(a.message)}) for a in status.adapters],
                "pods": [p.model_copy(update={"message": short(p.message)}) for p in status.pods],
            }
        )

    return apply


def _cut_pods(count: int) -> Cut:
    return lambda status: status.model_copy(update={"pods": status.pods[:count]})


def _cut_pod_adapters(status: ModelServerStatus) -> ModelServerStatus:
    return status.model_copy(update={"pods": [p.model_copy(update={"adapters": []}) for p in status.pods]})


def _cut_pending(status: ModelServerStatus) -> ModelServerStatus:
    """Adapters that no pod was told of yet are found again by the next look."""
    return status.model_copy(update={"adapters": [a for a in status.adapters if a.state != "Pending"]})


def _cut_idle_names(status: ModelServerStatus) -> ModelServerStatus:
    """Names that nothing serves are found again by the next look."""
    kept = [m for m in status.models if m.adapter or m.canary or m.since]
    return status.model_copy(update={"models": kept})


def _cut_ready(status: ModelServerStatus) -> ModelServerStatus:
    """Adapters that are ready stand in the routes too."""
    return status.model_copy(update={"adapters": [a for a in status.adapters if a.state != "Ready"]})


CUTS: tuple[Cut, ...] = (
    _cut_conditions(300),
    _cut_sentences(120),
    _cut_pods(8),
    _cut_pod_adapters,
    _cut_sentences(60),
    _cut_conditions(120),
    _cut_pods(2),
    _cut_sentences(0),
    _cut_pending,
    _cut_idle_names,
    _cut_pods(0),
    _cut_conditions(40),
    _cut_ready,
)
