"""The gate's word on a run's figures, and the Adapter that follows from it."""

from llamero.lifecycle import attempts as at
from llamero.lifecycle.course import adapter_name, fail, finish
from llamero.lifecycle.draft import Draft
from llamero.lifecycle.gate import GateFigures, judge_gate
from llamero.lifecycle.publication import build_publication, find_conflict, is_published, lacks_server
from llamero.lifecycle.stages import PHASES, begin_attempt, find_wait, next_stage
from llamero.lifecycle.tending import take_late_answer
from llamero.spec.status import MAX_MESSAGE, AdapterStatus, EvaluationStatus, JobPhase

GATE_REFUSED = "GateRefused"


def begin_stage(draft: Draft) -> None:
    """Start the next attempt, once nothing is in its way; where no work is left, judge and publish."""
    kind = next_stage(draft)
    while kind is not None and take_late_answer(draft, kind):
        if draft.status.finished_at is not None:
            return
        kind = next_stage(draft)
    if kind is None:
        judge_and_publish(draft)
        return
    draft.put(phase=PHASES[kind])
    draft.wait = find_wait(draft, kind)
    if draft.wait is None:
        begin_attempt(draft, kind)


def judge_and_publish(draft: Draft) -> None:
    """The gate's word on the figures, then the Adapter resource, then the end of the run."""
    found = judge(draft)
    if not found.passed:
        fail(draft, GATE_REFUSED, f"{found.reason} Change the data or the training, or lower evaluation.gate.")
        return
    publication = build_publication(draft.world, draft.status, adapter_name(draft))
    if publication is None:
        draft.put(evaluation=None, candidate=None)
        draft.put(work=None)
        fail(
            draft,
            "AdapterUnknown",
            "The evaluation's answer does not describe the adapter: see its log, and change the inputs for a new run.",
        )
        return
    if conflict := find_conflict(draft.world, publication):
        fail(draft, "AdapterConflict", f"{conflict} Change the inputs for a next run, whose Adapter has another name.")
        return
    draft.put(phase=JobPhase.ROLLING_OUT)
    if not is_published(draft.world, publication) or lacks_server(draft.world, publication):
        if refusal := draft.world.refused.get(publication.name):
            draft.wait = at.Wait("AdapterRefused", f"The API server refuses the Adapter {publication.name}: {refusal}")
        draft.publish = publication
        draft.wake(draft.limits.poll_seconds)
        return
    spec = publication.spec
    draft.put(adapter=AdapterStatus(name=publication.name, uri=spec.uri, sha256=spec.sha256), failure=None)
    finish(draft, "Succeeded", "Succeeded", found.reason)
    draft.note("Succeeded", f"Run {draft.status.run} has succeeded: {found.reason}")


def judge(draft: Draft) -> EvaluationStatus:
    """The evaluation with what the gate, as it is now, says of it."""
    found = draft.status.evaluation
    assert found is not None
    figures = GateFigures(
        read_figure(found.base_token_perplexity),
        read_figure(found.tuned_token_perplexity),
        found.answers,
        found.unfinished_answers,
    )
    verdict = judge_gate(draft.spec.evaluation.gate, figures)
    judged = found.model_copy(update={"passed": verdict.passed, "reason": verdict.reason[:MAX_MESSAGE]})
    draft.put(evaluation=judged)
    return judged


def read_figure(text: str | None) -> float | None:
    """A perplexity; None where it is none."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and value > 0 else None
