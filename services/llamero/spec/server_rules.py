"""Rules that span several fields of a ModelServer, as `rules.py` has them for jobs: each a small function, listed in a table.

A rule is pure: server in, problems out. What CEL can say of them stands in `server_cel.py` with the same sentences.
"""

from collections.abc import Callable, Iterator

from llamero.spec import address_rules, rules
from llamero.spec.engine_args import find_wrong_args
from llamero.spec.problems import Path, Problem, Severity
from llamero.spec.server import ModelServer


def check_base(server: ModelServer) -> Iterator[Problem]:
    base = server.spec.base_model
    path: Path = ("spec", "baseModel")
    yield from rules.check_base_model(base, path)
    if base.uri is not None:
        yield from address_rules.check_address(base.uri, (*path, "uri"), False, "use https")


def check_engine(server: ModelServer) -> Iterator[Problem]:
    engine, resources = server.spec.engine, server.spec.resources
    no_gpu = "the cpu engine uses no GPU: remove it, or choose the engine `tgi` or `vllm`"
    if engine.type == "cpu" and resources.gpus:
        yield Problem(("spec", "resources", "gpus"), no_gpu)
    if engine.type == "cpu" and resources.gpu_class is not None:
        yield Problem(("spec", "resources", "gpuClass"), no_gpu)
    dtype_path: Path = ("spec", "engine", "dtype")
    if (engine.type, engine.dtype) in (("tgi", "float32"), ("cpu", "float16")):
        yield Problem(dtype_path, f"the {engine.type} engine does not serve {engine.dtype}: use bfloat16, or remove it")
    if engine.type == "tgi" and engine.dtype is not None and engine.quantization is not None:
        yield Problem(dtype_path, "text-generation-inference takes no dtype beside a quantization: remove one of them")
    for index, message in find_wrong_args(engine.type, engine.args):
        yield Problem(("spec", "engine", "args", index), message)


def check_room(server: ModelServer) -> Iterator[Problem]:
    """What is pinned must fit into a pod, and a rollout needs room for one more."""
    path: Path = ("spec", "engine", "maxAdapters")
    room = server.spec.engine.max_adapters
    pinned = {m.adapter for m in server.spec.models if m.adapter is not None and not m.retired}
    if len(pinned) > room:
        yield Problem(path, f"`models` pins {len(pinned)} adapters, and a pod may hold {room}: raise it")
    elif max(len(pinned), 1) == room:
        yield Problem(
            path,
            f"with {room} a pod has no room for a new adapter beside those that serve: raise it for rollouts",
            Severity.WARNING,
        )


def check_scale(server: ModelServer) -> Iterator[Problem]:
    scale = server.spec.autoscaling
    if scale is not None and scale.min_replicas > scale.max_replicas:
        yield Problem(
            ("spec", "autoscaling", "minReplicas"),
            f"must be at most maxReplicas ({scale.max_replicas}), not {scale.min_replicas}",
        )
    if server.spec.window is not None and server.spec.update_strategy != "Recreate":
        yield Problem(
            ("spec", "window"),
            "a window belongs to `updateStrategy: Recreate`, and pods are replaced one beside the other here: remove it, or choose Recreate",
        )


def check_models(server: ModelServer) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, model in enumerate(server.spec.models):
        path: Path = ("spec", "models", index)
        if model.name in seen:
            yield Problem(
                (*path, "name"), f"`{model.name}` stands in the list twice: put what is wanted of it into one entry"
            )
        seen.add(model.name)
        if model.base and model.adapter is not None:
            yield Problem((*path, "adapter"), "`base: true` answers without an adapter: remove one of the two")
        if model.base and model.promote is not None:
            yield Problem(
                (*path, "promote"),
                "`base: true` answers without an adapter, and there is none to promote: remove one of the two",
            )
        if model.base and model.rollback:
            yield Problem(
                (*path, "rollback"),
                "`base: true` answers without an adapter, and there is none to roll back: remove one of the two",
            )
        if model.adapter is not None and model.adapter in model.rollback:
            yield Problem(
                (*path, "rollback"),
                f"`{model.adapter}` is pinned and rolled back at once, so that it does not serve: take it from one of the two",
                Severity.WARNING,
            )
        if model.promote is not None and model.promote in model.rollback:
            yield Problem(
                (*path, "promote"),
                f"`{model.promote}` is rolled back, so that promoting it has no effect: take it from `rollback`",
                Severity.WARNING,
            )


SERVER_CHECKS: tuple[Callable[[ModelServer], Iterator[Problem]], ...] = (
    check_base,
    check_engine,
    check_room,
    check_scale,
    check_models,
)
