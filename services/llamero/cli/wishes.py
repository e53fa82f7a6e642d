"""What the verbs of `llamero rollout` change in a ModelServer: values in a public name's entry, never commands, so that asking twice changes nothing
the second time. Pure; where the manifest lies is left to those who call.

Entries are kept as they stand in the manifest (camelCase), so that what a newer version put there stays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from llamero.cli.errors import CommandError
from llamero.spec.server import NameStatus, ServedNameSpec

Entry = dict[str, Any]
MAX_ROLLBACKS = 16


class WishError(CommandError):
    """What was asked for makes no sense here."""


@dataclass(frozen=True)
class KnownAdapter:
    """An adapter made for the name. `retry` is the one under which it was rolled back."""

    name: str
    created_at: datetime
    run: int = 0
    refused: str = ""  # why it is not served, where its check said so
    rolled_back: str = ""  # why, where its rollout was undone
    retry: int = 0
    deleting: bool = False


@dataclass(frozen=True)
class KnownName:
    """A public name as it stands: its entry in the manifest, its status, the adapters made for it.

    `foresee` tells which adapter would serve it by another entry (None: none would).
    """

    name: str
    foresee: Callable[[Mapping[str, Any] | None], str | None]
    entry: Mapping[str, Any] = field(default_factory=dict)
    status: NameStatus | None = None
    adapters: tuple[KnownAdapter, ...] = ()
    others: tuple[KnownAdapter, ...] = ()  # adapters that were not made for it, but can be pinned

    @property
    def newest_first(self) -> list[KnownAdapter]:
        return sorted(self.adapters, key=lambda a: (a.created_at, a.run, a.name), reverse=True)

    @property
    def serving(self) -> str | None:
        """The adapter that serves it."""
        return self.status.adapter if self.status else None

    @property
    def canary(self) -> str | None:
        """The adapter that is taking over."""
        return self.status.canary if self.status else None

    def find(self, adapter: str) -> KnownAdapter:
        """The adapter of this name. Raises WishError that lists those there are."""
        found = next((a for a in (*self.adapters, *self.others) if a.name == adapter), None)
        if found is None:
            raise WishError(f"There is no adapter {adapter}: those of {self.name} are {self.listed}.")
        return found

    @property
    def listed(self) -> str:
        """The names of its adapters, newest first."""
        return ", ".join(a.name for a in self.newest_first) or "none"

    def require_adapters(self) -> None:
        """Raises WishError where the name is answered by the base itself."""
        if self.entry.get("base"):
            raise WishError(f"{self.name} is answered by the base itself: it has no rollouts.")


@dataclass(frozen=True)
class Wish:
    """The entry as it is to be (None: none is needed), and what follows from it, as a sentence."""

    entry: Entry | None
    sentence: str


def pause(known: KnownName) -> Wish:
    """Hold the rollout where it is."""
    if not known.canary:
        follows = f"{_served(known)}; a rollout that begins is held where it is"
    else:
        weight = known.status.weight if known.status else 0
        follows = f"{known.canary} stays at {weight}% of the callers"
    return Wish({**known.entry, "name": known.name, "paused": True}, f"{follows} until `llamero rollout resume`.")


def resume(known: KnownName) -> Wish:
    """Let a held rollout go on."""
    follows = f"{known.canary} goes on from where it was" if known.canary else f"{_served(known)}; nothing is held back"
    return _without(known, {"paused"}, f"{follows}.")


def promote(known: KnownName, adapter: str | None = None) -> Wish:
    """All callers to the one that is taking over (or the one named), at once."""
    known.require_adapters()
    wanted = known.find(adapter).name if adapter else known.canary or _newest_undone(known)
    if wanted is None and known.serving and known.entry.get("promote") == known.serving:
        wanted = known.serving  # asked for before, and done
    if wanted is None:
        raise WishError(
            f"Nothing is taking over {known.name}: {_served(known)}. --adapter names one (of {known.listed})."
        )
    pinned = known.entry.get("adapter")
    if pinned and pinned != wanted:
        raise WishError(
            f"{known.name} is pinned to {pinned}: `llamero rollout pin {known.name} --adapter {wanted}` first."
        )
    if refused := known.find(wanted).refused:
        raise WishError(
            f"{wanted} can't be served: {refused} `llamero rollout retry {known.name}` gives it another try."
        )
    entry = {**known.entry, "name": known.name, "promote": wanted}
    _forgive(entry, wanted)
    if known.serving == wanted and not known.canary:
        return Wish(entry, f"{wanted} serves all callers of {known.name} already.")
    chosen = known.foresee(entry)
    if chosen != wanted:
        raise WishError(
            f"{wanted} is not the newest for {known.name}, which is {chosen}: `llamero rollout pin {known.name} --adapter {wanted}` lets it "
            "serve, then promote."
        )
    return Wish(entry, f"{wanted} takes all callers of {known.name} as soon as it is ready, without further steps.")


def rollback(known: KnownName, adapter: str | None = None) -> Wish:
    """Back from the one that is taking over, or that serves (or the one named)."""
    known.require_adapters()
    wanted = known.find(adapter).name if adapter else known.canary or known.serving
    if wanted is None:
        raise WishError(f"There is nothing to roll back: {_served(known)}.")
    if adapter is None and not known.canary and (undone := _newer_undone(known)):
        hint = f"--adapter {wanted} rolls that back too"
        return Wish(dict(known.entry) or None, f"{undone} is rolled back already; {_served(known)}, and {hint}.")
    refused = [*known.entry.get("rollback", ())]
    if wanted not in refused:
        refused.append(wanted)
    existing = {a.name for a in known.adapters}
    while len(refused) > MAX_ROLLBACKS:  # those that are gone can't come back; else the oldest
        refused.remove(next((name for name in refused if name not in existing), refused[0]))
    entry = {**known.entry, "name": known.name, "rollback": refused}
    unpinned = entry.get("adapter") == wanted
    for key in ("adapter", "promote"):
        if entry.get(key) == wanted:
            del entry[key]
    chosen = known.foresee(entry)
    pin = " Its pin is taken away." if unpinned else ""
    if chosen is None:
        raise WishError(
            f"{known.name} has no other adapter than {wanted} that could serve: publish another, or retire the name "
            "(`retired: true` in its entry)."
        )
    if chosen == known.serving:
        return Wish(entry, f"{known.name} stays with {chosen}; {wanted} must not serve it any more.{pin}")
    return Wish(entry, f"{known.name} goes back to {chosen}; {wanted} must not serve it any more.{pin}")


def retry(known: KnownName, adapter: str | None = None) -> Wish:
    """Another try for what was rolled back."""
    known.require_adapters()
    entry = {**known.entry, "name": known.name}
    if adapter is not None:
        known.find(adapter)
        _forgive(entry, adapter)
    undone = [a for a in known.newest_first if (a.rolled_back or a.refused) and adapter in (None, a.name)]
    if undone:
        entry["retry"] = max(int(entry.get("retry", 0)), max(a.retry for a in undone) + 1)
    elif adapter is None:
        listed = known.entry.get("rollback", ())
        hint = f" --adapter gives one of {', '.join(listed)} another try, which you rolled back." if listed else ""
        raise WishError(f"No adapter of {known.name} was refused or rolled back by itself: {_served(known)}.{hint}")
    chosen = known.foresee(entry)
    if chosen is None or chosen == known.serving:
        return Wish(entry, f"{_served(known)}; no newer adapter gets another try.")
    return Wish(entry, f"{chosen} takes over {known.name} step by step once more.")


def pin(known: KnownName, adapter: str | None = None) -> Wish:
    """One adapter for the name, whichever is newest."""
    known.require_adapters()
    wanted = known.find(adapter).name if adapter else known.serving
    if wanted is None:
        raise WishError(f"No adapter serves {known.name} yet: --adapter says which is to be pinned.")
    entry = {**known.entry, "name": known.name, "adapter": wanted}
    _forgive(entry, wanted)
    if entry.get("promote") not in (None, wanted):
        del entry["promote"]
    if wanted == known.serving:
        return Wish(entry, f"{known.name} stays with {wanted}, also when newer adapters come.")
    return Wish(entry, f"{wanted} takes over {known.name} step by step, and stays also when newer adapters come.")


def unpin(known: KnownName) -> Wish:
    """The newest adapter again."""
    wish = _without(known, {"adapter"}, "")
    chosen = known.foresee(wish.entry)
    if chosen is None or chosen == known.serving:
        return Wish(wish.entry, f"{_served(known)}; newer adapters take over by themselves.")
    return Wish(wish.entry, f"{chosen}, the newest for {known.name}, takes over step by step.")


def replace_entry(models: Sequence[Mapping[str, Any]], name: str, entry: Entry | None) -> list[Entry]:
    """The list `spec.models` with the name's entry changed, added, or taken out."""
    kept = [entry if e.get("name") == name else dict(e) for e in models]
    if all(e.get("name") != name for e in models):
        kept.append(entry)
    return [e for e in kept if e is not None]


def require_public_name(name: str) -> None:
    """Raises WishError where chat clients could not ask for it."""
    try:
        ServedNameSpec(name=name)
    except ValidationError as error:
        raise WishError(
            f"`{name}` is no public name: letters, digits, dots, dashes and underscores, at most 63, a letter or digit first."
        ) from error


def _without(known: KnownName, keys: set[str], sentence: str) -> Wish:
    """The entry less some keys; one that says nothing any more is taken out of the list."""
    entry = {key: value for key, value in known.entry.items() if key not in keys}
    return Wish(entry if entry.keys() - {"name"} else None, sentence)


def _forgive(entry: Entry, adapter: str) -> None:
    if adapter in entry.get("rollback", ()):
        entry["rollback"] = [name for name in entry["rollback"] if name != adapter]
        if not entry["rollback"]:
            del entry["rollback"]


def _newest_undone(known: KnownName) -> str | None:
    """The newest adapter where it is one that was rolled back: what a person means who promotes after that."""
    newest = next((a for a in known.newest_first if not a.refused and not a.deleting), None)
    return newest.name if newest is not None and newest.rolled_back and newest.name != known.serving else None


def _newer_undone(known: KnownName) -> str | None:
    """An adapter newer than the one that serves, which was rolled back: a second `rollback` would else go back one further."""
    for adapter in known.newest_first:
        if adapter.name == known.serving:
            return None
        if adapter.rolled_back or adapter.name in known.entry.get("rollback", ()):
            return adapter.name
    return None


def _served(known: KnownName) -> str:
    return f"{known.name} is served by {known.serving}" if known.serving else f"no adapter serves {known.name} yet"
