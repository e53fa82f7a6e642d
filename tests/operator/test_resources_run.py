"""Rendered Jobs on the real control plane and the process node: their pods find what the environment promises."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane
from cluster.fixtures import StartNode
from cluster.node import NodeThread
from cluster.observing import job_condition, pods_of, terminated
from cluster.waiting import until

from llamero.lifecycle.world import Capabilities, Work, World
from llamero.spec.job import FineTuneJob
from llamero.spec.names import JobStorage
from llamero.spec.status import WorkKind
from llamero.spec.tasks import AttemptId, Outcome, WorkMessage
from llamero_operator.desired import desired_children
from llamero_operator.messages import attempt_id
from llamero_operator.resources.redis_secret import build_redis_secret
from llamero_operator.settings import parse_settings

MakeJob = Callable[..., FineTuneJob]
MakeWorld = Callable[..., World]

# Stands in for a pod's program: writes where it is told to, and answers with its environment.
LOOK_AROUND = """
import json, os, pathlib, tempfile
for name in ("LLAMERO_STORAGE", "LLAMERO_SCRATCH", "HOME", "HF_HOME"):
    folder = pathlib.Path(os.environ[name])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (os.environ["LLAMERO_POD_NAME"] + ".txt")).write_text(name)
tempfile.mkdtemp()
kept = {n: v for n, v in os.environ.items() if n.startswith(("LLAMERO_", "POD_IP", "tok")) and n != "LLAMERO_MESSAGE"}
message = json.loads(os.environ.get("LLAMERO_MESSAGE", "null"))
text = json.dumps({"environment": kept, "message": message})
assert len(text.encode()) < 4096
pathlib.Path(os.environ["LLAMERO_TERMINATION_LOG"]).write_text(text)
"""


def test_pods_of_every_kind_find_what_the_environment_promises(
    control_plane: ControlPlane,
    namespace: str,
    start_node: StartNode,
    make_world: MakeWorld,
    make_job: MakeJob,
    tmp_path: Path,
) -> None:
    start_node("gpu-for-resources", gpus=1)
    storage = tmp_path / "storage"
    raw = {
        "storage": {"hostPath": str(storage)},
        "pods": {kind: {"cpuRequest": "100m", "memoryRequest": "64Mi"} for kind in ("data", "training", "evaluation")},
    }
    settings = parse_settings(raw, {"LLAMERO_REDIS_URL": "redis://:word@127.0.0.1:1/0"})
    job = make_job(baseModel={"uri": "s3://models/x", "secretRef": {"name": "hub", "key": "tok.en"}})
    created = control_plane.api.create({**job.to_json_dict(), "metadata": {"name": "tutor"}}, namespace)
    control_plane.api.create(build_redis_secret(namespace, settings.redis_url))
    hub = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}, "stringData": {"tok.en": "hub-word"}}
    control_plane.api.create(hub, namespace)

    world = make_world(
        job,
        namespace=namespace,
        uid=created["metadata"]["uid"],
        capabilities=Capabilities(job_suspend=False, version=(1, 20)),
    )
    works = [Work(kind, 1, 1, gpus=1 if kind is WorkKind.TRAIN else 0) for kind in WorkKind]
    for manifest in desired_children(world, works, settings):
        manifest["spec"]["template"]["spec"]["containers"][0]["command"] = ["python", "-c", LOOK_AROUND]
        control_plane.api.create(manifest)
        name = manifest["metadata"]["name"]
        until(lambda name=name: job_condition(control_plane, namespace, name), f"{name} to end", seconds=60)

    pods = pods_of(control_plane, namespace)
    assert len(pods) == len(works)
    for pod in pods:
        assert terminated(pod)["exitCode"] == 0, terminated(pod)
        check_answer(pod, json.loads(terminated(pod)["message"]), world)
    assert len(list(storage.glob("*.txt"))) == len(works)


def test_the_rendered_clean_up_removes_a_jobs_files_though_its_spec_is_wrong_by_now(
    control_plane: ControlPlane,
    cluster_node: NodeThread,
    namespace: str,
    make_world: MakeWorld,
    make_job: MakeJob,
    tmp_path: Path,
) -> None:
    storage = tmp_path / "storage"
    settings = parse_settings({"storage": {"hostPath": str(storage)}}, {"LLAMERO_REDIS_URL": "redis://127.0.0.1:1/0"})
    created = control_plane.api.create({**make_job().to_json_dict(), "metadata": {"name": "tutor"}}, namespace)
    world = make_world(
        has_job=False,
        namespace=namespace,
        uid=created["metadata"]["uid"],
        capabilities=Capabilities(job_suspend=False, version=(1, 20)),
    )
    mine = Path(JobStorage(str(storage), namespace, world.name, world.uid).prefix)
    other = Path(JobStorage(str(storage), namespace, world.name, "ffffffff-1111").prefix)
    for folder in (mine, other):
        (folder / "r1").mkdir(parents=True)
        (folder / "r1" / "left.txt").write_text("left")

    # There is no Secret `llamero-redis` in this namespace: a clean-up does without.
    (manifest,) = desired_children(world, [Work(WorkKind.CLEAN, 0, 1)], settings)
    control_plane.api.create(manifest)
    name = manifest["metadata"]["name"]
    ended = until(lambda: job_condition(control_plane, namespace, name), "the clean-up to end", seconds=90)
    (pod,) = pods_of(control_plane, namespace)
    assert ended == "Complete", terminated(pod)
    outcome = Outcome.from_termination_message(terminated(pod)["message"])
    assert outcome is not None and outcome.exit_code == 0
    assert outcome.id == attempt_id(world, Work(WorkKind.CLEAN, 0, 1))
    assert not mine.exists() and (other / "r1" / "left.txt").exists()


def check_answer(pod: dict[str, Any], answer: dict[str, Any], world: World) -> None:
    found = answer["environment"]
    attempt = AttemptId.model_validate_json(found["LLAMERO_ATTEMPT"])
    assert (attempt.uid, attempt.job, attempt.namespace) == (world.uid, world.name, world.namespace)
    assert pod["metadata"]["labels"]["llamero.dev/work"] == attempt.kind
    assert found["LLAMERO_POD_UID"] == pod["metadata"]["uid"]
    assert found["LLAMERO_POD_NAME"] == pod["metadata"]["name"]
    assert found["LLAMERO_NODE"] == pod["spec"]["nodeName"]
    assert found["POD_IP"] == pod["status"]["podIP"]
    assert found["LLAMERO_REDIS_URL"] == "redis://:word@127.0.0.1:1/0"
    assert ("tok.en" in found) == (attempt.kind not in (WorkKind.CLEAN, WorkKind.LOGS))
    if answer["message"] is not None:
        assert WorkMessage.model_validate(answer["message"]).id == attempt
