"""The client's verbs against the real API server."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cluster.control_plane import ControlPlane
from cluster.faults import FaultProxy
from cluster.manifests import build_job, shell

from llamero.kube import (
    Away,
    ClientOptions,
    Conflict,
    Kube,
    NotFound,
    Refused,
    Witness,
    children,
    connect,
    discovery,
    jobs,
)
from llamero.kube.events import EventRecorder
from llamero.kube.objects import JOBS

FINALIZER = "llamero.dev/cleanup"


class Counting(Witness):
    """Counts writes and retries."""

    def __init__(self) -> None:
        self.points: list[tuple[str, str, str]] = []
        self.answers: list[tuple[str, str, int]] = []
        self.retries = 0

    def before_write(self, verb: str, kind: str) -> None:
        self.points.append(("before", verb, kind))

    def after_write(self, verb: str, kind: str) -> None:
        self.points.append(("after", verb, kind))

    def answered(self, verb: str, kind: str, status: int, seconds: float) -> None:
        self.answers.append((verb, kind, status))

    def retried(self, verb: str, kind: str, why: str) -> None:
        self.retries += 1


def build_finetunejob(name: str = "tutor") -> dict[str, Any]:
    return {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "baseModel": {"uri": "/played/base"},
            "data": {"sources": [{"uri": "/played/data.json", "format": "alpaca"}]},
        },
    }


@pytest.fixture
async def kube(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    async with await connect() as client:
        yield client


async def test_a_status_is_written_only_from_the_newest_version(kube: Kube, namespace: str) -> None:
    old = await jobs.create_job(kube, namespace, build_finetunejob())
    new = await jobs.ensure_status(kube, old, {"phase": "Pending", "runCause": "", "run": 1})
    assert new["status"] == {"phase": "Pending", "run": 1}
    with pytest.raises(Conflict):
        await jobs.ensure_status(kube, old, {"phase": "Training"})
    assert (await jobs.observe_job(kube, namespace, "tutor"))["status"]["phase"] == "Pending"


async def test_a_finalizer_holds_a_job_until_it_is_taken_away(kube: Kube, namespace: str) -> None:
    created = await jobs.create_job(kube, namespace, build_finetunejob())
    held = await jobs.ensure_finalizer(kube, created)
    assert await jobs.ensure_finalizer(kube, held) == held
    with pytest.raises(Conflict):
        await jobs.ensure_finalizer(kube, created)
    assert await jobs.delete_job(kube, namespace, "tutor", held["metadata"]["uid"])
    going = await jobs.observe_job(kube, namespace, "tutor")
    assert going["metadata"]["finalizers"] == [FINALIZER]
    await jobs.delete_finalizer(kube, going)
    with pytest.raises(NotFound):
        await jobs.observe_job(kube, namespace, "tutor")
    assert not await jobs.delete_job(kube, namespace, "tutor")


async def test_a_child_that_is_there_is_success_and_one_that_is_gone_too(kube: Kube, namespace: str) -> None:
    manifest = build_job("child", shell("true"))
    manifest["metadata"]["namespace"] = namespace
    assert await children.ensure_child(kube, manifest) is not None
    assert await children.ensure_child(kube, manifest) is None
    await children.delete_child(kube, namespace, "child", uid="another")
    await children.delete_child(kube, namespace, "child")
    await children.delete_child(kube, namespace, "never-was")


async def test_an_adapter_is_made_once_and_never_becomes_another(kube: Kube, namespace: str) -> None:
    manifest: dict[str, Any] = {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "Adapter",
        "metadata": {"name": "tutor-r1", "namespace": namespace},
        "spec": {
            "uri": "s3://a",
            "sha256": "a" * 64,
            "base": "b",
            "baseSha256": "c",
            "model": "tutor",
            "recipeDigest": "",
        },
    }
    await children.ensure_adapter(kube, manifest)
    found = await children.ensure_adapter(kube, manifest)
    assert found["spec"]["sha256"] == "a" * 64
    manifest["spec"] = {**manifest["spec"], "sha256": "d" * 64}
    with pytest.raises(Refused, match="other files"):
        await children.ensure_adapter(kube, manifest)
    (only,) = await children.observe_adapters(kube, namespace)
    assert only["spec"]["sha256"] == "a" * 64


async def test_a_secret_is_made_and_then_changed_without_being_read(
    kube: Kube, control_plane: ControlPlane, namespace: str
) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": namespace},
        "data": {"url": "YQ=="},
    }
    await children.ensure_secret(kube, manifest)
    await children.ensure_secret(kube, {**manifest, "data": {"url": "Yg=="}})
    assert control_plane.api.get(f"/api/v1/namespaces/{namespace}/secrets/s")["data"] == {"url": "Yg=="}


async def test_a_refusal_is_told_with_the_server_s_sentence(kube: Kube, namespace: str) -> None:
    wrong = build_finetunejob()
    wrong["spec"]["training"] = {"method": "magic"}
    with pytest.raises(Refused, match="magic"):
        await jobs.create_job(kube, namespace, wrong)


async def test_a_repeated_event_raises_a_count_and_a_restart_does_not_say_it_twice(
    kube: Kube, control_plane: ControlPlane, namespace: str
) -> None:
    job = await jobs.create_job(kube, namespace, build_finetunejob())
    clock = [0.0]
    recorder = EventRecorder(kube, "llamero-operator", clock=lambda: clock[0])
    for _ in range(5):
        await recorder.record(job, "Started", "Run 1 starts.")
    clock[0] += 61
    await recorder.record(job, "Started", "Run 1 starts.")
    await EventRecorder(kube, "llamero-operator").record(job, "Started", "Run 1 starts.")
    (event,) = control_plane.api.items(f"/api/v1/namespaces/{namespace}/events")
    assert (event["count"], event["reason"], event["type"]) == (6, "Started", "Normal")
    for number in range(60):
        await recorder.record(job, "Chatter", f"number {number}", warning=True)
    assert len(control_plane.api.items(f"/api/v1/namespaces/{namespace}/events")) <= 26


async def test_the_server_s_version_and_kinds_are_known(kube: Kube) -> None:
    capabilities = await discovery.observe_capabilities(kube)
    assert capabilities.version >= (1, 20)
    assert capabilities.job_suspend == (capabilities.version >= (1, 22))
    assert {"finetunejobs", "adapters"} <= await discovery.observe_kinds(kube)


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ({"major": "1", "minor": "28+", "gitVersion": "v1.28.3-eks-1"}, (1, 28)),
        ({"major": "", "minor": "", "gitVersion": "v1.20.2"}, (1, 20)),
        ({"major": "1", "minor": "31+"}, (1, 31)),
        ({}, (0, 0)),
    ],
)
def test_versions_are_read_as_clouds_write_them(answer: dict[str, str], version: tuple[int, int]) -> None:
    assert discovery.parse_version(answer) == version


async def test_versions_of_objects_are_listed_without_the_objects(kube: Kube, namespace: str) -> None:
    created = await jobs.create_job(kube, namespace, build_finetunejob())
    metadata = created["metadata"]
    async with asyncio.timeout(10):
        while True:  # the server's cache, from which the list comes, may be a moment behind
            listed_at, found = await discovery.observe_versions(kube, JOBS, namespace, None)
            if found:
                break
    assert found == {(namespace, "tutor"): (metadata["uid"], int(metadata["resourceVersion"]))}
    assert listed_at >= int(metadata["resourceVersion"])


async def test_a_watch_shows_what_is_there_and_then_each_change_over_a_cut_connection(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        monkeypatch.setenv("KUBECONFIG", str(proxy.write_kubeconfig(tmp_path / "kubeconfig")))
        async with await connect() as kube:
            await jobs.create_job(kube, namespace, build_finetunejob())
            seen = jobs.watch_jobs(kube, namespace)
            async with asyncio.timeout(60):
                assert (await anext(seen)).job["metadata"]["name"] == "tutor"
                await jobs.annotate_job(kube, namespace, "tutor", {"a": "b"})
                assert (await anext(seen)).job["metadata"]["annotations"] == {"a": "b"}
                proxy.gone.next(1)
                proxy.cut_connections()
                await jobs.patch_spec(kube, namespace, "tutor", {"suspend": True})
                assert (await anext(seen)).job["spec"]["suspend"] is True
                await jobs.delete_job(kube, namespace, "tutor")
                assert (await anext(seen)).is_deleted


async def test_an_applied_manifest_is_created_and_then_changed(kube: Kube, namespace: str) -> None:
    manifest = build_finetunejob()
    await jobs.apply_job(kube, namespace, manifest)
    manifest["spec"]["suspend"] = True
    assert (await jobs.apply_job(kube, namespace, manifest))["spec"]["suspend"] is True


async def test_every_write_is_witnessed_before_and_after(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    witness = Counting()
    async with await connect(witness=witness) as kube:
        await jobs.create_job(kube, namespace, build_finetunejob())
        await jobs.observe_job(kube, namespace, "tutor")
    assert witness.points == [("before", "create", "FineTuneJob"), ("after", "create", "FineTuneJob")]
    assert witness.answers == [("create", "FineTuneJob", 201), ("get", "FineTuneJob", 200)]


async def test_reads_are_tried_again_and_a_write_whose_answer_was_lost_is_not(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = Counting()
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        monkeypatch.setenv("KUBECONFIG", str(proxy.write_kubeconfig(tmp_path / "kubeconfig")))
        async with await connect(witness=witness) as kube:
            proxy.cuts_after.next(1)
            with pytest.raises(Away, match="no answer"):
                await jobs.create_job(kube, namespace, build_finetunejob())
            assert proxy.writes["POST", "finetunejobs"] == 1
            proxy.cuts.next(2)
            assert (await jobs.observe_job(kube, namespace, "tutor"))["metadata"]["name"] == "tutor"
            assert witness.retries >= 1  # aiohttp itself asks once more where a kept connection was closed
            proxy.throttles.next(1)
            await jobs.annotate_job(kube, namespace, "tutor", {"a": "b"})
            assert proxy.writes["PATCH", "finetunejobs"] == 2


async def test_a_server_that_is_not_there_is_away_within_the_client_s_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control_plane: ControlPlane
) -> None:
    with FaultProxy(control_plane.access, control_plane.server_pair) as proxy:
        monkeypatch.setenv("KUBECONFIG", str(proxy.write_kubeconfig(tmp_path / "kubeconfig")))
    async with await connect(ClientOptions(retry_seconds=1)) as kube:
        with pytest.raises(Away, match="can't be reached"):
            await jobs.observe_jobs(kube)


async def test_a_kubeconfig_that_can_not_be_used_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(Refused, match="set KUBECONFIG"):
        await connect()
    assert os.environ["KUBECONFIG"]


async def test_a_refusal_of_the_moment_is_not_taken_for_what_was_asked_for(
    control_plane: ControlPlane,
    fault_proxy: FaultProxy,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 409 that is no AlreadyExists: the Job is not there, the other one not gone, the Secret not written."""
    monkeypatch.setenv("KUBECONFIG", str(fault_proxy.write_kubeconfig(tmp_path / "kubeconfig")))
    manifest = build_job("refused", shell("true"))
    manifest["metadata"]["namespace"] = namespace
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": namespace}, "data": {}}
    async with await connect() as kube:
        fault_proxy.conflicts.next(1)
        with pytest.raises(Conflict):
            await children.ensure_child(kube, manifest)
        created = await children.ensure_child(kube, manifest)
        assert created is not None
        fault_proxy.conflicts.next(1)
        with pytest.raises(Conflict):
            await children.delete_child(kube, namespace, "refused", created["metadata"]["uid"])
        await children.delete_child(kube, namespace, "refused", created["metadata"]["uid"])
        fault_proxy.conflicts.next(1)
        with pytest.raises(Conflict):
            await children.ensure_secret(kube, secret)
        await children.ensure_secret(kube, secret)
        await children.ensure_secret(kube, secret)
