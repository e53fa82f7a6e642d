"""docs/servers.md explains every phase, condition, reason and event of ModelServers and Adapters, and no other."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
from services.cli.test_operations_page import OF_SERVING, first_cells, section

from llamero.spec.server import NameState, ServedAdapterState, ServerPhase
from llamero.spec.status import ConditionType

# CamelCase words that are no reasons: truths, pods' phases, a field's word, states of names and adapters.
NO_REASONS = {"True", "False", "Unknown", "Running", "Succeeded", "Recreate"}
JOBS_ALONE = {"StorageNotSet"}
SHARED = {ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.SUSPENDED}


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "servers.md").read_text()


def words_in_code(repository: Path) -> set[str]:
    """Every CamelCase word that stands as a whole string in the decisions' modules."""
    found = set()
    decisions = repository / "services" / "llamero" / "lifecycle"
    for file in (*(decisions / "serving").glob("*.py"), decisions / "validity.py"):  # the latter is shared with jobs
        for node in ast.walk(ast.parse(file.read_text())):
            is_word = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_word and re.fullmatch("[A-Z][A-Za-z]+[A-Za-z0-9]*", node.value):  # type: ignore[attr-defined]
                found.add(node.value)  # type: ignore[attr-defined]
    return found - NO_REASONS - JOBS_ALONE


def test_every_phase_is_explained(page: str) -> None:
    assert first_cells(section(page, "Phases")) == list(get_args(ServerPhase))


def test_every_condition_is_explained(page: str) -> None:
    assert set(first_cells(section(page, "Conditions"))) == {str(kind) for kind in OF_SERVING | SHARED}


def test_every_reason_and_event_is_explained_and_no_other(page: str, repository: Path) -> None:
    told = {*first_cells(section(page, "Reasons")), *first_cells(section(page, "Events"))}
    states = {*get_args(NameState), *get_args(ServedAdapterState), *get_args(ServerPhase)}
    in_code = words_in_code(repository)
    assert told - in_code == set(), "words that nothing says"
    assert in_code - told - states == set(), "words that the page does not explain"
