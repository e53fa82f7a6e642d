"""What is rendered for a server is taken by a real one: a dry run goes through all of its validation and defaults."""

from collections.abc import Callable
from typing import Any

import pytest
from cluster.api import path_of
from cluster.control_plane import ControlPlane

from llamero.lifecycle.world import Capabilities, Work, World
from llamero.spec.job import FineTuneJob
from llamero.spec.status import WorkKind
from llamero_operator.desired import desired_children
from llamero_operator.resources.redis_secret import build_redis_secret
from llamero_operator.settings import parse_settings

MakeJob = Callable[..., FineTuneJob]
MakeWorld = Callable[..., World]

SETTINGS: list[dict[str, Any]] = [
    {"storage": {"claim": "files"}, "gpuClasses": {"spot": {"tolerations": [{"key": "a", "operator": "Exists"}]}}},
    {
        "storage": {"uri": "s3://bucket", "secretName": "keys"},
        "gpuClasses": {"spot": {"resource": "amd.com/gpu", "nodeSelector": {"pool": "spot"}, "runtimeClass": "runner"}},
        "hub": {"caConfigMap": {"name": "authorities"}, "proxy": {"https": "http://proxy:3128"}},
        "imagePullSecrets": ["pull"],
        "imagePullPolicy": "Always",
        "security": {"uid": None, "gid": None, "fsGroup": None},
    },
    {"storage": {"hostPath": "/srv/llamero", "mountPath": "/srv/llamero"}, "gpuClasses": {"spot": {}}},
]


@pytest.mark.parametrize("raw", SETTINGS, ids=["claim", "object store", "folder"])
def test_a_real_server_takes_every_child(
    control_plane: ControlPlane, make_world: MakeWorld, make_job: MakeJob, raw: dict[str, Any]
) -> None:
    settings = parse_settings(raw, {"LLAMERO_REDIS_URL": "redis://redis:6379"})
    secret_ref = {"name": "hub", "key": "some.token-x"}
    job = make_job(
        labels={"kueue.x-k8s.io/queue-name": "team"}, baseModel={"uri": "s3://models/x", "secretRef": secret_ref}
    )
    world = make_world(job, namespace="default", capabilities=Capabilities(job_suspend=False, version=(1, 20)))
    works = [
        *(Work(kind, 1, 1) for kind in WorkKind),
        Work(WorkKind.PREPARE, 2, 1, pods=4),
        Work(WorkKind.TRAIN, 2, 1, gpu_class="spot", gpus=1),
    ]
    for manifest in desired_children(world, works, settings):
        path = path_of("batch/v1", "Job", "default") + "?dryRun=All"
        taken = control_plane.api.request("POST", path, manifest)
        # What the server did not know it would have dropped.
        assert_contains(taken["spec"], manifest["spec"])


def test_a_real_server_takes_the_redis_secret(control_plane: ControlPlane) -> None:
    secret = build_redis_secret("default", "redis://:word@redis:6379/0")
    taken = control_plane.api.request("POST", path_of("v1", "Secret", "default") + "?dryRun=All", secret)
    assert taken["data"] == secret["data"]


def assert_contains(taken: Any, asked: Any, path: str = "") -> None:
    """Everything that was asked for stands in what was taken (which has defaults besides)."""
    if isinstance(asked, dict):
        for key, value in asked.items():
            assert key in taken, f"{path}.{key} was dropped"
            assert_contains(taken[key], value, f"{path}.{key}")
    elif isinstance(asked, list):
        assert len(taken) == len(asked), path
        for index, (one, other) in enumerate(zip(taken, asked, strict=True)):
            assert_contains(one, other, f"{path}[{index}]")
    else:
        assert taken == asked, path
