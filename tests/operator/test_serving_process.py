"""The operator's serving side as a process against the real control plane, with real engine pods: what people and chat services see."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.api import path_of
from cluster.control_plane import ControlPlane
from cluster.waiting import until
from serving.fixtures import Tiny
from serving.makers import WORDS, TinyAdapter
from stack.stack import API_VERSION, Object, Stack

from llamero.spec import names
from llamero.spec.routes import Routes
from llamero.spec.server import ModelServerStatus

FAST = {
    "enabled": True,
    "pollSeconds": 2,
    "busyPollSeconds": 0.3,
    "settleSeconds": 1,
    "drainSeconds": 5,
    "gatherSeconds": 1,
    "leaveSeconds": 2,
    "finishSeconds": 5,
}


@pytest.fixture
def stack(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Stack]:
    with Stack(control_plane, tmp_path, settings={"serving": FAST}) as running:
        yield running


def server(name: str, base: Path, **spec: Any) -> Object:
    body = {"baseModel": {"uri": str(base)}, "engine": {"type": "cpu"}, **spec}
    return {"apiVersion": API_VERSION, "kind": "ModelServer", "metadata": {"name": name}, "spec": body}


def adapter(name: str, made: TinyAdapter, base: Path, server: str = "", model: str = "tutor") -> Object:
    from llamero.model.loading import base_digest

    spec = {
        "uri": str(made.folder),
        "sha256": made.sha256,
        "base": str(base),
        "baseSha256": base_digest(base),
        "model": model,
        "server": server,
        **({"goldenSha256": made.golden_sha256} if made.golden_sha256 else {}),
    }
    spec = {k: v for k, v in spec.items() if v != ""}
    return {"apiVersion": API_VERSION, "kind": "Adapter", "metadata": {"name": name}, "spec": spec}


def server_status(stack: Stack, name: str) -> ModelServerStatus:
    found = stack.plane.api.get(stack.path(name, "ModelServer"))
    return ModelServerStatus.model_validate(found.get("status") or {})


def routes(stack: Stack) -> Routes:
    found = stack.plane.api.find(path_of("v1", "ConfigMap", stack.namespace, names.ROUTES_NAME))
    return Routes.model_validate_json(found["data"][names.ROUTES_KEY]) if found else Routes()


def test_a_server_comes_up_and_its_adapter_is_routed(stack: Stack, tiny: Tiny) -> None:
    made = tiny.adapter(WORDS[0])
    stack.submit(adapter("tutor-a", made, tiny.base, "tiny"))
    stack.submit(server("tiny", tiny.base))

    def is_routed() -> bool:
        table = routes(stack)
        return any(r.model == "tutor" and r.targets for r in table.routes)

    try:
        until(is_routed, "the route", 90, 0.1)
    finally:
        print(json.dumps(stack.plane.api.get(stack.path("tiny", "ModelServer")).get("status"), indent=1))
        print(routes(stack))
        print(stack.operator.log.read_text()[-6000:])
