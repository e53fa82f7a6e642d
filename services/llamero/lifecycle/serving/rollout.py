"""A public name's next step: who serves it, who takes over, at which weight. Which adapter is to serve is `choosing`'s, what a step is
worth `analysis`'s; that an adapter is loaded and that requests go only where it is, is left to `loading` and `routing`."""

from bisect import bisect_right

from llamero.lifecycle.serving.analysis import MIN_OTHER_REQUESTS, Tally, add_up, judge
from llamero.lifecycle.serving.choosing import Choice, choose
from llamero.lifecycle.serving.draft import MAX_NAME_MESSAGE, ServerDraft, cut
from llamero.lifecycle.serving.readiness import count_ready, find_share
from llamero.lifecycle.serving.world import AdapterView
from llamero.spec.routes import Route
from llamero.spec.server import NameState, NameStatus
from llamero.spec.status import ConditionType

MAX_STEP_ID = 64


def advance(draft: ServerDraft, name: str) -> NameStatus:
    """Where the name stands after this look."""
    old = mend(draft, name)
    choice = choose(draft, name, old)
    if name in draft.world.taken:
        message = f"{name} is served by {draft.world.taken[name]} already: rename it, or retire it there."
        return NameStatus(name=name, state="Conflict", message=cut(message, MAX_NAME_MESSAGE))
    if choice.entry.retired:
        return NameStatus(name=name, state="Retired", message="The name's entry says `retired`.")
    if choice.base:
        return serve_base(draft, old)
    if choice.adapter is None:
        return stay(draft, old, choice)
    if choice.adapter.name == old.adapter:
        return settle(draft, old, choice)
    return take_over(draft, old, choice, choice.adapter)


# -- what is remembered --------------------------------------------------------------------------------------------------------


def find_route(draft: ServerDraft, name: str) -> Route | None:
    """What the routes that were last written say of the name."""
    return next((r for r in draft.world.routed.routes if r.model == name), None)


def mend(draft: ServerDraft, name: str) -> NameStatus:
    """What the status says of the name, without what can't be so: Adapters that are gone, times to come.

    Where the status says nothing, the routes do: whoever answers most callers serves the name.
    """
    old = next((n for n in draft.world.status.models if n.name == name), None) or recover(draft, name)
    known = draft.by_name
    route = find_route(draft, name)
    if old.adapter is None and old.since is not None:
        if route is not None and (not route.targets or any(t.adapter is None for t in route.targets)):
            draft.base_names.add(name)
        else:
            old = old.model_copy(update={"since": None})
    if old.adapter is not None and old.adapter not in known:
        old = old.model_copy(update={"adapter": None, "since": None})
    if old.canary is None or old.canary not in known or old.canary == old.adapter:
        old = drop_canary(old)
    if not old.step_id and old.weight:
        old = old.model_copy(update={"weight": 0})
    if old.previous is not None and (old.previous not in known or old.previous == old.adapter):
        old = old.model_copy(update={"previous": None})
    if old.step_started_at is not None and old.step_started_at > draft.now:
        old = old.model_copy(update={"step_started_at": draft.now})
    return old


def recover(draft: ServerDraft, name: str) -> NameStatus:
    """A name that the status does not know, as the routes know it."""
    route = find_route(draft, name)
    if route is None or not route.targets:
        return NameStatus(name=name)
    heaviest = max(route.targets, key=lambda t: t.weight)
    adapter = draft.by_id.get(heaviest.adapter) if heaviest.adapter is not None else None
    if heaviest.adapter is not None and adapter is None:
        return NameStatus(name=name)
    return NameStatus(name=name, state="Serving", adapter=adapter.name if adapter else None, since=draft.now)


def drop_canary(old: NameStatus) -> NameStatus:
    """The name without a rollout."""
    return old.model_copy(
        update={
            "canary": None,
            "weight": 0,
            "step": 0,
            "step_id": "",
            "step_started_at": None,
            "other_requests": None,
            "other_errors": None,
        }
    )


def say(old: NameStatus, state: NameState, message: str = "") -> NameStatus:
    return old.model_copy(update={"state": state, "message": cut(message, MAX_NAME_MESSAGE)})


# -- without a rollout ---------------------------------------------------------------------------------------------------------


def serve_base(draft: ServerDraft, old: NameStatus) -> NameStatus:
    """The base answers all callers as soon as any engine does; until then what served goes on."""
    if old.adapter is not None and not draft.able:
        return say(drop_canary(old), "Serving", "The base takes over as soon as an engine answers.")
    draft.base_names.add(old.name)
    since = old.since if old.adapter is None and old.since is not None else draft.now
    update = {"adapter": None, "previous": old.adapter or old.previous, "since": since}
    return say(drop_canary(old).model_copy(update=update), "Serving", "")


def stay(draft: ServerDraft, old: NameStatus, choice: Choice) -> NameStatus:
    """No adapter is to be chosen: what serves goes on, unless it must not."""
    old = drop_canary(old)
    if choice.stable_must_go:
        gone = old.model_copy(update={"adapter": None, "since": None, "previous": None})
        return say(gone, "Waiting", f"{choice.why} No other adapter may serve the name.")
    stable = draft.by_name.get(old.adapter) if old.adapter else None
    if stable is not None and stable.deleting:
        return say(
            old,
            "Serving",
            f"{stable.name} is being deleted: it goes on until the name is retired or another is published.",
        )
    if choice.failed is not None and (old.adapter or old.name in draft.base_names):
        return say(old, "RolledBack", choice.failed_why)
    return say(old, "Serving" if old.adapter or old.name in draft.base_names else "Waiting", choice.why)


def settle(draft: ServerDraft, old: NameStatus, choice: Choice) -> NameStatus:
    """The adapter that serves is the one to serve. A rollout that was under way is taken back with it."""
    if old.canary is not None and old.weight > 0:
        draft.note("RolloutEnded", f"{old.name}: {old.adapter} answers all callers again, and {old.canary} none.")
    if choice.failed is not None:
        return say(drop_canary(old), "RolledBack", choice.failed_why)
    return say(drop_canary(old), "Serving")


# -- a rollout -----------------------------------------------------------------------------------------------------------------


def take_over(draft: ServerDraft, old: NameStatus, choice: Choice, adapter: AdapterView) -> NameStatus:
    """The next step of an adapter that is to serve the name."""
    has_other = old.adapter is not None or old.name in draft.base_names
    if old.canary != adapter.name:
        old = start(draft, old, choice, adapter)
    ready = count_ready(draft.able, adapter.served_id)
    stable = draft.by_name.get(old.adapter) if old.adapter else None
    if not has_other or choice.stable_must_go or (stable is not None and stable.deleting):
        return promote(draft, old, adapter, "") if ready else wait_for(draft, old, adapter, has_other)
    if choice.entry.promote == adapter.name or choice.strategy.steps == [100]:
        is_everywhere = ready > 0 and find_share(draft.able, adapter.served_id) >= 1
        return promote(draft, old, adapter, "") if is_everywhere else wait_for(draft, old, adapter, has_other)
    if not old.step_id:
        return begin(draft, old, choice, adapter)
    return go_on(draft, refit(draft, old, choice), choice, adapter)


def start(draft: ServerDraft, old: NameStatus, choice: Choice, adapter: AdapterView) -> NameStatus:
    """A new rollout: the adapter is to be loaded, and gets no request yet."""
    rolled_back = draft.status_of(adapter).condition(ConditionType.ROLLED_BACK)
    verified = draft.status_of(adapter).condition(ConditionType.VERIFIED)
    if rolled_back is not None and rolled_back.status == "True":
        draft.tell(adapter, ConditionType.ROLLED_BACK, "False", "TriedAgain", f"It is tried again for {old.name}.")
    if verified is not None and verified.status == "False":
        draft.tell(adapter, ConditionType.VERIFIED, "Unknown", "TriedAgain", f"It is tried again for {old.name}.")
    draft.amend(adapter, attempted_at=draft.now, retry=max(choice.entry.retry, draft.status_of(adapter).retry))
    if old.canary is not None:
        draft.note(
            "RolloutSuperseded",
            f"{old.name}: {adapter.name} takes the place of {old.canary} before it served all callers.",
        )
    return drop_canary(old).model_copy(update={"canary": adapter.name})


def wait_for(draft: ServerDraft, old: NameStatus, adapter: AdapterView, has_other: bool) -> NameStatus:
    """The adapter is not where it is needed."""
    state: NameState = "Canary" if has_other else "Waiting"
    if not draft.able:
        return say(old, state, f"{adapter.name} waits for a pod that takes requests.")
    draft.busy = True
    pending = next((a for a in draft.world.status.adapters if a.name == adapter.name and a.state == "Pending"), None)
    if pending is not None and pending.message:
        return say(old, state, f"{adapter.name}: {pending.message}")
    return say(old, state, f"{adapter.name} is being loaded and proven.")


def begin(draft: ServerDraft, old: NameStatus, choice: Choice, adapter: AdapterView) -> NameStatus:
    """The first step, as soon as enough pods have the adapter."""
    if choice.entry.paused:
        return say(old, "Paused", f"{adapter.name} gets no requests while the name is paused.")
    if not has_room_for(draft, adapter, choice.strategy.steps[0]):
        return wait_for(draft, old, adapter, has_other=True)
    draft.note("RolloutStarted", f"{old.name}: {adapter.name} takes over from {old.adapter or 'the base'}.")
    return enter(draft, old, adapter, 0, choice.strategy.steps)


def has_room_for(draft: ServerDraft, adapter: AdapterView, weight: int) -> bool:
    """Whether so many percent of the pods have the adapter: callers never crowd on the first pod that does."""
    share = find_share(draft.able, adapter.served_id)
    return share > 0 and share * 100 >= weight


def enter(draft: ServerDraft, old: NameStatus, adapter: AdapterView, step: int, steps: list[int]) -> NameStatus:
    """A step begins: what is counted from here on is counted for it."""
    draft.busy = True
    update = {
        "canary": adapter.name,
        "weight": steps[step],
        "step": step,
        "step_id": build_step_id(adapter.name, step, int(draft.now.timestamp())),
        "step_started_at": draft.now,
    }
    return say(old.model_copy(update=update), "Canary", describe_step(adapter, step, steps))


def build_step_id(adapter: str, step: int, epoch: int) -> str:
    """`<adapter>-<index>-<epoch seconds of its start>`; the adapter's name is cut where it is too long."""
    tail = f"-{step}-{epoch}"
    return adapter[: MAX_STEP_ID - len(tail)] + tail


def describe_step(adapter: AdapterView, step: int, steps: list[int]) -> str:
    return f"{adapter.name} answers {steps[step]}% of the callers (step {step + 1} of {len(steps)})."


def refit(draft: ServerDraft, old: NameStatus, choice: Choice) -> NameStatus:
    """The step at hand, by the strategy as it is now: after an edit, the last of its steps that is not above the weight reached."""
    steps = choice.strategy.steps
    if old.step < len(steps) and steps[old.step] == old.weight:
        return old
    step = max(bisect_right(steps, old.weight) - 1, 0)
    if steps[step] == old.weight:
        return old.model_copy(update={"step": step})
    adapter = draft.by_name[old.canary or ""]
    return enter(draft, old, adapter, step, steps)


def go_on(draft: ServerDraft, old: NameStatus, choice: Choice, adapter: AdapterView) -> NameStatus:
    """Judge the step at hand, then go back, go on, or wait."""
    strategy, draft.busy = choice.strategy, True
    stable = draft.by_name.get(old.adapter) if old.adapter else None
    began = old.step_started_at or draft.now
    elapsed = draft.seconds_since(began)
    chats = draft.world.chats
    mine = add_up(chats, old.name, old.step_id, adapter.served_id)
    other = add_up(chats, old.name, old.step_id, stable.served_id if stable else None)
    if other.requests < MIN_OTHER_REQUESTS:  # it has no share any more, or hardly one: what it was like before counts
        other = Tally(requests=old.other_requests or 0, errors=old.other_errors or 0)
    found = judge(mine, other, strategy.analysis, ripe=elapsed >= strategy.interval_seconds)
    if found.outcome == "bad":
        return roll_back(draft, old, choice, adapter, found.sentence)
    if choice.entry.paused:
        return say(old, "Paused", f"Paused: {describe_step(adapter, old.step, strategy.steps)}")
    if found.outcome == "good" and old.step + 1 >= len(strategy.steps):
        return promote(draft, old, adapter, found.sentence)
    if found.outcome == "good" and has_room_for(draft, adapter, strategy.steps[old.step + 1]):
        draft.note("RolloutStep", f"{old.name}: {adapter.name} is good at {old.weight}%: {found.sentence}")
        before = {"other_requests": other.requests, "other_errors": other.errors}
        return enter(draft, old.model_copy(update=before), adapter, old.step + 1, strategy.steps)
    text = describe_step(adapter, old.step, strategy.steps)
    if found.outcome == "good":
        return say(old, "Canary", f"{text} It waits until more pods have it.")
    if elapsed >= strategy.max_step_seconds:
        return say(old, "Holding", f"{text} It holds: {found.sentence}")
    return say(old, "Canary", text)


def roll_back(draft: ServerDraft, old: NameStatus, choice: Choice, adapter: AdapterView, why: str) -> NameStatus:
    """All callers go back to the old adapter, and the new one is not tried again by itself."""
    message = f"{old.name} at {old.weight}%: {why}"
    draft.tell(adapter, ConditionType.ROLLED_BACK, "True", "AnalysisFailed", message)
    draft.amend(adapter, retry=choice.entry.retry)
    draft.note("RolledBack", f"{adapter.name} was rolled back. {message}", warning=True)
    return say(drop_canary(old), "RolledBack", f"{adapter.name} was rolled back. {message}")


def promote(draft: ServerDraft, old: NameStatus, adapter: AdapterView, why: str) -> NameStatus:
    """The adapter answers all callers from now on; the one before is remembered."""
    draft.busy = True
    draft.base_names.discard(old.name)
    draft.tell(adapter, ConditionType.ROLLED_BACK, "False", "Promoted", f"It serves {old.name}.")
    draft.note("Promoted", f"{old.name}: {adapter.name} answers all callers{f': {why}' if why else '.'}")
    update = {"adapter": adapter.name, "previous": old.adapter or old.previous, "since": draft.now}
    return say(drop_canary(old).model_copy(update=update), "Serving")
