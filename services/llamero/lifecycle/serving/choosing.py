"""Which adapter a public name should be served by: the pin, else the newest that was not rolled back. How it takes over is left to others."""

from dataclasses import dataclass

from llamero.lifecycle.serving.draft import ServerDraft
from llamero.lifecycle.serving.world import AdapterView
from llamero.spec.job import BaseModelRef
from llamero.spec.rollout import StrategySpec
from llamero.spec.server import MAX_MODELS, NameStatus, ServedNameSpec
from llamero.spec.status import ConditionType


@dataclass(frozen=True)
class Choice:
    """What a name should be served by. `adapter` None: nothing new (`why` tells); what serves it may go on unless `stable_must_go`.

    `failed` is a newer adapter that was tried and taken back, with the reason in `failed_why`.
    """

    entry: ServedNameSpec
    strategy: StrategySpec
    adapter: AdapterView | None = None
    base: bool = False
    why: str = ""
    stable_must_go: bool = False
    failed: AdapterView | None = None
    failed_why: str = ""


def find_names(draft: ServerDraft) -> tuple[list[str], list[str]]:
    """The public names of this server, and those that are too many: entries first, then what adapters ask for, the oldest first."""
    entries = [e.name for e in draft.spec.models]
    asked = sorted(
        (a for a in draft.world.adapters if a.spec.server == draft.world.name), key=lambda a: (a.created_at, a.name)
    )
    all_names = list(dict.fromkeys([*entries, *(a.spec.model for a in asked)]))
    return all_names[:MAX_MODELS], all_names[MAX_MODELS:]


def find_entry(draft: ServerDraft, name: str) -> ServedNameSpec:
    """What the spec says of a name; of one that it does not speak of, the defaults."""
    return next((e for e in draft.spec.models if e.name == name), ServedNameSpec(name=name))


def is_of_base(adapter: AdapterView, base: BaseModelRef) -> bool:
    """Whether the adapter was trained on this base. A revision that one of them does not tell is taken to agree."""
    mine = adapter.spec.base.removeprefix("file://").rstrip("/")
    theirs = (base.name or base.uri or "").removeprefix("file://").rstrip("/")
    revisions = {adapter.spec.base_revision, base.revision} - {None}
    return mine == theirs and len(revisions) < 2


def choose(draft: ServerDraft, name: str, old: NameStatus | None) -> Choice:
    """The adapter for a name. What serves it already (`old`) is not condemned by verdicts about other names."""
    entry = find_entry(draft, name)
    stable = draft.by_name.get(old.adapter) if old is not None and old.adapter else None
    if entry.base:
        return Choice(entry, entry.strategy or draft.spec.strategy, base=True)
    candidates = _list_candidates(draft, entry)
    reasons = {a.name: _find_flaw(draft, entry, a, stable) for a in candidates}
    chosen = next((a for a in candidates if not reasons[a.name]), None)
    stable_flaw = _find_ban(draft, entry, stable) if stable is not None else ""
    why = "" if chosen is not None else _explain(draft, entry, candidates, reasons)
    if chosen is None and stable is not None and (stable_flaw or stable.deleting):
        chosen = _find_substitute(draft, entry, stable, old)
    own = [a for a in candidates if is_of_base(a, draft.spec.base_model)]
    failed = _find_failed(own, chosen, stable, reasons)
    wanted = chosen or stable
    strategy = entry.strategy or (draft.world.strategies.get(wanted.name) if wanted else None) or draft.spec.strategy
    return Choice(
        entry=entry, strategy=strategy, adapter=chosen, why=why, stable_must_go=bool(stable_flaw), failed=failed,
        failed_why=reasons[failed.name] if failed is not None else "",
    )  # fmt: skip


def _list_candidates(draft: ServerDraft, entry: ServedNameSpec) -> list[AdapterView]:
    """The adapters that the name asks for, the best first."""
    if entry.adapter is not None:
        pinned = draft.by_name.get(entry.adapter)
        return [pinned] if pinned is not None else []
    return _list_newest(draft, entry)


def _list_newest(draft: ServerDraft, entry: ServedNameSpec) -> list[AdapterView]:
    found = [a for a in draft.world.adapters if a.spec.model == entry.name and a.spec.server == draft.world.name]
    return sorted(found, key=lambda a: (a.created_at, a.spec.source.run if a.spec.source else 0, a.name), reverse=True)


def _find_ban(draft: ServerDraft, entry: ServedNameSpec, adapter: AdapterView) -> str:
    """Why the adapter must not serve the name, whatever was tried; empty where it may."""
    if adapter.name in entry.rollback:
        return f"{adapter.name} is in the name's rollback list."
    if not is_of_base(adapter, draft.spec.base_model):
        return f"{adapter.name} was trained on another base ({adapter.spec.base[:120]})."
    return ""


def _find_flaw(draft: ServerDraft, entry: ServedNameSpec, adapter: AdapterView, stable: AdapterView | None) -> str:
    """Why the adapter can't be chosen; empty where it can."""
    if ban := _find_ban(draft, entry, adapter):
        return ban
    if adapter.deleting:
        return f"{adapter.name} is being deleted."
    if stable is not None and adapter.name == stable.name:
        return ""
    return find_verdict(draft, entry, adapter)


def find_verdict(draft: ServerDraft, entry: ServedNameSpec, adapter: AdapterView) -> str:
    """What was found against the adapter before, as long as nobody asked for another try; empty where nothing was."""
    status = draft.status_of(adapter)
    if status.retry < entry.retry:
        return ""
    verified, rolled_back = status.condition(ConditionType.VERIFIED), status.condition(ConditionType.ROLLED_BACK)
    if verified is not None and verified.status == "False" and verified.reason != "BaseMismatch":
        return f"{adapter.name} can't be served: {verified.message}"
    if entry.promote != adapter.name and rolled_back is not None and rolled_back.status == "True":
        return f"{adapter.name} was rolled back. {rolled_back.message}"
    return ""


def _find_substitute(
    draft: ServerDraft, entry: ServedNameSpec, stable: AdapterView, old: NameStatus | None
) -> AdapterView | None:
    """Who takes the place of an adapter that has to go while none is to be chosen: the newest else, or the one before."""
    before = draft.by_name.get(old.previous) if old is not None and old.previous else None
    for adapter in [*_list_newest(draft, entry), *([before] if before else [])]:
        if adapter.name != stable.name and not _find_flaw(draft, entry, adapter, stable):
            return adapter
    return None


def _find_failed(
    candidates: list[AdapterView], chosen: AdapterView | None, stable: AdapterView | None, reasons: dict[str, str]
) -> AdapterView | None:
    """The best candidate, where something was found against it and another serves instead."""
    best = next((a for a in candidates if not a.deleting), None)
    if best is None or best in (chosen, stable) or not reasons[best.name]:
        return None
    return best


def _explain(draft: ServerDraft, entry: ServedNameSpec, candidates: list[AdapterView], reasons: dict[str, str]) -> str:
    if entry.adapter is not None and not candidates:
        return f"There is no Adapter {entry.adapter}, which the name is pinned to: publish or import it, or take the pin away."
    if not candidates:
        return f"No Adapter asks for {entry.name} on this server yet."
    return reasons[candidates[0].name]
