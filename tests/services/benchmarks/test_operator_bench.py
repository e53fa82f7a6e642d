"""The operator's benchmark: a tiny run end to end, its counts and its marks line, and what its figures are made of."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(240)
def test_a_tiny_run_takes_every_job_to_its_end_beside_the_bare_client(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    options = [
        "--quick",
        "--sizes",
        "1,3",
        "--arrivals",
        "2",
        "--arrival-seconds",
        "1",
        "--running",
        "2",
        "--output",
        str(output),
    ]
    command = [sys.executable, str(repository / "benchmarks" / "operator" / "run.py"), *options]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=230)
    assert ended.returncode == 0, ended.stdout[-1000:] + ended.stderr[-3000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == {"benchmark": "operator", "marks": {}}, "quick runs quote none"

    figures = json.loads(output.read_text())
    rounds = [*(r["operator"] for r in figures["at_once"]), figures["arriving"]]
    assert [r["jobs"] for r in rounds] == [1, 3, 2]
    for found in rounds:
        assert len(found["latencies"]) == found["jobs"], "every job had a pod"
        writes = found["writes"]
        assert (writes["create Job"], writes["create Adapter"], writes["patch FineTuneJob"]) == (3, 1, 1)
        assert (writes["delete Job"], writes["create Event"]) == (3, 2)
        assert writes["update-status FineTuneJob"] >= 5, "one for each phase, publication and end"
        assert found["cpu_seconds"] > 0 and found["memory_mib"] > 0 and found["passes"] >= 5
    assert figures["running"]["jobs"] == 2 and figures["running"]["writes"] > 0, "steps are told on in the status"
    for found in (r["bare"] for r in figures["at_once"]):
        assert len(found["latencies"]) == found["jobs"] and 0 < found["written"] <= found["seconds"]
