"""A ModelServer's decision in the making: the status as it changes, verdicts, notes. Lives for one call of `servers.decide`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from llamero.lifecycle.serving.readiness import AblePod, find_able
from llamero.lifecycle.serving.world import AdapterView, ServerWorld, ServingLimits
from llamero.lifecycle.world import Note
from llamero.spec.adapter import AdapterResourceStatus
from llamero.spec.server import ModelServerSpec, ModelServerStatus, NameStatus
from llamero.spec.status import MAX_MESSAGE, Condition, ConditionType

MAX_NAME_MESSAGE = 300


@dataclass
class ServerDraft:
    """`names` are the public names in the order in which they are told; `verdicts` are the Adapters' statuses that this look changes."""

    world: ServerWorld
    limits: ServingLimits
    now: datetime  # in whole seconds
    status: ModelServerStatus
    moment: datetime  # the same to the microsecond
    names: dict[str, NameStatus] = field(default_factory=dict)
    base_names: set[str] = field(default_factory=set)  # names that the base itself answers
    verdicts: dict[str, AdapterResourceStatus] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    wake_after: float | None = None
    busy: bool = False  # something is under way: look again soon
    able: tuple[AblePod, ...] = ()
    by_name: dict[str, AdapterView] = field(default_factory=dict)
    by_id: dict[str, AdapterView] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.able = find_able(self.world, self.limits)
        self.by_name = {a.name: a for a in self.world.adapters}
        self.by_id = {a.served_id: a for a in self.world.adapters}

    @property
    def spec(self) -> ModelServerSpec:
        assert self.world.server is not None, "only a valid server goes this far"
        return self.world.server.spec

    @property
    def engine(self) -> str | None:
        """The engine's type; of a server whose spec can't be read, what the routes know. None: nothing is known."""
        if self.world.server is not None:
            return self.world.server.spec.engine.type
        return next((b.engine for b in self.world.routed.backends), None)

    @property
    def gathers(self) -> bool:
        """Whether adapters are read at start only, so that a new one is a restart."""
        return self.engine == "tgi"

    def put(self, **changes: Any) -> None:
        self.status = self.status.model_copy(update=changes)

    def note(self, reason: str, message: str, warning: bool = False) -> None:
        self.notes.append(Note(reason, message[:1000], warning))

    def wake(self, seconds: float) -> None:
        """Look again after so long, or sooner."""
        seconds = max(seconds, 0.0)
        self.wake_after = seconds if self.wake_after is None else min(self.wake_after, seconds)

    def wake_at(self, at: datetime, after_seconds: float = 0.0) -> None:
        self.wake((at + timedelta(seconds=after_seconds) - self.now).total_seconds())

    def seconds_since(self, at: datetime) -> float:
        """Seconds that have passed; 0 where the clock was set back."""
        return max((self.now - at).total_seconds(), 0.0)

    # -- what Adapters say -----------------------------------------------------------------------------------------------------

    def status_of(self, adapter: AdapterView) -> AdapterResourceStatus:
        """The Adapter's status, with what this look says already."""
        return self.verdicts.get(adapter.name, adapter.status)

    def amend(self, adapter: AdapterView, **changes: Any) -> None:
        """Change the Adapter's status."""
        status = self.status_of(adapter)
        if any(getattr(status, k) != v for k, v in changes.items()):
            self.verdicts[adapter.name] = status.model_copy(update=changes)

    def tell(self, adapter: AdapterView, kind: ConditionType, truth: str, reason: str, message: str = "") -> None:
        """Set a condition of the Adapter; the time of its transition stays where its status does."""
        status = self.status_of(adapter)
        before = status.condition(kind)
        if before is not None and (before.status, before.reason, before.message) == (truth, reason, message):
            return
        condition = write_condition(status.conditions, kind, truth, reason, message, self.now)
        rest = [c for c in status.conditions if c.type != kind]
        order = [ConditionType.VERIFIED, ConditionType.SERVING, ConditionType.ROLLED_BACK]
        rest.append(condition)
        rest.sort(key=lambda c: order.index(c.type) if c.type in order else len(order))
        self.amend(adapter, conditions=rest[:16])


def write_condition(
    old: Iterable[Condition],
    kind: ConditionType,
    truth: str,
    reason: str,
    message: str,
    now: datetime,
    generation: int | None = None,
) -> Condition:
    """A condition, with the time of the old one's transition where the status is the same."""
    before = next((c for c in old if c.type == kind), None)
    since = before.last_transition_time if before is not None and before.status == truth else now
    return Condition.model_validate(
        {
            "type": kind,
            "status": truth,
            "reason": reason[:64],
            "message": cut(message, MAX_MESSAGE),
            "lastTransitionTime": since,
            "observedGeneration": generation,
        }
    )


def cut(text: str, size: int) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= size else f"{text[: size - 4]} ..."
