"""Faults: nodes that vanish and come back, evictions, an API server that is away, refuses or forgets, a silent Redis."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import kubernetes.client
import pytest
import redis

from cluster.api import ApiError, AsyncApi, Object, PlainApi, path_of
from cluster.control_plane import ControlPlane
from cluster.faults import FaultProxy, TcpProxy, resource_of
from cluster.manifests import build_job, build_pod, shell
from cluster.node import NodeOptions, NodeThread, ProcessNode
from cluster.observing import job_condition, pod_of, pods_of, terminated, wait_phase
from cluster.redis_server import NO_RETRY, RedisServer
from cluster.runtimes import SimulatedRuntime
from cluster.waiting import until, until_async

StartNode = Callable[..., NodeThread]
HELD = {"terminationGracePeriodSeconds": 1, "nodeSelector": {"role": "doomed"}}


def running_pods(control_plane: ControlPlane, namespace: str) -> list[Object]:
    return [pod for pod in pods_of(control_plane, namespace) if pod["status"].get("phase") == "Running"]


def is_leaving(pod: Object | None) -> bool:
    return pod is None or "deletionTimestamp" in pod["metadata"]


def test_pods_of_a_vanished_node_are_evicted_and_replaced_and_its_zombies_end_when_it_is_back(
    control_plane: ControlPlane, namespace: str, start_node: StartNode, tmp_path: Path
) -> None:
    doomed = start_node("doomed", labels={"role": "doomed"})
    script = f"while true; do date >> {tmp_path}/$POD; sleep 0.1; done"
    name = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    control_plane.api.create(build_job("long", shell(script, env=[name]), HELD, backoffLimit=2), namespace)
    (first,) = until(lambda: running_pods(control_plane, namespace), "the job's pod to run")
    zombie, pid = first["metadata"]["name"], doomed.pids(first["metadata"]["name"], namespace)["main"]
    start_node("heir", labels={"role": "doomed"})

    doomed.vanish(kill=False)
    until(lambda: is_leaving(pod_of(control_plane, namespace, zombie)), "the eviction", 60)

    def heirs() -> list[Object]:
        return [p for p in running_pods(control_plane, namespace) if p["spec"]["nodeName"] == "heir"]

    until(heirs, "another pod on the other node")
    written = (tmp_path / zombie).stat().st_size
    until(lambda: (tmp_path / zombie).stat().st_size > written, "the zombie to go on")

    doomed.return_()
    until(lambda: pod_of(control_plane, namespace, zombie) is None, "the zombie's object to go")
    assert not Path(f"/proc/{pid}").exists()


def test_a_node_that_lost_power_reports_its_pods_as_failed_when_it_is_back(
    control_plane: ControlPlane, namespace: str, start_node: StartNode
) -> None:
    doomed = start_node("flicker", labels={"role": "flicker"})
    selector = {"nodeSelector": {"role": "flicker"}}
    control_plane.api.create(build_pod("once", shell("sleep 300"), **selector), namespace)
    control_plane.api.create(build_pod("server", shell("sleep 300"), restartPolicy="Always", **selector), namespace)
    wait_phase(control_plane, namespace, "once", "Running")
    wait_phase(control_plane, namespace, "server", "Running")
    doomed.vanish(kill=True)
    doomed.return_()
    assert terminated(wait_phase(control_plane, namespace, "once", "Failed"))["exitCode"] == 137

    def restarts() -> int:
        (status,) = (pod_of(control_plane, namespace, "server") or {})["status"]["containerStatuses"]
        return int(status["restartCount"]) if "running" in status["state"] else 0

    until(lambda: restarts() == 1, "the server to run again")


def test_an_evicted_pod_has_failed_and_stays(
    control_plane: ControlPlane, cluster_node: NodeThread, namespace: str
) -> None:
    control_plane.api.create(build_pod("greedy", shell("sleep 300")), namespace)
    wait_phase(control_plane, namespace, "greedy", "Running")
    cluster_node.evict("greedy", namespace, "The node was low on resource: ephemeral-storage.")
    pod = pod_of(control_plane, namespace, "greedy")
    assert pod is not None
    status = pod["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "Evicted")
    assert "ephemeral-storage" in status["message"]
    assert terminated(pod)["exitCode"] == 143


def test_a_preempted_pod_is_deleted_with_its_grace(
    control_plane: ControlPlane, cluster_node: NodeThread, namespace: str
) -> None:
    control_plane.api.create(build_pod("spot", shell("sleep 300")), namespace)
    wait_phase(control_plane, namespace, "spot", "Running")
    cluster_node.preempt("spot", namespace)
    until(lambda: pod_of(control_plane, namespace, "spot") is None, "the pod to go")


def test_a_container_killed_for_memory_says_so(
    control_plane: ControlPlane, cluster_node: NodeThread, namespace: str
) -> None:
    control_plane.api.create(build_pod("fat", shell("sleep 300")), namespace)
    wait_phase(control_plane, namespace, "fat", "Running")
    cluster_node.kill_container("fat", namespace, signal_number=signal.SIGKILL, reason="OOMKilled")
    ended = terminated(wait_phase(control_plane, namespace, "fat", "Failed"))
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_an_image_that_is_not_there_can_not_be_pulled(
    control_plane: ControlPlane, namespace: str, start_node: StartNode
) -> None:
    start_node("picky", labels={"role": "picky"}, missing_images=frozenset({"none"}))
    control_plane.api.create(build_pod("pulling", shell("true"), nodeSelector={"role": "picky"}), namespace)

    def reason() -> str:
        (status,) = (pod_of(control_plane, namespace, "pulling") or {})["status"]["containerStatuses"]
        return str(status["state"].get("waiting", {}).get("reason"))

    until(lambda: reason() == "ImagePullBackOff", "the kubelet's reason")


def test_pods_go_on_while_the_api_server_is_away_and_report_when_it_is_back(
    control_plane: ControlPlane, namespace: str
) -> None:
    control_plane.api.create(build_job("steady", shell("sleep 1; exit 4")), namespace)
    until(lambda: running_pods(control_plane, namespace), "the job's pod to run")
    control_plane.stop_api()
    with pytest.raises(OSError):
        control_plane.api.get("/readyz")
    time.sleep(1.5)  # the pod ends meanwhile
    control_plane.start_api()
    until(lambda: job_condition(control_plane, namespace, "steady") == "Failed", "the job's end to be seen", 60)
    (pod,) = pods_of(control_plane, namespace)
    assert terminated(pod)["exitCode"] == 4


def test_a_hundred_simulated_pods_end_as_their_script_says(
    control_plane: ControlPlane, namespace: str, start_node: StartNode
) -> None:
    async def script(pod: Object, container: Object) -> tuple[int, str]:
        await asyncio.sleep(0)
        return (0, "fine") if pod["metadata"]["labels"]["job-name"] == "good" else (9, "bad")

    node = start_node("stage", runtime=SimulatedRuntime(script), labels={"role": "stage"})
    stage = {"nodeSelector": {"role": "stage"}}
    control_plane.api.create(build_job("good", shell("true"), stage, completions=100, parallelism=100), namespace)
    control_plane.api.create(build_job("bad", shell("true"), stage), namespace)
    until(lambda: job_condition(control_plane, namespace, "good") == "Complete", "the good job to complete", 60)
    until(lambda: job_condition(control_plane, namespace, "bad") == "Failed", "the bad job to fail")
    (bad,) = [pod for pod in pods_of(control_plane, namespace) if pod["metadata"]["labels"]["job-name"] == "bad"]
    assert (terminated(bad)["exitCode"], terminated(bad)["message"]) == (9, "bad")
    assert len(node.runs) == 101


async def test_a_node_runs_in_the_loop_of_an_async_test(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    ended = asyncio.Event()

    async def script(pod: Object, container: Object) -> tuple[int, str]:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            ended.set()
            return 5, "stopped in good order"
        return 0, ""

    options = NodeOptions(labels={"role": "here"})
    async with ProcessNode(
        control_plane.access, tmp_path / "node", "here", runtime=SimulatedRuntime(script), options=options
    ) as node:
        pod = build_pod("played", shell("true"), nodeSelector={"role": "here"})
        await asyncio.to_thread(control_plane.api.create, pod, namespace)
        await until_async(lambda: phase_seen(node, namespace, "played", "Running"), "the pod to run")
        await node.evict("played", namespace)
        assert ended.is_set()
        found = await asyncio.to_thread(pod_of, control_plane, namespace, "played")
        assert found is not None
        assert (terminated(found)["exitCode"], terminated(found)["message"]) == (5, "stopped in good order")


async def phase_seen(node: ProcessNode, namespace: str, name: str, phase: str) -> bool:
    return node.pod(name, namespace).phase == phase


def config_map(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {}}


def test_the_proxy_answers_409_on_every_second_write(fault_proxy: FaultProxy, namespace: str) -> None:
    api = PlainApi(fault_proxy.access)
    fault_proxy.conflicts.every(2)
    api.create(config_map("one"), namespace)
    with pytest.raises(ApiError, match="409 Conflict"):
        api.create(config_map("two"), namespace)
    assert len(api.items(path_of("v1", "ConfigMap", namespace) + "?labelSelector=a%21%3Db")) >= 1
    assert api.find(path_of("v1", "ConfigMap", namespace, "two")) is None
    assert fault_proxy.writes["POST", "configmaps"] == 2


def test_the_proxy_answers_429_with_a_time_to_wait(fault_proxy: FaultProxy, namespace: str) -> None:
    fault_proxy.throttles.next(1)
    fault_proxy.retry_after = 7
    configuration = kubernetes.client.Configuration(host=fault_proxy.url)
    configuration.retries = False  # it would wait the seven seconds and ask again
    configuration.ssl_ca_cert = str(fault_proxy.access.authority)
    configuration.api_key = {"authorization": f"Bearer {fault_proxy.access.token}"}
    core = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))
    with pytest.raises(kubernetes.client.ApiException) as caught:
        core.list_namespaced_config_map(namespace, _request_timeout=5)
    assert (caught.value.status, (caught.value.headers or {})["Retry-After"]) == (429, "7")
    assert core.list_namespaced_config_map(namespace, _request_timeout=5).kind == "ConfigMapList"


async def test_the_proxy_ends_watches_with_410_and_relays_them_otherwise(
    fault_proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    path = path_of("v1", "ConfigMap", namespace)
    async with AsyncApi(fault_proxy.access) as api:
        version = (await api.get(path))["metadata"]["resourceVersion"]
        fault_proxy.gone.next(1)
        with pytest.raises(ApiError, match="410"):
            async for _ in api.watch(path, version):
                pass
        watch = api.watch(path, version)
        control_plane.api.create(config_map("seen"), namespace)
        async with asyncio.timeout(5):
            event = await anext(watch)
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "seen")
        await watch.aclose()  # type: ignore[attr-defined]


def test_the_proxy_loses_the_answer_to_a_write_that_was_done(fault_proxy: FaultProxy, namespace: str) -> None:
    api = PlainApi(fault_proxy.access)
    fault_proxy.cuts_after.next(1)
    with pytest.raises(OSError):
        api.create(config_map("done"), namespace)
    assert api.find(path_of("v1", "ConfigMap", namespace, "done")) is not None


async def test_cut_connections_end_watches_and_delays_hold_requests(
    fault_proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    path = path_of("v1", "ConfigMap", namespace)
    async with AsyncApi(fault_proxy.access) as api:
        version = (await api.get(path))["metadata"]["resourceVersion"]
        watch = api.watch(path, version)
        await asyncio.to_thread(control_plane.api.create, config_map("first"), namespace)
        async with asyncio.timeout(10):
            await anext(watch)
            fault_proxy.cut_connections()
            with pytest.raises(aiohttp.ClientError):
                await anext(watch)
        fault_proxy.delay_seconds = 5
        with pytest.raises(TimeoutError):
            await api.request("GET", path, seconds=0.3)
        fault_proxy.calm()
        assert (await api.get(path))["kind"] == "ConfigMapList"


def test_a_hook_sees_each_write_before_and_after_it_is_done(
    fault_proxy: FaultProxy, control_plane: ControlPlane, namespace: str
) -> None:
    path = path_of("v1", "ConfigMap", namespace, "hooked")
    seen = []

    async def note(method: str, where: str, when: str) -> None:
        is_there = await asyncio.to_thread(control_plane.api.find, path) is not None
        seen.append((method, where, when, is_there))

    fault_proxy.on_write = note
    PlainApi(fault_proxy.access).create(config_map("hooked"), namespace)
    collection = path_of("v1", "ConfigMap", namespace)
    assert seen == [("POST", collection, "before", False), ("POST", collection, "after", True)]


def test_the_proxy_blocks_everything_until_it_is_unblocked(fault_proxy: FaultProxy, namespace: str) -> None:
    api = PlainApi(fault_proxy.access)
    fault_proxy.block()
    with pytest.raises(OSError):
        api.get("/version")
    fault_proxy.unblock()
    assert api.get("/version")["gitVersion"]


def test_kubectl_works_through_the_proxy(
    fault_proxy: FaultProxy, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    kubeconfig = fault_proxy.write_kubeconfig(tmp_path / "kubeconfig", namespace=namespace)
    control_plane.kubectl("create", "configmap", "by-proxy", kubeconfig=kubeconfig)
    assert control_plane.api.find(path_of("v1", "ConfigMap", namespace, "by-proxy")) is not None
    assert fault_proxy.writes["POST", "configmaps"] == 1


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/namespaces/a/pods/b/status", "pods/status"),
        ("/apis/llamero.dev/v1alpha1/namespaces/a/finetunejobs/b", "finetunejobs"),
        ("/apis/batch/v1/namespaces/a/jobs", "jobs"),
        ("/api/v1/nodes/n", "nodes"),
        ("/api/v1/namespaces/a", "namespaces"),
        ("/readyz", "/readyz"),
    ],
)
def test_a_path_names_its_resource(path: str, resource: str) -> None:
    assert resource_of(path) == resource


def test_redis_comes_back_with_its_append_only_file_on_the_same_port(redis_server: RedisServer) -> None:
    with redis_server.client as client:
        client.set("kept", "yes")
    redis_server.kill()
    with pytest.raises(redis.ConnectionError), redis_server.client as client:
        client.ping()
    redis_server.start()
    with redis_server.client as client:
        assert client.get("kept") == "yes"
    redis_server.flush()
    with redis_server.client as client:
        assert client.get("kept") is None


def test_a_redis_with_a_password_wants_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="sesame") as server:
        assert redis.Redis.from_url(server.url).ping()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=server.port, retry=NO_RETRY).ping()


def test_a_silent_connection_stays_open_and_answers_nothing_until_it_resumes(redis_server: RedisServer) -> None:
    with TcpProxy(redis_server.host, redis_server.port) as proxy:
        client = redis.Redis(port=proxy.port, socket_timeout=0.5, retry=NO_RETRY)
        assert client.ping()
        proxy.silence()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        proxy.resume()
        assert client.ping()
        proxy.refuse()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        proxy.resume()
        assert client.ping()
        client.close()
