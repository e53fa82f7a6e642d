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

from llamero.cli.display import Display
from llamero.lifecycle.failures import RULES, FailureClass, PhaseExit, classify_exit
from llamero.lifecycle.runs import Attempts, choose_run, decide_retry
from llamero.model.errors import ModelError
from llamero.model.failures import read_failure
from llamero.phases import evaluation as evaluating
from llamero.phases import training as training_phase
from llamero.phases.base import Base, find_base
from llamero.phases.data import read_data
from llamero.phases.processes import Interrupted, run_phase
from llamero.phases.training import Trained, TrainingFolders, read_training
from llamero.spec.digest import run_digest
from llamero.spec.job import FineTuneJob
from llamero.spec.names import MANIFEST_NAME, RunLayout, parse_run_name
from llamero.spec.results import DataResult, EvaluationResult, Report
from llamero.spec.run import Phase, PhaseRecord, RunState
from llamero.storage import write_atomically


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
        base = self.find_base()
        with _hold_lock(RunLayout(self.options.workdir.resolve(), self.job.metadata.name, 0).lock):
            return self.run_phases(base)

    def run_phases(self, base: Base) -> FinishedRun:
        self.open_run(base)
        try:
            data = self.prepare(base)
            trained = self.train(base, data)
            evaluation = self.evaluate(base, trained)
            report = self.judge(data, trained, evaluation)
        except Interrupted:
            self.save(reason=f"interrupted while {self.state.phase}")
            raise
        except RunError as error:
            self.save(phase=Phase.FAILED, reason=str(error))
            raise
        return FinishedRun(self.layout, report, base.folder, tuple(self.reused))

    # -- where things are ------------------------------------------------------------------------------------------------------

    def find_base(self) -> Base:
        try:
            return find_base(self.spec.base_model, self.options.cache / "models", self.display.show)
        except ModelError as error:
            raise RunError(str(error), ExitCode.BAD_MANIFEST) from error

    def open_run(self, base: Base) -> None:
        """Choose the run that this start continues, or the next number, and read what it had finished."""
        from llamero.data.prepare import DataError, plan_data

        try:
            self.plan = plan_data(self.spec, base.digest)
        except DataError as error:
            raise RunError(str(error), ExitCode.DATA_ERROR) from error
        digest = run_digest(self.spec, self.plan.digest, base.digest)
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

    def prepare(self, base: Base) -> DataResult:
        from llamero.data.prepare import DataError, prepare_data

        if self.is_finished(Phase.PREPARING, self.plan.digest):
            result = read_data(self.layout.data, self.plan.digest)
            if result is not None:
                self.reuse(Phase.PREPARING, f"{result.kept:,} records")
                return result
        workers = min(self.spec.data.workers, os.cpu_count() or 1)
        with self.work(Phase.PREPARING, self.plan.digest):
            try:
                result = prepare_data(
                    self.spec,
                    self.plan,
                    base.folder,
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

    @property
    def training_folders(self) -> TrainingFolders:
        layout = self.layout
        return TrainingFolders(layout.data, layout.checkpoints, layout.adapter, layout.merged)

    def train(self, base: Base, data: DataResult) -> Trained:
        digest, folders = self.state.digest, self.training_folders
        if self.is_finished(Phase.TRAINING, digest) and (found := read_training(folders)) is not None:
            self.reuse(Phase.TRAINING, f"the adapter of {found.result.steps:,} steps")
            return found
        attempts = Attempts(micro_batch_tokens=training_phase.read_micro_batch(folders.config))
        init_adapter = self._find_initial_adapter()

        def start(attempts: Attempts) -> None:
            bins = attempts.micro_batch_tokens
            training_phase.write_config(self.spec, base, data.digest, folders, init_adapter, bins, self.options.device)

        with self.work(Phase.TRAINING, digest):
            self._run_attempts(training_phase.MODULE, Phase.TRAINING, folders.config, attempts, start)
            found = read_training(folders)
            if found is None:
                raise RunError(
                    f"The training ended without an adapter that matches its manifest: see {self._log(Phase.TRAINING)}.",
                    ExitCode.TRAINING_FAILED,
                )
        return found

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

    def evaluate(self, base: Base, trained: Trained) -> EvaluationResult:
        layout = self.layout
        config = evaluating.build_config(
            self.spec,
            base.folder,
            layout.adapter,
            trained.adapter.sha256,
            layout.data,
            layout.evaluation,
            self.options.device,
        )
        digest = evaluating.digest_config(config)
        if self.is_finished(Phase.EVALUATING, digest):
            result = evaluating.read_evaluation(layout.evaluation)
            if result is not None:
                self.reuse(Phase.EVALUATING, f"the figures of {result.records:,} held-out records")
                return result
        config_path = evaluating.write_config(config)
        with self.work(Phase.EVALUATING, digest):
            self._run_attempts(evaluating.MODULE, Phase.EVALUATING, config_path, Attempts(), lambda attempts: None)
            result = evaluating.read_evaluation(layout.evaluation)
            if result is None:
                message = f"The evaluation ended without figures: see {self._log(Phase.EVALUATING)}."
                raise RunError(message, ExitCode.TRAINING_FAILED)
        return result

    def judge(self, data: DataResult, trained: Trained, evaluation: EvaluationResult) -> Report:
        """Ask the gate, and write the report whatever it says."""
        evaluating.lay_golden(self.layout.evaluation, evaluation, self.layout.adapter)
        report = evaluating.judge_and_report(
            self.job,
            self.layout.run,
            data,
            trained,
            evaluation,
            self.layout.adapter.as_uri(),
            {str(name): record.seconds for name, record in self.state.finished.items()},
            datetime.now(UTC).replace(microsecond=0),
            self.layout.report_json,
            self.layout.report_html,
        )
        passed = report.gate.passed
        self.save(Phase.SUCCEEDED if passed else Phase.FAILED, "" if passed else report.gate.reason)
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
            rule = RULES[PhaseExit.HUNG] if end.hung else classify_exit(end.returncode)
            message = read_failure(config.parent) or f"its process ended with code {end.returncode}"
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
