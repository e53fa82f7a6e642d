"""The log: JSON with the job at hand, and no secrets in whatever is written."""

import json
import logging
import sys

import pytest

from llamero_operator import logs
from llamero_operator.settings import LogSettings


@pytest.fixture
def root_logger() -> "pytest.FixtureRequest":
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root  # type: ignore[misc]
    root.handlers[:], root.level = before, level


def test_a_line_is_json_with_the_job_that_it_speaks_of(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.start_logs(LogSettings())
    with logs.about(namespace="team-a", job="tutor"), logs.about(run=2, phase="Training", attempt=None):
        logging.getLogger("llamero_operator.apply").info("created %s", "it")
    line = json.loads(capsys.readouterr().err)
    assert {k: line[k] for k in ("level", "message", "namespace", "job", "run", "phase")} == {
        "level": "info", "message": "created it", "namespace": "team-a", "job": "tutor", "run": 2, "phase": "Training",
    }  # fmt: skip
    assert "attempt" not in line


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_password_or_token_is_written_whoever_writes_it(
    form: str, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.start_logs(LogSettings(format=form), "redis://:canary-1@redis:6379/0")  # type: ignore[arg-type]
    try:
        raise OSError("Error connecting to rediss://user:canary-2@far:6379")
    except OSError:
        logging.getLogger("redis").exception("with canary-1 and Authorization: Bearer canary-3-abcdefgh")
    written = capsys.readouterr().err
    assert "canary" not in written
    assert "rediss://user:***@far:6379" in written


def test_kopf_and_urllib3_write_the_same_way(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.start_logs(LogSettings(level="debug"))
    logging.getLogger("kopf.objects").warning("from kopf")
    logging.getLogger("urllib3").warning("from urllib3")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("kopf.objects", "from kopf"),
        ("urllib3", "from urllib3"),
    ]
    assert sys.stderr is not None
