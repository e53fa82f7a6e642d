"""What tests ask the API server: pods of a namespace, how containers ended, a Job's condition."""

from typing import Any

from cluster.api import path_of
from cluster.control_plane import ControlPlane
from cluster.waiting import until

Object = dict[str, Any]


def pods_of(control_plane: ControlPlane, namespace: str) -> list[Object]:
    """The namespace's pods."""
    return control_plane.api.items(path_of("v1", "Pod", namespace))


def pod_of(control_plane: ControlPlane, namespace: str, name: str) -> Object | None:
    """The pod, or None."""
    return control_plane.api.find(path_of("v1", "Pod", namespace, name))


def wait_phase(control_plane: ControlPlane, namespace: str, name: str, *phases: str, seconds: float = 30) -> Object:
    """The pod once it is in one of the phases."""

    def reached() -> Object | None:
        pod = pod_of(control_plane, namespace, name)
        return pod if pod and pod["status"].get("phase") in phases else None

    found = until(reached, f"pod {name} to be {' or '.join(phases)}", seconds)
    assert found is not None
    return found


def wait_ready(control_plane: ControlPlane, namespace: str, name: str, seconds: float = 30) -> Object:
    """The pod once it is Ready."""

    def ready() -> Object | None:
        pod = pod_of(control_plane, namespace, name)
        return pod if pod and is_ready(pod) else None

    found = until(ready, f"pod {name} to be ready", seconds)
    assert found is not None
    return found


def is_ready(pod: Object) -> bool:
    """Whether the pod's condition Ready is True."""
    conditions = pod["status"].get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def terminated(pod: Object, container: str | None = None) -> Object:
    """How a container (the first by default) ended: exitCode, reason, message. Raises AssertionError where it has not."""
    statuses = pod["status"].get("containerStatuses") or []
    for status in statuses:
        if container in (None, status["name"]):
            assert "terminated" in status["state"], status["state"]
            state: Object = status["state"]["terminated"]
            return state
    raise AssertionError(f"no container {container} in {[status['name'] for status in statuses]}")


def job_condition(control_plane: ControlPlane, namespace: str, name: str) -> str | None:
    """Complete or Failed, once the Job has ended."""
    job = control_plane.api.get(path_of("batch/v1", "Job", namespace, name))
    for condition in job["status"].get("conditions") or []:
        if condition["status"] == "True":
            return str(condition["type"])
    return None
