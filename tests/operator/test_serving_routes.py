"""The writer of the routes on a real API server: one whole table, never a part of it, whatever is restarted, edited or asked at once."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cluster.api import path_of
from cluster.control_plane import ControlPlane

from llamero.kube import Kube, NoWitness, connect
from llamero.lifecycle.serving.world import ServerRoutes
from llamero.spec import names
from llamero.spec.routes import Backend, Route, Routes, Target
from llamero_operator.serving.routes import PATIENCE_SECONDS, WRITTEN_ANNOTATION, RoutesWriter, combine, digest, split

START = datetime(2026, 1, 2, tzinfo=UTC)


def part(server: str, model: str, *adapters: str) -> ServerRoutes:
    """A server with one pod and one public name."""
    backend = Backend(url=f"http://{server.partition('/')[2]}:8080", adapters=list(adapters))
    return ServerRoutes((backend,), (Route(model=model, server=server, targets=[Target(adapter=adapters[-1])]),))


A, B = part("team/a", "tutor", "a-1"), part("team/b", "coder", "b-1")


class Writes(NoWitness):
    def __init__(self) -> None:
        self.count = 0

    def before_write(self, verb: str, kind: str) -> None:
        self.count += 1


class Place:
    """A namespace with a client, and a clock that is set by hand."""

    def __init__(self, plane: ControlPlane, kube: Kube, namespace: str, writes: Writes) -> None:
        self.plane, self.kube, self.namespace, self.writes = plane, kube, namespace, writes
        self.now = START
        self.path = path_of("v1", "ConfigMap", namespace, names.ROUTES_NAME)

    async def start(self, *servers: str) -> RoutesWriter:
        """A writer as an operator starts it that knows these servers."""
        writer = RoutesWriter(self.kube, self.namespace, lambda: self.now)
        await writer.load()
        writer.keep(servers)
        await writer.write()
        return writer

    def found(self) -> Any:
        return self.plane.api.find(self.path)

    def table(self) -> Routes:
        return Routes.model_validate_json(self.found()["data"][names.ROUTES_KEY])

    def models(self) -> list[str]:
        return [route.model for route in self.table().routes]


@pytest.fixture
async def place(control_plane: ControlPlane) -> AsyncIterator[Place]:
    namespace, writes = control_plane.create_namespace("routes"), Writes()
    async with await connect(kubeconfig=str(control_plane.kubeconfig), witness=writes) as kube:
        yield Place(control_plane, kube, namespace, writes)
    control_plane.delete_namespace(namespace)


def test_a_table_is_the_sum_of_its_parts_and_its_revision_is_a_digest_of_the_rest() -> None:
    table = combine({"team/b": B, "team/a": A})
    assert list(table.servers) == ["team/a", "team/b"] and [r.model for r in table.routes] == ["coder", "tutor"]
    assert split(table) == {"team/a": A, "team/b": B}
    assert table.revision == digest(table) == combine({"team/a": A, "team/b": B}).revision
    assert combine({"team/a": A}).revision != table.revision


async def test_what_servers_say_is_written_and_the_same_again_is_not(place: Place) -> None:
    writer = await place.start()
    assert await writer.put("team/a", A) == {}
    assert await writer.put("team/b", B) == {}
    assert place.table() == combine({"team/a": A, "team/b": B})
    assert writer.revision == place.table().revision and writer.part("team/a") == A
    before = place.writes.count
    await writer.put("team/a", A)
    await writer.put("team/b", B)
    assert place.writes.count == before


async def test_a_restarted_operator_keeps_what_it_has_not_looked_at_yet(place: Place) -> None:
    writer = await place.start()
    await writer.put("team/a", A)
    await writer.put("team/b", B)
    again = await place.start("team/a", "team/b")
    assert again.revision == writer.revision and again.part("team/b") == B
    await again.put("team/a", part("team/a", "tutor", "a-1", "a-2"))
    assert place.models() == ["coder", "tutor"]
    assert place.table().servers["team/a"][0].adapters == ["a-1", "a-2"]


async def test_servers_that_went_while_no_operator_ran_are_dropped_at_its_start(place: Place) -> None:
    writer = await place.start()
    await writer.put("team/a", A)
    await writer.put("team/b", B)
    await place.start("team/b")
    assert place.models() == ["coder"] and list(place.table().servers) == ["team/b"]


async def test_where_no_table_is_found_none_is_written_before_every_server_has_spoken(place: Place) -> None:
    writer = await place.start("team/a", "team/b", "team/c")
    await writer.put("team/a", A)
    assert place.found() is None and writer.part("team/a") == ServerRoutes()
    await writer.drop("team/c")
    assert place.found() is None
    await writer.put("team/b", B)
    assert place.models() == ["coder", "tutor"]


async def test_a_server_whose_passes_fail_does_not_keep_the_others_from_being_routed_for_ever(place: Place) -> None:
    writer = await place.start("team/a", "team/b")
    await writer.put("team/a", A)
    assert place.found() is None
    place.now += timedelta(seconds=PATIENCE_SECONDS + 1)
    await writer.put("team/a", A)
    assert place.models() == ["tutor"]


async def test_a_table_that_can_not_be_read_is_as_none(place: Place) -> None:
    writer = await place.start()
    await writer.put("team/a", A)
    place.plane.kubectl(
        "patch", "configmap", names.ROUTES_NAME, "--type=merge", "-p",
        json.dumps({"data": {names.ROUTES_KEY: "{"}}), namespace=place.namespace,
    )  # fmt: skip
    again = await place.start("team/a", "team/b")
    await again.put("team/a", A)
    assert place.found()["data"][names.ROUTES_KEY] == "{", "chat services go by the last table that they could read"
    await again.put("team/b", B)
    assert place.models() == ["coder", "tutor"]


async def test_many_servers_at_once_are_written_in_few_tables_and_none_returns_before_its_part_is_there(
    place: Place,
) -> None:
    writer = await place.start()
    before = place.writes.count

    async def put(number: int) -> None:
        key = f"team/s{number}"
        await writer.put(key, part(key, f"model-{number}", "x"))
        assert writer.part(key).routes, "a pass goes on once its routes are written"

    await asyncio.gather(*(put(n) for n in range(20)))
    assert len(place.table().routes) == 20
    assert place.writes.count - before <= 3


async def test_what_others_wrote_meanwhile_is_overwritten(place: Place) -> None:
    writer = await place.start()
    await writer.put("team/a", A)
    place.plane.kubectl("label", "configmap", names.ROUTES_NAME, "who=me", namespace=place.namespace)
    await writer.put("team/b", B)
    assert place.models() == ["coder", "tutor"]


async def test_a_table_that_was_removed_or_edited_is_mended(place: Place) -> None:
    writer = await place.start()
    await writer.put("team/a", A)
    place.plane.api.delete(place.path)
    await writer.check()
    assert place.models() == ["tutor"]
    edited = {names.ROUTES_KEY: json.dumps(combine({"team/b": B}).to_json_dict())}
    place.plane.kubectl(
        "patch", "configmap", names.ROUTES_NAME, "--type=merge", "-p", json.dumps({"data": edited}),
        namespace=place.namespace,
    )  # fmt: skip
    await writer.check()
    assert place.models() == ["tutor"]
    before = place.writes.count
    await writer.check()
    assert place.writes.count == before


async def test_a_public_name_stays_with_the_server_that_has_it(place: Place) -> None:
    writer = await place.start()
    await writer.put("team/a", A)
    assert await writer.put("team/b", part("team/b", "tutor", "b-9")) == {"tutor": "team/a"}
    (route,) = place.table().routes
    assert route.server == "team/a"
    assert writer.part("team/b").backends, "its pods are known all the same"
    await writer.drop("team/a")
    assert await writer.put("team/b", part("team/b", "tutor", "b-9")) == {}
    assert place.table().routes[0].server == "team/b"


async def test_the_age_of_a_part_counts_from_its_last_change_over_restarts_too(place: Place) -> None:
    writer = await place.start()
    assert writer.part_age("team/a") is None
    await writer.put("team/a", A)
    place.now += timedelta(seconds=30)
    await writer.put("team/b", B)
    assert (writer.part_age("team/a"), writer.part_age("team/b")) == (30.0, 0.0)
    assert place.found()["metadata"]["annotations"][WRITTEN_ANNOTATION] == place.now.isoformat()
    place.now += timedelta(seconds=5)
    again = await place.start("team/a", "team/b")
    assert again.part_age("team/a") == 5.0, "not known any better than by the table's own"


async def test_a_write_that_fails_is_made_up_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = await place.start()
    server = place.kube.api.configuration.host
    place.kube.options = type(place.kube.options)(retry_seconds=0)
    place.kube.api.configuration.host = "https://127.0.0.1:1"
    with pytest.raises(Exception, match="can't be reached"):
        await writer.put("team/a", A)
    assert writer.part("team/a") == ServerRoutes()
    place.kube.api.configuration.host = server
    await writer.put("team/a", A)
    assert place.models() == ["tutor"]
