"""Chat services behind names with several addresses, some of which are silent, gone, or not to be found."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence

import pytest
from aiohttp import web
from cluster.processes import free_port

from llamero.spec.serving import ChatReport
from llamero_operator.metrics import Metrics
from llamero_operator.serving.chats import Chats, UnknownHost, parse_service, resolve
from llamero_operator.serving.exchange import open_session

addresses = (f"127.82.0.{n}" for n in itertools.count(1))


class Town:
    """Chat services at addresses, and a name service that is set by hand."""

    def __init__(self) -> None:
        self.port = free_port()
        self.session = open_session(0.5)
        self.names: dict[str, list[str] | None] = {}
        self.reports: dict[str, ChatReport] = {}
        self.hanging: set[str] = set()
        self.runners: list[web.AppRunner] = []
        self.changes = 0
        self.asked = 0

    async def open(self, instance: str) -> str:
        """A chat service; its address."""
        address = next(addresses)
        self.reports[address] = ChatReport(instance=instance, revision="r1")

        async def tell(request: web.Request) -> web.Response:
            self.asked += 1
            if address in self.hanging:
                await asyncio.sleep(30)
            return web.json_response(self.reports[address].to_json_dict(), dumps=json.dumps)

        app = web.Application()
        app.router.add_get("/v1/report", tell)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, address, self.port).start()
        self.runners.append(runner)
        return address

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        found = self.names[host]
        if found is None:
            raise UnknownHost(f"{host} can't be resolved")
        return found

    def chats(self, *hosts: str) -> Chats:
        return Chats([f"{h}:{self.port}" for h in hosts], self.session, Metrics(), self.changed, self.resolve)

    def changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    made = Town()
    yield made
    for runner in made.runners:
        await runner.cleanup()
    await made.session.close()


def instances(chats: Chats) -> list[str]:
    return [report.instance for report in chats.reports]


async def test_a_name_is_asked_at_all_its_addresses_anew_each_round(town: Town) -> None:
    first, second = await town.open("one"), await town.open("two")
    town.names["chat"] = [first]
    chats = town.chats("chat")
    await chats.round()
    assert (instances(chats), chats.silent) == (["one"], 0)
    town.names["chat"] = [first, second]
    await chats.round()
    assert (instances(chats), chats.silent) == (["one", "two"], 0)
    town.names["chat"] = []
    await chats.round()
    assert (instances(chats), chats.silent) == ([], 0), "a service without pods is no silent one"


async def test_one_that_hangs_or_is_dead_is_silent_and_holds_nobody_up(town: Town) -> None:
    first, slow = await town.open("one"), await town.open("slow")
    town.hanging.add(slow)
    town.names["chat"] = [first, slow, next(addresses)]
    chats = town.chats("chat")
    async with asyncio.timeout(2):
        await chats.round()
    assert (instances(chats), chats.silent) == (["one"], 2)


async def test_a_name_that_can_not_be_resolved_now_stands_for_its_last_addresses(town: Town) -> None:
    first = await town.open("one")
    town.names |= {"chat": [first], "other": None}
    chats = town.chats("chat", "other")
    await chats.round()
    assert (instances(chats), chats.silent) == (["one"], 1), "nobody knows how many there are behind the other"
    town.names["chat"] = None
    await chats.round()
    assert (instances(chats), chats.silent) == (["one"], 1)


async def test_an_instance_behind_two_names_counts_once(town: Town) -> None:
    first = await town.open("one")
    town.names |= {"chat": [first], "alias": [first]}
    chats = town.chats("chat", "alias")
    await chats.round()
    assert instances(chats) == ["one"] and town.asked == 1


async def test_only_news_are_told(town: Town) -> None:
    first = await town.open("one")
    town.names["chat"] = [first]
    chats = town.chats("chat")
    await chats.round()
    await chats.round()
    assert town.changes == 1
    town.reports[first] = ChatReport(instance="one", revision="r2")
    await chats.round()
    assert town.changes == 2


async def test_rounds_do_not_follow_each_other_closer_than_asked_for(town: Town) -> None:
    town.names["chat"] = [await town.open("one")]
    chats = town.chats("chat")
    chats.ask(60)
    chats.ask(60)
    await asyncio.sleep(0.2)
    chats.ask(60)
    await asyncio.sleep(0.1)
    assert town.asked == 1
    await chats.close()


async def test_without_chat_services_nothing_is_asked(town: Town) -> None:
    chats = town.chats()
    chats.ask(0)
    await chats.round()
    assert (chats.reports, chats.silent, town.changes) == ((), 0, 0)


@pytest.mark.parametrize("text", ["chat", "chat:", ":8081", "chat:no", "chat:0", "chat:70000"])
def test_a_service_needs_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_service(text)


def test_an_address_of_version_6_stands_in_brackets() -> None:
    assert parse_service("[fd00::1]:8081") == ("fd00::1", 8081)


async def test_addresses_are_resolved_as_the_machine_does() -> None:
    assert await resolve("127.0.0.9", 80) == ["127.0.0.9"]
