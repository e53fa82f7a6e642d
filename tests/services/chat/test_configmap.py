"""The routes of a cluster: a ConfigMap of a real API server, watched by the chat service as a process."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from cluster.control_plane import ControlPlane
from cluster.faults import FaultProxy, TcpProxy
from cluster.kubeconfig import write_kubeconfig

from llamero.chat import configmap
from llamero.chat.settings import ConfigMapName, parse_settings
from llamero.chat.table import RouteTable
from llamero.kube import Kube, connect
from llamero.kube.objects import CONFIG_MAPS, create, delete, patch
from llamero.spec.names import ROUTES_KEY, ROUTES_NAME


def routes(revision: str, *models: str) -> str:
    told = [{"model": m, "server": "s", "targets": [{"adapter": "x"}]} for m in models]
    servers = {"s": [{"url": "http://127.0.0.1:9", "adapters": ["x"]}]}
    return json.dumps({"revision": revision, "servers": servers, "routes": told})


class Cluster:
    """The ConfigMap, and the chat service that watches it."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.inner = ""
        self.server: Any = None

    async def create(self, text: str) -> None:
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": ROUTES_NAME},
            "data": {ROUTES_KEY: text},
        }
        await create(self.kube, CONFIG_MAPS, self.namespace, manifest)

    async def write(self, text: str | None) -> None:
        await patch(self.kube, CONFIG_MAPS, self.namespace, ROUTES_NAME, {"data": {ROUTES_KEY: text}})

    async def delete(self) -> None:
        await delete(self.kube, CONFIG_MAPS, self.namespace, ROUTES_NAME)

    async def revision(self) -> str:
        async with aiohttp.ClientSession() as client, client.get(f"{self.inner}/v1/report") as response:
            return str((await response.json())["revision"])

    async def is_ready(self) -> bool:
        async with aiohttp.ClientSession() as client, client.get(f"{self.inner}/readyz") as response:
            return response.status == 200

    async def until_revision(self, revision: str) -> float:
        """Seconds until the routes of that revision are in force."""
        began = time.monotonic()
        async with asyncio.timeout(30):
            while await self.revision() != revision:
                await asyncio.sleep(0.002)
        return time.monotonic() - began

    async def until_logged(self, text: str, times: int = 1) -> None:
        async with asyncio.timeout(30):
            while self.server.log_text().count(text) < times:
                await asyncio.sleep(0.02)


@pytest.fixture
async def cluster(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    namespace = control_plane.create_namespace("chat-routes")
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    async with await connect() as kube:
        yield Cluster(kube, namespace)
    control_plane.delete_namespace(namespace)


@pytest.fixture
def start(cluster: Cluster, launch_server: Any, tmp_path: Path) -> Callable[[], Cluster]:
    """Starts the chat service on the cluster that KUBECONFIG names at that moment."""

    def launch() -> Cluster:
        port = tmp_path / "inner"
        cluster.server = launch_server(
            "llamero.chat", "--routes-config-map", f"{cluster.namespace}/{ROUTES_NAME}", "--port", "0",
            "--inner-port", "0", "--inner-port-file", str(port),
        )  # fmt: skip
        cluster.inner = f"http://127.0.0.1:{port.read_text().strip()}"
        return cluster

    return launch


async def test_each_change_is_in_force_at_once_and_what_is_broken_or_gone_changes_nothing(
    cluster: Cluster, start: Callable[[], Cluster]
) -> None:
    start()
    await cluster.until_logged("waiting for it")
    assert not await cluster.is_ready(), "no routes have been read"
    await cluster.create(routes("r1", "tutor"))
    await cluster.until_revision("r1")
    assert await cluster.is_ready()
    delays = []
    for n in range(2, 12):
        await cluster.write(routes(f"r{n}", "tutor"))
        delays.append(await cluster.until_revision(f"r{n}"))
    # The write was answered before the clock started; half a second is room for a busy machine, not for polling.
    assert sorted(delays)[5] < 0.5, delays
    await cluster.write("{broken")
    await cluster.until_logged("is broken")
    await cluster.write(None)
    await cluster.until_logged("has no key")
    await cluster.delete()
    await cluster.until_logged("was deleted")
    assert await cluster.revision() == "r11" and await cluster.is_ready()
    await cluster.create(routes("again", "tutor"))
    await cluster.until_revision("again")
    assert cluster.server.stop(5) == 0


async def test_an_api_server_that_is_away_or_forgets_changes_nothing_until_it_is_back(
    cluster: Cluster,
    start: Callable[[], Cluster],
    fault_proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(fault_proxy.write_kubeconfig(tmp_path / "kubeconfig")))
    await cluster.create(routes("r1", "tutor"))
    start()
    await cluster.until_revision("r1")
    fault_proxy.block()
    await cluster.write(routes("r2", "tutor"))
    await cluster.until_logged("broke off", times=3)
    assert await cluster.revision() == "r1" and await cluster.is_ready()
    fault_proxy.unblock()
    await cluster.until_revision("r2")
    # The watch is cut and the next is told that history does not reach back so far: the list is read anew.
    fault_proxy.gone.next(2)
    fault_proxy.block()
    await cluster.write(routes("r3", "tutor"))
    fault_proxy.unblock()
    await cluster.until_revision("r3")
    await cluster.write(routes("r4", "tutor"))
    await cluster.until_revision("r4")
    assert fault_proxy.gone.times == 2
    assert cluster.server.stop(5) == 0


async def test_a_watch_that_falls_silent_is_opened_anew(
    cluster: Cluster, control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(configmap, "WATCH_SECONDS", 2)
    monkeypatch.setattr(configmap, "SILENT_WATCH_SECONDS", 3.0)
    await cluster.create(routes("r1", "tutor"))
    table = RouteTable()
    address = urlsplit(control_plane.url)
    assert address.hostname and address.port
    with TcpProxy(address.hostname, address.port) as proxy:
        url, authority = f"https://127.0.0.1:{proxy.port}", control_plane.authority.certificate
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", url, authority, token=control_plane.access.token)
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        watching = asyncio.create_task(
            configmap.RoutesConfigMap(ConfigMapName(cluster.namespace, ROUTES_NAME), table).watch()
        )
        async with asyncio.timeout(60):
            while table.routes.revision != "r1":
                await asyncio.sleep(0.01)
            proxy.silence()
            await cluster.write(routes("r2", "tutor"))
            while "fell silent" not in caplog.text:
                await asyncio.sleep(0.05)
            assert table.routes.revision == "r1"
            proxy.resume()
            while table.routes.revision != "r2":
                await asyncio.sleep(0.01)
        watching.cancel()


async def test_rights_on_that_one_config_map_are_enough(
    cluster: Cluster, start: Callable[[], Cluster], control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [ROUTES_NAME],
        "verbs": ["get", "list", "watch"],
    }
    group = "rbac.authorization.k8s.io"
    control_plane.apply(
        *[
            {"apiVersion": api, "kind": kind, "metadata": {"name": "chat", "namespace": cluster.namespace}, **more}
            for api, kind, more in [
                ("v1", "ServiceAccount", {}),
                (f"{group}/v1", "Role", {"rules": [rule]}),
                (
                    f"{group}/v1",
                    "RoleBinding",
                    {
                        "roleRef": {"apiGroup": group, "kind": "Role", "name": "chat"},
                        "subjects": [{"kind": "ServiceAccount", "name": "chat", "namespace": cluster.namespace}],
                    },
                ),
            ]
        ]
    )
    await cluster.create(routes("r1", "tutor"))
    monkeypatch.setenv("KUBECONFIG", str(control_plane.service_account_kubeconfig(cluster.namespace, "chat")))
    start()
    await cluster.until_revision("r1")
    await cluster.write(routes("r2", "tutor"))
    await cluster.until_revision("r2")
    assert cluster.server.stop(5) == 0


def test_exactly_one_source_of_routes_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, said in [
        ([], "one of the arguments --routes --routes-config-map is required"),
        (["--routes", "a", "--routes-config-map", "b/c"], "not allowed with"),
        (["--routes-config-map", "nameless"], "must be NAMESPACE/NAME"),
    ]:
        with pytest.raises(SystemExit) as ended:
            parse_settings(arguments)
        assert ended.value.code == 2 and said in capfd.readouterr().err
