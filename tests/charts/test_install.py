"""Helm installs the chart on a real API server, where the operator runs from the chart's own Deployment under the chart's own rights.

The server is one of these tests' own: it must not know the CRDs before. Pods run as processes (tests/cluster).
"""

import base64
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from charts.helm import CHART, Helm, Manifest
from cluster.api import path_of
from cluster.control_plane import ControlPlane
from cluster.node import NodeOptions, NodeThread
from cluster.processes import free_port
from cluster.redis_server import RedisServer
from cluster.waiting import until

from llamero.spec import names

pytestmark = [pytest.mark.timeout(900)]

RELEASE = "llamero"
NAMESPACE = "llamero"
TEAM = "team"
DEPLOYMENT = "deployment/llamero-operator"
SMALL = {"cpuRequest": "50m", "memoryRequest": "64Mi", "scratch": "2Gi"}


@dataclass
class Cluster:
    """The server, Helm on it, and the values of the release at hand."""

    plane: ControlPlane
    helm: Helm
    folder: Path

    def install(self, values: Manifest, namespace: str, verb: str = "install") -> None:
        file = self.folder / f"{namespace}.yaml"
        file.write_text(yaml.safe_dump(values))
        # A 1.20 server knows no CEL: its OpenAPI makes Helm refuse what the server itself takes.
        options = ("--namespace", namespace, "--values", str(file), "--disable-openapi-validation", "--wait")
        self.helm.run(verb, RELEASE, str(CHART), *options, "--timeout", "180s")

    def get(self, kind: str, name: str, namespace: str | None = None, version: str = "v1") -> Manifest | None:
        return self.plane.api.find(path_of(version, kind, namespace, name))

    def crd_uids(self) -> dict[str, str]:
        found = self.plane.api.items(path_of("apiextensions.k8s.io/v1", "CustomResourceDefinition"))
        return {crd["metadata"]["name"]: crd["metadata"]["uid"] for crd in found}

    def job(self, name: str) -> Manifest:
        found: Manifest = json.loads(self.plane.kubectl("get", "ftj", name, "-o", "json", namespace=TEAM).stdout)
        return found

    def may(self, verb: str, resource: str, namespace: str = TEAM, who: str = "llamero-operator") -> bool:
        """Whether an account of the release may do so, by default the operator's."""
        account = f"--as=system:serviceaccount:{NAMESPACE}:{who}"
        thing, _, part = resource.partition("/")
        # A word behind a slash is an object's name to kubectl, also where a subresource is meant.
        what = [thing, f"--subresource={part}"] if part in ("status", "finalizers") else [resource]
        done = self.plane.kubectl("auth", "can-i", verb, *what, account, namespace=namespace, check=False)
        return done.stdout.strip().splitlines()[-1:] == ["yes"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with (
        ControlPlane() as plane,
        NodeThread(plane.access, plane.folder / "nodes" / "node-a", "node-a", options=NodeOptions(gpus=1)),
    ):
        folder = tmp_path_factory.mktemp("chart")
        for name in (NAMESPACE, TEAM, "own-redis"):
            plane.kubectl("create", "namespace", name)
        yield Cluster(plane, Helm(folder, plane.kubeconfig), folder)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), password="a-password-of-the-tests") as server:
        yield server


@pytest.fixture(scope="module")
def values(broker: RedisServer) -> Manifest:
    """Named namespaces, a Redis by its address, the chart's own claim."""
    return {
        "settings": {
            "namespaces": [TEAM],
            "healthPort": free_port(),
            "metricsPort": free_port(),
            "pods": {kind: dict(SMALL) for kind in ("data", "evaluation", "helper", "cpu", "agent")}
            | {"training": {**SMALL, "sharedMemory": "256Mi"}},
            "intervals": {"statusIntervalSeconds": 1, "pollSeconds": 5},
        },
        "redis": {"url": f"{broker.url}/0"},
        "storage": {"size": "1Gi"},
    }


@pytest.fixture(scope="module")
def installed(cluster: Cluster, values: Manifest) -> Cluster:
    """The release, installed and ready."""
    assert not cluster.crd_uids()
    try:
        cluster.install(values, NAMESPACE)
    except Exception:
        print(cluster.plane.describe(NAMESPACE))
        print(cluster.plane.kubectl("logs", DEPLOYMENT, namespace=NAMESPACE, check=False).stdout)
        raise
    return cluster


def build_job(repository: Path, data: Path) -> Manifest:
    rows = [
        {"instruction": f"Name thing {n}.", "input": "", "output": f"Thing {n} is number {n % 7}."} for n in range(60)
    ]
    data.write_text(json.dumps(rows))
    return {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "first"},
        "spec": {
            "baseModel": {"uri": str(repository / "examples" / "tiny-base")},
            "data": {"sources": [{"uri": str(data), "format": "alpaca"}], "workers": 1, "evaluationFraction": 0.1},
            "training": {
                # Long enough that the adapter answers otherwise than its base: one that does not is not served.
                "maxSteps": 40,
                "learningRate": 0.01,
                "sequenceLength": 128,
                "lora": {"rank": 4, "alpha": 8},
                "resources": {"gpus": 0},
            },
            "evaluation": {"maxNewTokens": 4, "gate": {"minPerplexityImprovement": -10}},
            "rollout": {"engine": "cpu"},
        },
    }


@pytest.fixture(scope="module")
def person(installed: Cluster) -> Path:
    """A kubeconfig of someone who has Kubernetes' own role `edit` in the team's namespace, and nothing else."""
    plane = installed.plane
    plane.kubectl("create", "serviceaccount", "person", namespace=TEAM)
    plane.kubectl(
        "create", "rolebinding", "person", "--clusterrole=edit", f"--serviceaccount={TEAM}:person", namespace=TEAM
    )
    return plane.service_account_kubeconfig(TEAM, "person")


@pytest.fixture(scope="module")
def finished(installed: Cluster, person: Path, repository: Path) -> Cluster:
    """A job that the person applied and that the operator took to its end."""
    plane = installed.plane
    manifest = yaml.safe_dump(build_job(repository, installed.folder / "things.json"))

    def may_create() -> bool:
        asked = plane.kubectl("auth", "can-i", "create", "ftj", namespace=TEAM, kubeconfig=person, check=False)
        return asked.stdout.strip() == "yes"

    until(may_create, "the role `edit` to take up the chart's rights")
    plane.kubectl("apply", "--validate=false", "-f", "-", namespace=TEAM, stdin=manifest, kubeconfig=person)
    done = plane.kubectl(
        "wait",
        "--for=condition=Complete",
        "ftj/first",
        "--timeout=400s",
        namespace=TEAM,
        seconds=420,
        kubeconfig=person,
        check=False,
    )
    if done.returncode:
        print(yaml.safe_dump(installed.job("first").get("status")), plane.describe(TEAM))
        print(plane.kubectl("logs", DEPLOYMENT, "--tail=100", namespace=NAMESPACE, check=False).stdout)
    assert done.returncode == 0, done.stderr
    return installed


def test_helm_brings_the_crds_and_the_operator_gets_ready(installed: Cluster) -> None:
    crds = {f"{plural}.llamero.dev" for plural in (names.PLURAL, names.ADAPTER_PLURAL, names.SERVER_PLURAL)}
    assert set(installed.crd_uids()) == crds
    deployment = installed.get("Deployment", "llamero-operator", NAMESPACE, "apps/v1")
    assert deployment is not None
    assert deployment["status"]["readyReplicas"] == 1


RIGHTS: dict[tuple[str, str, str], bool] = {
    ("list", "finetunejobs", TEAM): True,
    ("update", "finetunejobs/status", TEAM): True,
    ("create", "jobs.batch", TEAM): True,
    ("create", "secrets", TEAM): True,
    ("patch", "secrets/llamero-redis", TEAM): True,
    ("patch", "secrets/another", TEAM): False,
    ("get", "secrets/llamero-redis", TEAM): False,
    ("list", "secrets", TEAM): False,
    ("list", "secrets", NAMESPACE): False,
    ("create", "pods", TEAM): False,
    ("delete", "adapters", TEAM): False,
    ("list", "finetunejobs", "default"): False,
    ("create", "jobs.batch", NAMESPACE): False,
    ("get", "nodes", TEAM): False,
    ("watch", "modelservers", TEAM): True,
    ("update", "modelservers/status", TEAM): True,
    ("update", "modelservers/finalizers", TEAM): True,
    ("update", "modelservers", TEAM): False,
    ("delete", "modelservers", TEAM): False,
    ("patch", "adapters", TEAM): True,
    ("create", "deployments.apps", TEAM): True,
    ("delete", "deployments.apps", TEAM): False,
    ("create", "deployments.apps", NAMESPACE): False,
    ("patch", "configmaps", TEAM): True,
    ("list", "configmaps", TEAM): False,
    ("update", "configmaps/llamero-routes", NAMESPACE): True,
    ("update", "configmaps/llamero-settings", NAMESPACE): False,
    ("get", "configmaps/llamero-settings", NAMESPACE): False,
}


@pytest.mark.parametrize(("right", "is_given"), RIGHTS.items(), ids=[" ".join(r) for r in RIGHTS])
def test_the_operator_may_do_what_it_must_and_no_more(
    installed: Cluster, right: tuple[str, str, str], is_given: bool
) -> None:
    assert installed.may(*right) is is_given


CHAT_RIGHTS: dict[tuple[str, str, str], bool] = {
    ("get", "configmaps/llamero-routes", NAMESPACE): True,
    ("watch", "configmaps/llamero-routes", NAMESPACE): True,
    ("update", "configmaps/llamero-routes", NAMESPACE): False,
    ("get", "configmaps/llamero-settings", NAMESPACE): False,
    ("list", "configmaps", NAMESPACE): False,
    ("get", "configmaps/llamero-routes", TEAM): False,
    ("get", "secrets", NAMESPACE): False,
    ("list", "modelservers", TEAM): False,
}


@pytest.mark.parametrize(("right", "is_given"), CHAT_RIGHTS.items(), ids=[" ".join(r) for r in CHAT_RIGHTS])
def test_the_chat_service_may_read_its_routes_and_nothing_else(
    installed: Cluster, right: tuple[str, str, str], is_given: bool
) -> None:
    assert installed.may(*right, who="llamero-chat") is is_given


def chat_addresses(cluster: Cluster) -> list[str]:
    found = cluster.plane.api.items(path_of("v1", "Pod", NAMESPACE))
    chats = [p for p in found if p["metadata"]["labels"]["app.kubernetes.io/component"] == "chat"]
    return [str(p["status"]["podIP"]) for p in chats if not p["metadata"].get("deletionTimestamp")]


def ask(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return json.loads(answer.read())


def test_each_chat_pod_works_by_the_routes_that_the_operator_wrote(installed: Cluster) -> None:
    routes = installed.get("ConfigMap", names.ROUTES_NAME, NAMESPACE)
    assert routes is not None
    revision = json.loads(routes["data"][names.ROUTES_KEY])["revision"]
    addresses = chat_addresses(installed)
    assert len(addresses) == 2
    for address in addresses:
        assert ask(f"{address}:8080", "/v1/models")["object"] == "list"
        until(
            lambda address=address: ask(f"{address}:8081", "/v1/report")["revision"] == revision,
            "the chat service to work by the routes",
            30,
        )


def test_a_person_with_the_role_edit_runs_a_job_to_its_adapter(finished: Cluster, person: Path) -> None:
    status = finished.job("first")["status"]
    assert status["phase"] == "Succeeded"
    shown = finished.plane.kubectl("get", "adapters", namespace=TEAM, kubeconfig=person).stdout
    assert status["adapter"]["name"] in shown
    header, line = finished.plane.kubectl("get", "ftj", namespace=TEAM, kubeconfig=person).stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "LOSS", "ADAPTER", "AGE"]
    assert line.split()[:5] == ["first", "Succeeded", "100", status["training"]["lastLoss"], status["adapter"]["name"]]


def test_a_person_with_the_role_edit_writes_no_status(finished: Cluster, person: Path) -> None:
    asked = finished.plane.kubectl(
        "auth", "can-i", "update", "ftj", "--subresource=status", namespace=TEAM, kubeconfig=person, check=False
    )
    assert asked.stdout.strip() == "no"


def test_the_charts_chat_service_answers_by_the_jobs_adapter(finished: Cluster) -> None:
    address = f"{chat_addresses(finished)[0]}:8080"

    def is_served() -> bool:
        return "first" in [model["id"] for model in ask(address, "/v1/models")["data"]]

    try:
        until(is_served, "the job's adapter to be served", 120)
    except AssertionError:
        print(finished.plane.kubectl("get", "ms,adapters", "-o", "yaml", namespace=TEAM).stdout)
        print(finished.plane.describe(TEAM))
        raise
    (server,) = finished.plane.api.items(path_of("llamero.dev/v1alpha1", "ModelServer", TEAM))
    (served,) = server["status"]["models"]
    assert (served["name"], served["adapter"], served["state"]) == ("first", "first-r1", "Serving")
    body = {"model": "first", "messages": [{"role": "user", "content": "Name thing 3."}], "max_tokens": 4}
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = json.loads(answer.read())
    assert said["model"] == "first" and said["choices"][0]["message"]["role"] == "assistant"


def test_nothing_was_forbidden_to_the_operator_on_the_way(finished: Cluster) -> None:
    log = finished.plane.kubectl("logs", DEPLOYMENT, namespace=NAMESPACE).stdout
    assert "forbidden" not in log.lower(), log


def test_an_upgrade_keeps_crds_jobs_and_adapters_and_the_operator_goes_on(finished: Cluster, values: Manifest) -> None:
    until(lambda: conditions_of(finished.job("first")).get("RolledOut") == "True", "the job to tell of its rollout", 60)
    crds, before = finished.crd_uids(), finished.job("first")
    finished.install({**values, "settings": {**values["settings"], "logs": {"level": "debug"}}}, NAMESPACE, "upgrade")
    after = finished.job("first")
    assert finished.crd_uids() == crds
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert conditions_of(after) == conditions_of(before)
    assert {**after["status"], "conditions": None} == {**before["status"], "conditions": None}
    finished.plane.kubectl("patch", "ftj", "first", "--type=merge", "-p", '{"spec": {"suspend": true}}', namespace=TEAM)
    until(lambda: seen_generation(finished) == generation(finished), "the new operator to see an edit", 60)


def conditions_of(job: Manifest) -> dict[str, str]:
    """What holds, by type."""
    return {c["type"]: c["status"] for c in job["status"]["conditions"]}


def seen_generation(cluster: Cluster) -> int:
    return int(cluster.job("first")["status"]["observedGeneration"])


def generation(cluster: Cluster) -> int:
    return int(cluster.job("first")["metadata"]["generation"])


def test_uninstalling_keeps_crds_jobs_adapters_and_files(finished: Cluster) -> None:
    crds = finished.crd_uids()
    finished.helm.run("uninstall", RELEASE, "--namespace", NAMESPACE)
    assert finished.crd_uids() == crds
    assert finished.job("first")["status"]["adapter"]["name"] == "first-r1"
    assert finished.get("Adapter", "first-r1", TEAM, "llamero.dev/v1alpha1") is not None
    assert finished.get("PersistentVolumeClaim", "llamero-storage", TEAM) is not None
    assert finished.get("Deployment", "llamero-operator", NAMESPACE, "apps/v1") is None
    assert finished.get("Role", "llamero-llamero-operator", TEAM, "rbac.authorization.k8s.io/v1") is None


# -- the chart's own Redis -----------------------------------------------------------------------------------------------------

OWN = "own-redis"


@pytest.fixture(scope="module")
def own_redis(cluster: Cluster) -> Manifest:
    """A release with a Redis of its own and two operators; the values. No Service leads to Redis here, so the operators go without."""
    own: Manifest = {
        # Both operators are processes of this machine, so that they can't listen on the same port.
        "settings": {"namespaces": [OWN], "healthPort": 0, "metricsPort": 0},
        "operator": {"replicas": 2},
        "storage": {"create": False},
    }
    cluster.install(own, OWN)
    return own


def read_secret(cluster: Cluster) -> dict[str, str]:
    secret = cluster.get("Secret", "llamero-redis", OWN)
    assert secret is not None
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def address_of_redis(cluster: Cluster) -> str:
    pod = cluster.get("Pod", "llamero-redis-0", OWN)
    assert pod is not None
    return str(pod["status"]["podIP"])


def ask_redis(cluster: Cluster, password: str | None) -> "redis.Redis[Any]":
    return redis.Redis(host=address_of_redis(cluster), password=password, decode_responses=True)


def test_redis_runs_with_its_password_and_an_append_only_file(cluster: Cluster, own_redis: Manifest) -> None:
    secret = read_secret(cluster)
    with ask_redis(cluster, secret["password"]) as client:
        assert client.ping()
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    with ask_redis(cluster, None) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert secret["url"] == f"redis://:{secret['password']}@llamero-redis.{OWN}.svc:6379/0"


def test_an_upgrade_keeps_the_password_and_what_redis_holds(cluster: Cluster, own_redis: Manifest) -> None:
    before = read_secret(cluster)
    with ask_redis(cluster, before["password"]) as client:
        client.set("kept", "yes")
    cluster.install({**own_redis, "redis": {"maxMemory": "150mb"}}, OWN, "upgrade")
    assert read_secret(cluster) == before

    def has_new_memory() -> bool:
        with ask_redis(cluster, before["password"]) as client:
            return bool(client.config_get("maxmemory") == {"maxmemory": str(150 << 20)} and client.get("kept") == "yes")

    until(has_new_memory, "the new Redis with the old one's data", 60)


# -- two operators -------------------------------------------------------------------------------------------------------------


def read_holder(cluster: Cluster) -> str:
    lease = cluster.get("Lease", "llamero-operator", OWN, "coordination.k8s.io/v1")
    return str(lease["spec"].get("holderIdentity") or "") if lease else ""


def find_leader(cluster: Cluster) -> str:
    """The pod whose log says that it leads as the Lease's holder."""
    holder = read_holder(cluster)
    pods = cluster.plane.kubectl(
        "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "name", namespace=OWN
    ).stdout.split()
    leaders = [
        p for p in pods if holder and holder in cluster.plane.kubectl("logs", p, namespace=OWN, check=False).stdout
    ]
    return leaders[0] if len(leaders) == 1 else ""


def test_of_two_operators_one_leads_and_the_other_takes_over(cluster: Cluster, own_redis: Manifest) -> None:
    leader = until(lambda: find_leader(cluster), "one of the two operators to lead", 60)
    before = read_holder(cluster)
    cluster.plane.kubectl("delete", leader, "--wait=false", namespace=OWN)
    until(lambda: read_holder(cluster) not in ("", before), "the other operator to take over", 30)
    until(lambda: find_leader(cluster) not in ("", leader), "the new leader to say so", 30)


# -- all namespaces ------------------------------------------------------------------------------------------------------------

ALL = "everywhere"


def test_an_operator_of_all_namespaces_serves_any_by_its_cluster_role(
    cluster: Cluster, broker: RedisServer, repository: Path
) -> None:
    for name in (ALL, "elsewhere"):
        cluster.plane.kubectl("create", "namespace", name)
    everywhere = {
        "settings": {"healthPort": free_port(), "metricsPort": 0},
        "redis": {"url": f"{broker.url}/1"},
        "storage": {"create": False},
    }
    cluster.install(everywhere, ALL)
    manifest = build_job(repository, cluster.folder / "other.json")
    manifest["spec"]["training"]["lora"] = {"rank": 8, "alpha": 256, "rslora": True}
    cluster.plane.apply(manifest, namespace="elsewhere")
    until(lambda: read_phase(cluster) == "Failed", "the job with a wrong spec to be told so", 60)
    cluster.plane.kubectl("delete", "ftj", "first", "--timeout=60s", namespace="elsewhere")


def read_phase(cluster: Cluster) -> str:
    job = cluster.get("FineTuneJob", "first", "elsewhere", "llamero.dev/v1alpha1")
    return str((job or {}).get("status", {}).get("phase"))
