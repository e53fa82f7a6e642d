"""Why a job can't run as it stands, though its manifest may be well-formed; an edit of it, or of the operator's settings, mends it."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from llamero.lifecycle.world import Limits, World
from llamero.spec.job import BaseModelRef, FineTuneJobSpec
from llamero.spec.status import MAX_MESSAGE


@dataclass(frozen=True)
class Obstacle:
    """What is in the way: a word and a sentence. `waits`: nobody need edit the job."""

    reason: str
    message: str
    waits: bool = False


def find_obstacle(world: World, limits: Limits, is_finished: bool) -> Obstacle | None:
    """The first thing in the way. What only a run would need is not asked of a job whose run is over."""
    if world.job is None:
        return Obstacle("InvalidSpec", list_problems(world.problems))
    if is_finished:
        return None
    spec = world.job.spec
    return (
        check_base(spec.base_model, limits.allowed_bases)
        or _check_classes(spec, limits)
        or (
            Obstacle("StorageNotSet", limits.storage_problem[:MAX_MESSAGE], waits=True)
            if limits.storage_problem
            else None
        )
    )


def list_problems(problems: tuple[str, ...]) -> str:
    """A spec's mistakes as one message."""
    text = " ".join(p if p.endswith(".") else f"{p}." for p in problems) or "The manifest can't be read: mend it."
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 4] + " ..."


def check_base(base: BaseModelRef, allowed: tuple[str, ...]) -> Obstacle | None:
    """A base model that the operator's settings do not allow; the same for jobs and servers."""
    name = base.name or base.uri or ""
    pinned = f"{base.name}@{base.revision}" if base.name and base.revision else name
    if not allowed or any(fnmatchcase(name, pattern) or fnmatchcase(pinned, pattern) for pattern in allowed):
        return None
    return Obstacle(
        "BaseNotAllowed",
        f"spec.baseModel: {name[:120]!r} is not among the base models that the operator's settings allow "
        f"({', '.join(allowed)[:200]}): choose one of these, or have it added.",
    )


def _check_classes(spec: FineTuneJobSpec, limits: Limits) -> Obstacle | None:
    unknown = [c for c in spec.training.resources.gpu_class if c not in limits.known_gpu_classes]
    if not unknown or spec.training.resources.gpus == 0:
        return None
    return refuse_gpu_class("spec.training.resources.gpuClass", unknown[0], limits.known_gpu_classes)


def refuse_gpu_class(place: str, name: str, known: frozenset[str]) -> Obstacle:
    """A GPU class that the operator's settings do not name."""
    told = ", ".join(sorted(known))[:240] or "none is set"
    return Obstacle(
        "UnknownGpuClass",
        f"{place}: {name[:63]!r} is no GPU class of the operator's settings (known: {told}): choose a known one, or have it added.",
    )


def needs_fetch(base: BaseModelRef) -> bool:
    """Whether the base must be brought into shared storage first: from the hub, or from elsewhere on the network."""
    if base.name is not None:
        return True
    uri = base.uri or ""
    return "://" in uri and not uri.startswith(("file://", "pvc://"))
