"""A storage that is full, and a checkpoint that is torn."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster.waiting import until

from chaos.arena import Arena, build_script
from chaos.life import Life
from chaos.trials import Trial
from llamero.spec.names import MANIFEST_NAME
from llamero.spec.status import WorkKind

SAVE_EVERY = 4
DISK_KIB = 512


class NoDiskError(Exception):
    """A disk of a small size can't be had here; the message says why."""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 512 KiB. Raises NoDiskError where it can't be mounted."""
    if os.geteuid() != 0:
        raise NoDiskError("mounting a small disk takes root")
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k,mode=0777", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NoDiskError(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Writes until nothing more fits; the file that has it all."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(b"0" * 4096)
    return filler


def fill_disk(arena: Arena) -> list[Trial]:
    """The storage is full in the middle of a training: the attempt ends with Storage and is tried again until there is room."""
    fault = "storage full"
    try:
        with small_disk(arena.folder / f"disk-{arena.number()}") as disk:
            return [run_full(arena, disk, fault)]
    except NoDiskError as error:
        return [Trial(fault, None, skipped=str(error))]


def run_full(arena: Arena, disk: Path, fault: str) -> Trial:
    script = build_script(steps=40, save_every=SAVE_EVERY)
    with arena.stack(script, storage=disk) as stack:
        life = Life(stack, f"full-{arena.number()}", backoffLimit=10)
        life.wait_step(6)
        filler = fill(disk)
        failed = life.wait(lambda s: s.tries.counted >= 1, "a try that failed for want of storage", 60)
        problems = [] if "storage" in failed.tries.message.lower() else [f"it says: {failed.tries.message}"]
        filler.unlink()
        life.fault()  # timed from here: while the disk is full there is nothing to recover
        status = life.wait_end(120)
        if status.phase != "Succeeded":
            problems.append(f"it ended as {status.phase}: {status.failure}")
        life.wait_quiet()
        return life.judge(fault, *problems, seconds=life.seconds_to_progress(), lost_steps_allowed=6 * SAVE_EVERY)


def tear_checkpoint(arena: Arena) -> list[Trial]:
    """The newest checkpoint is torn while no pod runs: the next attempt goes on from the one before it."""
    fault = "newest checkpoint torn"
    trials = []
    script = build_script(steps=40, save_every=SAVE_EVERY)
    with arena.stack(script) as stack:
        for _ in range(3 if arena.full else 1):
            life = Life(stack, f"torn-{arena.number()}", hold=(WorkKind.TRAIN, "step 10"))
            with life.halt(WorkKind.TRAIN, "step 10"):
                life.stack.patch(life.name, {"suspend": True})
                life.wait_phase("Suspended")
                until(lambda life=life: not stack.pods(life.uid), "the pods to go")  # type: ignore[misc]
                life.fault()
                newest = max(find_checkpoints(stack.storage, life.name), key=lambda p: int(p.name.partition("-")[2]))
                (newest / "weights").write_text("torn")
                life.stack.patch(life.name, {"suspend": False})
            status = life.wait_end()
            problems = [] if status.phase == "Succeeded" else [f"it ended as {status.phase}: {status.failure}"]
            second = life.wait_pod(WorkKind.TRAIN, 2)
            if not second.steps or second.steps[0] != 9:
                problems.append(f"it went on at step {second.steps[:1]} instead of 9, after the checkpoint of step 8")
            life.wait_quiet()
            trials.append(
                life.judge(fault, *problems, seconds=life.seconds_to_progress(), lost_steps_allowed=SAVE_EVERY)
            )
    return trials


def find_checkpoints(storage: Path, name: str) -> list[Path]:
    return [p.parent for p in storage.glob(f"jobs/*/{name}-*/r1/train/*/step-*/{MANIFEST_NAME}")]
