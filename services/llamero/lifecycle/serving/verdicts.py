"""What Adapters say of themselves: whether they were proven, whom they answer, whether they were taken back. Only changes are told."""

from collections.abc import Mapping

from llamero.lifecycle.serving.choosing import is_of_base
from llamero.lifecycle.serving.draft import ServerDraft
from llamero.lifecycle.serving.world import AdapterView, ServerRoutes
from llamero.spec.adapter import AdapterResourceStatus
from llamero.spec.server import NameStatus
from llamero.spec.status import ConditionType


def tell_verdicts(
    draft: ServerDraft, routes: ServerRoutes, wanted: frozenset[str]
) -> Mapping[str, AdapterResourceStatus]:
    """The statuses that change, by Adapter."""
    for adapter in draft.world.adapters:
        if is_ours(draft, adapter, wanted):
            _tell_verified(draft, adapter)
            _tell_serving(draft, adapter, routes)
            _tell_rolled_back(draft, adapter)
            _tell_place(draft, adapter, routes, wanted)
    return {name: status for name, status in sorted(draft.verdicts.items()) if status != draft.by_name[name].status}


def is_ours(draft: ServerDraft, adapter: AdapterView, wanted: frozenset[str]) -> bool:
    """Whether this server speaks for the Adapter: it serves it, did so last, or is asked to."""
    told_by = draft.status_of(adapter).server
    if told_by not in ("", draft.world.name):
        return adapter.served_id in wanted and adapter.spec.server == draft.world.name
    return adapter.served_id in wanted or draft.world.name in (told_by, adapter.spec.server)


def _tell_verified(draft: ServerDraft, adapter: AdapterView) -> None:
    kind = ConditionType.VERIFIED
    found = draft.status_of(adapter).condition(kind)
    if not is_of_base(adapter, draft.spec.base_model):
        base = draft.spec.base_model
        theirs = f"{base.name or base.uri}{f'@{base.revision[:12]}' if base.revision else ''}"
        mine = f"{adapter.spec.base}{f'@{adapter.spec.base_revision[:12]}' if adapter.spec.base_revision else ''}"
        message = f"It was trained on {mine[:180]}, and {draft.world.name} serves {theirs[:180]}."
        draft.tell(adapter, kind, "False", "BaseMismatch", message)
        return
    reports = [
        r
        for pod in draft.able
        if pod.heard and pod.pod.report is not None and adapter.served_id in pod.ids
        for r in pod.pod.report.adapters
        if r.id == adapter.served_id
    ]
    if found is not None and (found.status == "True" or (found.status == "False" and found.reason != "BaseMismatch")):
        return
    if not reports:
        draft.tell(adapter, kind, "Unknown", "NotLoaded", "No pod has loaded it yet.")
    elif reports[0].golden:
        nearer, golden = reports[0].nearer or 0, reports[0].golden
        draft.tell(
            adapter,
            kind,
            "True",
            "Proven",
            f"{nearer} of {golden} golden answers lie nearer its value than the base's.",
        )
    else:
        draft.tell(adapter, kind, "True", "Loaded", "It answers; it has no golden prompts to prove it by.")


def _tell_serving(draft: ServerDraft, adapter: AdapterView, routes: ServerRoutes) -> None:
    kind = ConditionType.SERVING
    answered = [(r.model, t.weight) for r in routes.routes for t in r.targets if t.adapter == adapter.served_id]
    if answered:
        text = ", ".join(f"{weight}% of {model}" for model, weight in answered)
        if adapter.deleting:
            message = f"It is being deleted, and answers {text}: retire the name, or publish another adapter for it."
            draft.tell(adapter, kind, "True", "DeletionWaits", message)
            return
        is_canary = all(n.adapter != adapter.name for n in draft.names.values())
        draft.tell(adapter, kind, "True", "Canary" if is_canary else "Serving", f"It answers {text}.")
        return
    draft.tell(adapter, kind, "False", *_find_reason(draft, adapter))


def _find_reason(draft: ServerDraft, adapter: AdapterView) -> tuple[str, str]:
    """Why nobody is answered by the adapter."""
    names = draft.names.values()
    serves = next((n for n in names if n.adapter == adapter.name), None)
    if serves is not None:
        return "NoPod", f"{serves.name} is served by it, but no pod has it at the moment."
    comes = next((n for n in names if n.canary == adapter.name), None)
    if comes is not None:
        return "Coming", comes.message
    status = draft.status_of(adapter)
    verified, rolled_back = status.condition(ConditionType.VERIFIED), status.condition(ConditionType.ROLLED_BACK)
    if verified is not None and verified.status == "False":
        return verified.reason, verified.message
    if rolled_back is not None and rolled_back.status == "True":
        return "RolledBack", rolled_back.message
    return _find_rival(next((n for n in names if n.name == adapter.spec.model), None))


def _find_rival(name: NameStatus | None) -> tuple[str, str]:
    if name is None:
        return "NotAsked", "No public name asks for it."
    if name.adapter is not None:
        return "OtherServes", f"{name.name} is served by {name.adapter}."
    return "NotAsked", name.message or f"{name.name} is not served by it."


def _tell_rolled_back(draft: ServerDraft, adapter: AdapterView) -> None:
    if draft.status_of(adapter).condition(ConditionType.ROLLED_BACK) is None:
        draft.tell(adapter, ConditionType.ROLLED_BACK, "False", "NotRolledBack")


def _tell_place(draft: ServerDraft, adapter: AdapterView, routes: ServerRoutes, wanted: frozenset[str]) -> None:
    """Where it is served. The server goes on speaking for it until it no longer holds up its deletion."""
    told_by = draft.status_of(adapter).server
    is_kept = adapter.held and told_by == draft.world.name
    weights = [t.weight for r in routes.routes for t in r.targets if t.adapter == adapter.served_id]
    draft.amend(
        adapter,
        id=adapter.served_id,
        server=draft.world.name if adapter.served_id in wanted or is_kept else "",
        weight=max(weights, default=0),
    )
