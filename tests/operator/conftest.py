"""Fixtures that the operator's pure tests share: a job, and the world that a reconcile sees of it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from serving.fixtures import tiny as tiny

from llamero.lifecycle.world import Capabilities, World
from llamero.spec.job import FineTuneJob
from llamero.spec.status import JobStatus

UID = "0f0e0d0c-1111-2222-3333-444455556666"

MakeJob = Callable[..., FineTuneJob]
MakeWorld = Callable[..., World]


@pytest.fixture(scope="session")
def make_job() -> MakeJob:
    """A FineTuneJob from parts of a spec, over a small default one."""

    def make(
        labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None, **spec: Any
    ) -> FineTuneJob:
        return FineTuneJob.model_validate(
            {
                "apiVersion": "llamero.dev/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {
                    "name": "tutor",
                    "namespace": "team-a",
                    "labels": labels or {},
                    "annotations": annotations or {},
                },
                "spec": {
                    "baseModel": {"uri": "s3://models/tiny"},
                    "data": {"sources": [{"uri": "s3://data/alpaca.json", "format": "alpaca"}]},
                    **spec,
                },
            }
        )

    return make


@pytest.fixture(scope="session")
def make_world(make_job: MakeJob) -> MakeWorld:
    """A world with that job (by default a small one) and nothing else in it."""

    def make(job: FineTuneJob | None = None, has_job: bool = True, **fields: Any) -> World:
        given: dict[str, Any] = {
            "namespace": "team-a",
            "name": "tutor",
            "uid": UID,
            "generation": 1,
            "created_at": datetime(2026, 1, 2, tzinfo=UTC),
            "deleting": False,
            "job": (job or make_job()) if has_job else None,
            "problems": (),
            "status": JobStatus(),
            "children": (),
            "progress": None,
            "redis_problem": None,
            "adapters": {},
            "capabilities": Capabilities(job_suspend=True, version=(1, 34)),
        }
        return World(**given | fields)

    return make
