"""What the chart renders to: valid, restricted, with least rights, closed networks and settings that the operator takes."""

import base64
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType

import jsonschema
import kubernetes_validate
import pytest
import yaml
from charts.helm import CHART, REPOSITORY, VALUES, Helm, HelmError, Manifest

import llamero
from llamero.chat.settings import ConfigMapName
from llamero.chat.settings import parse_settings as parse_chat_settings
from llamero.spec import names
from llamero_operator.resources.environment import REDIS_SECRET
from llamero_operator.settings import OperatorSettings, parse_settings

IDS = [p.stem for p in VALUES]
DEFAULTS = next(p for p in VALUES if p.stem == "defaults")
VERSIONS = ["1.28", "1.31", "1.34"]
"""As far back as schemas are kept; 1.20 is the API server that other tests install on."""
NOT_KUBERNETES_OWN = {"PodMonitor"}


@pytest.fixture(scope="session", params=VALUES, ids=IDS)
def manifests(request: pytest.FixtureRequest, helm: Helm) -> list[Manifest]:
    """The chart's manifests for each file of values."""
    return helm.template(request.param)


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield f"{manifest['kind']}/{manifest['metadata']['name']}", manifest["spec"]["template"]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] in kinds]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in of_kind(manifests, kind) if m["metadata"]["name"] == name]
    return found


def operator_of(manifests: list[Manifest]) -> Manifest:
    """The operator's Deployment."""
    (found,) = [m for m in of_kind(manifests, "Deployment") if m["metadata"]["name"].endswith("-operator")]
    return found


def chat_of(manifests: list[Manifest]) -> Manifest:
    """The chat service's Deployment."""
    (found,) = [m for m in of_kind(manifests, "Deployment") if m["metadata"]["name"].endswith("-chat")]
    return found


def policy_of(manifests: list[Manifest], ending: str) -> Manifest:
    """A network policy by the end of its name; the first where there are several."""
    return next(p for p in of_kind(manifests, "NetworkPolicy") if p["metadata"]["name"].endswith(ending))


def chooses(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector takes a pod with these labels."""
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "NotIn"
        if labels.get(expression["key"]) in expression["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def lets_in(policy: Manifest, port: int, labels: dict[str, str]) -> bool:
    """Whether a policy lets a pod with these labels, wherever it is, reach a port."""
    for rule in policy["spec"]["ingress"]:
        if port in [p["port"] for p in rule.get("ports", [])]:
            if "from" not in rule:
                return True
            if any(chooses(peer["podSelector"], labels) for peer in rule["from"] if "podSelector" in peer):
                return True
    return False


def settings_of(manifests: list[Manifest]) -> OperatorSettings:
    (config,) = of_kind(manifests, "ConfigMap")
    return parse_settings(yaml.safe_load(config["data"]["settings.yaml"]), {"LLAMERO_REDIS_URL": "redis://redis:6379"})


# -- valid ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", VALUES, ids=IDS)
def test_helm_finds_nothing_to_mend(helm: Helm, values: Path) -> None:
    assert "0 chart(s) failed" in helm.run("lint", str(CHART), "--strict", "--values", str(values))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_for_old_and_new_clusters(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        if manifest["kind"] not in NOT_KUBERNETES_OWN:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_chart_is_of_the_codes_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == llamero.__version__


def test_nothing_has_another_namespace_than_asked_for(manifests: list[Manifest]) -> None:
    allowed = {"llamero", *settings_of(manifests).namespaces}
    for manifest in manifests:
        if manifest["kind"] not in ("ClusterRole", "ClusterRoleBinding"):
            assert manifest["metadata"]["namespace"] in allowed, manifest["metadata"]


def test_no_two_manifests_are_the_same_object(manifests: list[Manifest]) -> None:
    seen = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("values", VALUES[:3], ids=IDS[:3])
def test_releases_of_other_names_and_namespaces_do_not_meet(helm: Helm, values: Path) -> None:
    rendered = [helm.template(values, "llamero", "one"), helm.template(values, "llamero", "two")]
    if "fullnameOverride" not in values.read_text():
        rendered.append(helm.template(values, "other", "one"))
    objects = [{(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in r} for r in rendered]
    named = set(settings_of(rendered[0]).namespaces)
    for one, other in combinations(objects, 2):
        # Storage and policy of a shared namespace carry the release's name alone.
        assert not {o for o in one & other if o[1] not in named}


def test_names_stay_within_their_bounds_however_long_the_release(helm: Helm) -> None:
    for manifest in helm.template(DEFAULTS, "r" * 53, "n" * 63):
        bound = 63 if manifest["kind"] in ("Service", "StatefulSet", "Deployment") else 253
        assert len(manifest["metadata"]["name"]) <= bound


def test_services_select_the_pods_they_are_for(manifests: list[Manifest]) -> None:
    labels = [template["metadata"]["labels"] for _, template in pods(manifests)]
    for service in of_kind(manifests, "Service"):
        chosen = [found for found in labels if service["spec"]["selector"].items() <= found.items()]
        assert len(chosen) == 1, service["metadata"]["name"]
        ports = {p["targetPort"] for p in service["spec"]["ports"]}
        (template,) = [t for _, t in pods(manifests) if t["metadata"]["labels"] is chosen[0]]
        assert ports <= {p["name"] for c in template["spec"]["containers"] for p in c["ports"]}


# -- settings ------------------------------------------------------------------------------------------------------------------


def test_the_operator_takes_the_settings_that_the_chart_writes(manifests: list[Manifest]) -> None:
    settings = settings_of(manifests)
    assert settings.to_limits().storage_problem is None


def test_the_operators_image_is_that_of_its_settings(manifests: list[Manifest]) -> None:
    operator = operator_of(manifests)
    assert operator["spec"]["template"]["spec"]["containers"][0]["image"] == settings_of(manifests).images.operator


def test_a_change_of_settings_replaces_the_operator(helm: Helm) -> None:
    def checksum(values: Manifest) -> str:
        deployment = operator_of(helm.template(values))
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])

    assert checksum({}) == checksum({}) != checksum({"settings": {"concurrency": 2}})


def test_ports_of_the_settings_are_those_of_probes_and_service(helm: Helm) -> None:
    manifests = helm.template({"settings": {"healthPort": 9001, "metricsPort": 9002}})
    deployment = operator_of(manifests)
    ports = {p["name"]: p["containerPort"] for p in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    service = next(s for s in of_kind(manifests, "Service") if s["metadata"]["name"] == "llamero-operator")
    assert ports == {"health": 9001, "metrics": 9002}
    assert service["spec"]["ports"][0]["port"] == 9002


@pytest.mark.parametrize(("replicas", "strategy", "leases"), [(1, "Recreate", 0), (2, "RollingUpdate", 1)])
def test_two_operators_need_a_lease(helm: Helm, replicas: int, strategy: str, leases: int) -> None:
    manifests = helm.template({"operator": {"replicas": replicas}})
    deployment = operator_of(manifests)
    assert deployment["spec"]["strategy"]["type"] == strategy
    assert settings_of(manifests).lease.enabled is bool(leases)
    assert sum("leases" in r["resources"] for role in of_kind(manifests, "Role") for r in role["rules"]) == 2 * leases


WRONG_VALUES: dict[str, tuple[Manifest, str]] = {
    "a typing mistake": ({"operatr": {}}, "operatr"),
    "a typing mistake in the settings": ({"settings": {"gpuClases": {}}}, "gpuClases"),
    "a setting that Redis' values decide": ({"settings": {"redisUrl": "redis://x"}}, "redisUrl"),
    "a number out of bounds": ({"settings": {"concurrency": 0}}, "concurrency"),
    "a word that is none of the choices": ({"settings": {"storagePolicy": "Keep"}}, "storagePolicy"),
    "a text for a list": ({"settings": {"namespaces": "team-a"}}, "namespaces"),
    "no replicas": ({"operator": {"replicas": 0}}, "replicas"),
    "a quantity that is none": ({"storage": {"size": "much"}}, "size"),
}


@pytest.mark.parametrize(("values", "word"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_wrong_values_are_refused_with_their_name(helm: Helm, values: Manifest, word: str) -> None:
    with pytest.raises(HelmError, match=word):
        helm.template(values)


def load_chart_values() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chart_values", REPOSITORY / "scripts" / "chart_values.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chart_values"] = module
    spec.loader.exec_module(module)
    return module


def test_values_yaml_says_the_defaults_of_its_model() -> None:
    model = load_chart_values().ChartValues
    written = yaml.safe_load((CHART / "values.yaml").read_text())
    documented = model.model_validate({"settings": {}}).model_dump(mode="json", by_alias=True)
    assert {k: v for k, v in written.items() if k != "settings"} == {
        k: v for k, v in documented.items() if k != "settings"
    }
    assert model.model_validate(written).settings == OperatorSettings()


def test_the_checked_in_values_schema_is_the_models() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema == load_chart_values().build_values_schema()
    jsonschema.Draft7Validator.check_schema(schema)


DOCUMENTED = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "install.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("text", DOCUMENTED, ids=range(len(DOCUMENTED)))
def test_every_example_of_values_in_the_docs_renders(helm: Helm, text: str) -> None:
    values = yaml.safe_load(text.replace("sha256:...", f"sha256:{'0' * 64}"))
    assert settings_of(helm.template(values))


# -- security ------------------------------------------------------------------------------------------------------------------


def test_every_pod_is_restricted(manifests: list[Manifest]) -> None:
    for name, template in pods(manifests):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all({"emptyDir", "configMap", "secret", "persistentVolumeClaim"} & set(v) for v in spec["volumes"]), name
        assert all(v["emptyDir"].get("sizeLimit") for v in spec["volumes"] if "emptyDir" in v), name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert container["command"], name
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"], name
            assert container["livenessProbe"] and container["readinessProbe"], name


def test_only_operator_and_chat_service_have_tokens_and_each_its_own(manifests: list[Manifest]) -> None:
    accounts = set()
    for name, template in pods(manifests):
        assert template["spec"]["automountServiceAccountToken"] is name.startswith("Deployment/"), name
        if name.startswith("Deployment/"):
            assert template["spec"]["serviceAccountName"] not in accounts
            accounts.add(template["spec"]["serviceAccountName"])


def test_ids_are_left_to_the_cluster_where_the_settings_do(helm: Helm) -> None:
    openshift = next(p for p in VALUES if p.stem == "openshift")
    for _, template in pods(helm.template(openshift)):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(template["spec"]["securityContext"])


def test_no_password_stands_outside_of_a_secret(helm: Helm) -> None:
    for values in (DEFAULTS, next(p for p in VALUES if p.stem == "object-store")):
        manifests = helm.template(values)
        (secret,) = of_kind(manifests, "Secret")
        url = base64.b64decode(secret["data"]["url"]).decode()
        password = re.search(r":([^:@]+)@", url)
        assert password is not None and len(password[1]) >= 4
        rest = yaml.safe_dump([m for m in manifests if m["kind"] != "Secret"])
        assert password[1] not in rest.replace("password", "")


def roles(manifests: list[Manifest]) -> list[Manifest]:
    return of_kind(manifests, "Role", "ClusterRole")


def test_no_right_is_a_wildcard(manifests: list[Manifest]) -> None:
    for role in roles(manifests):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], role["metadata"]["name"]
            assert not {"impersonate", "escalate", "bind", "deletecollection"} & set(rule["verbs"])


def test_secrets_can_be_made_but_not_read(manifests: list[Manifest]) -> None:
    rules = [rule for role in roles(manifests) for rule in role["rules"] if "secrets" in rule["resources"]]
    assert rules
    for rule in rules:
        assert not {"get", "list", "watch", "delete"} & set(rule["verbs"])
        assert rule["verbs"] == ["create"] or rule["resourceNames"] == [REDIS_SECRET]


def test_named_namespaces_need_no_right_over_the_cluster(helm: Helm) -> None:
    manifests = helm.template(next(p for p in VALUES if p.stem == "namespaces"))
    operator = [
        m for m in of_kind(manifests, "ClusterRole", "ClusterRoleBinding") if "operator" in m["metadata"]["name"]
    ]
    assert not operator
    bound = {(m["metadata"]["namespace"], m["metadata"]["name"]) for m in of_kind(manifests, "RoleBinding")}
    assert bound == {
        ("team-a", "llamero-llamero-operator"),
        ("team-b", "llamero-llamero-operator"),
        ("llamero", "llamero-routes-writer"),
        ("llamero", "llamero-routes-reader"),
    }


def test_every_right_of_the_operator_has_its_reason_in_the_docs(helm: Helm) -> None:
    rows = documented_rights((REPOSITORY / "docs" / "install.md").read_text())
    manifests = helm.template({"operator": {"replicas": 2}})
    granted = {
        (resource, verb)
        for role in roles(manifests)
        if role["metadata"]["name"].endswith(("-operator", "-lease", "-routes-writer"))
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == rows


def documented_rights(text: str) -> set[tuple[str, str]]:
    """(resource, verb) of the table under "What the operator may do"."""
    section = text.split("## What the operator may do")[1].split("\n## ")[0]
    table = re.findall(r"^\| `([a-z/]+)`[^|]*\| ([^|]+)\|", section, re.MULTILINE)
    return {(resource, verb.strip("` ")) for resource, verbs in table for verb in verbs.split(",")}


# -- network -------------------------------------------------------------------------------------------------------------------


def test_every_policy_is_closed_both_ways(helm: Helm) -> None:
    policies = of_kind(helm.template(DEFAULTS), "NetworkPolicy")
    assert {p["metadata"]["name"] for p in policies} == {
        f"llamero-{n}" for n in ("operator", "redis", "workers", "chat", "engines")
    }
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" in policy["spec"] and "egress" in policy["spec"]


WORKER = names.child_labels("job", "uid", 1, "train", 1)
ENGINE = names.server_labels("server", "uid")
STRANGER = {"app": "stranger"}


def labels_of(deployment: Manifest) -> dict[str, str]:
    labels: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return labels


def test_each_of_the_charts_pods_has_a_policy(helm: Helm) -> None:
    manifests = helm.template(DEFAULTS)
    chosen = [p["spec"]["podSelector"] for p in of_kind(manifests, "NetworkPolicy")]
    for name, template in pods(manifests):
        assert any(chooses(c, template["metadata"]["labels"]) for c in chosen), name


def test_workers_and_engines_have_a_policy_each_and_no_share_in_the_others(helm: Helm) -> None:
    manifests = helm.template(DEFAULTS)
    for ending, own in (("-workers", WORKER), ("-engines", ENGINE)):
        chosen = policy_of(manifests, ending)["spec"]["podSelector"]
        others = [WORKER, ENGINE, labels_of(operator_of(manifests)), labels_of(chat_of(manifests)), STRANGER]
        assert [labels for labels in others if chooses(chosen, labels)] == [own]


def test_engines_answer_the_chat_service_and_their_agents_the_operator_alone(helm: Helm) -> None:
    manifests = helm.template(DEFAULTS)
    policy = policy_of(manifests, "-engines")
    callers = {
        "operator": labels_of(operator_of(manifests)),
        "chat": labels_of(chat_of(manifests)),
        "worker": WORKER,
        "engine": ENGINE,
        "stranger": STRANGER,
    }
    assert {n for n, labels in callers.items() if lets_in(policy, names.ENGINE_PORT, labels)} == {"chat"}
    assert {n for n, labels in callers.items() if lets_in(policy, names.AGENT_PORT, labels)} == {"operator"}
    ports = [p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]]
    assert sorted(ports) == [names.ENGINE_PORT, names.AGENT_PORT]


def test_the_chat_services_inner_port_is_the_operators_alone(helm: Helm) -> None:
    manifests = helm.template(DEFAULTS)
    policy, operator = policy_of(manifests, "-chat"), labels_of(operator_of(manifests))
    inner = port_of(chat_of(manifests), "inner")
    assert lets_in(policy, inner, operator) and not lets_in(policy, inner, STRANGER)
    assert lets_in(policy, port_of(chat_of(manifests), "http"), STRANGER)
    named_callers = policy_of(helm.template(next(p for p in VALUES if p.stem == "chat")), "-chat")
    assert not lets_in(named_callers, 8080, STRANGER)


def test_every_way_out_has_a_way_in(helm: Helm) -> None:
    """What operator and chat service may reach lets them in."""
    manifests = helm.template(DEFAULTS)
    operator, chat = labels_of(operator_of(manifests)), labels_of(chat_of(manifests))
    ways = [
        ("-operator", operator, "-engines", ENGINE, names.AGENT_PORT),
        ("-operator", operator, "-chat", chat, port_of(chat_of(manifests), "inner")),
        ("-chat", chat, "-engines", ENGINE, names.ENGINE_PORT),
    ]
    for source, caller, target, called, port in ways:
        out = [r for r in policy_of(manifests, source)["spec"]["egress"] if {"port": port} in r.get("ports", [])]
        assert any(chooses(peer["podSelector"], called) for r in out for peer in r["to"]), (source, target)
        assert lets_in(policy_of(manifests, target), port, caller), (source, target)


def port_of(deployment: Manifest, name: str) -> int:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return int(next(p["containerPort"] for p in container["ports"] if p["name"] == name))


def test_workers_never_reach_a_clouds_metadata_service(helm: Helm) -> None:
    policy = policy_of(helm.template(DEFAULTS), "-workers")
    blocks = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule.get("to", []) if "ipBlock" in peer]
    assert {"169.254.169.254/32"} <= {e for b in blocks for e in b["except"]}
    assert policy["spec"]["ingress"] == []


def test_redis_takes_the_operator_and_workers_alone(helm: Helm) -> None:
    manifests = helm.template(DEFAULTS)
    policy = policy_of(manifests, "-redis")
    asked = (labels_of(operator_of(manifests)), WORKER, ENGINE, labels_of(chat_of(manifests)), STRANGER)
    assert [lets_in(policy, 6379, labels) for labels in asked] == [True, True, False, False, False]
    assert policy["spec"]["egress"] == []


# -- the chat service ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [p for p in VALUES if p.stem != "training-alone"], ids=lambda p: p.stem)
def test_the_chat_service_reads_its_command_line_as_it_was_meant(helm: Helm, values: Path) -> None:
    manifests = helm.template(values)
    chat = chat_of(manifests)
    (container,) = chat["spec"]["template"]["spec"]["containers"]
    python, dash, module, *arguments = container["command"]
    assert [python, dash, module] == ["python", "-m", "llamero.chat"]
    told = parse_chat_settings([a.replace("$(POD_IP)", "127.0.0.9") for a in arguments])
    assert told.routes == ConfigMapName(chat["metadata"]["namespace"], names.ROUTES_NAME)
    assert (told.host, told.port, told.inner_port) == ("127.0.0.9", port_of(chat, "http"), port_of(chat, "inner"))
    grace = chat["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    leave = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace > leave + told.drain_seconds
    assert told.trust_forwarded_for is (values.stem == "chat")
    assert container["image"] == settings_of(manifests).images.chat


def test_the_operator_finds_the_chat_services_inner_ports(helm: Helm) -> None:
    manifests = helm.template(DEFAULTS)
    (address,) = settings_of(manifests).serving.chats
    host, _, port = address.rpartition(":")
    service = named(manifests, "Service", host.split(".")[0])
    assert host == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert int(port) == port_of(chat_of(manifests), "inner") == service["spec"]["ports"][0]["port"]


def test_chat_services_that_run_elsewhere_are_left_as_the_values_name_them(helm: Helm) -> None:
    elsewhere = {"chat": {"enabled": False}, "settings": {"serving": {"chats": ["chat.other.svc:9000"]}}}
    manifests = helm.template(elsewhere)
    assert settings_of(manifests).serving.chats == ["chat.other.svc:9000"]
    assert not [m for m in manifests if m["metadata"]["name"].endswith(("-chat", "-chat-inner", "-routes-reader"))]
    assert settings_of(helm.template({"chat": {"enabled": False}})).serving.chats == []


def test_clients_never_reach_the_inner_port_by_service_or_ingress(helm: Helm) -> None:
    manifests = helm.template(next(p for p in VALUES if p.stem == "chat"))
    service = named(manifests, "Service", "llamero-chat")
    assert [p["targetPort"] for p in service["spec"]["ports"]] == ["http"]
    (ingress,) = of_kind(manifests, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "llamero-chat", "port": {"name": "http"}}
    assert ingress["spec"]["tls"] == [{"secretName": "chat-certificate", "hosts": ["chat.example.com"]}]


def test_the_chat_service_may_watch_the_routes_and_nothing_else(helm: Helm) -> None:
    manifests = helm.template(DEFAULTS)
    account = chat_of(manifests)["spec"]["template"]["spec"]["serviceAccountName"]
    bound = {
        m["roleRef"]["name"]
        for m in of_kind(manifests, "RoleBinding", "ClusterRoleBinding")
        if account in [s["name"] for s in m["subjects"]]
    }
    assert bound == {"llamero-routes-reader"}
    assert named(manifests, "Role", "llamero-routes-reader")["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [names.ROUTES_NAME],
            "verbs": ["get", "list", "watch"],
        }
    ]


@pytest.mark.parametrize(
    ("version", "replicas", "budgets"), [("1.20.2", 2, 0), ("1.28.0", 2, 1), ("1.34.1", 3, 1), ("1.34.1", 1, 0)]
)
def test_a_drain_takes_one_chat_pod_at_a_time_where_the_server_knows_how(
    helm: Helm, version: str, replicas: int, budgets: int
) -> None:
    manifests = helm.template({"chat": {"replicas": replicas}}, "llamero", "llamero", "--kube-version", version)
    found = of_kind(manifests, "PodDisruptionBudget")
    assert len(found) == budgets
    for budget in found:
        kubernetes_validate.validate(budget, "1.28", strict=True)
        assert chooses(budget["spec"]["selector"], labels_of(chat_of(manifests)))


def test_where_nothing_is_served_there_is_no_chat_service_and_no_right_to_serve(helm: Helm) -> None:
    manifests = helm.template(next(p for p in VALUES if p.stem == "training-alone"))
    assert not [m for m in manifests if re.search("chat|engines|routes", m["metadata"]["name"])]
    asked = {
        r
        for role in roles(manifests)
        if "operator" in role["metadata"]["name"]
        for rule in role["rules"]
        for r in rule["resources"]
    }
    assert not {"modelservers", "deployments", "services", "configmaps"} & asked


def test_the_ports_are_those_that_the_code_knows(helm: Helm) -> None:
    manifests = helm.template(next(p for p in VALUES if p.stem == "chat"))
    monitor = named(manifests, "PodMonitor", "llamero-engines")
    assert chooses(monitor["spec"]["selector"], ENGINE)
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "http"
    images = settings_of(manifests).images
    assert images.vllm == "registry.example.com/vllm:v1" and images.tgi.startswith("llamero-tgi:")


# -- storage -------------------------------------------------------------------------------------------------------------------


def test_the_claim_for_jobs_is_kept_when_the_release_goes(helm: Helm) -> None:
    claims = of_kind(helm.template(next(p for p in VALUES if p.stem == "namespaces")), "PersistentVolumeClaim")
    assert {c["metadata"]["namespace"] for c in claims} == {"team-a", "team-b"}
    assert all(c["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for c in claims)


def test_crds_are_no_templates_so_that_uninstalling_leaves_them(manifests: list[Manifest]) -> None:
    assert not of_kind(manifests, "CustomResourceDefinition")
    assert {p.stem for p in (CHART / "crds").glob("*.yaml")} == {
        names.PLURAL,
        names.ADAPTER_PLURAL,
        names.SERVER_PLURAL,
    }
