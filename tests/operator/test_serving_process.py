"""The operator's serving side as a process against the real control plane, with real engine pods: what people and chat services see."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster.api import path_of
from cluster.control_plane import ControlPlane
from cluster.waiting import until
from serving.fixtures import Tiny
from serving.makers import WORDS, TinyAdapter
from stack.protocol_worker import Script
from stack.stack import API_VERSION, Object, Stack, played_job

from llamero.spec import names
from llamero.spec.routes import Routes
from llamero.spec.server import ModelServerStatus
from llamero.spec.status import ConditionType

AT_ONCE = {"steps": [100], "intervalSeconds": 1, "analysis": {"minRequests": 0}}
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


def backends(stack: Stack) -> dict[str, list[str]]:
    """The adapters of each pod in the routes."""
    return {b.pod: b.adapters for part in routes(stack).servers.values() for b in part}


def targets(stack: Stack, model: str = "tutor") -> list[str | None]:
    """The served ids that a public name goes to."""
    return [t.adapter for r in routes(stack).routes if r.model == model for t in r.targets if t.weight]


def wait(stack: Stack, holds: Callable[[], Any], what: str, seconds: float = 120) -> None:
    try:
        until(holds, what, seconds, 0.02)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{describe(stack)}") from error


def describe(stack: Stack) -> str:
    servers = stack.plane.api.items(stack.path("", "ModelServer"))
    told = [json.dumps(s.get("status"), indent=1) for s in servers]
    return "\n".join([*told, str(routes(stack)), stack.operator.log.read_text()[-6000:]])


def served_id(stack: Stack, name: str, made: TinyAdapter) -> str:
    return names.imported_adapter_id(stack.namespace, name, made.sha256)


def find(stack: Stack, name: str, kind: str) -> Object | None:
    return stack.plane.api.find(stack.path(name, kind))


def condition(stack: Stack, name: str, kind: str) -> tuple[str, str]:
    """Status and reason of an Adapter's condition."""
    status = (find(stack, name, "Adapter") or {}).get("status") or {}
    return next(((c["status"], c["reason"]) for c in status.get("conditions", []) if c["type"] == kind), ("", ""))


@contextmanager
def hanging_agent(stack: Stack, pod: str) -> Iterator[None]:
    """The agent takes connections and answers nothing for a while, as one does whose node is overloaded."""
    pid = stack.node.pids(pod, stack.namespace)[names.AGENT_CONTAINER]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_the_life_of_a_server_from_its_first_adapter_to_its_deletion(stack: Stack, tiny: Tiny) -> None:
    first, second = tiny.adapter(WORDS[0]), tiny.adapter(WORDS[1])
    stack.submit(adapter("tutor-a", first, tiny.base, "tiny"))
    stack.submit(server("tiny", tiny.base, strategy=AT_ONCE))
    wait(stack, lambda: targets(stack) == [served_id(stack, "tutor-a", first)], "the first adapter to be routed")
    assert names.SERVED_FINALIZER in (find(stack, "tutor-a", "Adapter") or {})["metadata"]["finalizers"]

    stack.submit(adapter("tutor-b", second, tiny.base, "tiny"))
    wait(stack, lambda: targets(stack) == [served_id(stack, "tutor-b", second)], "the second to take over")
    assert condition(stack, "tutor-b", "Verified")[0] == "True"
    stack.plane.api.delete(stack.path("tutor-a", "Adapter"))
    wait(stack, lambda: find(stack, "tutor-a", "Adapter") is None, "the first to be let go")
    assert all(ids == [served_id(stack, "tutor-b", second)] for ids in backends(stack).values())

    stack.plane.api.delete(stack.path("tutor-b", "Adapter"))
    wait(
        stack,
        lambda: condition(stack, "tutor-b", "Serving") == ("True", "DeletionWaits"),
        "it to say that it serves on",
    )
    assert targets(stack) == [served_id(stack, "tutor-b", second)]

    stack.plane.api.delete(stack.path("tiny", "ModelServer"))
    wait(stack, lambda: find(stack, "tiny", "ModelServer") is None, "the server to go")
    wait(stack, lambda: find(stack, "tutor-b", "Adapter") is None, "its adapter to be let go")
    assert routes(stack).servers == {} and routes(stack).routes == []
    engine = path_of("apps/v1", "Deployment", stack.namespace, names.engine_name("tiny"))
    wait(stack, lambda: stack.plane.api.find(engine) is None, "its Deployment to go with it")


def test_a_pod_that_is_told_to_end_leaves_the_routes_at_once_also_while_its_agent_hangs(
    stack: Stack, tiny: Tiny
) -> None:
    made = tiny.adapter(WORDS[0])
    stack.submit(adapter("tutor-a", made, tiny.base, "tiny"))
    stack.submit(server("tiny", tiny.base, replicas=2))
    wait(stack, lambda: len(backends(stack)) == 2 and all(backends(stack).values()), "two pods to be routed")
    victim, other = sorted(backends(stack))
    with hanging_agent(stack, other):
        time.sleep(1.5)  # so that a question to it is under way, longer than the interval between two
        began = time.monotonic()
        stack.plane.api.delete(path_of("v1", "Pod", stack.namespace, victim))
        wait(stack, lambda: victim not in backends(stack), "the pod to leave the routes", 10)
        assert time.monotonic() - began < 0.8, "with all that the test itself takes"
        assert other in backends(stack), "what the last routes said of a ready pod stands"
    wait(stack, lambda: len(backends(stack)) == 2, "another pod to take its place")


def test_a_restarted_operator_changes_no_route_and_sees_what_happened_meanwhile(stack: Stack, tiny: Tiny) -> None:
    made = tiny.adapter(WORDS[0])
    stack.submit(adapter("tutor-a", made, tiny.base, "tiny"))
    stack.submit(server("tiny", tiny.base))
    wait(stack, lambda: targets(stack), "the route")
    wait(stack, lambda: server_status(stack, "tiny").phase == "Ready", "the server to be quiet")
    before = stack.plane.api.get(path_of("v1", "ConfigMap", stack.namespace, names.ROUTES_NAME))["metadata"]
    stack.operator.kill()
    stack.operator.start()
    time.sleep(3)  # longer than a look at a quiet server takes: what is to be seen is that nothing happens
    after = stack.plane.api.get(path_of("v1", "ConfigMap", stack.namespace, names.ROUTES_NAME))["metadata"]
    assert after["resourceVersion"] == before["resourceVersion"]
    stack.operator.kill()
    (pod,) = backends(stack)
    stack.plane.api.delete(path_of("v1", "Pod", stack.namespace, pod))
    stack.operator.start()
    wait(stack, lambda: pod not in backends(stack) and backends(stack), "the new pod in place of the old one")


def test_a_quiet_server_costs_no_writes(stack: Stack, tiny: Tiny) -> None:
    stack.submit(adapter("tutor-a", tiny.adapter(WORDS[0]), tiny.base, "tiny"))
    stack.submit(server("tiny", tiny.base))
    wait(stack, lambda: server_status(stack, "tiny").phase == "Ready", "the server to be ready")
    time.sleep(3)
    writes = stack.operator.metric("llamero_api_writes_total")
    time.sleep(5)  # some looks at it: what is to be seen is that nothing is written
    assert stack.operator.metric("llamero_api_writes_total") == writes
    assert stack.operator.metric("llamero_server_reconcile_seconds_count") > 0


def test_the_deployment_follows_the_spec_and_what_others_change_of_it_is_undone(stack: Stack, tmp_path: Path) -> None:
    stack.submit(server("idle", tmp_path / "base", replicas=0, updateStrategy="RollingUpdate"))
    path = path_of("apps/v1", "Deployment", stack.namespace, names.engine_name("idle"))
    wait(stack, lambda: stack.plane.api.find(path), "the Deployment")
    made = stack.plane.api.get(path)
    assert made["spec"]["replicas"] == 0 and made["spec"]["strategy"]["type"] == "RollingUpdate"
    assert made["metadata"]["ownerReferences"][0]["kind"] == "ModelServer"
    service = path_of("v1", "Service", stack.namespace, names.engine_name("idle"))
    assert (
        stack.plane.api.get(service)["spec"]["selector"].items()
        <= made["spec"]["template"]["metadata"]["labels"].items()
    )

    change = json.dumps({"spec": {"updateStrategy": "Recreate"}})
    stack.plane.kubectl("patch", "ms", "idle", "--type=merge", "-p", change, namespace=stack.namespace)
    wait(stack, lambda: stack.plane.api.get(path)["spec"]["strategy"] == {"type": "Recreate"}, "the other strategy")

    stack.plane.kubectl("scale", "deployment", names.engine_name("idle"), "--replicas=1", namespace=stack.namespace)
    wait(stack, lambda: stack.plane.api.get(path)["spec"]["replicas"] == 0, "the number to be as the ModelServer says")
    stack.plane.api.delete(path)
    wait(stack, lambda: (stack.plane.api.find(path) or made)["metadata"]["uid"] != made["metadata"]["uid"], "a new one")


def test_an_operator_that_dies_at_any_of_its_writes_comes_to_the_same_end(stack: Stack, tmp_path: Path) -> None:
    for point in (2, 3, 5, 7, 9, 11):
        name = f"idle-{point}"
        stack.operator.kill()
        stack.submit(server(name, tmp_path / "base", replicas=0))
        stack.operator.start(wait=False, LLAMERO_FAULT=f"kill:{point}")
        until(lambda: stack.operator.returncode == -signal.SIGKILL, f"the end at point {point}", 60, 0.05)
        stack.operator.start()
        path = path_of("apps/v1", "Deployment", stack.namespace, names.engine_name(name))
        wait(stack, lambda path=path: stack.plane.api.find(path), f"the Deployment after point {point}")
        wait(stack, lambda name=name: server_status(stack, name).observed_generation == 1, f"a status after {point}")
        assert names.FINALIZER in (find(stack, name, "ModelServer") or {})["metadata"]["finalizers"]


def test_a_spec_that_is_wrong_is_told_with_its_mistakes_and_nothing_is_made_of_it(stack: Stack, tmp_path: Path) -> None:
    stack.submit(server("wrong", tmp_path / "base", engine={"type": "cpu", "args": ["--port=1"]}))

    def is_told() -> bool:
        status = server_status(stack, "wrong")
        return any(c.type == "Stalled" and c.status == "True" and "--port" in c.message for c in status.conditions)

    wait(stack, is_told, "the mistake to be told")
    engine = path_of("apps/v1", "Deployment", stack.namespace, names.engine_name("wrong"))
    assert stack.plane.api.find(engine) is None
    stack.plane.api.delete(stack.path("wrong", "ModelServer"))
    wait(stack, lambda: find(stack, "wrong", "ModelServer") is None, "it to go")


def test_the_deletion_of_an_adapter_that_no_server_has_any_more_is_not_held_up(stack: Stack, tiny: Tiny) -> None:
    manifest = adapter("left", tiny.adapter(WORDS[0]), tiny.base, "gone")
    manifest["metadata"]["finalizers"] = [names.SERVED_FINALIZER]
    stack.submit(manifest)
    stack.plane.api.delete(stack.path("left", "Adapter"))
    wait(stack, lambda: find(stack, "left", "Adapter") is None, "it to be let go", 20)


def test_a_job_makes_the_server_for_its_adapter_and_tells_of_the_rollout_when_it_is_long_done(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    with Stack(control_plane, tmp_path, script=Script(), settings={"serving": FAST}) as stack:
        job = played_job("tutor")
        stack.submit(job)
        stack.wait_phase("tutor", "Succeeded")
        base = job["spec"]["baseModel"]
        server = names.default_server_name(base.get("name") or base["uri"], base.get("revision"), "tgi")
        assert stack.adapters()["tutor-r1"]["spec"]["server"] == server
        made = find(stack, server, "ModelServer")
        assert made is not None and "ownerReferences" not in made["metadata"]
        assert made["spec"]["baseModel"] == base and made["spec"]["engine"]["type"] == "tgi"

        def is_told_of() -> bool:
            found = stack.status("tutor").condition(ConditionType.ROLLED_OUT)
            # Played workers tell of another base, so that the server's verdict is known beforehand.
            return found is not None and (found.status, found.reason) == ("False", "BaseMismatch")

        wait(stack, is_told_of, "the job to repeat what the server says of its adapter")
        time.sleep(2)
        writes = stack.operator.metric("llamero_api_writes_total")
        time.sleep(4)  # some looks at a server whose pods have no node: what is to be seen is that nothing is written
        assert stack.operator.metric("llamero_api_writes_total") == writes
        stack.delete("tutor")
        stack.wait_gone("tutor")
        assert find(stack, server, "ModelServer") is not None and list(stack.adapters()) == ["tutor-r1"]
        stack.plane.api.delete(stack.path("tutor-r1", "Adapter"))
        wait(stack, lambda: not stack.adapters(), "the adapter, which no pod ever had, to go")
