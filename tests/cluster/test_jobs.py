"""Jobs on the real control plane: the node runs their pods, the controllers see how they end."""

from cluster.api import path_of
from cluster.control_plane import ControlPlane
from cluster.fixtures import StartNode
from cluster.manifests import build_job, build_pod, shell
from cluster.node import NodeThread
from cluster.observing import job_condition, pod_of, pods_of, terminated, wait_phase
from cluster.runs import count_by_owner, most_at_once
from cluster.waiting import until


def test_a_job_of_two_pods_completes(control_plane: ControlPlane, cluster_node: NodeThread, namespace: str) -> None:
    control_plane.api.create(build_job("pair", shell("echo done"), completions=2, parallelism=2), namespace)
    until(lambda: job_condition(control_plane, namespace, "pair") == "Complete", "the job to complete")
    runs = [run for run in cluster_node.runs if run.namespace == namespace]
    assert count_by_owner(runs) == {"pair": 2}
    assert 1 <= most_at_once(runs) <= 2
    assert {pod["status"]["phase"] for pod in pods_of(control_plane, namespace)} == {"Succeeded"}


def test_a_job_without_retries_fails_with_its_pod(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.api.create(build_job("broken", shell("exit 3")), namespace)
    until(lambda: job_condition(control_plane, namespace, "broken") == "Failed", "the job to fail")
    (pod,) = pods_of(control_plane, namespace)
    assert (terminated(pod)["exitCode"], terminated(pod)["reason"]) == (3, "Error")


def test_what_a_deleted_job_owned_goes_with_it(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.api.create(build_job("parent", shell("sleep 60"), {"terminationGracePeriodSeconds": 1}), namespace)
    until(lambda: [p for p in pods_of(control_plane, namespace) if p["status"]["phase"] == "Running"], "a running pod")
    path = path_of("batch/v1", "Job", namespace, "parent")
    job = control_plane.api.get(path)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "parent", "uid": job["metadata"]["uid"]}
    child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "child", "ownerReferences": [owner]}}
    control_plane.api.create(child, namespace)
    control_plane.api.delete(path, propagationPolicy="Background")
    until(lambda: not pods_of(control_plane, namespace), "the pod to go")
    child_path = path_of("v1", "ConfigMap", namespace, "child")
    until(lambda: control_plane.api.find(child_path) is None, "the owned ConfigMap to go")


def test_a_finished_job_goes_after_its_time_to_live(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.api.create(build_job("brief", shell("true"), ttlSecondsAfterFinished=1), namespace)
    path = path_of("batch/v1", "Job", namespace, "brief")
    until(lambda: control_plane.api.find(path) is None, "the finished job to go")


def test_a_second_gpu_pod_waits_and_says_why(
    control_plane: ControlPlane, namespace: str, start_node: StartNode
) -> None:
    start_node("gpu-node", gpus=1)
    gpu = {"limits": {"nvidia.com/gpu": "1"}}
    control_plane.api.create(build_pod("first", shell("sleep 60", resources=gpu)), namespace)
    wait_phase(control_plane, namespace, "first", "Running")
    control_plane.api.create(build_pod("second", shell("true", resources=gpu)), namespace)

    def unschedulable() -> str:
        pod = pod_of(control_plane, namespace, "second") or {}
        conditions = pod["status"].get("conditions") or []
        return "".join(c["message"] for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False")

    assert "Insufficient nvidia.com/gpu" in until(unschedulable, "the scheduler's reason")
    control_plane.api.delete(path_of("v1", "Pod", namespace, "first"), gracePeriodSeconds=0)
    wait_phase(control_plane, namespace, "second", "Succeeded")
