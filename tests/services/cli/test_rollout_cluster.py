"""`llamero servers`, `rollout` and `adapters` against a real API server; the test writes the statuses that an operator would."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamero.spec.digest import digest_files
from llamero.spec.names import ADAPTER_PLURAL, GROUP, SERVER_PLURAL, VERSION
from llamero.spec.results import AdapterManifest
from llamero.storage import find_damage

BASE = "s3://models/tiny-base"
SINCE = "2026-01-02T03:04:05Z"

Object = dict[str, Any]
MakeServer = Callable[..., Object]


def path(cluster: Any, plural: str, name: str = "", subresource: str = "") -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{cluster.namespace}/{plural}{f'/{name}' if name else ''}{subresource}"


@pytest.fixture
def make_adapter(cluster: Any) -> Callable[..., Object]:
    """`make_adapter(name, model="tutor", server="shared", **status)`."""

    def make(name: str, model: str = "tutor", server: str = "shared", **status: Any) -> Object:
        spec = {"uri": f"s3://a/{name}", "sha256": "a" * 64, "base": BASE, "baseSha256": "b" * 64, "model": model}
        manifest = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Adapter",
            "metadata": {"name": name},
            "spec": {**spec, "server": server},
        }
        made = cluster.plane.api.create(manifest, cluster.namespace)
        if status:
            made = cluster.plane.api.patch(path(cluster, ADAPTER_PLURAL, name, "/status"), {"status": status})
        return made

    return make


@pytest.fixture
def make_server(cluster: Any) -> MakeServer:
    """`make_server(name, models=[…], status={…})`."""

    def make(name: str = "shared", models: list[Object] | None = None, status: Object | None = None) -> Object:
        spec = {"baseModel": {"uri": BASE}, "engine": {"type": "cpu"}, "models": models or []}
        manifest = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "ModelServer", "metadata": {"name": name}, "spec": spec}
        made = cluster.plane.api.create(manifest, cluster.namespace)
        if status:
            made = cluster.plane.api.patch(path(cluster, SERVER_PLURAL, name, "/status"), {"status": status})
        return made

    return make


def entry(cluster: Any, name: str = "tutor", server: str = "shared") -> Object | None:
    spec = cluster.plane.api.get(path(cluster, SERVER_PLURAL, server))["spec"]
    return next((e for e in spec.get("models") or [] if e["name"] == name), None)


def generation(cluster: Any, server: str = "shared") -> int:
    return int(cluster.plane.api.get(path(cluster, SERVER_PLURAL, server))["metadata"]["generation"])


CANARY = {
    "observedGeneration": 1,
    "phase": "Ready",
    "replicas": 2,
    "readyReplicas": 2,
    "models": [
        {
            "name": "tutor",
            "state": "Canary",
            "adapter": "old",
            "canary": "young",
            "weight": 25,
            "step": 1,
            "stepStartedAt": SINCE,
            "message": "young answers 25% of the callers (step 2 of 4).",
        }
    ],
    "adapters": [{"name": "old", "id": "d-old-aaaaaaaa", "state": "Ready", "pods": 2}],
    "pods": [{"name": "shared-engine-1", "ready": True, "adapters": ["d-old-aaaaaaaa"]}],
}


@pytest.fixture
def canary(make_adapter: Callable[..., Object], make_server: MakeServer) -> None:
    """A server whose name tutor is served by `old`, while `young` takes over."""
    make_adapter("old")
    make_adapter("young")
    make_server(status=CANARY)


class TestLooking:
    def test_servers_are_listed_with_phase_engine_pods_and_names(self, cluster: Any, canary: None) -> None:
        told = cluster.llamero("servers").stdout.splitlines()
        assert told[0].split() == ["NAME", "PHASE", "ENGINE", "PODS", "MODELS", "AGE"]
        assert told[1].split()[:5] == ["shared", "Ready", "cpu", "2/2", "tutor"]
        assert BASE in cluster.llamero("servers", "-o", "wide").stdout
        assert [
            s["metadata"]["name"] for s in json.loads(cluster.llamero("servers", "-o", "json").stdout)["items"]
        ] == ["shared"]
        assert yaml.safe_load(cluster.llamero("servers", "shared", "-o", "yaml").stdout)["kind"] == "ModelServer"

    def test_one_server_is_told_with_its_names_adapters_and_pods(self, cluster: Any, canary: None) -> None:
        told = cluster.llamero("servers", "shared").stdout
        for words in (f"ModelServer {cluster.namespace}/shared: Ready", "d-old-aaaaaaaa", "shared-engine-1", "tutor"):
            assert words in told

    def test_a_rollout_is_told_with_its_step_and_the_names_adapters(self, cluster: Any, canary: None) -> None:
        told = cluster.llamero("rollout", "status").stdout.splitlines()
        assert told[1].split()[:6] == ["tutor", "Canary", "old", "young", "25%", "2"]
        told = cluster.llamero("rollout", "status", "tutor").stdout
        assert "young answers 25% of the callers (step 2" in told
        assert "Serving" in next(line for line in told.splitlines() if line.startswith("old"))

    def test_adapters_are_listed_with_what_became_of_them(
        self, cluster: Any, make_adapter: Callable[..., Object], condition: Callable[..., Object]
    ) -> None:
        make_adapter(
            "good", conditions=[condition("Serving", "True", "Serving", "It answers 100% of tutor.")], weight=100
        )
        make_adapter("bad", conditions=[condition("Verified", "False", "Refused", "It is torn.")])
        told = {line.split()[0]: line.split() for line in cluster.llamero("adapters", "list").stdout.splitlines()}
        assert told["good"][1:5] == ["tutor", "shared", "Serving", "100%"]
        assert told["bad"][3] == "Refused"
        assert len(json.loads(cluster.llamero("adapters", "list", "-o", "json").stdout)["items"]) == 2

    def test_where_there_is_nothing_it_says_so(self, cluster: Any) -> None:
        assert cluster.llamero("servers").stderr == f"No servers in namespace {cluster.namespace}.\n"
        assert cluster.llamero("adapters", "list").stderr == f"No adapters in namespace {cluster.namespace}.\n"

    def test_waiting_ends_with_the_rollout(self, cluster: Any, canary: None) -> None:
        late = cluster.llamero("rollout", "status", "tutor", "--wait", "--timeout", "0.1")
        assert late.exit_code == 1 and "Not over within the time given: tutor is Canary" in late.stderr
        done = {**CANARY, "models": [{"name": "tutor", "state": "Serving", "adapter": "young", "previous": "old"}]}
        cluster.plane.api.patch(path(cluster, SERVER_PLURAL, "shared", "/status"), {"status": done})
        ended = cluster.llamero("rollout", "status", "tutor", "--wait")
        assert ended.exit_code == 0 and "young serves all callers of tutor." in ended.stdout

    @pytest.mark.parametrize("state", ["RolledBack", "Retired"])
    def test_waiting_ends_with_1_where_nothing_will_take_over(self, cluster: Any, canary: None, state: str) -> None:
        cluster.llamero("rollout", "rollback", "tutor")
        told = {**CANARY, "models": [{"name": "tutor", "state": state, "adapter": "old", "message": "Because."}]}
        cluster.plane.api.patch(path(cluster, SERVER_PLURAL, "shared", "/status"), {"status": told})
        ended = cluster.llamero("rollout", "status", "tutor", "--wait")
        assert (ended.exit_code, ended.stderr) == (1, f"tutor is {state}: Because.\n")


class TestWishes:
    @pytest.mark.parametrize(
        ("arguments", "wanted", "says"),
        [
            (("pause", "tutor"), {"paused": True}, "young stays at 25% of the callers"),
            (("promote", "tutor"), {"promote": "young"}, "young takes all callers of tutor"),
            (("rollback", "tutor"), {"rollback": ["young"]}, "tutor stays with old"),
            (("pin", "tutor"), {"adapter": "old"}, "tutor stays with old"),
            (("pin", "tutor", "--adapter", "young"), {"adapter": "young"}, "young takes over tutor"),
        ],
    )
    def test_a_verb_sets_the_names_entry_and_does_nothing_the_second_time(
        self, cluster: Any, canary: None, arguments: tuple[str, ...], wanted: Object, says: str
    ) -> None:
        first = cluster.llamero("rollout", *arguments)
        assert first.exit_code == 0, first.stderr
        assert first.stdout.startswith(f"tutor on ModelServer {cluster.namespace}/shared configured: ")
        assert says in first.stdout
        found = entry(cluster)
        assert found is not None and {k: found.get(k) for k in wanted} == wanted
        before = generation(cluster)
        second = cluster.llamero("rollout", *arguments)
        assert second.exit_code == 0 and " unchanged: " in second.stdout
        assert generation(cluster) == before

    def test_what_was_wished_is_taken_back(self, cluster: Any, canary: None) -> None:
        cluster.llamero("rollout", "pause", "tutor")
        assert "goes on from where it was" in cluster.llamero("rollout", "resume", "tutor").stdout
        assert not (entry(cluster) or {}).get("paused")
        cluster.llamero("rollout", "pin", "tutor", "--adapter", "old")
        assert "configured" in cluster.llamero("rollout", "unpin", "tutor").stdout
        assert not (entry(cluster) or {}).get("adapter")

    def test_another_try_raises_the_number_once(
        self,
        cluster: Any,
        make_adapter: Callable[..., Object],
        make_server: MakeServer,
        condition: Callable[..., Object],
    ) -> None:
        make_adapter("old")
        make_adapter("young", conditions=[condition("RolledBack", "True", "AnalysisFailed", "slow")], retry=2)
        make_server(status={"models": [{"name": "tutor", "state": "RolledBack", "adapter": "old"}]})
        for _ in range(2):
            assert cluster.llamero("rollout", "retry", "tutor").exit_code == 0
            assert (entry(cluster) or {})["retry"] == 3

    def test_other_entries_stay_as_they_are(
        self, cluster: Any, make_adapter: Callable[..., Object], make_server: MakeServer
    ) -> None:
        make_adapter("old")
        make_server(models=[{"name": "poet", "adapter": "verse"}, {"name": "tutor", "strategy": {"steps": [50, 100]}}])
        cluster.llamero("rollout", "pause", "tutor")
        assert (entry(cluster, "poet") or {})["adapter"] == "verse"
        found = entry(cluster) or {}
        assert found["paused"] is True and found["strategy"]["steps"] == [50, 100]

    def test_an_unknown_model_lists_the_known_ones(self, cluster: Any, canary: None) -> None:
        answer = cluster.llamero("rollout", "pause", "poet")
        assert (answer.exit_code, answer.stderr) == (2, "There is no model poet here: known are tutor.\n")
        answer = cluster.llamero("rollout", "pause", "tutor", "--server", "other")
        assert (answer.exit_code, answer.stderr) == (2, "There is no server other here: known are shared.\n")

    def test_this_machine_and_a_cluster_can_t_both_be_meant(self, cluster: Any) -> None:
        answer = cluster.llamero("rollout", "pause", "tutor", "--local")
        assert answer.exit_code == 2 and "choose" in answer.stderr


@pytest.fixture
def made_elsewhere(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """An adapter as PEFT saves it, without a manifest."""
    return Path(shutil.copytree(adapters["plain-a"], tmp_path / "made elsewhere"))


class TestImport:
    def run(self, cluster: Any, name: str, source: Path | str, *options: str) -> Any:
        return cluster.llamero("adapters", "import", name, str(source), "--model", "tutor", *options)

    def find(self, cluster: Any, name: str) -> Object:
        found: Object = cluster.plane.api.get(path(cluster, ADAPTER_PLURAL, name))
        return found

    def test_a_folder_is_copied_with_a_manifest_and_golden_prompts_and_described(
        self, cluster: Any, made_elsewhere: Path, random_base: Path, tmp_path: Path
    ) -> None:
        options = ("--base", BASE, "--base-folder", str(random_base), "--to", str(tmp_path / "a store"))
        answer = self.run(cluster, "elsewhere", made_elsewhere, *options, "--server", "shared", "--engine", "cpu")
        assert (answer.exit_code, answer.stderr) == (0, "")
        assert (
            answer.stdout
            == f"Adapter {cluster.namespace}/elsewhere created: shared serves it as tutor, step by step.\n"
        )
        spec = self.find(cluster, "elsewhere")["spec"]
        folder = tmp_path / "a store" / "elsewhere" / spec["sha256"]
        assert spec["uri"] == f"file://{folder}"
        manifest = AdapterManifest.model_validate_json((folder / "manifest.json").read_bytes())
        assert find_damage(folder, manifest.files) is None
        assert manifest.sha256 == spec["sha256"] == digest_files(manifest.files)
        assert (spec["base"], spec["model"], spec["server"]) == (BASE, "tutor", "shared")
        assert (folder / f"golden-{spec['goldenSha256'][:8]}.json").is_file()
        again = self.run(cluster, "elsewhere", made_elsewhere, *options, "--server", "shared", "--engine", "cpu")
        assert (again.exit_code, again.stdout) == (
            0,
            f"Adapter {cluster.namespace}/elsewhere unchanged: it has these files already.\n",
        )

    def test_what_pods_can_read_is_described_where_it_lies(self, cluster: Any, made_elsewhere: Path) -> None:
        answer = self.run(cluster, "mounted", f"file://{made_elsewhere}", "--base", BASE)
        assert answer.exit_code == 0, answer.stderr
        assert "a ModelServer that pins it serves it as tutor" in answer.stdout
        assert "Without --base-folder" in answer.stderr and "Without golden prompts" in answer.stderr
        assert self.find(cluster, "mounted")["spec"]["uri"] == f"file://{made_elsewhere}"

    def test_adapters_never_change(self, cluster: Any, adapters: dict[str, Path]) -> None:
        self.run(cluster, "fixed", f"file://{adapters['plain-a']}", "--base", BASE)
        answer = self.run(cluster, "fixed", f"file://{adapters['plain-b']}", "--base", BASE)
        assert answer.exit_code == 1
        assert "with other files already, and adapters never change: import it under another name." in answer.stderr

    @pytest.mark.parametrize(
        ("name", "spoil", "options", "says"),
        [
            ("elsewhere", None, (), "lies on this machine, where pods can't see it: --to names storage"),
            ("elsewhere", None, ("--to", "STORE"), "does not say which base it belongs to: --base names it"),
            ("Not_A_Name", None, ("--to", "STORE", "--base", BASE), "is no name for an Adapter: lower-case letters"),
            ("elsewhere", "weights", ("--to", "STORE", "--base", BASE), "adapter_model.safetensors is missing"),
            ("elsewhere", "rank", ("--to", "STORE", "--base", BASE, "--base-folder", "BASE"), "adapter_config.json says 3"),
            ("elsewhere", None, ("--to", "STORE", "--base", BASE, "--base-folder", "nowhere"), "nowhere does not exist"),
        ],
    )  # fmt: skip
    def test_what_can_t_be_served_is_refused_and_nothing_is_copied(
        self,
        cluster: Any,
        made_elsewhere: Path,
        random_base: Path,
        tmp_path: Path,
        name: str,
        spoil: str | None,
        options: tuple[str, ...],
        says: str,
    ) -> None:
        if spoil == "weights":
            (made_elsewhere / "adapter_model.safetensors").unlink()
        if spoil == "rank":
            config = json.loads((made_elsewhere / "adapter_config.json").read_text())
            (made_elsewhere / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
        filled = [
            str(tmp_path / "a store") if o == "STORE" else str(random_base) if o == "BASE" else o for o in options
        ]
        answer = self.run(cluster, name, made_elsewhere, *filled)
        assert answer.exit_code == 2 and says in answer.stderr, answer.stderr
        assert not (tmp_path / "a store").exists()
        assert cluster.plane.api.find(path(cluster, ADAPTER_PLURAL, "elsewhere")) is None

    def test_the_public_name_must_be_one(self, cluster: Any, made_elsewhere: Path) -> None:
        answer = cluster.llamero("adapters", "import", "elsewhere", f"file://{made_elsewhere}", "--model", "two words")
        assert answer.exit_code == 2 and "`two words` is no public name" in answer.stderr

    def test_a_deleted_adapter_waits_for_who_serves_it(self, cluster: Any, make_adapter: Callable[..., Object]) -> None:
        make_adapter("old")
        answer = cluster.llamero("adapters", "delete", "old")
        assert answer.stdout == (
            f"Adapter {cluster.namespace}/old is being deleted: it goes as soon as no request can go to it.\n"
        )
        assert cluster.plane.api.find(path(cluster, ADAPTER_PLURAL, "old")) is None
        answer = cluster.llamero("adapters", "delete", "old")
        assert answer.exit_code == 1 and "`llamero adapters list -A` lists what there is" in answer.stderr
