"""The batch Job of an attempt: its pods are never replaced, since the next try is the operator's decision."""

from typing import Any

from llamero.lifecycle.world import Capabilities
from llamero.spec import names

Manifest = dict[str, Any]

SINCE: dict[str, tuple[int, int]] = {"podFailurePolicy": (1, 31), "podReplacementPolicy": (1, 34)}
"""The Kubernetes version that each field is stable since; older servers may have it switched off (KEP-3329, KEP-3939)."""


def build_job(
    *,
    name: str,
    namespace: str,
    labels: dict[str, str],
    owner: Manifest,
    template: Manifest,
    pods: int,
    is_work_queue: bool,
    deadline_seconds: int | None,
    queue: str | None,
    capabilities: Capabilities,
) -> Manifest:
    """A Job of `pods` pods. In a work queue they share the work and the first that succeeds ends the making of others.

    With `queue` (Kueue's) it is created suspended where the server knows that; Kueue alone writes the field from then on.
    """
    spec: Manifest = {"backoffLimit": 0, "parallelism": pods, "template": template}
    if not is_work_queue:
        spec["completions"] = pods
    if deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = deadline_seconds
    if queue is not None and capabilities.job_suspend:
        spec["suspend"] = True
    # A pod that is being preempted or evicted ends the attempt: a second one beside it would be a double.
    if capabilities.version >= SINCE["podFailurePolicy"]:
        disrupted = [{"type": "DisruptionTarget", "status": "True"}]
        spec["podFailurePolicy"] = {"rules": [{"action": "FailJob", "onPodConditions": disrupted}]}
    if capabilities.version >= SINCE["podReplacementPolicy"]:
        spec["podReplacementPolicy"] = "Failed"
    job_labels = labels if queue is None else labels | {names.QUEUE_LABEL: queue}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": job_labels, "ownerReferences": [owner]},
        "spec": spec,
    }
