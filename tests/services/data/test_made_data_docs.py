"""The example manifests on the pages about data that models make."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamero.spec.rules import Severity
from llamero.spec.validation import validate_job

PAGES = Path(__file__).parents[3] / "docs" / "data"
EXAMPLES = [
    pytest.param(block, id=f"{name}-{number}")
    for name in ("generation", "rewriting", "templates")
    for number, block in enumerate(
        re.findall(r"```yaml\n(.*?)```", (PAGES / f"{name}.md").read_text("utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize("block", EXAMPLES)
def test_an_example_is_a_right_manifest(block: str) -> None:
    shown: dict[str, Any] = yaml.safe_load(block)
    data = shown.get("data", {"steps": shown.get("steps", [])})
    data.setdefault("sources", [{"uri": "data/forum.json", "format": "alpaca", "name": "forum"}])
    raw = {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "shown"},
        "spec": {"baseModel": {"uri": "base"}, "data": data},
    }
    job, problems = validate_job(raw)
    assert [p for p in problems if p.severity is Severity.ERROR] == []
    assert job is not None


def test_every_page_has_examples() -> None:
    assert len(EXAMPLES) == 6
