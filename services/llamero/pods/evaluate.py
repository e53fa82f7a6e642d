"""The evaluation pod: measures a finished training's adapter, writes the report, and lays the adapter where it stays for good.

An evaluation of the same base, adapter, data and prompts that an earlier attempt finished is not repeated; the gate, which may have
been edited since, is asked again.
"""

import hashlib
import logging
from datetime import UTC, datetime
from pathlib import Path

from llamero.lifecycle.failures import PhaseExit
from llamero.phases import evaluation
from llamero.phases.base import Base
from llamero.phases.training import Trained
from llamero.pods.inputs import bring_adapter, bring_base, bring_data, list_predecessors, locate_base, place_job
from llamero.pods.keeping import keep_trying
from llamero.pods.pod import AttemptFailure, Pod
from llamero.pods.supervise import supervise
from llamero.spec.adapter import AdapterFigures, AdapterSource, AdapterSpec
from llamero.spec.job import FineTuneJob
from llamero.spec.names import MANIFEST_NAME, AttemptFolder, golden_name
from llamero.spec.results import AdapterManifest, DataResult, EvaluationResult, TrainingResult
from llamero.spec.run import Phase
from llamero.spec.status import EvaluationStatus, WorkKind
from llamero.spec.tasks import Outcome, WorkMessage
from llamero.storage import TornFolder, commit_folder, join_uri, read_file, write_file

PHASE = Phase.EVALUATING.value
MAX_STOP_TOKENS, MAX_LICENSES = 16, 64
REPORT_JSON, REPORT_HTML = "report.json", "report.html"

log = logging.getLogger(__name__)


def evaluate(message: WorkMessage, pod: Pod) -> Outcome:
    """Do an `evaluate` attempt. Raises AttemptFailure, Stopped, StorageError, ModelError."""
    job = place_job(message.manifest, pod.settings.storage)
    pod.tell(PHASE, "bringing base, data and adapter")
    located = locate_base(message, job.spec, pod)
    base = bring_base(located, pod)
    data_folder, data = bring_data(message, pod)
    if message.training is None:
        raise AttemptFailure(PhaseExit.BAD_CONFIG, "The message for evaluate names no finished training.")
    place = AttemptFolder(message.training.uri)
    trained = read_trained(place)
    outcome = pod.answer(PhaseExit.DONE).model_copy(update={"base": located})
    return evaluate_trained(outcome, message, job, base, data_folder, data, place, trained, pod)


def read_trained(place: AttemptFolder) -> Trained:
    """Result and adapter manifest of the training. Raises TornFolder where they are gone, StorageError."""
    result, manifest = read_file(place.training_result), read_file(join_uri(place.adapter, MANIFEST_NAME))
    try:
        if result is not None and manifest is not None:
            return Trained(TrainingResult.model_validate_json(result), AdapterManifest.model_validate_json(manifest))
    except ValueError as error:
        raise TornFolder(f"The training's results at {place.prefix} can't be read: {error}") from error
    raise TornFolder(f"The training's results are no longer at {place.prefix}.")


def evaluate_trained(
    outcome: Outcome,
    message: WorkMessage,
    job: FineTuneJob,
    base: Base,
    data_folder: Path,
    data: DataResult,
    training: AttemptFolder,
    trained: Trained,
    pod: Pod,
) -> Outcome:
    """Measure, judge, report and publish; the outcome with what came of it. Raises AttemptFailure, Stopped, StorageError."""
    scratch, own = pod.settings.scratch, pod.settings.own
    adapter = bring_adapter(training.adapter, scratch / "trained-adapter")
    output = scratch / "evaluation"
    config = evaluation.build_config(job.spec, base.folder, adapter, trained.adapter.sha256, data_folder, output)
    config_path = evaluation.write_config(config)
    if not reuse_figures(config_path, base, trained, output, pod):
        supervise(pod, evaluation.MODULE, config_path, WorkKind.EVALUATE)
    figures = evaluation.read_evaluation(output)
    if figures is None:
        raise AttemptFailure(PhaseExit.BUG, "The evaluation ended without figures; see the log.", WorkKind.EVALUATE)

    pod.tell(PHASE, "publishing")
    adapter_uri = pod.settings.places.adapter(message.id.run, trained.adapter.sha256)
    keep_trying("the adapter", lambda: commit_folder(adapter, adapter_uri))
    golden = publish_golden(output, figures, adapter_uri)
    seconds = {
        Phase.PREPARING.value: data.seconds,
        Phase.TRAINING.value: trained.result.seconds,
        Phase.EVALUATING.value: figures.seconds,
    }
    report_json, report_html = scratch / REPORT_JSON, scratch / REPORT_HTML
    report = evaluation.judge_and_report(
        job,
        message.id.run,
        data,
        trained,
        figures,
        adapter_uri,
        seconds,
        datetime.now(UTC).replace(microsecond=0),
        report_json,
        report_html,
    )
    (output / evaluation.CONFIG_FILE).unlink(missing_ok=True)
    keep_trying("the report", lambda: write_file(own.report_html, report_html.read_bytes()))
    keep_trying("the report", lambda: write_file(own.report_json, report_json.read_bytes()))
    keep_trying("the evaluation", lambda: commit_folder(output, own.evaluation))
    status = evaluation.describe_evaluation(figures, report.gate, own.prefix)
    spec = describe_adapter(job, message, trained, status, adapter_uri, golden)
    return outcome.model_copy(
        update={"evaluation": status, "adapter_uri": adapter_uri, "adapter_spec": spec.to_json_dict()}
    )


def publish_golden(output: Path, figures: EvaluationResult, adapter_uri: str) -> str | None:
    """Lay the golden prompts beside the published adapter; their sha256, None where there are none. Raises StorageError."""
    path = evaluation.find_golden(output, figures)
    if path is None:
        return None
    content = path.read_bytes()
    keep_trying("the golden prompts", lambda: write_file(join_uri(adapter_uri, path.name), content))
    return figures.golden_sha256


def reuse_figures(config_path: Path, base: Base, trained: Trained, output: Path, pod: Pod) -> bool:
    """Whether an earlier pod measured the same; its figures are put in place then. Raises AttemptFailure for prompts that can't be read."""
    from llamero.evaluation.config import digest_evaluation, load_config
    from llamero.storage import StorageError

    earlier = [
        place for kind in (WorkKind.EVALUATE, WorkKind.TRAIN) for _, place in list_predecessors(pod.settings, kind)
    ]
    if not earlier:
        return False
    try:
        digest = digest_evaluation(load_config(config_path), base.digest, trained.adapter.sha256)
    except StorageError as error:
        raise AttemptFailure(PhaseExit.DATA_ERROR, str(error), WorkKind.EVALUATE) from error
    for place in earlier:
        content = read_file(join_uri(place.evaluation, evaluation.RESULT_FILE))
        try:
            found = EvaluationResult.model_validate_json(content) if content is not None else None
        except ValueError:
            continue
        if found is not None and found.digest == digest and content is not None:
            if not _bring_golden(place, found, output):
                continue
            (output / evaluation.RESULT_FILE).write_bytes(content)
            log.info("this evaluation is finished already: %s", place.evaluation)
            return True
    return False


def _bring_golden(place: AttemptFolder, found: EvaluationResult, output: Path) -> bool:
    """Whether all golden prompts that an earlier evaluation made are there; they are put beside its figures."""
    if not found.golden_sha256:
        return True
    name = golden_name(found.golden_sha256)
    content = read_file(join_uri(place.evaluation, name))
    if content is None or hashlib.sha256(content).hexdigest() != found.golden_sha256:
        log.warning("the golden prompts of %s are gone or damaged: its evaluation is not used again", place.evaluation)
        return False
    (output / name).write_bytes(content)
    return True


def describe_adapter(
    job: FineTuneJob,
    message: WorkMessage,
    trained: Trained,
    status: EvaluationStatus,
    uri: str,
    golden_sha256: str | None = None,
) -> AdapterSpec:
    """The Adapter resource's spec."""
    manifest = trained.adapter
    return AdapterSpec(
        uri=uri,
        sha256=manifest.sha256,
        base=manifest.base,
        base_revision=manifest.base_revision,
        base_sha256=manifest.base_sha256,
        template=manifest.template,
        stop_tokens=manifest.stop_tokens[:MAX_STOP_TOKENS],
        recipe_digest=manifest.recipe_digest,
        data_digest=manifest.data_digest,
        licenses=manifest.licenses[:MAX_LICENSES],
        terms=manifest.terms[:MAX_LICENSES],
        model=job.public_model_name,
        golden_sha256=golden_sha256,
        figures=AdapterFigures(
            base_token_perplexity=status.base_token_perplexity,
            tuned_token_perplexity=status.tuned_token_perplexity,
            records=status.records,
            last_loss=f"{trained.result.loss.last:.4f}",
        ),
        source=AdapterSource(job=message.id.job, uid=message.id.uid, run=message.id.run),
    )
