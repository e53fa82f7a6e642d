"""Small manifests for tests of the node. Pure."""

from typing import Any

Object = dict[str, Any]


def shell(script: str, name: str = "main", **fields: Any) -> Object:
    """A container that runs a shell script."""
    return {"name": name, "image": "none", "command": ["sh", "-c", script], **fields}


def python(script: str, name: str = "main", **fields: Any) -> Object:
    """A container that runs a Python script in the checkout's environment."""
    return {"name": name, "image": "none", "command": ["python", "-c", script], **fields}


def build_pod(name: str, *containers: Object, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    """A pod that is not restarted unless `restartPolicy` says so."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": list(containers), **spec},
    }


def build_job(name: str, container: Object, pod: Object | None = None, **spec: Any) -> Object:
    """A Job whose pods have the container; `pod` adds fields to the pods' spec."""
    template = {"spec": {"restartPolicy": "Never", "containers": [container], **(pod or {})}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template, **spec},
    }


def build_deployment(name: str, container: Object, replicas: int = 1, **spec: Any) -> Object:
    """A Deployment whose pods carry the label app=<name>."""
    labels = {"app": name}
    pod = {"terminationGracePeriodSeconds": 2, "containers": [container]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
            **spec,
        },
    }
