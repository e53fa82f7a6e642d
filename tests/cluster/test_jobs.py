"""Jobs on the real control plane: the node runs their pods, the controllers see how they end."""

import sys
from typing import Any

from cluster.control_plane import ControlPlane
from cluster.manifests import build_job, build_pod, shell
from cluster.node import NodeThread, count_by_owner
from cluster.observing import job_condition, pod_of, pods_of, terminated, wait_phase
from cluster.waiting import until


def test_a_job_of_two_pods_completes(control_plane: ControlPlane, cluster_node: NodeThread, namespace: str) -> None:
    control_plane.api.create(build_job("pair", shell("echo done"), completions=2, parallelism=2), namespace)
    until(lambda: job_condition(control_plane, namespace, "pair") == "Complete", "the job to complete")
    assert count_by_owner(cluster_node.runs, namespace) == {"pair": 2}
    assert {pod["status"]["phase"] for pod in pods_of(control_plane, namespace)} == {"Succeeded"}
