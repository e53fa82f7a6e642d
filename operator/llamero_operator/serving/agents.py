"""What the agents in engine pods last said, and telling them what is wanted: side by side, and never waited for.

A pass reads what is known (`last_word`) and starts what is due (`converse`); an answer that changes something wakes the server. An agent
that does not answer keeps its last word, which grows old.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import aiohttp

from llamero.lifecycle.serving.world import EnginePodView
from llamero.spec import names
from llamero.spec.serving import AGENT_REPORT_PATH, AGENT_WANTED_PATH, AgentReport, AgentWanted
from llamero_operator.metrics import Metrics
from llamero_operator.serving.exchange import NoAnswer, build_url, fetch, tell

logger = logging.getLogger(__name__)

Key = tuple[str, str]


@dataclass
class _Talk:
    """The exchange with one pod's agent."""

    server: Key
    pod: EnginePodView
    wanted: AgentWanted | None = None
    report: AgentReport | None = None
    heard_at: float = 0.0
    asked_at: float = float("-inf")
    silence: str = ""  # why the last question had no answer
    task: asyncio.Task[None] | None = None
    again: bool = False


class Agents:
    """Conversations by pod. Belongs to one event loop; `close` ends them."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        metrics: Metrics,
        wake: Callable[[Key], None],
        port: int = names.AGENT_PORT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._metrics = metrics
        self._wake = wake
        self._port = port
        self._clock = clock
        self._talks: dict[str, _Talk] = {}  # by uid of the pod

    def last_word(self, uid: str) -> tuple[AgentReport | None, float | None]:
        """The last report of a pod's agent and its age in seconds; (None, None) where it was never heard."""
        talk = self._talks.get(uid)
        if talk is None or talk.report is None:
            return None, None
        return talk.report, self._clock() - talk.heard_at

    def converse(
        self, server: Key, pods: Iterable[EnginePodView], wanted: AgentWanted | None, every_seconds: float
    ) -> None:
        """Asks each pod whose agent was not asked for so long, and those that have another list than `wanted` at once.

        `wanted` None: nothing is told. A pod that has changed since it was asked is asked anew.
        """
        there = [pod for pod in pods if pod.ip]
        self._forget(server, {pod.uid for pod in there})
        for pod in there:
            talk = self._talks.setdefault(pod.uid, _Talk(server, pod))
            is_news = talk.pod != pod or talk.wanted != wanted
            talk.pod, talk.wanted = pod, wanted
            if is_news or self._clock() - talk.asked_at >= every_seconds:
                self._ask(talk)

    def forget_server(self, server: Key) -> None:
        """The server is gone: nothing of its pods is kept."""
        self._forget(server, set())

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [talk.task for talk in self._talks.values() if talk.task is not None]
        self._talks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, server: Key, keep: set[str]) -> None:
        for uid in [uid for uid, talk in self._talks.items() if talk.server == server and uid not in keep]:
            talk = self._talks.pop(uid)
            if talk.task is not None:
                talk.task.cancel()

    def _ask(self, talk: _Talk) -> None:
        talk.asked_at = self._clock()
        if talk.task is not None and not talk.task.done():
            talk.again = True
            return
        talk.task = asyncio.create_task(self._talk(talk), name=f"agent-{talk.pod.name}")

    async def _talk(self, talk: _Talk) -> None:
        while True:
            talk.again = False
            before, was_silent = talk.report, bool(talk.silence)
            try:
                await self._exchange(talk)
                talk.silence = ""
            except NoAnswer as error:
                if not was_silent:
                    logger.info("the agent of pod %s/%s is silent: %s", talk.server[0], talk.pod.name, error)
                talk.silence = str(error)
            except Exception:
                logger.exception("the agent of pod %s/%s can't be asked", talk.server[0], talk.pod.name)
                talk.silence = "it can't be asked"
            if talk.report != before or bool(talk.silence) != was_silent:
                self._wake(talk.server)
            if not talk.again:
                return

    async def _exchange(self, talk: _Talk) -> None:
        """A report, and where it speaks of an older list than the one that is wanted, that list and a report again."""
        report = await self._report(talk)
        wanted = talk.wanted
        if wanted is None or report.serial >= wanted.serial:
            return
        url = build_url(talk.pod.ip, self._port, AGENT_WANTED_PATH)
        await self._counted("tell", tell(self._session, url, wanted))
        await self._report(talk)

    async def _report(self, talk: _Talk) -> AgentReport:
        url = build_url(talk.pod.ip, self._port, AGENT_REPORT_PATH)
        report: AgentReport = await self._counted("ask", self._fetch_own(url, talk.pod.name))
        talk.report, talk.heard_at = report, self._clock()
        return report

    async def _fetch_own(self, url: str, pod: str) -> AgentReport:
        report = await fetch(self._session, url, AgentReport)
        if report.pod != pod:
            # An address that a pod had may belong to another one by now.
            raise NoAnswer(f"{url} is answered for the pod {report.pod or '(none)'}, not for {pod}")
        return report

    async def _counted(self, what: str, work):  # type: ignore[no-untyped-def]
        try:
            answer = await work
        except NoAnswer:
            self._metrics.agent_requests.labels(what, "failed").inc()
            raise
        self._metrics.agent_requests.labels(what, "done").inc()
        return answer
