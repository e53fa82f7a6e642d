"""How servers, public names and adapters are shown: aligned text, made from objects as the API server (or a local server) gives them. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from llamero.cli.servedmodels import SeenServer, read_adapter_status
from llamero.cli.tables import NONE, align, format_age
from llamero.cli.wishes import KnownName
from llamero.spec.server import NameStatus
from llamero.spec.status import ConditionType

Object = dict[str, Any]


def format_servers(
    servers: Sequence[SeenServer], now: datetime, *, wide: bool = False, with_namespace: bool = False
) -> str:
    """A line a server: phase, engine, pods, public names, age; wide adds base, adapters and why it is not ready."""
    heading = ["NAME", "PHASE", "ENGINE", "PODS", "MODELS", "AGE"]
    if wide:
        heading += ["BASE", "ADAPTERS", "MESSAGE"]
    rows = [["NAMESPACE", *heading] if with_namespace else heading]
    for server in servers:
        metadata, spec, status = server.raw["metadata"], server.raw["spec"], server.status
        row = [
            server.name,
            status.phase if server.raw.get("status") else NONE,
            (spec.get("engine") or {}).get("type", "tgi"),
            f"{status.ready_replicas}/{status.replicas}",
            ",".join(server.names()) or NONE,
            format_age(metadata["creationTimestamp"], now),
        ]
        if wide:
            base = spec["baseModel"]
            ready = sum(a.state == "Ready" for a in status.adapters)
            row += [base.get("name") or base.get("uri") or NONE, f"{ready}/{len(status.adapters)}", _why(server)]
        rows.append([metadata.get("namespace", ""), *row] if with_namespace else row)
    return align(rows)


def _why(server: SeenServer) -> str:
    ready = next((c for c in server.status.conditions if c.type == ConditionType.READY), None)
    return ready.message if ready is not None and ready.status != "True" else ""


def format_server(server: SeenServer, now: datetime) -> str:
    """All about one server: its names, adapters, pods and conditions."""
    status = server.status
    at = f" at {server.url}" if server.url else ""
    lines = [f"{server.where}: {status.phase if server.raw.get('status') else 'not seen yet'}{at}"]
    lines += ["", format_names([server], now)]
    if status.adapters:
        rows = [["ADAPTER", "STATE", "PODS", "ID", "MESSAGE"]]
        rows += [[a.name, a.state, str(a.pods), a.id, a.message or NONE] for a in status.adapters]
        lines += ["", align(rows)]
    if status.pods:
        rows = [["POD", "READY", "ADAPTERS", "MESSAGE"]]
        rows += [[p.name, "yes" if p.ready else "no", str(len(p.adapters)), p.message or NONE] for p in status.pods]
        lines += ["", align(rows)]
    if status.conditions:
        rows = [["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"]]
        rows += [
            [c.type, c.status, c.reason, format_age(c.last_transition_time, now), c.message or NONE]
            for c in status.conditions
        ]
        lines += ["", align(rows)]
    return "\n".join(lines)


def format_names(servers: Sequence[SeenServer], now: datetime) -> str:
    """A line a public name: who serves it, who takes over, how far that is."""
    rows = [["MODEL", "STATE", "ADAPTER", "CANARY", "WEIGHT", "STEP", "SINCE", "SERVER", "MESSAGE"]]
    for server in servers:
        told = {m.name: m for m in server.status.models}
        for name in server.names():
            rows.append([name, *_name_cells(told.get(name), now), server.name, _message(told.get(name))])
    return align(rows)


def _name_cells(status: NameStatus | None, now: datetime) -> list[str]:
    if status is None:
        return [NONE] * 6
    since = status.step_started_at if status.canary else status.since
    return [
        status.state,
        status.adapter or NONE,
        status.canary or NONE,
        f"{status.weight}%" if status.canary else NONE,
        str(status.step + 1) if status.canary else NONE,
        format_age(since, now) if since else NONE,
    ]


def _message(status: NameStatus | None) -> str:
    return status.message if status is not None else "not seen yet"


def format_name(server: SeenServer, known: KnownName, now: datetime) -> str:
    """All about one public name: where its rollout stands, what is wished of it, its adapters."""
    status = known.status
    lines = [f"{known.name} on {server.where}: {status.state if status else 'not seen yet'}"]
    steps = _steps(server, known)
    facts = [
        ("message", status.message if status else ""),
        ("serving", _serving(known, now)),
        ("canary", _canary(status, steps, now) if status else ""),
        ("before", status.previous or "" if status else ""),
        ("wishes", _wishes(known)),
        ("chat", server.url),
    ]
    lines += [f"  {label:<9} {text}" for label, text in facts if text]
    if known.adapters:
        weights = {a["metadata"]["name"]: read_adapter_status(a).weight for a in server.adapters}
        rows = [["ADAPTER", "STATE", "WEIGHT", "AGE", "MESSAGE"]]
        for adapter in known.newest_first:
            weight = f"{weights[adapter.name]}%"
            state, message = _adapter_state(known, adapter.name, server)
            rows.append([adapter.name, state, weight, format_age(adapter.created_at, now), message or NONE])
        lines += ["", align(rows)]
    return "\n".join(lines)


def _steps(server: SeenServer, known: KnownName) -> list[int]:
    for strategy in (known.entry.get("strategy"), server.raw["spec"].get("strategy")):
        if strategy and strategy.get("steps"):
            return [int(step) for step in strategy["steps"]]
    return []


def _serving(known: KnownName, now: datetime) -> str:
    status = known.status
    if known.entry.get("base"):
        return "the base itself"
    if status is None or status.adapter is None:
        return ""
    return status.adapter + (f", for {format_age(status.since, now)}" if status.since else "")


def _canary(status: NameStatus, steps: Sequence[int], now: datetime) -> str:
    if status.canary is None:
        return ""
    of = f" of {len(steps)}" if status.step < len(steps) else ""
    since = f", for {format_age(status.step_started_at, now)}" if status.step_started_at else ""
    return f"{status.canary} answers {status.weight}% of the callers (step {status.step + 1}{of}{since})"


def _wishes(known: KnownName) -> str:
    entry = known.entry
    words = [
        f"pinned to {entry['adapter']}" if entry.get("adapter") else "",
        "paused" if entry.get("paused") else "",
        f"promote {entry['promote']}" if entry.get("promote") else "",
        f"not {', '.join(entry['rollback'])}" if entry.get("rollback") else "",
        f"retry {entry['retry']}" if entry.get("retry") else "",
        "retired" if entry.get("retired") else "",
    ]
    return "; ".join(word for word in words if word)


def _adapter_state(known: KnownName, name: str, server: SeenServer) -> tuple[str, str]:
    adapter = known.find(name)
    told = next((a for a in server.status.adapters if a.name == name), None)
    if adapter.deleting:
        return "Deleting", told.message if told else ""
    if adapter.refused:
        return "Refused", adapter.refused
    if name == known.serving:
        return "Serving", ""
    if name == known.canary:
        return "Canary", told.message if told else ""
    if adapter.rolled_back:
        return "RolledBack", adapter.rolled_back
    if name in known.entry.get("rollback", ()):
        return "RolledBack", "by hand"
    return (told.state, told.message) if told else (NONE, "")


def format_adapters(adapters: Sequence[Object], now: datetime, *, with_namespace: bool = False) -> str:
    """A line an Adapter: its public name, its server, whether it is verified, served or rolled back, its share of callers, age."""
    heading = ["NAME", "MODEL", "SERVER", "STATE", "WEIGHT", "SHA256", "AGE", "MESSAGE"]
    rows = [["NAMESPACE", *heading] if with_namespace else heading]
    for adapter in adapters:
        metadata, spec, status = adapter["metadata"], adapter["spec"], read_adapter_status(adapter)
        state, message = _resource_state(adapter)
        row = [
            metadata["name"],
            spec["model"],
            spec.get("server") or status.server or NONE,
            state,
            f"{status.weight}%",
            spec["sha256"][:12],
            format_age(metadata["creationTimestamp"], now),
            message or NONE,
        ]
        rows.append([metadata.get("namespace", ""), *row] if with_namespace else row)
    return align(rows)


def _resource_state(adapter: Object) -> tuple[str, str]:
    status = read_adapter_status(adapter)
    if "deletionTimestamp" in adapter["metadata"]:
        serving = status.condition(ConditionType.SERVING)
        return "Deleting", serving.message if serving else ""
    for kind, verdict, word in (
        (ConditionType.VERIFIED, "False", "Refused"),
        (ConditionType.ROLLED_BACK, "True", "RolledBack"),
        (ConditionType.SERVING, "True", "Serving"),
        (ConditionType.VERIFIED, "True", "Verified"),
    ):
        condition = status.condition(kind)
        if condition is not None and condition.status == verdict:
            return word, condition.message
    return NONE, ""
