"""A decision in the making: the status as it changes, and what is to be done. Lives for one call of `decide`."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from llamero.lifecycle.attempts import Wait
from llamero.lifecycle.usage import add_usage
from llamero.lifecycle.world import Limits, Note, Publication, Work, World
from llamero.spec.job import FineTuneJobSpec
from llamero.spec.status import JobStatus


@dataclass
class Draft:
    """`wait` says why nothing moves; `scheduled` whether the pods have a place (None: nothing is known of it)."""

    world: World
    limits: Limits
    now: datetime
    status: JobStatus
    work: list[Work] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    send: Work | None = None
    publish: Publication | None = None
    wait: Wait | None = None
    scheduled: bool | None = None
    wake_after: float | None = None
    forget_queues: bool = False
    delete_job: bool = False
    let_go: bool = False

    @property
    def spec(self) -> FineTuneJobSpec:
        assert self.world.job is not None, "only a valid job goes this far"
        return self.world.job.spec

    def put(self, **changes: Any) -> None:
        self.status = self.status.model_copy(update=changes)

    def note(self, reason: str, message: str, warning: bool = False) -> None:
        self.notes.append(Note(reason, message[:1000], warning))

    def wake(self, seconds: float | None) -> None:
        """Look again after so long, or sooner."""
        if seconds is not None:
            seconds = max(seconds, 0.0)
            self.wake_after = seconds if self.wake_after is None else min(self.wake_after, seconds)

    def wake_at(self, at: datetime, after_seconds: float = 0.0) -> None:
        self.wake((at + timedelta(seconds=after_seconds) - self.now).total_seconds())

    def end_attempt(self) -> None:
        """The attempt at hand is over, however it ended: count what it used, give its pods their grace from now."""
        work = self.status.work
        if work is None:
            return
        usage = add_usage(self.status.usage, work, self.limits.gpu_prices, self.now)
        tries = self.status.tries.model_copy(update={"ended_at": self.now})
        self.put(work=None, usage=usage, tries=tries)
