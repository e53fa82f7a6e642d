"""What the rollout verbs write into a public name's entry, and what they say: a table, and that asking twice changes nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llamero.cli import wishes
from llamero.cli.servedmodels import SeenServer, find_model
from llamero.cli.wishes import WishError, replace_entry

START = datetime(2026, 1, 1, tzinfo=UTC)
BASE = "/models/tiny"


def adapter(name: str, age: int, *, model: str = "tutor", server: str = "local", **status: Any) -> dict[str, Any]:
    """An Adapter resource; a higher age is older. `refused`, `undone`: the message of that verdict."""
    conditions = []
    for kind, truth, message in (
        ("Verified", "False", status.get("refused")),
        ("RolledBack", "True", status.get("undone")),
    ):
        if message:
            conditions.append(
                {
                    "type": kind,
                    "status": truth,
                    "reason": "Tested",
                    "message": message,
                    "lastTransitionTime": START.isoformat(),
                }
            )
    created = (START - timedelta(hours=age)).isoformat()
    spec = {"uri": f"/a/{name}", "sha256": "0" * 64, "base": BASE, "baseSha256": "b", "model": model, "server": server}
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": spec,
        "status": {"conditions": conditions, "retry": status.get("retry", 0)},
    }


def server(
    entry: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    adapters: list[dict[str, Any]] | None = None,
) -> SeenServer:
    """A server whose name tutor has old (served) and new."""
    raw = {
        "metadata": {"name": "local", "creationTimestamp": START.isoformat()},
        "spec": {
            "baseModel": {"uri": BASE},
            "engine": {"type": "cpu"},
            "models": [{"name": "tutor", **entry}] if entry else [],
        },
        "status": {
            "models": [{"name": "tutor", **(status if status is not None else {"adapter": "old", "state": "Serving"})}]
        },
    }
    return SeenServer(raw, tuple(adapters or [adapter("old", 2), adapter("new", 1)]), "Server local")


CANARY = {"adapter": "old", "canary": "new", "weight": 25, "state": "Canary"}
SERVED_NEW = {"adapter": "new", "previous": "old", "state": "Serving"}

TABLE = [
    ("a rollout is held", "pause", None, server(status=CANARY), {"paused": True}, "new stays at 25% of the callers"),
    ("a name without a rollout is held for the next", "pause", None, server(), {"paused": True}, "a rollout that begins is held"),
    ("a held rollout goes on", "resume", None, server({"paused": True}, CANARY), None, "new goes on from where it was."),
    ("other wishes outlive a resume", "resume", None, server({"paused": True, "retry": 2}, CANARY), {"retry": 2}, "goes on"),
    ("the canary is promoted", "promote", None, server(status=CANARY), {"promote": "new"}, "takes all callers of tutor"),
    (
        "one that was rolled back by itself is promoted all the same",
        "promote",
        None,
        server(adapters=[adapter("old", 2), adapter("new", 1, undone="bad votes")]),
        {"promote": "new"},
        "takes all callers",
    ),
    (
        "one in the rollback list is taken from it when it is promoted",
        "promote",
        "new",
        server({"rollback": ["new"]}),
        {"promote": "new"},
        "takes all callers",
    ),
    ("the canary is rolled back", "rollback", None, server(status=CANARY), {"rollback": ["new"]}, "tutor stays with old"),
    ("who serves is rolled back", "rollback", None, server(status=SERVED_NEW), {"rollback": ["new"]}, "goes back to old"),
    (
        "a pin goes with the rollback of what it names",
        "rollback",
        None,
        server({"adapter": "new"}, SERVED_NEW),
        {"rollback": ["new"]},
        "Its pin is taken away.",
    ),
    (
        "a second rollback does not go back one further",
        "rollback",
        None,
        server({"rollback": ["new"]}, {"adapter": "old", "state": "RolledBack"}),
        {"rollback": ["new"]},
        "new is rolled back already",
    ),
    (
        "what was rolled back by itself gets another try",
        "retry",
        None,
        server(adapters=[adapter("old", 2), adapter("new", 1, undone="slow", retry=3)]),
        {"retry": 4},
        "new takes over tutor step by step once more",
    ),
    (
        "so does what was refused",
        "retry",
        None,
        server(adapters=[adapter("old", 2), adapter("new", 1, refused="torn")]),
        {"retry": 1},
        "new takes over",
    ),
    (
        "one that was rolled back by hand is let off by name",
        "retry",
        "new",
        server({"rollback": ["new"]}),
        {},
        "new takes over tutor",
    ),
    ("who serves is pinned", "pin", None, server(), {"adapter": "old"}, "stays with old, also when newer adapters come"),
    ("another is pinned by name", "pin", "new", server(), {"adapter": "new"}, "new takes over tutor step by step"),
    (
        "one that was made for no name can be pinned",
        "pin",
        "loose",
        server(adapters=[adapter("old", 2), adapter("loose", 1, model="other", server="")]),
        {"adapter": "loose"},
        "loose takes over",
    ),
    ("without the pin the newest takes over", "unpin", None, server({"adapter": "old"}), None, "new, the newest for tutor"),
]  # fmt: skip


def wish(seen: SeenServer, verb: str, named: str | None) -> wishes.Wish:
    known = seen.describe("tutor")
    if verb in ("pause", "resume", "unpin"):
        return getattr(wishes, verb)(known)
    return getattr(wishes, verb)(known, named)


@pytest.mark.parametrize(
    ("verb", "named", "seen", "entry", "says"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_verb_sets_values_and_says_what_follows(
    verb: str, named: str | None, seen: SeenServer, entry: dict[str, Any] | None, says: str
) -> None:
    first = wish(seen, verb, named)
    assert first.entry == (None if entry is None else {"name": "tutor", **entry})
    assert says in first.sentence


@pytest.mark.parametrize(("verb", "named", "seen"), [row[1:4] for row in TABLE], ids=[row[0] for row in TABLE])
def test_asking_twice_changes_nothing_the_second_time(verb: str, named: str | None, seen: SeenServer) -> None:
    models = replace_entry(seen.raw["spec"]["models"], "tutor", wish(seen, verb, named).entry)
    after = SeenServer({**seen.raw, "spec": {**seen.raw["spec"], "models": models}}, seen.adapters, seen.where)
    again = replace_entry(models, "tutor", wish(after, verb, named).entry)
    assert [e for e in again if e] == models


@pytest.mark.parametrize(
    ("verb", "named", "seen", "says"),
    [
        ("promote", None, server(adapters=[adapter("old", 1)]), "Nothing is taking over tutor: tutor is served by old."),
        ("promote", "gone", server(), "There is no adapter gone: those of tutor are new, old."),
        ("promote", "old", server({"adapter": "new"}, SERVED_NEW), "pinned to new: `llamero rollout pin tutor --adapter old` first"),
        ("promote", "old", server(status=SERVED_NEW), "old is not the newest for tutor, which is new"),
        (
            "promote",
            "new",
            server(adapters=[adapter("old", 2), adapter("new", 1, refused="It is torn.")]),
            "new can't be served: It is torn. `llamero rollout retry tutor`",
        ),
        ("rollback", None, server(status={}), "There is nothing to roll back: no adapter serves tutor yet."),
        ("rollback", None, server(adapters=[adapter("old", 1)]), "tutor has no other adapter than old that could serve"),
        ("retry", None, server(), "No adapter of tutor was refused or rolled back by itself"),
        ("retry", None, server({"rollback": ["new"]}), "--adapter gives one of new another try"),
        ("pin", None, server(status={}), "No adapter serves tutor yet: --adapter says which is to be pinned."),
        ("pin", "new", server({"base": True}), "tutor is answered by the base itself: it has no rollouts."),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_a_sentence(
    verb: str, named: str | None, seen: SeenServer, says: str
) -> None:
    with pytest.raises(WishError) as error:
        wish(seen, verb, named)
    assert says in str(error.value)


def test_the_rollback_list_forgets_what_is_gone_first() -> None:
    listed = [f"gone-{n}" for n in range(16)]
    found = wish(server({"rollback": listed}, CANARY), "rollback", None)
    assert found.entry is not None
    assert found.entry["rollback"] == [*listed[1:], "new"]


def test_fields_that_this_version_does_not_know_are_kept() -> None:
    seen = server({"strategy": {"steps": [100]}})
    assert wish(seen, "pause", None).entry == {"name": "tutor", "strategy": {"steps": [100]}, "paused": True}


class TestFindingTheServer:
    def test_a_name_is_known_by_entry_by_status_and_by_what_adapters_ask_for(self) -> None:
        seen = server({"retry": 1}, adapters=[adapter("x", 1, model="poet"), adapter("y", 1, model="loose", server="")])
        assert seen.names() == ["tutor", "poet"]
        assert find_model([seen], "poet", None) is seen

    def test_an_unknown_model_lists_the_known_ones(self) -> None:
        with pytest.raises(WishError, match=r"There is no model poet here: known are tutor\."):
            find_model([server()], "poet", None)

    def test_a_name_of_two_servers_needs_the_servers_name(self) -> None:
        other = server()
        other.raw["metadata"]["name"] = "second"
        with pytest.raises(WishError, match=r"tutor is a name of local, second: --server says which is meant\."):
            find_model([server(), other], "tutor", None)
        assert find_model([server(), other], "tutor", "second") is other

    def test_an_unknown_server_lists_the_known_ones(self) -> None:
        with pytest.raises(WishError, match=r"There is no server third here: known are local\."):
            find_model([server()], "tutor", "third")
