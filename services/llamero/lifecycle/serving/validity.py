"""Why a server can't be as it stands in its manifest; until that is mended, what is served goes on as it is."""

from llamero.lifecycle.serving.world import ServerWorld, ServingLimits
from llamero.lifecycle.validity import Obstacle, check_base, list_problems, refuse_gpu_class
from llamero.spec import names


def find_obstacle(world: ServerWorld, limits: ServingLimits) -> Obstacle | None:
    """The first thing in the way."""
    if world.server is None:
        return Obstacle("InvalidSpec", list_problems(world.problems))
    return (
        _check_change(world)
        or check_base(world.server.spec.base_model, limits.allowed_bases)
        or _check_class(world, limits)
    )


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


def _check_class(world: ServerWorld, limits: ServingLimits) -> Obstacle | None:
    assert world.server is not None
    wanted = world.server.spec.resources.gpu_class
    if wanted is None or wanted in limits.known_gpu_classes or world.server.spec.resources.gpus == 0:
        return None
    return refuse_gpu_class("spec.resources.gpuClass", wanted, limits.known_gpu_classes)
