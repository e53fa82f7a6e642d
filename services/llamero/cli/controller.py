"""What the operator is on a cluster, for a local server: looks at its folder, its one engine and its chat service, decides by the same
function, and carries it out.

The processes themselves are `localserving`'s business.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from pydantic import ValidationError

from llamero.agent.agent import Agent
from llamero.cli.localserver import NAMESPACE, LocalAdapter, LocalManifest, LocalServer, LocalServerError, LocalStatus
from llamero.lifecycle.serving.servers import decide
from llamero.lifecycle.serving.world import (
    AdapterView,
    DeploymentView,
    EnginePodView,
    ServerDecision,
    ServerRoutes,
    ServerWorld,
    ServingLimits,
)
from llamero.lifecycle.world import Note
from llamero.spec.adapter import AdapterResourceStatus
from llamero.spec.digest import digest_json
from llamero.spec.names import server_key
from llamero.spec.routes import Routes
from llamero.spec.server import ModelServerStatus
from llamero.spec.serving import CHAT_REPORT_PATH, ChatReport
from llamero.spec.status import ConditionType
from llamero.storage import delete_tree, write_atomically

STEP_SECONDS = 0.5
CHAT_SECONDS = 2.0
LIMITS = ServingLimits(poll_seconds=1.0, busy_poll_seconds=0.5, drain_seconds=60.0, settle_seconds=2.0)
"""On one machine whoever is asked answers at once; a long answer may still take its minute."""

CLUSTER_CONDITIONS = frozenset({ConditionType.PROTECTED, ConditionType.AUTOSCALED})

log = logging.getLogger(__name__)


@dataclass
class LocalPod:
    """The one engine process, seen as a pod."""

    name: str
    uid: str
    url: str
    created_at: datetime
    restarts: int = 0


class LocalController:
    """One server's loop. `tell` is called with every note; `chat_url` is that of the chat service's inner port, once it runs."""

    def __init__(self, server: LocalServer, agent: Agent, pod: LocalPod, tell: Callable[[Note], None]) -> None:
        self.server = server
        self.agent = agent
        self.pod = pod
        self.chat_url = ""
        self.public_url = ""
        self.pid = 0
        self._tell = tell
        self._status = server.read_status()
        self._routes = self._read_routes()
        self._chat_revision = ""

    @property
    def status(self) -> LocalStatus:
        """As it was last written."""
        return self._status

    @property
    def is_answered(self) -> bool:
        """Whether the chat service works by the last routes, and each public name of them has somebody to answer it, but for names whose
        adapter was refused."""
        told = bool(self._status.server.models) and not list_unsettled(self._status)
        return told and self._chat_revision == self._routes.revision and all(r.targets for r in self._routes.routes)

    async def run(self) -> None:
        """Steps until cancelled. A step that fails is logged and taken again."""
        said = ""
        while True:
            try:
                await self.step()
                said = ""
            except LocalServerError as error:  # somebody edits a file by hand: what is served goes on
                if str(error) != said:
                    said = str(error)
                    self._tell(Note("Unreadable", said, True))
            except Exception:
                log.exception("a look at %s failed", self.server.name)
            await asyncio.sleep(STEP_SECONDS)

    async def step(self) -> ServerDecision:
        """Look, decide, carry out."""
        world = await self._observe()
        decision = decide(world, LIMITS, datetime.now(UTC))
        self._carry_out(world, decision)
        return decision

    # -- what is seen ----------------------------------------------------------------------------------------------------------

    async def _observe(self) -> ServerWorld:
        manifest, adapters = self.server.read_manifest(), self.server.read_adapters()
        chat = await self._ask_chat()
        self._chat_revision = chat.revision if chat is not None else ""
        key, routes_at = server_key(NAMESPACE, self.server.name), self._status.routes_at
        return ServerWorld(
            namespace=NAMESPACE,
            name=self.server.name,
            uid=manifest.uid,
            generation=manifest.generation,
            created_at=manifest.created_at,
            deleting=False,
            server=manifest.server,
            problems=manifest.problems,
            status=self._status.server,
            adapters=tuple(self._view_adapter(a) for a in adapters),
            pods=(self._view_pod(),),
            deployment=self._view_deployment(manifest),
            routed=ServerRoutes(tuple(self._routes.servers.get(key, ())), tuple(self._routes.routes)),
            revision=self._routes.revision,
            chats=(chat,) if chat is not None else (),
            silent_chats=int(bool(self.chat_url) and chat is None),
            routes_age=(datetime.now(UTC) - routes_at).total_seconds() if routes_at else None,
        )

    def _view_adapter(self, adapter: LocalAdapter) -> AdapterView:
        return AdapterView(
            name=adapter.name,
            uid=adapter.uid,
            created_at=adapter.created_at,
            spec=adapter.spec,
            served_id=adapter.served_id,
            status=self._status.adapters.get(adapter.name, AdapterResourceStatus()),
            deleting=adapter.deleting,
            held=adapter.name in self._status.held,
        )

    def _view_pod(self) -> EnginePodView:
        report = None if self.agent.is_catching_up else self.agent.report()
        return EnginePodView(
            name=self.pod.name,
            uid=self.pod.uid,
            created_at=self.pod.created_at,
            url=self.pod.url,
            ready=self.agent.is_ready,
            phase="Running",
            restarts=self.pod.restarts,
            report=report,
            report_age=None if report is None else 0.0,
        )

    def _view_deployment(self, manifest: LocalManifest) -> DeploymentView:
        return DeploymentView(
            generation=manifest.generation, replicas=1, updated=1, available=int(self.agent.is_ready), settled=True
        )

    async def _ask_chat(self) -> ChatReport | None:
        if not self.chat_url:
            return None
        timeout = aiohttp.ClientTimeout(total=CHAT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.chat_url}{CHAT_REPORT_PATH}") as answer,
            ):
                answer.raise_for_status()
                return ChatReport.model_validate_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            log.warning("the chat service does not tell what it saw: %s: %s", type(error).__name__, error)
            return None

    # -- what is done ----------------------------------------------------------------------------------------------------------

    def _carry_out(self, world: ServerWorld, decision: ServerDecision) -> None:
        if decision.wanted is not None:
            self.agent.want(decision.wanted)
        routes_at = self._write_routes(decision.routes)
        known = {a.name for a in world.adapters}
        told = {**self._status.adapters, **decision.adapter_statuses}
        held = ({*self._status.held} | decision.hold) - decision.release
        self._write_status(
            LocalStatus(
                server=leave_out_cluster(decision.status),
                adapters={name: status for name, status in told.items() if name in known},
                held=sorted(held & known),
                url=self.public_url,
                pid=self.pid,
                routes_at=routes_at,
            )
        )
        for adapter in world.adapters:
            if adapter.deleting and adapter.name not in held:
                self._remove(adapter.name)
        for note in decision.notes:
            self._tell(note)

    def _write_routes(self, wanted: ServerRoutes) -> datetime | None:
        key = server_key(NAMESPACE, self.server.name)
        routes = Routes(servers={key: list(wanted.backends)}, routes=list(wanted.routes))
        revision = digest_json(routes.model_dump(mode="json", exclude={"revision"}))
        if revision == self._routes.revision:
            return self._status.routes_at
        self._routes = routes.model_copy(update={"revision": revision})
        write_atomically(self.server.routes_file, json.dumps(self._routes.to_json_dict(), indent=2) + "\n")
        return datetime.now(UTC)

    def _read_routes(self) -> Routes:
        """Those of an earlier process: who served goes on serving."""
        try:
            return Routes.model_validate_json(self.server.routes_file.read_bytes())
        except (OSError, ValueError):
            return Routes()

    def _write_status(self, status: LocalStatus) -> None:
        if status != self._status:
            self._status = status
            self.server.write_status(status)

    def _remove(self, adapter: str) -> None:
        """A deleted adapter that no request can go to any more: its files, then its resource."""
        delete_tree(str(self.server.files_of(adapter)))
        self.server.remove_adapter(adapter)
        self._tell(Note("Deleted", f"The adapter {adapter} is removed.", False))


def leave_out_cluster(status: ModelServerStatus) -> ModelServerStatus:
    """The status without conditions that speak of what only a cluster has."""
    return status.model_copy(update={"conditions": [c for c in status.conditions if c.type not in CLUSTER_CONDITIONS]})


def list_unsettled(status: LocalStatus) -> list[str]:
    """The public names whose first adapter is still on its way."""
    refused = {a.name for a in status.server.adapters if a.state == "Refused"}
    return [
        n.name
        for n in status.server.models
        if n.state == "Waiting" and n.canary is not None and n.canary not in refused
    ]
