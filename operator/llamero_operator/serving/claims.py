"""Which server a public name belongs to where several want it, and which may have an Adapter. Pure."""

from collections.abc import Iterable, Mapping

from llamero.spec import names
from llamero_operator.serving.store import AdapterRecord, ServerRecord

UNCLAIMED = frozenset({"Conflict", "Retired"})
"""States of a public name in which a server does not lay claim to it."""


def find_taken(record: ServerRecord, others: Iterable[ServerRecord], owners: Mapping[str, str]) -> dict[str, str]:
    """Public names that other servers have, with whose key: those that are routed to them (`owners`), and those that older ones claim.

    What is routed to this server stays with it.
    """
    own = names.server_key(*record.key)
    age = (record.created_at, record.key)
    taken: dict[str, str] = {}
    for other in sorted(others, key=lambda o: (o.created_at, o.key)):
        if other.deleting or (other.created_at, other.key) > age:
            continue
        for name in other.status.models:
            if name.state not in UNCLAIMED:
                taken.setdefault(name.name, names.server_key(*other.key))
    taken |= {model: owner for model, owner in owners.items() if owner != own}
    return {model: owner for model, owner in taken.items() if owners.get(model) != own}


def has_claim(server: ServerRecord, adapter: AdapterRecord) -> bool:
    """Whether the server, of the Adapter's namespace, may have it in its engines, and is the one to let it go."""
    named = {adapter.view.spec.server, adapter.view.status.server} if adapter.view is not None else set()
    return server.key[1] in named or str(adapter.raw["metadata"]["name"]) in _mentioned(server)


def _mentioned(server: ServerRecord) -> set[str]:
    """The Adapters that a server's spec or status speaks of."""
    status = server.status
    found = {a.name for a in status.adapters} | set(status.gathered) | set(status.suspects)
    for told in status.models:
        found |= {name for name in (told.adapter, told.canary, told.previous) if name is not None}
    if server.parsed is not None:
        for entry in server.parsed.spec.models:
            found |= {name for name in (entry.adapter, entry.promote) if name is not None}
    return found
