"""Why a server can't be as it stands in its manifest; until that is mended, what is served goes on as it is."""

from fnmatch import fnmatchcase

from llamero.lifecycle.serving.world import ServerWorld, ServingLimits
from llamero.lifecycle.validity import Obstacle
from llamero.spec import names
from llamero.spec.status import MAX_MESSAGE


def find_obstacle(world: ServerWorld, limits: ServingLimits) -> Obstacle | None:
    """The first thing in the way."""
    if world.server is None:
        text = " ".join(p if p.endswith(".") else f"{p}." for p in world.problems)
        text = text or "The manifest can't be read: mend it."
        return Obstacle("InvalidSpec", text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 4]} ...")
    return _check_change(world) or _check_base(world, limits) or _check_class(world, limits)


def _check_change(world: ServerWorld) -> Obstacle | None:
    """Another base or engine is another server: its adapters would be gone at once, and callers with them."""
    assert world.server is not None
    spec = world.server.spec
    mark = names.serves_mark(
        spec.engine.type, spec.base_model.name or spec.base_model.uri or "", spec.base_model.revision
    )
    made_for = world.deployment.serves if world.deployment is not None else ""
    if made_for in ("", mark):
        return None
    return Obstacle(
        "BaseChanged",
        f"The server was made for {made_for[:160]!r}, and base and engine of a server never change: put them back, and make another "
        "ModelServer for the new ones.",
    )


def _check_base(world: ServerWorld, limits: ServingLimits) -> Obstacle | None:
    assert world.server is not None
    base = world.server.spec.base_model
    name = base.name or base.uri or ""
    pinned = f"{base.name}@{base.revision}" if base.name and base.revision else name
    if not limits.allowed_bases or any(fnmatchcase(n, p) for n in (name, pinned) for p in limits.allowed_bases):
        return None
    return Obstacle(
        "BaseNotAllowed",
        f"spec.baseModel: {name[:120]!r} is not among the base models that the operator's settings allow "
        f"({', '.join(limits.allowed_bases)[:200]}): choose one of these, or have it added.",
    )


def _check_class(world: ServerWorld, limits: ServingLimits) -> Obstacle | None:
    assert world.server is not None
    wanted = world.server.spec.resources.gpu_class
    if wanted is None or wanted in limits.known_gpu_classes or world.server.spec.resources.gpus == 0:
        return None
    known = ", ".join(sorted(limits.known_gpu_classes))[:240] or "none is set"
    return Obstacle(
        "UnknownGpuClass",
        f"spec.resources.gpuClass: {wanted[:63]!r} is no GPU class of the operator's settings (known: {known}): choose a known one, or "
        "have it added.",
    )
