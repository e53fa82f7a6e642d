"""Agents that answer, lag, hang, die and lie: passes go by their last words, and never wait for them."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from aiohttp import web
from cluster.processes import free_port

from llamero.lifecycle.serving.world import EnginePodView
from llamero.spec.serving import AgentReport, AgentWanted, BaseWanted
from llamero_operator.metrics import Metrics
from llamero_operator.serving.agents import Agents
from llamero_operator.serving.exchange import open_session

SERVER = ("team-a", "tiny")
ANSWER_SECONDS = 0.5
addresses = (f"127.81.0.{n}" for n in itertools.count(1))


def wanted(serial: int) -> AgentWanted:
    return AgentWanted(serial=serial, engine="cpu", base=BaseWanted(uri="/models/tiny"))


@dataclass
class Agent:
    """An agent as far as an operator sees it. `hangs` answers nothing, `told` are the lists it was given."""

    pod: EnginePodView
    report: AgentReport
    hangs: bool = False
    takes: bool = True
    told: list[int] = field(default_factory=list)
    asked: int = 0
    body: bytes | None = None
    runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        app = web.Application()
        app.router.add_get("/v1/report", self.tell)
        app.router.add_put("/v1/wanted", self.take)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, self.pod.ip, port).start()

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()

    async def tell(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(30)
        return web.Response(
            body=self.body if self.body is not None else json.dumps(self.report.to_json_dict()).encode()
        )

    async def take(self, request: web.Request) -> web.Response:
        given = AgentWanted.model_validate(await request.json())
        self.told.append(given.serial)
        if self.takes:
            self.report = self.report.model_copy(update={"serial": given.serial})
        return web.Response()


class Field:
    """Some agents, the operator's side of the talk, and who was woken."""

    def __init__(self) -> None:
        self.port = free_port()
        self.session = open_session(ANSWER_SECONDS)
        self.woken: list[tuple[str, str]] = []
        self.metrics = Metrics()
        self.agents = Agents(self.session, self.metrics, self.woken.append, self.port)
        self.made: list[Agent] = []

    async def add(self, **changes: object) -> Agent:
        name = f"pod-{len(self.made)}"
        pod = EnginePodView(name, f"uid-{name}", datetime.now(UTC), ip=next(addresses))
        agent = Agent(pod, AgentReport(pod=name, started_at=datetime.now(UTC), engine_ready=True), **changes)  # type: ignore[arg-type]
        await agent.start(self.port)
        self.made.append(agent)
        return agent

    def converse(self, serial: int | None = None, every: float = 60.0) -> None:
        told = wanted(serial) if serial is not None else None
        self.agents.converse(SERVER, [agent.pod for agent in self.made], told, every)

    def count(self, what: str, outcome: str) -> float:
        return self.metrics.agent_requests.labels(what, outcome)._value.get()


@pytest.fixture
async def ground() -> AsyncIterator[Field]:
    made = Field()
    yield made
    await made.agents.close()
    for agent in made.made:
        await agent.stop()
    await made.session.close()


async def until(holds: Callable[[], object], what: str, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not in {seconds} s: {what}"
        await asyncio.sleep(0.005)


async def test_what_an_agent_says_wakes_its_server_once_and_is_kept_with_its_age(ground: Field) -> None:
    agent = await ground.add()
    assert ground.agents.last_word(agent.pod.uid) == (None, None)
    ground.converse()
    await until(lambda: ground.woken, "news")
    report, age = ground.agents.last_word(agent.pod.uid)
    assert report == agent.report and age is not None and 0 <= age < 1
    ground.converse(every=0)
    await until(lambda: agent.asked == 2, "a second question")
    await asyncio.sleep(0.05)
    assert ground.woken == [SERVER], "the same again is no news"


async def test_an_agent_is_not_asked_again_before_its_time_but_at_once_where_its_pod_has_changed(ground: Field) -> None:
    agent = await ground.add()
    ground.converse(every=60)
    await until(lambda: agent.asked == 1, "the first question")
    ground.converse(every=60)
    await asyncio.sleep(0.05)
    assert agent.asked == 1, "it is not time yet"
    agent.pod = EnginePodView(**{**agent.pod.__dict__, "ready": True})
    ground.converse(every=60)
    await until(lambda: agent.asked == 2, "a question about the pod that is ready by now")
    await asyncio.sleep(0.05)
    assert agent.asked == 2


async def test_every_pod_is_told_what_is_wanted_until_it_says_that_it_has_it(ground: Field) -> None:
    first, second = await ground.add(), await ground.add(takes=False)
    ground.converse(serial=3)
    await until(lambda: first.told == [3] and second.told == [3], "both to be told")
    await until(lambda: (ground.agents.last_word(first.pod.uid)[0] or first.report).serial == 3, "its word on it")
    ground.converse(serial=3, every=0)
    await until(lambda: second.told == [3, 3], "the one that lags to be told again")
    assert first.told == [3]
    ground.converse(serial=4, every=60)
    await until(lambda: first.told == [3, 4], "news to be told at once")


async def test_an_agent_that_knows_a_newer_list_is_told_nothing(ground: Field) -> None:
    agent = await ground.add()
    agent.report = agent.report.model_copy(update={"serial": 9})
    ground.converse(serial=3)
    await until(lambda: ground.woken, "news")
    assert agent.told == []


async def test_nothing_is_told_where_nothing_is_wanted(ground: Field) -> None:
    agent = await ground.add()
    ground.converse(serial=None)
    await until(lambda: ground.woken, "news")
    assert agent.told == []


async def test_an_agent_that_hangs_holds_up_neither_the_pass_nor_the_others(ground: Field) -> None:
    slow, quick = await ground.add(hangs=True), await ground.add()
    began = time.monotonic()
    ground.converse()
    assert time.monotonic() - began < 0.1
    await until(lambda: ground.agents.last_word(quick.pod.uid)[0] is not None, "the quick one's word", ANSWER_SECONDS)
    assert ground.agents.last_word(slow.pod.uid)[0] is None
    await until(lambda: ground.count("ask", "failed") == 1, "the slow one to be given up")


async def test_the_last_word_of_a_dead_agent_stays_and_grows_old_and_its_silence_is_news(ground: Field) -> None:
    agent = await ground.add()
    ground.converse()
    await until(lambda: ground.woken, "news")
    await agent.stop()
    agent.runner = None
    ground.converse(every=0)
    await until(lambda: len(ground.woken) == 2, "the silence to be told")
    first = ground.agents.last_word(agent.pod.uid)
    ground.converse(every=0)
    await until(lambda: ground.count("ask", "failed") == 2, "another question in vain")
    again = ground.agents.last_word(agent.pod.uid)
    assert first[0] == again[0] == agent.report and first[1] is not None and again[1] is not None
    assert again[1] > first[1]
    assert len(ground.woken) == 2, "that it is silent still is no news"


async def test_a_word_for_another_pod_at_an_address_that_was_this_ones_is_not_believed(ground: Field) -> None:
    agent = await ground.add()
    agent.report = agent.report.model_copy(update={"pod": "someone-else"})
    ground.converse()
    await until(lambda: ground.count("ask", "failed") == 1, "the lie to be noticed")
    assert ground.agents.last_word(agent.pod.uid) == (None, None)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"pod": "pod-0"}', b'{"pod": "pod-0", "startedAt": 7, "adapters": 3}', b" " * (3 << 20)]
)  # fmt: skip
async def test_what_is_no_report_counts_as_silence(ground: Field, body: bytes) -> None:
    agent = await ground.add(body=body)
    ground.converse()
    await until(lambda: ground.count("ask", "failed") == 1, "it to be turned down")
    assert ground.agents.last_word(agent.pod.uid) == (None, None)


async def test_a_pod_that_is_gone_is_forgotten_and_an_answer_of_its_agent_wakes_nobody(ground: Field) -> None:
    agent = await ground.add(hangs=True)
    ground.converse()
    await until(lambda: agent.asked == 1, "the question")
    ground.agents.forget_server(SERVER)
    await asyncio.sleep(ANSWER_SECONDS + 0.2)
    assert ground.woken == [] and ground.agents.last_word(agent.pod.uid) == (None, None)


async def test_a_pod_without_an_address_is_left_alone(ground: Field) -> None:
    pod = EnginePodView("new", "uid-new", datetime.now(UTC))
    ground.agents.converse(SERVER, [pod], None, 0)
    await asyncio.sleep(0.05)
    assert ground.count("ask", "failed") == 0


async def test_redirects_are_not_followed(ground: Field) -> None:
    honest = await ground.add()
    liar = await ground.add()

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://{honest.pod.ip}:{ground.port}/v1/report")

    await replace(liar, ground.port, redirect)
    ground.converse()
    await until(lambda: ground.count("ask", "failed") == 1, "the redirect to be refused")
    assert ground.agents.last_word(liar.pod.uid) == (None, None)


async def replace(agent: Agent, port: int, handler: Callable[[web.Request], Awaitable[web.Response]]) -> None:
    """The agent's address is served by something else."""
    await agent.stop()
    app = web.Application()
    app.router.add_get("/v1/report", handler)
    agent.runner = web.AppRunner(app, shutdown_timeout=0.1)
    await agent.runner.setup()
    await web.TCPSite(agent.runner, agent.pod.ip, port).start()
