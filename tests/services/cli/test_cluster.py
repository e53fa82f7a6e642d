"""The verbs that speak with a cluster, against a real API server; the test writes the statuses that an operator would."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cluster.control_plane import ControlPlane
from cluster.kubeconfig import write_kubeconfig
from cluster.processes import free_port
from cluster.waiting import until

from llamero.cli.main import cli

MakeCondition = Callable[..., dict[str, Any]]

DATA = {
    "uri": "s3://x/data",
    "digest": "d" * 64,
    "read": 1000,
    "kept": 940,
    "rejected": 60,
    "trainExamples": 900,
    "evaluationExamples": 40,
    "tokens": 123456,
}
EVALUATION = {
    "uri": "s3://x/evaluation",
    "records": 40,
    "baseTokenPerplexity": "90.332",
    "tunedTokenPerplexity": "1.375",
    "passed": True,
    "reason": "Held-out token perplexity went from 90.332 to 1.375 (-98.5%).",
}
ADAPTER = {"name": "tuned-r1", "uri": "s3://x/adapters/tuned-r1", "sha256": "a" * 64}


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def started_watching(process: "subprocess.Popen[str]", words: str) -> str:
    """What a watching process has said when these words appear."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"it ended without {words!r}: {seen}")


class TestSubmit:
    def test_a_job_is_created_then_unchanged_then_configured(self, cluster: Any) -> None:
        file = cluster.write()
        first = cluster.llamero("submit", str(file))
        assert (first.exit_code, first.stdout) == (0, f"Job {cluster.namespace}/tuned created: run 1 starts\n")
        assert cluster.llamero("submit", str(file)).stdout == f"Job {cluster.namespace}/tuned unchanged\n"
        cluster.set_status(run=1, phase="Training")
        cluster.write(**{"epochs: 2": "epochs: 3"})
        assert cluster.llamero("submit", str(file)).stdout == (
            f"Job {cluster.namespace}/tuned configured: run 2 starts because training changed\n"
        )
        assert cluster.job()["spec"]["training"]["epochs"] == 3

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("alpaca.json", "more.json", "run 3 starts because data changed"),
            ("models/tiny-base", "models/other", "run 3 starts because baseModel changed"),
            ("epochs: 2", "epochs: 2\n    sequenceLength: 64", "run 3 starts because training changed"),
            (
                "epochs: 2",
                "epochs: 2\n  backoffLimit: 7",
                "backoffLimit changed, which takes effect on the run at hand",
            ),
            (
                "epochs: 2",
                "epochs: 2\n  evaluation: {maxRecords: 5}\n  backoffLimit: 7",
                "backoffLimit and evaluation changed, which takes effect on the run at hand",
            ),
            ("name: tuned", "name: tuned\n  labels: {team: blue}", "labels or annotations changed"),
            ("epochs: 2", "epochs: 2\n  suspend: true", "it is suspended until `llamero resume tuned`"),
        ],
    )
    def test_it_says_what_an_edit_comes_to(self, cluster: Any, old: str, new: str, words: str) -> None:
        cluster.submit()
        cluster.set_status(run=2, phase="Succeeded")
        result = cluster.llamero("submit", str(cluster.write(**{old: new})))
        assert result.exit_code == 0
        assert "configured: " in result.stdout and words in result.stdout

    def test_what_a_manifest_no_longer_says_is_taken_back(self, cluster: Any) -> None:
        cluster.llamero("submit", str(cluster.write(**{"epochs: 2": "epochs: 2\n  backoffLimit: 7"})))
        cluster.llamero("submit", str(cluster.write()))
        assert cluster.job()["spec"].get("backoffLimit", 3) == 3

    def test_a_trial_by_the_server_changes_nothing(self, cluster: Any) -> None:
        result = cluster.llamero("submit", str(cluster.write()), "--dry-run", "server")
        assert (result.exit_code, result.stdout) == (
            0,
            f"Job {cluster.namespace}/tuned created: run 1 starts (server dry run)\n",
        )
        assert cluster.find_job() is None

    def test_a_model_server_is_not_a_job(self, cluster: Any) -> None:
        result = cluster.llamero("submit", str(cluster.write(**{"kind: FineTuneJob": "kind: ModelServer"})))
        assert result.exit_code == 2 and "error: spec.data: unknown field `data`" in result.stderr
        file = cluster.folder / "server.yaml"
        file.write_text(
            "apiVersion: llamero.dev/v1alpha1\nkind: ModelServer\nmetadata: {name: shared}\nspec: {baseModel: {uri: s3://m/tiny}}\n"
        )
        result = cluster.llamero("submit", str(file))
        assert result.exit_code == 2 and "send a ModelServer with `kubectl apply -f`" in result.stderr

    def test_mistakes_come_with_their_lines_and_nothing_is_sent(self, cluster: Any) -> None:
        file = cluster.write(**{"epochs: 2": "epochs: -2"})
        result = cluster.llamero("submit", str(file))
        assert result.exit_code == 2
        assert f"{file}:12:5: error: spec.training.epochs:" in result.stderr
        assert "nothing was sent" in result.stderr
        assert cluster.find_job() is None

    def test_a_file_of_this_machine_is_refused_with_what_to_do(self, cluster: Any) -> None:
        result = cluster.llamero("submit", str(cluster.write(**{'"s3://data/alpaca.json"': "data/alpaca.json"})))
        assert result.exit_code == 2
        assert ":10:24: error: spec.data.sources[0].uri: `data/alpaca.json` lies on this machine" in result.stderr
        assert "upload it and give its s3://" in result.stderr

    def test_a_path_of_the_pods_storage_is_taken_with_a_warning(self, cluster: Any) -> None:
        result = cluster.llamero("submit", str(cluster.write(**{'"s3://data/alpaca.json"': "/data/alpaca.json"})))
        assert result.exit_code == 0
        assert "warning: spec.data.sources[0].uri: `/data/alpaca.json` is read in the pods" in result.stderr
        assert cluster.job()["spec"]["data"]["sources"][0]["uri"] == "/data/alpaca.json"

    def test_variables_are_filled_in_from_here(self, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLAMERO_DATA_ROOT", "s3://bucket")
        cluster.llamero("submit", str(cluster.write(**{"s3://data": "${LLAMERO_DATA_ROOT}"})))
        assert cluster.job()["spec"]["data"]["sources"][0]["uri"] == "s3://bucket/alpaca.json"

    def test_a_folders_jobs_are_sent_and_other_files_left_out(self, cluster: Any) -> None:
        cluster.write("one")
        cluster.write("two")
        (cluster.folder / "secret.yaml").write_text("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n")
        (cluster.folder / "notes.md").write_text("no manifest")
        result = cluster.llamero("submit", str(cluster.folder))
        assert result.exit_code == 0, result.output
        assert [line.split()[1].split("/")[1] for line in result.stdout.splitlines()] == ["one", "two"]
        assert "secret.yaml: not a FineTuneJob, left out" in result.stderr and "notes.md" not in result.stderr

    def test_one_mistake_in_a_folder_sends_nothing(self, cluster: Any) -> None:
        cluster.write("one")
        cluster.write("two", **{"epochs: 2": "epoch: 2"})
        assert cluster.llamero("submit", str(cluster.folder)).exit_code == 2
        assert cluster.find_job("one") is None

    def test_a_folder_without_a_job_is_told(self, cluster: Any) -> None:
        (cluster.folder / "empty").mkdir()
        result = cluster.llamero("submit", str(cluster.folder / "empty"))
        assert result.exit_code == 2 and "holds no FineTuneJob" in result.stderr

    def test_two_files_of_one_name_are_refused(self, cluster: Any) -> None:
        (cluster.folder / "copy.yaml").write_text(cluster.write().read_text())
        result = cluster.llamero("submit", str(cluster.folder))
        assert result.exit_code == 2 and "describes the job `tuned` already" in result.stderr

    def test_a_namespace_said_twice_differently_is_told(self, cluster: Any) -> None:
        file = cluster.write(**{"name: tuned": "name: tuned\n  namespace: elsewhere"})
        result = cluster.llamero("submit", str(file))
        assert result.exit_code == 1
        assert f"says namespace elsewhere and --namespace says {cluster.namespace}" in result.stderr

    def test_fields_of_another_tool_are_taken_over_only_when_told_to(self, cluster: Any) -> None:
        applied = cluster.write()
        cluster.plane.kubectl(
            *("apply", "--server-side", "--validate=false", "-f", str(applied)), namespace=cluster.namespace
        )
        changed = cluster.write(**{"epochs: 2": "epochs: 5"})
        result = cluster.llamero("submit", str(changed))
        assert result.exit_code == 1
        assert "Another tool has set fields" in result.stderr and "--force-conflicts takes them over" in result.stderr
        assert cluster.job()["spec"]["training"]["epochs"] == 2
        assert cluster.llamero("submit", str(changed), "--force-conflicts").exit_code == 0
        assert cluster.job()["spec"]["training"]["epochs"] == 5

    def test_what_the_schema_refuses_is_told_in_the_servers_words(self, cluster: Any) -> None:
        # The client's own check is passed by, as by an older command line.
        cluster.submit()
        result = cluster.llamero("submit", str(cluster.write("tuned", **{"epochs: 2": "epochs: 2\n  foo: 1"})))
        assert result.exit_code == 2

    @pytest.mark.parametrize(
        ("status", "code", "words"),
        [
            ({"phase": "Succeeded", "adapter": ADAPTER, "evaluation": EVALUATION}, 0, "Succeeded, adapter tuned-r1"),
            ({"phase": "Failed", "conditions": [("Failed", "True", "DataError", "mend the data")]}, 4, "mend the data"),
            ({"phase": "Failed", "conditions": [("Failed", "True", "GateRefused", "fell by 1%")]}, 5, "fell by 1%"),
            (
                {"phase": "Failed", "conditions": [("Stalled", "True", "InvalidSpec", "epochs")]},
                2,
                "its spec is refused",
            ),
        ],
    )
    def test_waiting_ends_as_the_job_does(
        self, cluster: Any, condition: MakeCondition, status: dict[str, Any], code: int, words: str
    ) -> None:
        process = cluster.start("submit", str(cluster.write()), "--wait")
        started_watching(process, "created: run 1 starts")
        if "conditions" in status:
            status = {**status, "conditions": [condition(*c) for c in status["conditions"]]}
        cluster.set_status(run=1, **status)
        ended, output = finish(process)
        assert ended == code, output
        assert words in output

    def test_waiting_after_an_edit_does_not_take_the_old_runs_end_for_the_new(self, cluster: Any) -> None:
        cluster.submit()
        cluster.set_status(run=1, phase="Succeeded", adapter=ADAPTER)
        file = cluster.write(**{"epochs: 2": "epochs: 3"})
        process = cluster.start("submit", str(file), "--watch")
        started_watching(process, "run 2 starts because training changed")
        cluster.set_status(run=2, phase="Training", progress={"percent": 10, "activity": "training"})
        started_watching(process, "Training: training")
        cluster.set_status(run=2, phase="Failed", progress=None)
        assert finish(process)[0] == 4


class TestGet:
    def test_the_table_shows_phase_progress_loss_adapter_and_age(self, cluster: Any) -> None:
        cluster.submit("fresh")
        cluster.submit()
        progress = {"percent": 53, "activity": "training", "step": 198, "totalSteps": 376, "loss": "0.120"}
        cluster.set_status(run=2, attempt=1, phase="Training", progress=progress, adapter=ADAPTER)
        heading, fresh, tuned = cluster.llamero("get").stdout.splitlines()
        assert heading.split() == ["NAME", "PHASE", "PROGRESS", "LOSS", "ADAPTER", "AGE"]
        assert fresh.split()[:5] == ["fresh", "-", "-", "-", "-"]
        assert tuned.split()[:5] == ["tuned", "Training", "53%", "0.120", "tuned-r1"]
        assert fresh.split()[5].endswith("s")
        columns = [heading.index(word) for word in heading.split()]
        assert all(line[column - 1] == " " and line[column] != " " for line in (fresh, tuned) for column in columns[1:])

    def test_wide_tells_what_a_job_waits_for_and_costs(self, cluster: Any, condition: MakeCondition) -> None:
        cluster.submit()
        waiting = condition("Scheduled", "False", "Unschedulable", "0/3 nodes are available")
        cluster.set_status(
            run=1, attempt=2, phase="Training", conditions=[waiting], usage={"gpuSeconds": 5400, "cost": "3.10"}
        )
        _, line = cluster.llamero("get", "-o", "wide").stdout.splitlines()
        assert line.split()[6:] == ["1", "2", "-", "1.5", "3.10", "Unschedulable"]

    def test_all_namespaces_are_shown_with_their_names(self, cluster: Any, control_plane: ControlPlane) -> None:
        cluster.submit()
        result = CliRunner().invoke(cli, ["get", "-A", "--kubeconfig", str(control_plane.kubeconfig)])
        assert result.stdout.splitlines()[0].split()[0] == "NAMESPACE"
        assert any(line.split()[:2] == [cluster.namespace, "tuned"] for line in result.stdout.splitlines())

    def test_an_empty_namespace_is_told_and_prints_no_table(self, cluster: Any) -> None:
        result = cluster.llamero("get")
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == f"No jobs in namespace {cluster.namespace}.\n"

    def test_objects_come_as_json_and_yaml_without_bookkeeping(self, cluster: Any) -> None:
        cluster.submit()
        listed = cluster.get_json()
        assert listed["kind"] == "List" and [item["metadata"]["name"] for item in listed["items"]] == ["tuned"]
        one = yaml.safe_load(cluster.llamero("get", "tuned", "-o", "yaml").stdout)
        assert one["spec"] == cluster.get_json("tuned")["spec"] == cluster.job()["spec"]
        assert "managedFields" not in one["metadata"]

    def test_one_job_shows_figures_conditions_runs_and_events(self, cluster: Any, condition: MakeCondition) -> None:
        uid = cluster.submit()["metadata"]["uid"]
        record = {
            "run": 1,
            "phase": "Failed",
            "reason": "DataError",
            "message": "too many broken rows",
            "cause": "Created",
            "startedAt": "2026-01-02T03:00:00Z",
            "finishedAt": "2026-01-02T03:01:15Z",
        }
        cluster.set_status(
            run=2,
            runCause="SpecChanged",
            attempt=1,
            phase="Succeeded",
            startedAt="2026-01-02T04:00:00Z",
            finishedAt="2026-01-02T05:30:00Z",
            data=DATA,
            evaluation=EVALUATION,
            adapter=ADAPTER,
            training={
                "uri": "s3://x/train",
                "steps": 376,
                "tokens": 9,
                "firstLoss": "3.9",
                "lastLoss": "0.042",
                "tokensPerSecond": "1204",
                "adapterSha256": "a" * 64,
            },
            conditions=[condition("Complete", "True", "Published", "All is done.")],
            history=[record],
        )
        cluster.plane.api.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": "tuned.1", "namespace": cluster.namespace},
                "involvedObject": {"kind": "FineTuneJob", "name": "tuned", "namespace": cluster.namespace, "uid": uid},
                "reason": "RunStarted",
                "message": "Run 2 starts",
                "type": "Normal",
                "count": 3,
                "lastTimestamp": "2026-01-02T04:00:00Z",
            }
        )
        text = cluster.llamero("get", "tuned").stdout
        lines = text.splitlines()
        assert lines[0] == f"Job {cluster.namespace}/tuned: Succeeded, run 2 (SpecChanged), attempt 1"
        assert "940 of 1,000 records kept" in text
        assert "token perplexity 90.332 to 1.375 (-98.5%) on 40 records" in text
        assert any(
            line.split()[:3] == ["Complete", "True", "Published"] and line.endswith("All is done.") for line in lines
        )
        first, second = (next(line.split() for line in lines if line.startswith(start)) for start in ("1  ", "2  "))
        assert first[1:4] == ["Failed", "(DataError)", "Created"] and "1m15s" in first
        assert second[1:3] == ["Succeeded", "SpecChanged"]
        assert second[-6:] == ["1h30m", "0.042", "90.332", "1.375", "-98.5%", "tuned-r1"]
        assert any(
            line.split()[:1] == ["RunStarted"] and line.split()[2:] == ["3", "Run", "2", "starts"] for line in lines
        )

    def test_a_job_that_no_operator_has_seen_says_so(self, cluster: Any) -> None:
        cluster.submit()
        assert "the operator has not seen it yet" in cluster.llamero("get", "tuned").stdout.splitlines()[0]

    def test_a_status_of_a_newer_operator_is_read_past(self, cluster: Any, condition: MakeCondition) -> None:
        cluster.submit()
        cluster.set_status(run=1, phase="Training", conditions=[condition("SomethingNew", "True", "X", "A sentence.")])
        result = cluster.llamero("get", "tuned")
        assert result.exit_code == 0 and "Training, run 1" in result.stdout


class TestWatch:
    def test_progress_is_shown_as_for_a_local_run_until_the_end(self, cluster: Any, condition: MakeCondition) -> None:
        cluster.submit()
        process = cluster.start("watch", "tuned")
        waiting = condition(
            "Scheduled", "False", "Unschedulable", "0/3 nodes are available: insufficient nvidia.com/gpu."
        )
        cluster.set_status(run=1, attempt=1, phase="Training", conditions=[waiting])
        started_watching(process, "Unschedulable: 0/3 nodes are available")
        steps = {"activity": "training", "step": 20, "totalSteps": 100, "loss": "3.357", "tokensPerSecond": "1134"}
        cluster.set_status(phase="Training", conditions=[], progress=steps)
        seen = started_watching(process, "Training: training")
        assert "20% (20/100 steps)" in seen and "loss 3.357  1,134 tokens/s" in seen
        cluster.set_status(
            phase="Evaluating", progress={"percent": 40, "activity": "perplexity of base", "step": None, "loss": None}
        )
        assert "40%" in started_watching(process, "Evaluating: perplexity of base")
        cluster.set_status(phase="Succeeded", adapter=ADAPTER, evaluation=EVALUATION)
        code, output = finish(process)
        assert code == 0
        assert "Job tuned run 1: Succeeded, adapter tuned-r1. Held-out token perplexity went from 90.332" in output

    def test_an_api_server_that_is_away_for_a_while_ends_no_watching(self, cluster: Any) -> None:
        cluster.submit()
        process = cluster.start("watch", "tuned")
        cluster.set_status(run=1, attempt=1, phase="Training")
        started_watching(process, "Training")
        cluster.plane.stop_api()
        cluster.plane.start_api()
        cluster.set_status(phase="Succeeded", adapter=ADAPTER)
        assert finish(process)[0] == 0

    def test_a_job_deleted_meanwhile_ends_it(self, cluster: Any) -> None:
        cluster.submit()
        cluster.set_status(run=1, attempt=1, phase="Training")
        process = cluster.start("watch", "tuned")
        started_watching(process, "Training")
        cluster.plane.api.delete(cluster.path("tuned"))
        code, output = finish(process)
        assert code == 4 and "was deleted" in output

    def test_ctrl_c_ends_the_watching_and_leaves_the_job(self, cluster: Any) -> None:
        cluster.submit()
        cluster.set_status(run=1, attempt=1, phase="Training")
        process = cluster.start("watch", "tuned")
        started_watching(process, "Training")
        process.send_signal(signal.SIGINT)
        code, output = finish(process)
        assert code == 130 and "what is on the cluster goes on" in output and "Traceback" not in output
        assert cluster.find_job() is not None


class TestCancelAndDelete:
    def test_cancel_suspends_and_resume_takes_it_back(self, cluster: Any) -> None:
        cluster.submit()
        first = cluster.llamero("cancel", "tuned")
        assert first.exit_code == 0 and "its pods write a checkpoint and end" in first.stdout
        assert cluster.job()["spec"]["suspend"] is True
        assert "unchanged: it is suspended" in cluster.llamero("cancel", "tuned").stdout
        assert "goes on from its last checkpoint" in cluster.llamero("resume", "tuned").stdout
        assert cluster.job()["spec"]["suspend"] is False
        assert "unchanged: it is not suspended" in cluster.llamero("resume", "tuned").stdout

    def test_sending_a_manifest_again_does_not_wake_a_cancelled_job(self, cluster: Any) -> None:
        cluster.submit()
        cluster.llamero("cancel", "tuned")
        result = cluster.llamero("submit", str(cluster.write()))
        assert "it is suspended until `llamero resume tuned`" in result.stdout
        assert cluster.job()["spec"]["suspend"] is True

    def test_delete_returns_at_once_or_waits_until_it_is_cleared_up(self, cluster: Any) -> None:
        cluster.submit()
        path = cluster.path("tuned")
        cluster.plane.api.patch(path, {"metadata": {"finalizers": ["llamero.dev/cleanup"]}})
        result = cluster.llamero("delete", "tuned")
        assert result.exit_code == 0 and "is being deleted" in result.stdout
        assert cluster.llamero("get", "tuned").stdout.splitlines()[0].endswith("being deleted")
        again = cluster.llamero("submit", str(cluster.write()))
        assert again.exit_code == 1 and "is being deleted: submit it again when it is gone" in again.stderr
        process = cluster.start("delete", "tuned", "--wait")
        cluster.plane.api.patch(path, {"metadata": {"finalizers": None}})
        assert finish(process)[0] in (0, 1)  # 1 where it was gone before the process had looked
        assert cluster.find_job() is None

    def test_waiting_for_a_deletion_ends_when_the_job_is_gone(self, cluster: Any) -> None:
        cluster.submit()
        path = cluster.path("tuned")
        cluster.plane.api.patch(path, {"metadata": {"finalizers": ["llamero.dev/cleanup"]}})
        process = cluster.start("delete", "tuned", "--wait")
        until(lambda: cluster.job()["metadata"].get("deletionTimestamp"), "the deletion")
        assert process.poll() is None
        cluster.plane.api.patch(path, {"metadata": {"finalizers": None}})
        code, output = finish(process)
        assert (code, output) == (0, f"Job {cluster.namespace}/tuned deleted.\n")


class TestTrouble:
    """What is wrong with the cluster is one sentence on stderr and code 1, never a traceback."""

    VERBS = (["get"], ["get", "x"], ["watch", "x"], ["logs", "x"], ["cancel", "x"], ["resume", "x"], ["delete", "x"])

    @pytest.mark.parametrize("verb", [v for v in VERBS if len(v) > 1], ids=" ".join)
    def test_a_job_that_there_is_not(self, cluster: Any, verb: list[str]) -> None:
        result = cluster.llamero(*verb)
        assert result.exit_code == 1
        assert result.stderr == 'finetunejobs.llamero.dev "x" not found: `llamero get -A` lists what there is.\n'

    def test_no_cluster_at_the_address(self, tmp_path: Path) -> None:
        file = write_kubeconfig(tmp_path / "config", f"https://127.0.0.1:{free_port()}", None, token="t")
        result = CliRunner().invoke(cli, ["get", "--kubeconfig", str(file)])
        assert result.exit_code == 1
        assert result.stderr.startswith("The cluster does not answer: ") and len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        ("content", "words"),
        [(None, "There is no kubeconfig"), ("{}", "can't be used"), ("{a: [", "can't be used"), ("7", "can't be used")],
    )
    def test_a_kubeconfig_that_is_none(self, tmp_path: Path, content: str | None, words: str) -> None:
        file = tmp_path / "config"
        if content is not None:
            file.write_text(content)
        result = CliRunner().invoke(cli, ["get", "--kubeconfig", str(file)])
        assert result.exit_code == 1 and words in result.stderr, result.output
        assert len(result.stderr.splitlines()) == 1

    def test_a_context_that_there_is_not(self, cluster: Any) -> None:
        result = cluster.llamero("get", "--context", "nowhere")
        assert result.exit_code == 1 and "nowhere" in result.stderr and len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize("verb", [["get"], ["cancel", "x"]], ids=" ".join)
    def test_one_who_may_not(self, cluster: Any, control_plane: ControlPlane, verb: list[str]) -> None:
        file = control_plane.service_account_kubeconfig(cluster.namespace, "default")
        result = CliRunner().invoke(cli, [*verb, "--kubeconfig", str(file)])
        assert result.exit_code == 1
        assert result.stderr.startswith("You may not do that: finetunejobs.llamero.dev ")
        assert "ask the cluster's admin" in result.stderr

    def test_one_whom_the_cluster_does_not_know(self, control_plane: ControlPlane, tmp_path: Path) -> None:
        authority = control_plane.authority.certificate
        file = write_kubeconfig(tmp_path / "config", control_plane.url, authority, token="wrong")
        result = CliRunner().invoke(cli, ["get", "--kubeconfig", str(file)])
        assert result.exit_code == 1 and result.stderr.startswith("The cluster does not know you: ")

    def test_a_cluster_without_the_crds(self, tmp_path: Path, binaries_without_crds: ControlPlane) -> None:
        result = CliRunner().invoke(cli, ["get", "--kubeconfig", str(binaries_without_crds.kubeconfig)])
        assert result.exit_code == 1
        assert (
            result.stderr == "This cluster has no finetunejobs.llamero.dev: install llamero's chart (its CRDs) first.\n"
        )

    def test_a_machine_without_the_client(self, tmp_path: Path, repository: Path) -> None:
        (tmp_path / "kubernetes.py").write_text(
            "raise ModuleNotFoundError('No module named kubernetes', name='kubernetes')"
        )
        path = os.pathsep.join([str(tmp_path), str(repository / "services"), *sys.path])
        command = [sys.executable, "-m", "llamero", "get"]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == "Speaking with a cluster needs the package kubernetes: pip install 'llamero[operator]'.\n"

    def test_no_other_verb_needs_the_client(self, repository: Path) -> None:
        code = "import sys, llamero.cli.main; print(*sorted({'kubernetes', 'aiohttp'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""


@pytest.fixture
def binaries_without_crds() -> Any:
    with ControlPlane() as plane:
        yield plane


def test_every_verb_says_what_its_exit_codes_are_where_it_ends_as_the_job_does() -> None:
    for verb in ("submit", "watch"):
        text = " ".join(CliRunner().invoke(cli, [verb, "--help"]).output.split())
        assert "0 done, 1 cluster trouble, 2 bad manifest, 4 job failed, 5 gate refused, 130 interrupted" in text


def test_json_output_is_json(cluster: Any) -> None:
    assert json.loads(cluster.llamero("get", "-o", "json").stdout) == {"apiVersion": "v1", "kind": "List", "items": []}
