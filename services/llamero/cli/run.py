"""`llamero run`: a manifest's phases on this machine, from raw data to a served adapter.

The story of a run; each phase's work is done by the very functions that a cluster's workers call, and what to do next is decided
by `lifecycle`. Everything that a phase finished is found again by the next start.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from llamero.cli.display import Display
from llamero.cli.processes import Interrupted, run_phase
from llamero.lifecycle.failures import FailureClass, FailureRule, NextStep, classify_exit
from llamero.lifecycle.runs import Attempts, choose_run, decide_retry
from llamero.spec.digest import digest_json, run_digest, training_recipe
from llamero.spec.job import FineTuneJob
from llamero.spec.names import MANIFEST_NAME, RunLayout, parse_run_name
from llamero.spec.results import (
    AdapterManifest,
    AdapterRef,
    DataResult,
    EvaluationResult,
    Report,
    TrainingResult,
)
from llamero.spec.run import Phase, PhaseRecord, RunState
from llamero.storage import find_damage, write_atomically

Result = TypeVar("Result", DataResult, TrainingResult, AdapterManifest, EvaluationResult)


class ExitCode(IntEnum):
    """How `llamero run` ends."""

    DONE = 0
    BAD_MANIFEST = 2
    DATA_ERROR = 3
    TRAINING_FAILED = 4
    GATE_REFUSED = 5
    INTERRUPTED = 130


class RunError(Exception):
    """A run that can't go on: what happened and what to do, and the code to end with."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RunOptions:
    """What the command line says besides the manifest."""

    workdir: Path
    fresh: bool = False
    device: str = "auto"
    cache: Path = field(
        default_factory=lambda: Path(os.environ.get("LLAMERO_CACHE", Path.home() / ".cache" / "llamero"))
    )


@dataclass(frozen=True)
class FinishedRun:
    """What a run leaves: its report and where its files are."""

    layout: RunLayout
    report: Report
    base_folder: Path
    reused: tuple[Phase, ...]


def run_job(job: FineTuneJob, options: RunOptions, display: Display) -> FinishedRun:
    """Take a job through its phases. Raises RunError where one fails, Interrupted where the user ended it."""
    return _Runner(job, options, display).run()


class _Runner:
    """One start of a run: holds where it stands while the phases pass."""

    def __init__(self, job: FineTuneJob, options: RunOptions, display: Display) -> None:
        self.job = job
        self.spec = job.spec
        self.options = options
        self.display = display
        self.reused: list[Phase] = []
        self.deadline = (
            time.monotonic() + self.spec.active_deadline_seconds
            if self.spec.active_deadline_seconds is not None
            else None
        )
        self.layout: RunLayout
        self.state: RunState

    def run(self) -> FinishedRun:
        if self.spec.suspend:
            raise RunError("The job is suspended: set spec.suspend to false to run it.", ExitCode.BAD_MANIFEST)
        base_folder, base_digest = self.find_base()
        with _hold_lock(RunLayout(self.options.workdir.resolve(), self.job.metadata.name, 0).lock):
            return self.run_phases(base_folder, base_digest)

    def run_phases(self, base_folder: Path, base_digest: str) -> FinishedRun:
        self.open_run(base_folder, base_digest)
        try:
            data = self.prepare(base_folder)
            training, adapter = self.train(base_folder, base_digest, data)
            evaluation = self.evaluate(base_folder, adapter)
            report = self.judge(data, training, evaluation, adapter)
        except Interrupted:
            self.save(reason=f"interrupted while {self.state.phase}")
            raise
        except RunError as error:
            self.save(phase=Phase.FAILED, reason=str(error))
            raise
        return FinishedRun(self.layout, report, base_folder, tuple(self.reused))

    # -- where things are ------------------------------------------------------------------------------------------------------

    def find_base(self) -> tuple[Path, str]:
        from llamero.model.loading import ModelError, base_digest, resolve_base

        reference = self.spec.base_model
        token = os.environ.get("HF_TOKEN") if reference.secret_ref is None else os.environ.get(reference.secret_ref.key)
        try:
            folder = resolve_base(reference, self.options.cache / "models", token=token, on_progress=self.display.show)
            return folder, base_digest(folder)
        except ModelError as error:
            raise RunError(str(error), ExitCode.BAD_MANIFEST) from error

    def open_run(self, base_folder: Path, base_digest: str) -> None:
        """Choose the run that this start continues, or the next number, and read what it had finished."""
        from llamero.data.prepare import DataError, plan_data

        try:
            self.plan = plan_data(self.spec, base_digest)
        except DataError as error:
            raise RunError(str(error), ExitCode.DATA_ERROR) from error
        digest = run_digest(self.spec, self.plan.digest, base_digest)
        job_name = self.job.metadata.name
        chosen = choose_run(self._known_states(job_name), digest, self.options.fresh)
        self.layout = RunLayout(self.options.workdir.resolve(), job_name, chosen.run)
        self.state = chosen.state or RunState(job=job_name, run=chosen.run, digest=digest)
        self.layout.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.layout.manifest, json.dumps(self.job.to_json_dict(), indent=2, ensure_ascii=False))
        going_on = "goes on with" if chosen.state else "starts"
        self.display.say(f"Job {job_name} {going_on} run {chosen.run} in {self.layout.folder}")

    def _known_states(self, job_name: str) -> list[RunState]:
        folder = self.options.workdir / job_name
        states = []
        for path in folder.iterdir() if folder.is_dir() else []:
            run = parse_run_name(path.name)
            if run is None:
                continue
            try:
                states.append(RunState.model_validate_json((path / "run.json").read_bytes()))
            except (OSError, ValueError):
                # A folder without a readable state: its number is taken, its content never counts as finished.
                states.append(RunState(job=job_name, run=run, digest=""))
        return states

    def save(
        self,
        phase: Phase | None = None,
        reason: str = "",
        worked: tuple[Phase, PhaseRecord] | None = None,
        finished: tuple[Phase, PhaseRecord] | None = None,
    ) -> None:
        update: dict[str, object] = {"reason": reason}
        if phase is not None:
            update["phase"] = phase
        if worked is not None:
            update["worked"] = {**self.state.worked, worked[0]: worked[1]}
        if finished is not None:
            update["finished"] = {**self.state.finished, finished[0]: finished[1]}
        self.state = self.state.model_copy(update=update)
        write_atomically(self.layout.state, json.dumps(self.state.to_json_dict(), indent=2))

    def is_finished(self, phase: Phase, digest: str) -> bool:
        record = self.state.finished.get(phase)
        return record is not None and record.digest == digest

    @contextmanager
    def work(self, phase: Phase, digest: str) -> Iterator[None]:
        """A phase at work: its seconds are kept however it ends, and it counts as finished when it ends well."""
        earlier = self.state.worked.get(phase)
        before = earlier.seconds if earlier and earlier.digest == digest else 0.0
        self.save(phase)
        started = time.monotonic()

        def record() -> PhaseRecord:
            return PhaseRecord(digest=digest, seconds=round(before + time.monotonic() - started, 3))

        try:
            yield
        except BaseException:
            self.save(worked=(phase, record()))
            raise
        self.save(worked=(phase, record()), finished=(phase, record()))

    def reuse(self, phase: Phase, what: str) -> None:
        self.reused.append(phase)
        self.display.say(f"{phase}: reused {what} (unchanged)")

    # -- phases ----------------------------------------------------------------------------------------------------------------

    def prepare(self, base_folder: Path) -> DataResult:
        from llamero.data.prepare import DataError, prepare_data

        if self.is_finished(Phase.PREPARING, self.plan.digest):
            result = _read(DataResult, self.layout.data / MANIFEST_NAME)
            if result is not None and find_damage(self.layout.data, result.files, read_content=False) is None:
                self.reuse(Phase.PREPARING, f"{result.kept:,} records")
                return result
        workers = min(self.spec.data.workers, os.cpu_count() or 1)
        with self.work(Phase.PREPARING, self.plan.digest):
            try:
                result = prepare_data(
                    self.spec,
                    self.plan,
                    base_folder,
                    self.layout.data,
                    self.layout.shard_cache,
                    self.display.show,
                    workers,
                )
            except DataError as error:
                raise RunError(str(error), ExitCode.DATA_ERROR) from error
        if result.reused_shards:
            self.display.say(f"{Phase.PREPARING}: reused {result.reused_shards} of {result.shards} shards (unchanged)")
        return result

    def train(self, base_folder: Path, base_digest: str, data: DataResult) -> tuple[TrainingResult, AdapterManifest]:
        digest = self.state.digest
        if self.is_finished(Phase.TRAINING, digest) and (found := self._read_training()) is not None:
            self.reuse(Phase.TRAINING, f"the adapter of {found[0].steps:,} steps")
            return found
        attempts = Attempts(micro_batch_tokens=_read_micro_batch(self.layout))
        config_path = self.layout.checkpoints / "config.json"
        init_adapter = self._find_initial_adapter()

        def start(attempts: Attempts) -> None:
            bins = attempts.micro_batch_tokens or None
            config = self._training_config(base_folder, base_digest, data, init_adapter, bins)
            write_atomically(config_path, json.dumps(config, indent=2))

        with self.work(Phase.TRAINING, digest):
            self._run_attempts("llamero.training", Phase.TRAINING, config_path, attempts, start)
            found = self._read_training()
            if found is None:
                raise RunError(
                    f"The training ended without an adapter that matches its manifest: see {self._log(Phase.TRAINING)}.",
                    ExitCode.TRAINING_FAILED,
                )
        return found

    def _training_config(
        self,
        base_folder: Path,
        base_digest: str,
        data: DataResult,
        init_adapter: Path | None,
        micro_batch_tokens: int | None,
    ) -> dict[str, object]:
        base = self.spec.base_model
        sources = self.spec.data.sources
        return {
            "base": str(base_folder),
            "baseName": base.name or base.uri,
            "baseRevision": base.revision,
            "baseDigest": base_digest,
            "spec": self.spec.training.to_json_dict(),
            "template": self.spec.data.template,
            "trainTokens": _parts(self.layout.data / "tokens" / "train"),
            "evaluationTokens": _parts(self.layout.data / "tokens" / "evaluation"),
            "checkpoints": str(self.layout.checkpoints),
            "adapter": str(self.layout.adapter),
            "merged": str(self.layout.merged) if self.spec.training.merge else None,
            "recipeDigest": digest_json(training_recipe(self.spec)),
            "dataDigest": data.digest,
            "licenses": sorted({s.license for s in sources if s.license}),
            "terms": sorted({s.terms for s in sources if s.terms}),
            "device": self.options.device,
            "microBatchTokens": micro_batch_tokens,
            "initAdapter": str(init_adapter) if init_adapter else None,
        }

    def _find_initial_adapter(self) -> Path | None:
        wanted = self.spec.training.init_from
        if wanted == "base":
            return None
        if wanted != "previous":
            if not (Path(wanted) / "adapter_config.json").is_file():
                raise RunError(f"training.initFrom: {wanted} holds no adapter_config.json.", ExitCode.BAD_MANIFEST)
            return Path(wanted)
        for run in range(self.layout.run - 1, 0, -1):
            folder = RunLayout(self.layout.workdir, self.layout.job, run).adapter
            if (folder / MANIFEST_NAME).is_file():
                return folder
        self.display.say("Training: no previous run has an adapter, so this one starts from the base")
        return None

    def _read_training(self) -> tuple[TrainingResult, AdapterManifest] | None:
        result = _read(TrainingResult, self.layout.checkpoints / "result.json")
        manifest = _read(AdapterManifest, self.layout.adapter / MANIFEST_NAME)
        if result is None or manifest is None or find_damage(self.layout.adapter, manifest.files) is not None:
            return None
        return result, manifest

    def evaluate(self, base_folder: Path, adapter: AdapterManifest) -> EvaluationResult:
        config = {
            "base": str(base_folder),
            "adapter": str(self.layout.adapter),
            "adapterSha256": adapter.sha256,
            "method": self.spec.training.method,
            "template": self.spec.data.template,
            "system": self.spec.data.system,
            "evaluationTokens": _parts(self.layout.data / "tokens" / "evaluation"),
            "evaluationRecords": _parts(self.layout.data / "evaluation"),
            "spec": {k: v for k, v in self.spec.evaluation.to_json_dict().items() if k != "gate"},
            "output": str(self.layout.evaluation),
            "device": self.options.device,
        }
        digest = digest_json({k: v for k, v in config.items() if k not in ("device", "output")})
        if self.is_finished(Phase.EVALUATING, digest):
            result = _read(EvaluationResult, self.layout.evaluation / "result.json")
            if result is not None:
                self.reuse(Phase.EVALUATING, f"the figures of {result.records:,} held-out records")
                return result
        config_path = self.layout.evaluation / "config.json"
        write_atomically(config_path, json.dumps(config, indent=2))
        with self.work(Phase.EVALUATING, digest):
            self._run_attempts("llamero.evaluation", Phase.EVALUATING, config_path, Attempts(), lambda attempts: None)
            result = _read(EvaluationResult, self.layout.evaluation / "result.json")
            if result is None:
                message = f"The evaluation ended without figures: see {self._log(Phase.EVALUATING)}."
                raise RunError(message, ExitCode.TRAINING_FAILED)
        return result

    def judge(
        self, data: DataResult, training: TrainingResult, evaluation: EvaluationResult, adapter: AdapterManifest
    ) -> Report:
        """Ask the gate, and write the report whatever it says."""
        from llamero.evaluation.report import build_report, judge_evaluation, write_report

        verdict = judge_evaluation(self.spec.evaluation.gate, evaluation)
        phase = Phase.SUCCEEDED if verdict.passed else Phase.FAILED
        report = build_report(
            self.job,
            self.layout.run,
            data,
            training,
            evaluation,
            verdict,
            AdapterRef(uri=self.layout.adapter.as_uri(), sha256=adapter.sha256),
            {str(name): record.seconds for name, record in self.state.finished.items()},
            str(phase),
            datetime.now(UTC).replace(microsecond=0),
        )
        write_report(report, self.layout.report_json, self.layout.report_html)
        self.save(phase, "" if verdict.passed else verdict.reason)
        return report

    # -- attempts --------------------------------------------------------------------------------------------------------------

    def _run_attempts(
        self, module: str, phase: Phase, config: Path, attempts: Attempts, prepare: Callable[[Attempts], None]
    ) -> None:
        """Run a phase's process until it is done; what a failure means and whether it is tried again, `lifecycle` says."""
        while True:
            prepare(attempts)
            end = run_phase(
                module, config, self._log(phase), self.display.show, self.spec.progress_deadline_seconds, self.deadline
            )
            if end.overdue:
                raise RunError(
                    f"The run took longer than activeDeadlineSeconds ({self.spec.active_deadline_seconds}).",
                    ExitCode.TRAINING_FAILED,
                )
            if end.returncode == 0:
                return
            rule = HUNG_RULE if end.hung else classify_exit(end.returncode)
            message = _read_failure(config.parent) or f"its process ended with code {end.returncode}"
            retry = decide_retry(rule, attempts, self.spec.backoff_limit, self.spec.training.sequence_length)
            if retry is None:
                raise RunError(
                    f"{phase} failed ({rule.failure}): {message.rstrip('.')}. What to do: {rule.advice}. Log: {self._log(phase)}",
                    _exit_code(rule.failure),
                )
            self.display.say(f"{phase}: {message.rstrip('.')}; trying again, since {retry.why}")
            attempts = retry.attempts
            time.sleep(retry.delay_seconds)

    def _log(self, phase: Phase) -> Path:
        return self.layout.logs / f"{str(phase).lower()}.log"


HUNG_RULE = FailureRule(FailureClass.BUG, NextStep.RETRY_COUNTED, "see the log for where its threads stood")


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """One process at a time works on a job; the lock goes with its holder, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = (
                f"Another llamero run is at work on this job ({path.parent}): wait for it, or give another --workdir."
            )
            raise RunError(message, ExitCode.BAD_MANIFEST) from error
        yield


def _exit_code(failure: FailureClass) -> ExitCode:
    return {FailureClass.DATA_ERROR: ExitCode.DATA_ERROR, FailureClass.BAD_CONFIG: ExitCode.BAD_MANIFEST}.get(
        failure, ExitCode.TRAINING_FAILED
    )


def _read_failure(folder: Path) -> str | None:
    path = folder / "failure.json"
    try:
        return str(json.loads(path.read_bytes())["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_micro_batch(layout: RunLayout) -> int:
    """The bin capacity that an earlier start of the run had come down to; 0 where there was none."""
    try:
        return int(json.loads((layout.checkpoints / "config.json").read_bytes()).get("microBatchTokens") or 0)
    except (OSError, ValueError):
        return 0


def _parts(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.iterdir()) if folder.is_dir() else []


def _read(model: type[Result], path: Path) -> Result | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
