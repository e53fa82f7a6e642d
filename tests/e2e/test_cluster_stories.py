"""Stories on a real control plane with real pods: real data preparation, real NF4 training, real evaluation, as a user would type them.

The operator is its own process; pods run their real commands as local processes (tests/cluster). Quicker stories, whose pods are
played, stand in test_cluster_life.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.control_plane import ControlPlane
from cluster.node import NodeOptions
from cluster.waiting import until
from stack.stack import Object, Stack

from llamero.spec.names import MANIFEST_NAME, parse_checkpoint_name
from llamero.spec.results import AdapterManifest, TrainingResult
from llamero.spec.status import ConditionType, WorkKind
from llamero.storage import find_damage

pytestmark = [pytest.mark.timeout(900)]

STEPS = 60
PHASE_SECONDS = 300


@pytest.fixture(scope="module")
def stack(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    pods = {
        name: {"cpuRequest": "100m", "memoryRequest": "100Mi", "scratch": "2Gi"}
        for name in ("data", "training", "evaluation", "helper")
    }
    pods["training"]["sharedMemory"] = "256Mi"
    folder = tmp_path_factory.mktemp("stack")
    with Stack(control_plane, folder, settings={"pods": pods}, node=NodeOptions(gpus=1)) as running:
        yield running


def write_data(path: Path, records: int, word: str = "colour") -> Path:
    rows = [
        {
            "instruction": f"Name a thing of the {word} number {n}.",
            "input": "",
            "output": f"Thing {n} of {word} {n % 7} stands in row {n % 11}.",
        }
        for n in range(records)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def build_manifest(repository: Path, name: str, data: Path, **overrides: Any) -> Object:
    spec: Object = {
        "baseModel": {"uri": str(repository / "examples" / "tiny-base")},
        "data": {
            "sources": [{"name": "things", "uri": str(data), "format": "alpaca", "license": "CC0-1.0"}],
            "steps": [],
            "workers": 2,
            "shardRecords": 30,
            "evaluationFraction": 0.1,
        },
        "training": {
            "method": "qlora",
            "lora": {"rank": 8, "alpha": 16},
            "maxSteps": STEPS,
            "epochs": 100,
            "batchSize": 4,
            "sequenceLength": 128,
            "learningRate": 0.001,
            "saveIntervalSeconds": 2,
            "resources": {"gpus": 0},
        },
        "evaluation": {"maxNewTokens": 8, "gate": {"minPerplexityImprovement": -10}},
        "rollout": {"engine": "cpu"},
    }
    for key, value in overrides.items():
        spec[key] = {**spec[key], **value} if isinstance(spec.get(key), dict) else value
    return {"apiVersion": "llamero.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}


def find_training(stack: Stack, name: str, run: int = 1) -> TrainingResult:
    """The training's result.json of a run, from the storage."""
    found = list(stack.storage.glob(f"jobs/{stack.namespace}/{name}-*/r{run}/train/*/checkpoints/result.json"))
    assert found, stack.stored(f"jobs/{stack.namespace}/{name}-*/**/*")
    return TrainingResult.model_validate_json(max(found, key=lambda p: p.stat().st_mtime).read_bytes())


@pytest.fixture(scope="module")
def unbroken(stack: Stack, repository: Path) -> str:
    """A job that nothing disturbs, once for the module; its name."""
    data = write_data(stack.folder / "data" / "things.json", 150)
    manifest = build_manifest(repository, "unbroken", data)
    stack.plane.apply(manifest, namespace=stack.namespace)
    stack.plane.kubectl(
        "wait", "--for=condition=Complete", "ftj/unbroken", "--timeout=300s", namespace=stack.namespace, seconds=320
    )
    return "unbroken"


def test_a_job_that_is_applied_succeeds_with_an_adapter_of_its_digest(stack: Stack, unbroken: str) -> None:
    status = stack.status(unbroken)
    assert status.phase == "Succeeded"
    assert status.adapter is not None
    assert status.data is not None
    assert status.data.read == status.data.kept + status.data.rejected == 150
    adapter = stack.adapters()[status.adapter.name]
    assert adapter["spec"]["sha256"] == status.adapter.sha256
    assert not adapter["metadata"].get("ownerReferences")
    assert adapter["spec"]["licenses"] == ["CC0-1.0"]
    folder = Path(adapter["spec"]["uri"])
    manifest = AdapterManifest.model_validate_json((folder / "manifest.json").read_bytes())
    assert manifest.sha256 == status.adapter.sha256
    assert find_damage(folder, manifest.files) is None
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.name for f in manifest.files}


def test_kubectl_get_shows_phase_progress_loss_adapter_and_age(stack: Stack, unbroken: str) -> None:
    header, line = stack.plane.kubectl("get", "ftj", unbroken, namespace=stack.namespace).stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "LOSS", "ADAPTER", "AGE"]
    cells = line.split()
    assert cells[:3] == ["unbroken", "Succeeded", "100"]
    assert float(cells[3]) > 0
    assert cells[4] == "unbroken-r1"


def test_both_data_workers_took_part_and_shared_the_shards(stack: Stack, unbroken: str) -> None:
    runs = [r for r in stack.node.runs if r.owner_name.startswith("unbroken-r1-prepare-1")]
    assert len(runs) == 2
    shards = {p.parts[4] for p in stack.stored(f"jobs/{stack.namespace}/unbroken-*/shards/**/*") if len(p.parts) > 5}
    assert len(shards) >= 5, shards


def test_the_events_tell_the_story(stack: Stack, unbroken: str) -> None:
    told = [e for e in stack.plane.events(stack.namespace) if e.startswith("FineTuneJob/unbroken ")]
    assert [e.split()[1] for e in told][:1] == ["RunStarted"], told
    assert any(e.split()[1] == "Succeeded" for e in told), told
    assert len(told) <= 20, told


def test_the_workers_logs_are_kept_after_their_pods_are_gone(stack: Stack, unbroken: str) -> None:
    logs = stack.stored(f"jobs/{stack.namespace}/unbroken-*/r1/logs/*.log")
    kinds = {p.name.split("-")[0] for p in logs}
    assert {"prepare", "train", "evaluate"} <= kinds, logs


def test_a_preempted_and_a_suspended_training_end_with_the_unbroken_loss_curve(
    stack: Stack, repository: Path, unbroken: str
) -> None:
    data = stack.folder / "data" / "things.json"
    uid = stack.submit(build_manifest(repository, "broken", data))

    def wait_step(step: int, after: str | None = None) -> str:
        """The pod that trains, once it has done this step; `after` is a pod that it must not be."""
        status = stack.wait(
            "broken",
            lambda s: (
                s.work is not None
                and s.work.kind == WorkKind.TRAIN
                and s.work.pod_name not in (None, after)
                and s.progress is not None
                and (s.progress.step or 0) >= step
            ),
            f"step {step} after {after}",
            PHASE_SECONDS,
        )
        assert status.work is not None
        assert status.work.pod_name is not None
        return status.work.pod_name

    first = wait_step(3)
    stack.node.preempt(first, stack.namespace)
    # A pod trains on until its signal arrives: what the second one must pass is known once the first has gone.
    until(lambda: first not in [p["metadata"]["name"] for p in stack.pods(uid)], "the preempted pod to go", 60)
    kept = stack.storage.glob(f"jobs/{stack.namespace}/broken-*/r1/train/*/checkpoints/*/{MANIFEST_NAME}")
    saved = [parse_checkpoint_name(manifest.parent.name) or 0 for manifest in kept]
    wait_step(max(saved) + 1, after=first)
    stack.patch("broken", {"suspend": True})
    suspended = stack.wait_phase("broken", "Suspended")
    assert suspended.condition(ConditionType.SUSPENDED).status == "True"  # type: ignore[union-attr]
    until(lambda: not stack.pods(uid), "the suspended job's pods to go", 60)
    assert not stack.children(uid)
    stack.patch("broken", {"suspend": False})
    status = stack.wait_phase("broken", "Succeeded", "Failed", seconds=PHASE_SECONDS)
    assert status.phase == "Succeeded", stack.describe()
    broken, whole = find_training(stack, "broken"), find_training(stack, unbroken)
    assert len(broken.resumed_from) == 2
    assert [p.step for p in broken.curve] == list(range(1, STEPS + 1))
    assert [p.loss for p in broken.curve] == pytest.approx([p.loss for p in whole.curve], rel=1e-5)
    assert status.tries.counted == 0


def test_a_new_run_starts_when_the_data_changes_and_goes_on_from_the_old_adapter(
    stack: Stack, repository: Path
) -> None:
    data = write_data(stack.folder / "data" / "growing.json", 60)
    manifest = build_manifest(
        repository,
        "growing",
        data,
        training={"maxSteps": 3, "initFrom": "previous"},
        retrain={"onDataChange": True, "pollIntervalSeconds": 5, "minIntervalSeconds": 0},
    )
    stack.submit(manifest)
    first = stack.wait_phase("growing", "Succeeded", seconds=PHASE_SECONDS)
    assert first.run == 1
    write_data(data, 90, word="shape")
    second = stack.wait(
        "growing", lambda s: s.run == 2 and s.phase in ("Succeeded", "Failed"), "the second run's end", PHASE_SECONDS
    )
    assert second.phase == "Succeeded"
    assert second.run_cause == "DataChanged"
    assert second.data is not None
    assert second.data.read == 90
    assert {"growing-r1", "growing-r2"} <= stack.adapters().keys()
    assert [(r.run, r.phase) for r in second.history][:1] == [(1, "Succeeded")]


def test_a_job_deleted_while_it_trains_leaves_nothing(stack: Stack, repository: Path) -> None:
    data = write_data(stack.folder / "data" / "doomed.json", 60)
    uid = stack.submit(build_manifest(repository, "doomed", data, training={"maxSteps": 10_000}))
    stack.wait(
        "doomed",
        lambda s: s.phase == "Training" and s.progress and (s.progress.step or 0) >= 2,
        "training",
        PHASE_SECONDS,
    )
    stack.delete("doomed")
    stack.wait_gone("doomed", 120)
    stack.wait_nothing_left("doomed", uid)


def test_a_gpu_job_trains_and_evaluates_in_one_pod(stack: Stack, repository: Path) -> None:
    data = write_data(stack.folder / "data" / "gpu.json", 60)
    manifest = build_manifest(repository, "on-gpu", data, training={"maxSteps": 3, "resources": {"gpus": 1}})
    stack.submit(manifest)
    status = stack.wait_phase("on-gpu", "Succeeded", "Failed", seconds=PHASE_SECONDS)
    assert status.phase == "Succeeded", stack.describe()
    kinds = [
        r.owner_name.split("-r1-")[1].split("-")[0] for r in stack.node.runs if r.owner_name.startswith("on-gpu-r1")
    ]
    assert kinds.count("train") == 1
    assert "evaluate" not in kinds
    assert status.usage.gpu_seconds > 0
