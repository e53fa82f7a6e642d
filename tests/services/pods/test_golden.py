"""Golden prompts on a cluster: laid beside the published adapter, named by the Adapter's spec, used again with the evaluation."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamero.spec.adapter import AdapterSpec
from llamero.spec.golden import GoldenSet
from llamero.spec.names import golden_name
from llamero.spec.status import WorkKind
from llamero.spec.tasks import MAX_TERMINATION_BYTES, Outcome

MakeJob = Callable[..., Any]
LEARNS = {"training__learningRate": 0.02, "training__maxSteps": 6}
"""Enough for an adapter that says something else than its base."""


def read_spec(outcome: Outcome) -> AdapterSpec:
    assert len(outcome.to_termination_message().encode()) <= MAX_TERMINATION_BYTES
    return AdapterSpec.model_validate(outcome.adapter_spec)


def test_golden_prompts_lie_beside_the_published_adapter_and_a_used_evaluation_brings_them_along(
    make_job: MakeJob,
) -> None:
    job = make_job(**LEARNS)
    first = job.run(WorkKind.PREPARE).outcome()
    second = job.run(WorkKind.TRAIN, base=first.base, data=first.data).outcome()
    fields = {"base": first.base, "data": first.data, "training": second.training}
    third = job.run(WorkKind.EVALUATE, **fields).outcome()
    spec = read_spec(third)
    assert spec.golden_sha256 is not None
    path = Path(third.adapter_uri, golden_name(spec.golden_sha256))
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == spec.golden_sha256
    found = GoldenSet.model_validate_json(content)
    assert found.prompts and (found.dtype, found.quantization, found.engine) == ("float32", "nf4", "cpu")

    path.unlink()
    again = job.run(WorkKind.EVALUATE, attempt=2, **fields)
    assert read_spec(again.outcome()).golden_sha256 == spec.golden_sha256
    assert "finished already" in again.log
    assert path.read_bytes() == content

    kept = Path(again.own.evaluation, path.name)
    for place in (Path(third.evaluation.uri), Path(again.own.prefix)):
        (place / "evaluation" / path.name).unlink()
    anew = job.run(WorkKind.EVALUATE, attempt=3, **fields)
    assert read_spec(anew.outcome()).golden_sha256 == spec.golden_sha256
    assert "gone or damaged" in anew.log and not kept.exists()
    assert path.read_bytes() == content
