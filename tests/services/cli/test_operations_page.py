"""docs/operations.md keeps up with the code: phases, conditions, reasons, metrics and exit codes are those that there are."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from llamero.cli.connection import CLUSTER_TROUBLE
from llamero.cli.run import ExitCode
from llamero.lifecycle.failures import FailureClass
from llamero.spec.status import ConditionType, JobPhase
from llamero_operator.metrics import Metrics

# CamelCase words in lifecycle/ that are no reasons of ours: what Kubernetes says of pods, causes of runs, truths, enumerations.
NO_REASONS = {"Evicted", "NodeLost", "OOMKilled", "Running", "True", "False", "Unknown", "Failed", "Reconciling"}
ADAPTERS_REASONS = {"Serving", "NoPod", "DeletionWaits", "OtherServes"}  # which a job reads and does not repeat
OF_SERVING = {
    ConditionType.AVAILABLE, ConditionType.PROGRESSING, ConditionType.PROTECTED, ConditionType.AUTOSCALED,
    ConditionType.VERIFIED, ConditionType.SERVING, ConditionType.ROLLED_BACK,
}  # fmt: skip
"""Conditions of ModelServers and Adapters, which another page explains."""
CAUSES = {"Created", "SpecChanged", "Schedule", "DataChanged"}
UNFINISHED = (JobPhase.PENDING, JobPhase.PREPARING, JobPhase.TRAINING, JobPhase.EVALUATING, JobPhase.ROLLING_OUT)


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "operations.md").read_text()


def section(page: str, title: str) -> str:
    """From a heading to the next of the same or a higher rank."""
    marks = re.search(rf"^(#+) {re.escape(title)}$", page, re.MULTILINE)
    assert marks is not None, f"the page has no section {title}"
    rest = page[marks.end() :]
    following = re.search(rf"^#{{1,{len(marks[1])}}} ", rest, re.MULTILINE)
    return rest[: following.start()] if following else rest


def first_cells(text: str) -> list[str]:
    """The words in backticks in the first column of a section's tables."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def reasons_in_code(repository: Path) -> set[str]:
    """Every CamelCase word that stands as a whole string in the decisions' modules."""
    found = {str(failure) for failure in FailureClass}
    for file in (repository / "services" / "llamero" / "lifecycle").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch("[A-Z][A-Za-z]+", node.value)
            ):
                found.add(node.value)
    return (found - NO_REASONS - ADAPTERS_REASONS - CAUSES) | {f"Reconciling{phase}" for phase in UNFINISHED}


def test_every_phase_is_explained(page: str) -> None:
    assert first_cells(section(page, "Phases")) == [str(phase) for phase in JobPhase]


def test_every_condition_is_explained(page: str) -> None:
    assert set(first_cells(section(page, "Conditions"))) == {
        str(kind) for kind in ConditionType if kind not in OF_SERVING
    }


def test_every_reason_is_explained_once_and_no_other(page: str, repository: Path) -> None:
    explained = first_cells(section(page, "Going on")) + first_cells(section(page, "Failing"))
    waiting = first_cells(section(page, "Waiting"))
    doubled = {word for word in explained + waiting if (explained + waiting).count(word) > 1}
    assert doubled == set()
    assert set(explained) | set(waiting) == reasons_in_code(repository)


def test_every_cause_of_a_run_is_named(page: str, repository: Path) -> None:
    row = next(line for line in page.splitlines() if line.startswith("| `RunStarted`"))
    assert set(re.findall(r"`(\w+)`", row)) - {"RunStarted"} == CAUSES
    code = "".join(f.read_text() for f in (repository / "services" / "llamero" / "lifecycle").glob("*.py"))
    assert all(f'"{cause}"' in code for cause in CAUSES)


def test_every_metric_is_explained_with_its_labels(page: str) -> None:
    told = {}
    for cell in first_cells(section(page, "Metrics and alerts")):
        name, _, labels = cell.rstrip("}").partition("{")
        told[name] = set(labels.split(",")) - {""}
    made = {}
    for name, collector in vars(Metrics()).items():
        if hasattr(collector, "_labelnames"):
            suffix = "_total" if type(collector).__name__ == "Counter" else ""
            made[collector._name + suffix] = set(collector._labelnames)
            assert name
    assert told == made


def test_alerts_are_rules_over_metrics_that_there_are(page: str) -> None:
    text = section(page, "Metrics and alerts")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    rules = yaml.safe_load(block)["groups"][0]["rules"]
    assert len(rules) > 3
    known = {cell.partition("{")[0] for cell in first_cells(text)}
    for rule in rules:
        names = set(re.findall(r"llamero_\w+", rule["expr"]))
        assert names and names <= known, rule
        assert rule["annotations"]["summary"]


def test_exit_codes_are_those_that_the_commands_end_with(page: str) -> None:
    codes = {int(c) for c in re.findall(r"^\| (\d+) \|", section(page, "Looking at jobs"), re.MULTILINE)}
    assert codes == ({int(c) for c in ExitCode} - {ExitCode.DATA_ERROR}) | {CLUSTER_TROUBLE}


def test_links_lead_to_sections_and_files_that_there_are(page: str, repository: Path) -> None:
    anchors = {
        re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", page):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (repository / "docs" / target).is_file(), target
