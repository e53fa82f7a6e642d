"""Fault points: counted, written down, and deadly at the chosen one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamero_operator.faultpoints import FaultSettingError, build_point


def test_with_nothing_set_a_point_does_nothing() -> None:
    assert build_point({}) is build_point({})


def test_each_point_is_appended_to_the_log_with_its_number(tmp_path: Path) -> None:
    log = tmp_path / "points"
    point = build_point({"LLAMERO_FAULT_LOG": str(log)})
    point("before", "create", "Job")
    point("after", "create", "Job")
    point("before", "send", "train")
    assert log.read_text().splitlines() == ["1 before create Job", "2 after create Job", "3 before send train"]


def test_the_nth_point_kills_and_no_other(tmp_path: Path) -> None:
    log, kills = tmp_path / "points", list[int]()
    point = build_point(
        {"LLAMERO_FAULT": "kill:2", "LLAMERO_FAULT_LOG": str(log)},
        lambda: kills.append(len(log.read_text().splitlines())),
    )
    for _ in range(4):
        point("before", "create", "Job")
    assert kills == [2]


@pytest.mark.parametrize("setting", ["kill", "kill:0", "kill:-1", "kill:x", "stop:3", "kill:1 "])
def test_a_setting_that_is_none_is_refused_with_a_sentence(setting: str) -> None:
    with pytest.raises(FaultSettingError, match="write `kill:<n>`"):
        build_point({"LLAMERO_FAULT": setting})


def test_the_process_dies_by_sigkill(tmp_path: Path) -> None:
    program = (
        "from llamero_operator.faultpoints import point\n"
        "point('before', 'create', 'Job')\npoint('after', 'create', 'Job')\nprint('alive')"
    )
    environment = {
        **os.environ,
        "LLAMERO_FAULT": "kill:2",
        "LLAMERO_FAULT_LOG": str(tmp_path / "points"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert len((tmp_path / "points").read_text().splitlines()) == 2
