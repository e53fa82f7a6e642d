"""What an evaluation's process needs and what it leaves: its configuration, its figures, the gate's verdict and the report."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from llamero.phases.data import record_files, token_folders
from llamero.phases.training import Trained
from llamero.spec.digest import digest_json
from llamero.spec.job import FineTuneJob, FineTuneJobSpec
from llamero.spec.names import golden_name
from llamero.spec.results import AdapterRef, DataResult, EvaluationResult, GateResult, Report
from llamero.spec.run import Phase
from llamero.spec.status import MAX_MESSAGE, EvaluationStatus
from llamero.storage import sha256_file, write_atomically

MODULE = "llamero.evaluation"
CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"


def build_config(
    spec: FineTuneJobSpec,
    base: Path,
    adapter: Path,
    adapter_sha256: str,
    data: Path,
    output: Path,
    device: str = "auto",
) -> dict[str, Any]:
    """The configuration that `python -m llamero.evaluation` reads. Folders: base model, adapter, prepared data, results."""
    return {
        "base": str(base),
        "adapter": str(adapter),
        "adapterSha256": adapter_sha256,
        "method": spec.training.method,
        "template": spec.data.template,
        "system": spec.data.system,
        "allowHttp": spec.data.allow_http,
        "evaluationTokens": token_folders(data, "evaluation"),
        "evaluationRecords": record_files(data, "evaluation"),
        "spec": {k: v for k, v in spec.evaluation.to_json_dict().items() if k != "gate"},
        "output": str(output),
        "device": device,
    }


def digest_config(config: Mapping[str, Any]) -> str:
    """What counts as the same evaluation on one machine: all but the machine itself and where results go."""
    return digest_json({k: v for k, v in config.items() if k not in ("device", "output")})


def write_config(config: Mapping[str, Any]) -> Path:
    """Put the configuration into its output folder; its path."""
    path = Path(str(config["output"])) / CONFIG_FILE
    write_atomically(path, json.dumps(config, indent=2))
    return path


def read_evaluation(folder: Path) -> EvaluationResult | None:
    """The figures in an evaluation's folder."""
    try:
        return EvaluationResult.model_validate_json((folder / RESULT_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def find_golden(folder: Path, evaluation: EvaluationResult) -> Path | None:
    """The golden prompts in an evaluation's folder, whole; None where there are none (as of evaluations before there were any)."""
    if not evaluation.golden_sha256:
        return None
    path = folder / golden_name(evaluation.golden_sha256)
    return path if path.is_file() and sha256_file(path) == evaluation.golden_sha256 else None


def lay_golden(folder: Path, evaluation: EvaluationResult, adapter: Path) -> str | None:
    """Put an evaluation's golden prompts beside the adapter's files, which stay as they are; the file's sha256, None without any."""
    path = find_golden(folder, evaluation)
    if path is None:
        return None
    write_atomically(adapter / path.name, path.read_bytes())
    return evaluation.golden_sha256


def judge_and_report(
    job: FineTuneJob,
    run: int,
    data: DataResult,
    trained: Trained,
    evaluation: EvaluationResult,
    adapter_uri: str,
    seconds: Mapping[str, float],
    finished_at: datetime,
    json_path: Path,
    html_path: Path,
) -> Report:
    """Ask the gate, and write the report whatever it says. `seconds` are by phase, over all attempts."""
    from llamero.evaluation.report import build_report, judge_evaluation, write_report

    verdict: GateResult = judge_evaluation(job.spec.evaluation.gate, evaluation)
    report = build_report(
        job,
        run,
        data,
        trained.result,
        evaluation,
        verdict,
        AdapterRef(uri=adapter_uri, sha256=trained.adapter.sha256),
        seconds,
        str(Phase.SUCCEEDED if verdict.passed else Phase.FAILED),
        finished_at,
    )
    write_report(report, json_path, html_path)
    return report


def describe_evaluation(evaluation: EvaluationResult, gate: GateResult, uri: str) -> EvaluationStatus:
    """A status's words for figures whose files lie at `uri`."""
    pair = evaluation.token_perplexity
    return EvaluationStatus(
        uri=uri,
        records=evaluation.records,
        base_token_perplexity=f"{pair.base:.6g}" if pair.base is not None else None,
        tuned_token_perplexity=f"{pair.tuned:.6g}" if pair.tuned is not None else None,
        answers=len(evaluation.samples),
        unfinished_answers=sum(not sample.tuned.finished for sample in evaluation.samples),
        passed=gate.passed,
        reason=gate.reason[:MAX_MESSAGE],
    )
