"""One job's life under a fault: submitted, looked at all the while, its operator brought back when it dies, judged at the end."""

import contextlib
import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.api import Access
from cluster.waiting import until
from stack.protocol_worker import Entry, Halt
from stack.stack import Stack, played_job

from chaos.trials import Trial
from llamero.lifecycle.failures import PhaseExit
from llamero.spec.names import redis_patterns
from llamero.spec.status import JobStatus, WorkKind

LOOK_SECONDS = 0.05
WORK_KINDS = (WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE)


class Eyes:
    """Reads one object of the API again and again over one connection; an API server that is away is no error."""

    def __init__(self, access: Access) -> None:
        host, port = access.url.removeprefix("https://").split(":")
        self._connection = http.client.HTTPSConnection(host, int(port), timeout=5, context=access.tls())
        self._headers = {"Authorization": f"Bearer {access.token}"}

    def look(self, path: str) -> tuple[int, dict[str, Any]]:
        """HTTP status and object; status 0 where nobody answers."""
        try:
            self._connection.request("GET", path, headers=self._headers)
            response = self._connection.getresponse()
            return response.status, json.loads(response.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError):
            self._connection.close()
            return 0, {}

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class EndState:
    """What of a finished job's status a fault must not change: no times, no uids, no words of the moment."""

    phase: str
    run: int
    cause: str
    observed_generation: int
    tries: tuple[int, int, int]
    adapter: str | None  # the run in its name
    data: str | None
    steps: int | None
    passed: bool | None
    history: tuple[tuple[int, str, str], ...]
    conditions: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, status: JobStatus) -> "EndState":
        return cls(
            phase=str(status.phase),
            run=status.run,
            cause=status.run_cause,
            observed_generation=status.observed_generation,
            tries=(status.tries.counted, status.tries.free, status.tries.micro_batch_tokens),
            adapter=status.adapter.name.rpartition("-")[2] if status.adapter else None,
            data=status.data.digest if status.data else None,
            steps=status.training.steps if status.training else None,
            passed=status.evaluation.passed if status.evaluation else None,
            history=tuple((r.run, r.phase, r.cause) for r in status.history),
            conditions=tuple(sorted((str(c.type), c.status, c.reason) for c in status.conditions)),
        )

    def differences(self, other: "EndState") -> list[str]:
        """Where this one differs from what is expected, a sentence each."""
        pairs = zip(vars(self).items(), vars(other).values(), strict=True)
        return [f"{name} is {mine!r} instead of {theirs!r}" for (name, mine), theirs in pairs if mine != theirs]


class Life:
    """A played job. With `revive`, an operator that dies is started again (without its fault) while the life is looked at.

    `hold` is a moment that its pod is to wait at: set before the job is there, so that no pod is quicker.
    """

    def __init__(
        self, stack: Stack, name: str, *, revive: bool = False, hold: tuple[WorkKind, str] | None = None, **spec: Any
    ) -> None:
        self.stack, self.name = stack, name
        self._revive = revive
        self._eyes = Eyes(stack.plane.access)
        self._path = stack.path(name)
        self._status: JobStatus | None = None
        self._raw: Any = None
        self.is_gone = False
        self.progressed: list[float] = []
        self.faulted_at: float | None = None
        self.died_at: float | None = None
        self.on_look: Callable[[], None] = lambda: None
        self._held = contextlib.ExitStack()
        self._halt: Halt | None = None
        if hold is not None and stack.worker is not None:
            self._halt = self._held.enter_context(stack.worker.halt(*hold, job=name))
        self.uid = stack.submit(played_job(name, **spec))

    def close(self) -> None:
        self._held.close()
        self._eyes.close()

    # Looking

    def look(self) -> JobStatus:
        """The status as it is now; as it was, where the API server is away."""
        if self._revive:
            self._bring_back_operator()
        self._look()
        self.on_look()
        return self._status or JobStatus()

    def _look(self) -> None:
        code, found = self._eyes.look(self._path)
        before = self._signature()
        if code == 404 or (code == 200 and found["metadata"]["uid"] != self.uid):
            self.is_gone = True
        elif code == 200:
            raw = [found.get("status") or {}, found["metadata"].get("deletionTimestamp")]
            if raw != self._raw:
                self._raw, self._status = raw, JobStatus.model_validate(raw[0])
        if self._signature() != before:
            self.progressed.append(time.monotonic())

    def _signature(self) -> object:
        """What of the status is progress: words in conditions are none."""
        status = self._status
        if status is None or self.is_gone:
            return self.is_gone
        results = (status.base, status.data, status.training, status.evaluation, status.adapter)
        work = (status.work.kind, status.work.attempt) if status.work else None
        return (str(status.phase), status.run, work, *(r is not None for r in results))

    def stage(self) -> str:
        """Where the life is, in a word: the phase, or `deleting`."""
        if self.is_gone or (self._raw and self._raw[1]):
            return "deleting"
        return str(self._status.phase) if self._status else "Pending"

    def wait_dead_operator(self, seconds: float = 1.0) -> None:
        """Gives an operator that is to die after its very last write the time to do so."""
        deadline = time.monotonic() + seconds
        while self.faulted_at is None and time.monotonic() < deadline:
            self.look()
            time.sleep(LOOK_SECONDS)

    def _bring_back_operator(self) -> None:
        operator = self.stack.operator
        if operator.is_running or operator.returncode is None:
            return
        self._look()  # what it wrote before it died is no recovery
        if self.faulted_at is None:
            self.died_at = operator.ended_at or time.monotonic()
            self.faulted_at = time.monotonic()
        operator.start(wait=False)

    def wait(self, condition: Callable[[JobStatus], Any], what: str, seconds: float = 90) -> JobStatus:
        """The status once the condition holds of it. Raises AssertionError that tells everything where it does not in time."""
        deadline = time.monotonic() + seconds
        while not condition(status := self.look()):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"job {self.name}: waited {seconds:g} s for {what}; at last {status.phase}\n{self.stack.describe()}"
                )
            time.sleep(LOOK_SECONDS)
        return status

    def wait_phase(self, *phases: str, seconds: float = 90) -> JobStatus:
        return self.wait(lambda s: s.phase in phases, " or ".join(phases), seconds)

    def wait_end(self, seconds: float = 90) -> JobStatus:
        return self.wait_phase("Succeeded", "Failed", seconds=seconds)

    @contextlib.contextmanager
    def halt(self, kind: WorkKind, moment: str, attempt: int | None = None, seconds: float = 60) -> Iterator[Halt]:
        """This job's pod of the kind waits at the moment until the block's end; entered once it does."""
        worker = self.stack.worker
        assert worker is not None
        if self._halt is None or (self._halt.kind, self._halt.moment) != (kind, moment):
            self._halt = self._held.enter_context(worker.halt(kind, moment, self.name, attempt))
        halt = self._halt
        try:
            self.wait(lambda _: halt.reached.is_set(), f"a pod to come to `{moment}` of {kind}", seconds)
            yield halt
        finally:
            self._held.close()
            self._halt = None

    def wait_step(self, step: int, seconds: float = 60) -> Entry:
        """The training pod, once it has done the step."""
        self.wait(lambda _: self._find_step(step), f"step {step}", seconds)
        found = self._find_step(step)
        assert found is not None
        return found

    def wait_pod(self, kind: WorkKind, attempt: int, seconds: float = 60) -> Entry:
        """The attempt's first pod, once it has its work."""

        def find() -> Entry | None:
            return next((e for e in self.entries(kind) if e.id.attempt == attempt and e.has_worked), None)

        self.wait(lambda _: find(), f"a pod of {kind} {attempt} to work", seconds)
        found = find()
        assert found is not None
        return found

    def _find_step(self, step: int) -> Entry | None:
        return next((e for e in self.entries(WorkKind.TRAIN) if step in e.steps), None)

    def wait_quiet(self, seconds: float = 30) -> None:
        """Until the finished job has no children and no keys left. Raises AssertionError with what there is."""
        left: list[str] = []

        def none_left() -> bool:
            self.look()
            left[:] = [c["metadata"]["name"] for c in self.stack.children(self.uid)]
            left.extend(p["metadata"]["name"] for p in self.stack.pods(self.uid))
            left.extend(self.stack.redis_keys(self.uid))
            return not left

        with contextlib.suppress(AssertionError):
            until(none_left, "nothing to be left", seconds, 0.1)
            return
        raise AssertionError(f"job {self.name} has ended, and there is still {', '.join(left)}")

    def wait_gone(self, seconds: float = 60) -> None:
        """Until the deleted job is gone with all that was its own. Raises AssertionError with what there is."""
        self.wait(lambda _: self.is_gone, "the job to go", seconds)
        with contextlib.suppress(AssertionError):
            until(lambda: self.look() and not self.stack.remains(self.name, self.uid), "nothing to be left", 30, 0.1)
            return
        raise AssertionError(f"job {self.name} is gone and has left {self.stack.remains(self.name, self.uid)}")

    # The fault

    def fault(self) -> None:
        """The fault happens now."""
        self.look()
        self.faulted_at = time.monotonic()

    def seconds_to_status(self) -> float | None:
        """From the fault to the next progress in the status (phase, attempt, result): it is the operator that has to come back."""
        return self._seconds_to(self.progressed)

    def seconds_to_progress(self) -> float | None:
        """From the fault to the next progress in the status or step of the training, whichever came first."""
        return self._seconds_to([*self.progressed, *(t for e in self.entries(WorkKind.TRAIN) for t in e.stepped)])

    def _seconds_to(self, moments: list[float]) -> float | None:
        if self.faulted_at is None:
            return None
        later = [m for m in moments if m > self.faulted_at]
        return min(later) - (self.died_at or self.faulted_at) if later else None

    # What was done

    def entries(self, *kinds: WorkKind) -> list[Entry]:
        """The job's pods in the ledger, of these kinds or of all."""
        worker = self.stack.worker
        assert worker is not None
        return [e for e in list(worker.ledger) if e.id.uid == self.uid and (not kinds or e.id.kind in kinds)]

    def count_lost_steps(self) -> int:
        """Steps that were done more than once in a run."""
        done = Counter((e.id.run, step) for e in self.entries(WorkKind.TRAIN) for step in list(e.steps))
        return sum(done.values()) - len(done)

    def count_doubled_pods(self) -> int:
        """Pods that worked beyond the first of an attempt."""
        pods = Counter((e.id.run, e.id.kind, e.id.attempt) for e in self.entries() if e.has_worked)
        return sum(pods.values()) - len(pods)

    def count_doubled_ends(self) -> int:
        """Pods that finished a piece of work which another one had finished."""
        ends = Counter((e.id.run, e.id.kind) for e in self.entries(*WORK_KINDS) if e.exit_code == PhaseExit.DONE)
        return sum(ends.values()) - len(ends)

    def judge(
        self,
        fault: str,
        *problems: str,
        seconds: float | None = None,
        lost_steps_allowed: int = 0,
        doubled_allowed: int = 0,
    ) -> Trial:
        """The trial that this life was; `problems` are the caller's own."""
        found = list(problems)
        lost, doubled = self.count_lost_steps(), self.count_doubled_pods() + self.count_doubled_ends()
        if lost > lost_steps_allowed:
            found.append(f"{lost} steps were done again, where {lost_steps_allowed} may be")
        if doubled > doubled_allowed:
            found.append(f"{doubled} pods doubled work: {self.tell()}")
        return Trial(fault, seconds, lost, doubled, tuple(found))

    def tell(self) -> str:
        """The job's pods in a line."""
        return "; ".join(
            f"r{e.id.run} {e.id.kind} a{e.id.attempt} pod {e.pod[:8]} steps {len(e.steps)} exit {e.exit_code}"
            for e in self.entries()
        )

    def queue_keys(self) -> list[str]:
        with self.stack.redis.client as client:
            return [str(k) for k in client.keys(redis_patterns(self.uid)[0])]
