"""The adapters that pods are to have, and the list that they are told. In which pods they are ready is `readiness`'s; for an engine that
reads them at start, `gathering` says when."""

from dataclasses import dataclass, field
from datetime import datetime

from llamero.lifecycle.serving.draft import MAX_NAME_MESSAGE, ServerDraft, cut
from llamero.lifecycle.serving.draining import find_drain_starts, find_routed_ids, has_drained
from llamero.lifecycle.serving.readiness import count_ready, is_heard
from llamero.lifecycle.serving.world import AdapterView
from llamero.spec.digest import digest_json
from llamero.spec.server import MAX_SERVED_ADAPTERS, ServedAdapterState, ServedAdapterStatus
from llamero.spec.serving import AdapterWanted, AgentWanted, BaseWanted

NO_ROOM = "It waits for room: a pod holds as many as engine.maxAdapters says."
SERIAL_DIGITS = 12
"""So many hex digits of its digest number a list that stands in a pod's template: they fit in every reader's integers."""


@dataclass
class Load:
    """What pods are to have. `stay` they have been told of and keep; `come` is new and has room; `wait` has none; `leave` drains, since when;
    `gone` has drained, and is still in pods of an engine that can't unload it."""

    stay: list[AdapterView] = field(default_factory=list)
    come: list[AdapterView] = field(default_factory=list)
    wait: list[AdapterView] = field(default_factory=list)
    leave: dict[str, datetime] = field(default_factory=dict)
    gone: dict[str, datetime] = field(default_factory=dict)


def find_told_ids(draft: ServerDraft) -> set[str]:
    """The adapters that pods may have: those that they were told of, and whatever the routes know."""
    told = {a.id for a in draft.world.status.adapters if a.state != "Pending"}
    told |= {i for b in draft.world.routed.backends for i in b.adapters} | find_routed_ids(draft.world)
    if draft.gathers:
        told |= {a.served_id for a in find_gathered(draft)}
    return told & set(draft.by_id)


def find_gathered(draft: ServerDraft) -> list[AdapterView]:
    """The adapters that pods are started with; where the status does not know any more, what the pods themselves say."""
    if draft.status.gathered_at is not None:
        return [draft.by_name[n] for n in draft.status.gathered if n in draft.by_name]
    ids = {i for pod in draft.world.pods if not pod.deleting for i in pod.gathered}
    return [draft.by_id[i] for i in sorted(ids) if i in draft.by_id]


def plan_load(draft: ServerDraft) -> Load:
    """Sort the adapters by what is to become of them. What serves stays; what takes over comes where there is room, the one before
    stays while nobody needs its place."""
    load, told = Load(), find_told_ids(draft)
    needed = _list_needed(draft)
    before = [a for a in _list_previous(draft) if a.served_id in told and a not in needed]
    load.stay = [a for a in needed if a.served_id in told]
    new = [a for a in needed if a.served_id not in told]
    limit = draft.spec.engine.max_adapters
    leaving = told - {a.served_id for a in [*load.stay, *before]}
    while before and len(load.stay) + len(leaving) + len(before) + len(new) > limit:
        leaving.add(before.pop().served_id)
    for served_id, since in find_drain_starts(draft, leaving).items():
        if has_drained(draft, served_id, since):
            load.gone[served_id] = since
        else:
            load.leave[served_id] = since
    load.stay += before
    room = max(limit - len(load.stay) - len(load.leave), 0)
    load.come, load.wait = new[:room], new[room:]
    return load


def _list_needed(draft: ServerDraft) -> list[AdapterView]:
    """Who serves a name, then who takes one over; each once."""
    names = list(draft.names.values())
    wanted = [*(n.adapter for n in names), *(n.canary for n in names)]
    return [draft.by_name[n] for n in dict.fromkeys(wanted) if n is not None and n in draft.by_name]


def _list_previous(draft: ServerDraft) -> list[AdapterView]:
    """Who served before, the one that was replaced last first."""
    named = [n for n in draft.names.values() if n.previous is not None]
    named.sort(key=lambda n: n.since.timestamp() if n.since is not None else 0.0, reverse=True)
    found = [draft.by_name[n] for n in dict.fromkeys(n.previous for n in named) if n is not None and n in draft.by_name]
    return [a for a in found if not a.deleting]


def load_at_run_time(draft: ServerDraft) -> list[AdapterView]:
    """The adapters that pods are told of, for an engine that takes them while it runs; the status says where each stands."""
    load = plan_load(draft)
    wanted = [*load.stay, *load.come, *(draft.by_id[i] for i in load.leave)]
    for adapter in load.come:
        draft.amend(adapter, attempted_at=draft.now)
    draft.put(
        drains=load.leave, adapters=tell_adapters(draft, wanted, load), gathered=[], gathered_at=None, suspects=[]
    )
    if load.leave or load.come or load.gone:
        draft.busy = True
    return wanted


def tell_adapters(
    draft: ServerDraft, wanted: list[AdapterView], load: Load, waiting: str = ""
) -> list[ServedAdapterStatus]:
    """Where each adapter stands over all pods; those that wait come last, `waiting` tells for what those with room do."""
    told = [_tell(draft, a, "Draining" if a.served_id in load.leave else None) for a in wanted]
    told.sort(key=lambda a: a.name)
    here = {a.served_id for a in wanted}
    reasons = [*((a, waiting) for a in load.come), *((a, NO_ROOM) for a in load.wait)]
    pending = [
        ServedAdapterStatus(name=a.name, id=a.served_id, state="Pending", message=cut(why, MAX_NAME_MESSAGE))
        for a, why in reasons
        if a.served_id not in here
    ]
    return [*told, *pending][:MAX_SERVED_ADAPTERS]


def _tell(draft: ServerDraft, adapter: AdapterView, state: ServedAdapterState | None) -> ServedAdapterStatus:
    pods = count_ready(draft.able, adapter.served_id)
    refusal = next(iter(find_refusals(draft, adapter.served_id)), "")
    if state is None:
        state = "Ready" if pods else "Refused" if refusal else "Loading"
    return ServedAdapterStatus(
        name=adapter.name, id=adapter.served_id, state=state, pods=pods, message=cut(refusal, MAX_NAME_MESSAGE)
    )


def find_refusals(draft: ServerDraft, served_id: str) -> list[str]:
    """Why pods refuse the adapter, as their agents say: those that work by the list at hand, and those that can't start."""
    gathered, serial = {a.served_id for a in find_gathered(draft)}, draft.world.status.wanted_serial
    said = [
        report.message or "The pod's agent refuses it."
        for pod in draft.world.pods
        if not pod.deleting and pod.report is not None and is_heard(pod, draft.limits)
        for report in pod.report.adapters
        if report.id == served_id
        and report.stage == "refused"
        and (set(pod.gathered) == gathered if draft.gathers else pod.report.serial >= serial)
    ]
    said += [
        refusal.message
        for pod in draft.world.pods
        if not pod.deleting and set(pod.gathered) == gathered
        for refusal in pod.refusals
        if refusal.id == served_id
    ]
    return said


def build_wanted(draft: ServerDraft, adapters: list[AdapterView]) -> AgentWanted:
    """The list for the pods, with its number. Where pods are told while they run, the latest has the highest; where the list stands in
    their template it is the list's own, so that the same list is never another template."""
    base = draft.spec.base_model
    listed = [
        AdapterWanted(
            id=a.served_id, name=a.name, uri=a.spec.uri, sha256=a.spec.sha256, golden_sha256=a.spec.golden_sha256
        )
        for a in {a.served_id: a for a in sorted(adapters, key=lambda a: (a.served_id, a.name))}.values()
    ]
    wanted = AgentWanted(
        engine=draft.spec.engine.type,
        base=BaseWanted(name=base.name, uri=base.uri, revision=base.revision),
        adapters=listed,
    )
    digest = digest_json(wanted.model_dump(mode="json", exclude={"serial", "version"}))
    serial = int(digest[:SERIAL_DIGITS], 16) if draft.gathers else _number(draft, digest)
    draft.put(wanted_serial=serial, wanted_digest=digest)
    return wanted.model_copy(update={"serial": serial})


def _number(draft: ServerDraft, digest: str) -> int:
    """A number above all that were told. The last may have been told without the status saying so, the operator having died between:
    numbers follow the clock, so that no two lists have the same."""
    world, status = draft.world, draft.world.status
    latest = max(
        [status.wanted_serial, world.told_serial, *(p.report.serial for p in world.pods if p.report is not None)]
    )
    if digest == status.wanted_digest and latest == status.wanted_serial > 0:
        return latest
    return max(latest + 1, int(draft.moment.timestamp() * 1000))
