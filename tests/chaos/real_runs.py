"""Real pods: real data preparation, training and evaluation as local processes, with the operator killed in each phase and messages doubled."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.node import NodeOptions
from stack.stack import Stack

from chaos.arena import INTERVALS, Arena
from chaos.trials import Trial
from llamero.spec.names import queue_name
from llamero.spec.results import TrainingResult
from llamero.spec.status import JobStatus, WorkKind

REPOSITORY = Path(__file__).parents[2]
STEPS = 40
PHASES = ("Preparing", "Training", "Evaluating")
SECONDS = 240


def write_data(path: Path, records: int = 90) -> Path:
    rows = [
        {"instruction": f"Name thing {n}.", "input": "", "output": f"Thing {n} of {n % 7}."} for n in range(records)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def build_manifest(name: str, data: Path) -> dict[str, Any]:
    return {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "baseModel": {"uri": str(REPOSITORY / "examples" / "tiny-base")},
            "data": {
                "sources": [{"name": "things", "uri": str(data), "format": "alpaca"}],
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
                "saveIntervalSeconds": 2,
                "resources": {"gpus": 0},
            },
            "evaluation": {"maxNewTokens": 8, "gate": {"minPerplexityImprovement": -10}},
            "rollout": {"engine": "cpu"},
        },
    }


def run_real(arena: Arena) -> list[Trial]:
    """One run with a kill in each phase, one with each message doubled."""
    pods = {
        n: {"cpuRequest": "100m", "memoryRequest": "100Mi", "scratch": "2Gi"} for n in ("data", "evaluation", "helper")
    }
    pods["training"] = {**pods["data"], "sharedMemory": "256Mi"}
    settings = {
        "pods": pods,
        "intervals": {**INTERVALS, "statusIntervalSeconds": 1, "resendSeconds": 15, "graceSeconds": 20},
    }
    folder = arena.folder / f"real-{arena.number()}"
    with Stack(arena.plane, folder, settings=settings, node=NodeOptions(), fork_server=arena.fork_server) as stack:
        data = write_data(stack.folder / "data" / "things.json")
        return [*kill_in_each_phase(stack, data), double_messages(stack, data)]


def kill_in_each_phase(stack: Stack, data: Path) -> list[Trial]:
    fault = "operator killed, real run, each phase"
    stack.submit(build_manifest("killed", data))
    seconds: list[float] = []
    for phase in PHASES:
        status = stack.wait(
            "killed", lambda s, phase=phase: s.phase == phase and s.work and s.work.received, phase, SECONDS
        )  # type: ignore[misc]
        began = time.monotonic()
        stack.operator.kill()
        stack.operator.start()
        stack.wait("killed", lambda s, was=status: s != was, "a change of the status", SECONDS)  # type: ignore[misc]
        seconds.append(time.monotonic() - began)
    status = stack.wait_phase("killed", "Succeeded", "Failed", seconds=SECONDS)
    problems, doubled = judge(stack, "killed", status)
    return [Trial(fault, s, 0, doubled if n == 0 else 0, problems if n == 0 else ()) for n, s in enumerate(seconds)]


def double_messages(stack: Stack, data: Path) -> Trial:
    """Each task is doubled in its queue before the worker, which takes seconds to start, can take it."""
    fault = "message doubled, real run"
    uid = stack.submit(build_manifest("doubled", data))
    doubled: set[str] = set()

    def double() -> None:
        with stack.redis.client as client:
            for kind in (WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE):
                name = queue_name(uid, 1, kind, 1)
                content = client.lindex(name, 0) if kind not in doubled else None
                if isinstance(content, str):
                    client.lpush(name, content)
                    doubled.add(kind)

    def ended(status: JobStatus) -> bool:
        double()
        return status.phase in ("Succeeded", "Failed")

    status = stack.wait("doubled", ended, "its end", SECONDS)
    problems, pods = judge(stack, "doubled", status)
    missed = () if len(doubled) == 3 else (f"only the messages of {sorted(doubled)} were doubled",)
    return Trial(fault, None, 0, pods, (*problems, *missed))


def judge(stack: Stack, name: str, status: JobStatus) -> tuple[tuple[str, ...], int]:
    """What is wrong with the end of a real run, and how many pods were beyond what one attempt takes."""
    problems = []
    if status.phase != "Succeeded":
        problems.append(f"it ended as {status.phase}: {status.failure}")
    if status.tries.counted:
        problems.append(f"{status.tries.counted} tries were counted")
    owners = Counter(r.owner_name for r in stack.node.runs if r.owner_name.startswith(f"{name}-r1"))
    extra = sum(max(0, n - (2 if "-prepare-" in owner else 1)) for owner, n in owners.items())
    if extra or any(status.attempts.get(kind) != 1 for kind in (WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE)):
        problems.append(f"more was started than one attempt takes: {dict(owners)}")
    if status.phase == "Succeeded":
        found = list(stack.storage.glob(f"jobs/{stack.namespace}/{name}-*/r1/train/*/checkpoints/result.json"))
        curve = TrainingResult.model_validate_json(found[0].read_bytes()).curve if len(found) == 1 else []
        if [p.step for p in curve] != list(range(1, STEPS + 1)):
            problems.append(
                f"the training's curve is not steps 1 to {STEPS}: {len(found)} results, {len(curve)} points"
            )
    return tuple(problems), extra
