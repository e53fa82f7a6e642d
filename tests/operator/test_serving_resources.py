"""What a ModelServer comes to in the cluster: valid for every Kubernetes version served, restricted, and started as launchers document."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import pytest
from cluster.api import path_of
from cluster.control_plane import ControlPlane
from launchers import (
    TGI_FURTHER_VARIABLES,
    TGI_VARIABLES,
    TGI_WORDS,
    VLLM_DTYPES,
    VLLM_OPTIONS,
    VLLM_RANKS,
    VLLM_SWITCHES,
    VLLM_VARIABLES,
)
from pod_security import broken_controls

from llamero.agent.settings import AgentSettings
from llamero.engine.settings import parse_settings as parse_engine_settings
from llamero.lifecycle.serving.world import ServerDecision, ServerRoutes, ServerWorld, ServingCapabilities
from llamero.spec import names
from llamero.spec.engine_args import RESERVED, find_reserved
from llamero.spec.server import EngineSpec, EngineType, ModelServerStatus
from llamero.spec.serving import AdapterWanted, AgentWanted, BaseWanted
from llamero.spec.validation import validate_server
from llamero_operator.resources.pods import UnknownGpuClass
from llamero_operator.resources.serving import manifests
from llamero_operator.resources.serving.tgi import format_adapters
from llamero_operator.settings import OperatorSettings, parse_settings

Manifest = dict[str, Any]

VERSIONS = ["1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
ENGINES: tuple[EngineType, ...] = get_args(EngineType)
UID = "0f0e0d0c-1111-2222-3333-444455556666"
CREATED = datetime(2026, 1, 2, tzinfo=UTC)

SETTINGS: dict[str, Manifest] = {
    "a claim and little else": {"storage": {"claim": "files"}},
    "an object store with keys": {"storage": {"uri": "s3://bucket/llamero", "secretName": "storage-keys"}},
    "a folder of the only node": {"storage": {"hostPath": "/srv/llamero", "mountPath": "/srv/llamero"}},
    "everything": {
        "storage": {"claim": "files", "mountPath": "/mnt/files"},
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": ["pull"],
        "images": {"tgi": "registry/tgi@sha256:" + "0" * 64},
        "gpuClasses": {
            "spot": {
                "resource": "nvidia.com/mig-1g.10gb",
                "nodeSelector": {"pool": "spot"},
                "tolerations": [{"key": "spot", "operator": "Exists"}],
                "runtimeClass": "nvidia",
            }
        },
        "pods": {"vllm": {"cpuLimit": "8", "nodeSelector": {"zone": "a"}}, "agent": {"memoryLimit": None}},
        "hub": {
            "endpoint": "https://hub.example.org",
            "caConfigMap": {"name": "authorities"},
            "proxy": {"https": "http://u:p$(x)@proxy:3128"},
        },
        "priorityClassName": "serving",
        "serviceAccountName": "llamero-worker",
        "security": {"uid": None, "gid": None, "fsGroup": None},
        "serving": {"leaveSeconds": 20, "finishSeconds": 200, "startSeconds": 61},
    },
}

SPECS: dict[str, Manifest] = {
    "small": {},
    "everything": {
        "baseModel": {
            "uri": None,
            "name": "org/model",
            "revision": "0" * 40,
            "secretRef": {"name": "hub", "key": "key"},
        },
        "engine": {"quantization": "nf4", "maxTotalTokens": 4096, "maxAdapters": 16, "maxLoraRank": 128},
        "resources": {"cpu": "3", "memory": "48Gi"},
        "autoscaling": {"minReplicas": 2, "maxReplicas": 5, "queueDepth": 7},
        "updateStrategy": "Recreate",
    },
    "another precision": {"engine": {"dtype": "bfloat16"}, "replicas": 3},
}


def parse(raw: Manifest | None = None) -> OperatorSettings:
    return parse_settings(
        raw or SETTINGS["a claim and little else"], {"LLAMERO_REDIS_URL": "redis://:secret-word@redis"}
    )


def merge(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {k: merge(base.get(k), changes[k]) if k in changes else base[k] for k in {**base, **changes}}


def make_world(engine: EngineType = "cpu", spec: Manifest | None = None, **changes: Any) -> ServerWorld:
    raw = {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "ModelServer",
        "metadata": {"name": "tiny", "namespace": "team-a"},
        "spec": merge({"baseModel": {"uri": "s3://models/tiny"}, "engine": {"type": engine}}, spec or {}),
    }
    server, problems = validate_server(raw)
    assert server is not None, problems
    fields: dict[str, Any] = {
        "namespace": "team-a",
        "name": "tiny",
        "uid": UID,
        "generation": 1,
        "created_at": CREATED,
        "deleting": False,
        "server": server,
        "problems": (),
        "status": ModelServerStatus(),
        "adapters": (),
        "pods": (),
        "deployment": None,
        "routed": ServerRoutes(),
        "revision": "",
        "chats": (),
        "capabilities": ServingCapabilities(disruption_budgets=True, autoscaling=True),
    }
    return ServerWorld(**(fields | changes))


def make_wanted(engine: EngineType, *ids: str, serial: int = 3) -> AgentWanted:
    adapters = [AdapterWanted(id=i, name=i, uri=f"s3://bucket/adapters/{i}", sha256="0" * 64) for i in ids]
    return AgentWanted(serial=serial, engine=engine, base=BaseWanted(uri="s3://models/tiny"), adapters=adapters)


def make_decision(engine: EngineType, *ids: str, replicas: int = 1, serial: int = 3) -> ServerDecision:
    wanted = make_wanted(engine, *ids, serial=serial)
    return ServerDecision(status=ModelServerStatus(), routes=ServerRoutes(), wanted=wanted, replicas=replicas)


def build_all(engine: EngineType, spec: Manifest, settings: OperatorSettings, *ids: str) -> list[Manifest]:
    world, decision = make_world(engine, spec), make_decision(engine, *ids)
    autoscaler = manifests.build_autoscaler(world, decision, settings)
    return [
        manifests.build_deployment(world, decision, settings),
        manifests.build_service(world, decision, settings),
        manifests.build_disruption_budget(world, decision, settings),
        manifests.build_wanted_config_map(world, decision, settings),
        *([autoscaler] if autoscaler is not None else []),
    ]


def deploy(
    engine: EngineType,
    spec: Manifest | None = None,
    *ids: str,
    settings: OperatorSettings | None = None,
    replicas: int = 1,
    serial: int = 3,
) -> Manifest:
    decision = make_decision(engine, *ids, replicas=replicas, serial=serial)
    return manifests.build_deployment(make_world(engine, spec), decision, settings or parse())


def pod_of(deployment: Manifest) -> Manifest:
    pod: Manifest = deployment["spec"]["template"]["spec"]
    return pod


def container_of(deployment: Manifest, name: str) -> Manifest:
    pod = pod_of(deployment)
    (found,) = [c for c in [*pod["initContainers"], *pod["containers"]] if c["name"] == name]
    return dict(found)


def env_of(container: Manifest) -> dict[str, str]:
    """The variables, with what Kubernetes would put in for the pod's address."""
    found = {v["name"]: v.get("value") or str(v.get("valueFrom")) for v in container["env"]}
    assert len(found) == len(container["env"]), "a variable stands twice"
    return found


@pytest.fixture(params=list(SETTINGS))
def settings(request: pytest.FixtureRequest) -> OperatorSettings:
    return parse(SETTINGS[request.param])


each_engine = pytest.mark.parametrize("engine", ENGINES)
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


# -- valid and safe ------------------------------------------------------------------------------------------------------------


@each_engine
@each_spec
@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_valid_for_every_version_served(
    engine: EngineType, spec: Manifest, settings: OperatorSettings, version: str
) -> None:
    for manifest in build_all(engine, spec, settings, "team-a-job-r1-00000000"):
        kubernetes_validate.validate(manifest, version, strict=True)


@each_engine
@each_spec
def test_a_real_server_takes_the_deployment_and_all_of_it(
    control_plane: ControlPlane, engine: EngineType, spec: Manifest, settings: OperatorSettings
) -> None:
    for manifest in build_all(engine, spec, settings, "team-a-job-r1-00000000"):
        if manifest["apiVersion"] not in ("v1", "apps/v1"):
            continue  # not served by this version
        local = merge(manifest, {"metadata": {"namespace": "default"}})
        path = path_of(manifest["apiVersion"], manifest["kind"], "default") + "?dryRun=All"
        taken = control_plane.api.request("POST", path, local)
        part = "data" if manifest["kind"] == "ConfigMap" else "spec"
        assert_contains(taken[part], manifest[part])


def assert_contains(taken: Any, sent: Any, place: str = "") -> None:
    """What was sent is in what the server made of it."""
    if isinstance(sent, dict):
        for key, value in sent.items():
            # A field that is false or empty by default is left out again.
            assert key in taken or value in (False, {}, []), f"{place}.{key}"
            if key in taken:
                assert_contains(taken[key], value, f"{place}.{key}")
    elif isinstance(sent, list):
        assert len(taken) == len(sent), place
        for index, value in enumerate(sent):
            assert_contains(taken[index], value, f"{place}[{index}]")
    else:
        assert taken == sent, place


@each_engine
@each_spec
def test_every_pod_is_restricted_but_for_a_folder_of_the_node(
    engine: EngineType, spec: Manifest, settings: OperatorSettings
) -> None:
    pod = pod_of(deploy(engine, spec, settings=settings))
    assert broken_controls(pod) == ({"Volume Types"} if settings.storage.host_path else set())
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["terminationMessagePath"] == "/dev/termination-log"


@each_engine
def test_every_mount_has_a_volume_and_every_volume_is_mounted(engine: EngineType, settings: OperatorSettings) -> None:
    pod = pod_of(deploy(engine, settings=settings))
    mounted = {m["name"] for c in [*pod["initContainers"], *pod["containers"]] for m in c["volumeMounts"]}
    assert mounted == {v["name"] for v in pod["volumes"]}


@each_engine
def test_the_engine_may_write_only_to_caches_and_temporary_files(
    engine: EngineType, settings: OperatorSettings
) -> None:
    container = container_of(deploy(engine, settings=settings), "engine")
    writable = {m["name"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable <= {"cache", "tmp", "shm"}
    paths = [m["mountPath"] for m in container["volumeMounts"] if m["name"] in writable]
    for name, value in env_of(container).items():
        if name.endswith(("_CACHE", "_DIR", "_ROOT", "HOME")):
            assert any(value.startswith(path) for path in paths), name


@each_engine
def test_the_engine_gets_no_token_and_no_key_of_the_storage(engine: EngineType) -> None:
    keys = parse(SETTINGS["an object store with keys"])
    deployment = deploy(engine, SPECS["everything"], settings=keys)
    serving = container_of(deployment, "engine")
    assert "envFrom" not in serving and "secretKeyRef" not in str(serving)
    for name in ("fetch", "agent"):
        container = container_of(deployment, name)
        assert container["envFrom"] == [{"secretRef": {"name": "storage-keys"}}]
        token = {v["name"]: v["valueFrom"] for v in container["env"] if "secretKeyRef" in v.get("valueFrom", {})}
        assert token == {"HF_TOKEN": {"secretKeyRef": {"name": "hub", "key": "key"}}}
    assert "secret-word" not in str(deployment), "Redis is none of an engine's business"


@each_engine
def test_an_engine_never_asks_the_hub_and_tells_nobody_anything(engine: EngineType) -> None:
    env = env_of(container_of(deploy(engine), "engine"))
    assert (env["HF_HUB_OFFLINE"], env["TRANSFORMERS_OFFLINE"], env["HF_HUB_DISABLE_TELEMETRY"]) == ("1", "1", "1")
    told = {"tgi": {"USAGE_STATS": "off"}, "vllm": {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}, "cpu": {}}
    assert told[engine].items() <= env.items()


# -- the agent's two containers ------------------------------------------------------------------------------------------------


@each_engine
@each_spec
@pytest.mark.parametrize("name", ["fetch", "agent"])
def test_an_agent_finds_what_it_reads_in_its_environment(
    engine: EngineType, spec: Manifest, settings: OperatorSettings, name: str
) -> None:
    container = container_of(deploy(engine, spec, "team-a-job-r1-00000000", settings=settings), name)
    verb = {"fetch": "fetch", "agent": "serve"}[name]
    assert container["command"] == ["python", "-m", "llamero.agent", verb]
    fields = {"POD_IP": "127.1.2.3", "LLAMERO_POD_IP": "127.1.2.3", "LLAMERO_POD_NAME": "tiny-engine-x"}
    environment = {
        n: fields.get(n) or v.replace("$(POD_IP)", "127.1.2.3").replace("$$", "$") for n, v in env_of(container).items()
    }
    agent = AgentSettings.from_environment(environment)
    assert agent.engine == engine and agent.engine_url == "http://127.1.2.3:8080"
    assert (agent.host, agent.port, agent.pod) == ("127.1.2.3", 8090, "tiny-engine-x")
    assert agent.storage == settings.storage_root
    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
    assert str(agent.scratch) in mounts and not mounts[str(agent.scratch)].get("readOnly")
    assert str(agent.termination_log) == container["terminationMessagePath"]
    if engine == "tgi":
        assert agent.wanted == make_wanted("tgi", "team-a-job-r1-00000000")
    else:
        assert agent.wanted_file is not None and agent.wanted_file.name == names.WANTED_KEY
        assert str(agent.wanted_file.parent) in mounts


def test_the_mounted_list_is_the_config_maps(tmp_path: Path) -> None:
    config_map = manifests.build_wanted_config_map(make_world("cpu"), make_decision("cpu", "a"), parse())
    (volume,) = [v for v in pod_of(deploy("cpu", None, "a"))["volumes"] if v["name"] == "wanted"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"] == "tiny-wanted"
    assert AgentWanted.model_validate_json(config_map["data"]["wanted.json"]) == make_wanted("cpu", "a")


@pytest.mark.parametrize("engine", ["cpu", "vllm"])
def test_a_pod_of_an_engine_that_loads_at_run_time_never_changes_for_adapters(engine: EngineType) -> None:
    assert deploy(engine, None, "a", "b", serial=9) == deploy(engine)


def test_a_pod_of_tgi_changes_with_its_adapters_and_says_which_it_was_started_with() -> None:
    one, two = deploy("tgi", None, "a"), deploy("tgi", None, "a", "b")
    assert one["spec"]["template"] != two["spec"]["template"]
    assert one["spec"]["selector"] == two["spec"]["selector"]
    told = two["spec"]["template"]["metadata"]["annotations"][names.GATHERED_ANNOTATION]
    assert json.loads(told) == ["a", "b"]


def test_without_a_list_tgi_is_not_started() -> None:
    decision = ServerDecision(status=ModelServerStatus(), routes=ServerRoutes(), wanted=None)
    with pytest.raises(ValueError, match="reads its adapters at start"):
        manifests.build_deployment(make_world("tgi"), decision, parse())
    with pytest.raises(ValueError, match="no list"):
        manifests.build_wanted_config_map(make_world("tgi"), decision, parse())
    assert manifests.build_deployment(make_world("cpu"), decision, parse()) == deploy("cpu")


# -- what the launchers document -----------------------------------------------------------------------------------------------


@each_spec
def test_tgi_is_told_only_what_its_launcher_documents(spec: Manifest, settings: OperatorSettings) -> None:
    container = container_of(deploy("tgi", spec, "a", "b", settings=settings), "engine")
    assert container["command"] == ["text-generation-launcher", "--hostname=$(POD_IP)", "--port=8080"]
    env = env_of(container)
    ours = {n: v for n, v in env.items() if n in TGI_VARIABLES or n in TGI_FURTHER_VARIABLES}
    for name, words in TGI_WORDS.items():
        assert ours.get(name, next(iter(words))) in words, name
    # Everything else in the environment belongs to libraries, and none of it has the look of the launcher's.
    libraries = (
        "POD_IP",
        "HOME",
        "USER",
        "HF_",
        "XDG_",
        "TRITON_",
        "TORCHINDUCTOR_",
        "OUTLINES_",
        "NUMBA_",
        "PYTHON",
        "TRANSFORMERS_",
    )
    assert not [n for n in env if n not in ours and not n.startswith(libraries)]
    assert ours["MODEL_ID"] == "/llamero/scratch/base"
    assert ours["LORA_ADAPTERS"] == "a=/llamero/scratch/adapters/a,b=/llamero/scratch/adapters/b"
    assert ours["ENABLE_PREFILL_LOGPROBS"] == "true"
    assert int(ours["PAYLOAD_LIMIT"]) >= 2_000_000
    assert ("QUANTIZE" in ours) == (spec is SPECS["everything"])
    assert not ("QUANTIZE" in ours and "DTYPE" in ours), "the launcher refuses both"
    assert ours["NUM_SHARD"] == "1"


def test_tgi_without_adapters_is_told_of_none() -> None:
    assert "LORA_ADAPTERS" not in env_of(container_of(deploy("tgi"), "engine"))


@pytest.mark.parametrize("wrong", ["a,b", "a=b", "a@main"])
def test_an_id_that_tgi_would_take_apart_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="can't be told to TGI"):
        format_adapters(make_wanted("tgi", wrong).adapters)


def test_every_served_id_can_be_told_to_tgi() -> None:
    ids = [
        names.served_adapter_id("team-a", "job", 12, "f" * 64),
        names.imported_adapter_id("team-a", "mine", "0" * 64),
    ]
    text = format_adapters(make_wanted("tgi", *ids).adapters)
    assert [entry.split("=") for entry in text.split(",")] == [[i, f"/llamero/scratch/adapters/{i}"] for i in ids]


@each_spec
@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_vllm_is_told_only_what_its_command_line_documents(spec: Manifest, gpus: int) -> None:
    container = container_of(deploy("vllm", merge(spec, {"resources": {"gpus": gpus}}), settings=parse()), "engine")
    program, verb, model, *args = container["command"]
    assert (program, verb, model) == ("vllm", "serve", "/llamero/scratch/base")
    told = dict(arg.partition("=")[::2] for arg in args)
    assert set(told) <= VLLM_OPTIONS
    assert {option for option, value in told.items() if not value} <= VLLM_SWITCHES
    assert (told["--host"], told["--port"], told["--served-model-name"]) == ("$(POD_IP)", "8080", "tgi")
    assert int(told["--max-lora-rank"]) in VLLM_RANKS
    assert told.get("--dtype", "auto") in VLLM_DTYPES
    assert int(told["--max-cpu-loras"]) >= int(told["--max-loras"])
    assert told.get("--tensor-parallel-size") == ("4" if gpus == 4 else None)
    assert told.get("--quantization") == ("bitsandbytes" if spec is SPECS["everything"] else None)
    env = env_of(container)
    assert {n for n in env if n.startswith("VLLM_")} <= VLLM_VARIABLES
    assert env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def test_every_rank_that_a_model_server_may_name_is_one_of_vllms() -> None:
    assert set(get_args(EngineSpec.model_fields["max_lora_rank"].annotation)) <= VLLM_RANKS


@each_spec
def test_the_cpu_engine_reads_its_command_line_as_it_was_meant(spec: Manifest) -> None:
    (*python, module), args = (c := container_of(deploy("cpu", spec), "engine")["command"])[:3], c[3:]
    assert (python, module) == (["python", "-m"], "llamero.engine")
    engine = parse_engine_settings([a.replace("$(POD_IP)", "127.1.2.3") for a in args])
    assert (engine.host, engine.port, str(engine.base)) == ("127.1.2.3", 8080, "/llamero/scratch/base")
    assert engine.quantization == ("nf4" if spec is SPECS["everything"] else None)
    assert engine.max_total_tokens == (4096 if spec is SPECS["everything"] else None)
    assert engine.dtype == ("bfloat16" if spec is SPECS["another precision"] else "float32")
    assert engine.name == ("org/model" if spec is SPECS["everything"] else "tiny")


@each_engine
@each_spec
def test_what_llamero_sets_a_model_server_may_not(engine: EngineType, spec: Manifest) -> None:
    container = container_of(
        deploy(engine, merge(spec, {"resources": {"gpus": 0 if engine == "cpu" else 2}}), "a"), "engine"
    )
    options = [arg.partition("=")[0] for arg in container["command"] if arg.startswith("--")]
    if engine == "tgi":
        options += [TGI_VARIABLES[name] for name in env_of(container) if name in TGI_VARIABLES]
    assert options
    for option in options:
        assert find_reserved(engine, option) == option, option


def test_every_reserved_option_of_tgi_and_vllm_is_documented() -> None:
    further = {"--env", "--help", "--version"}
    assert {o for o in RESERVED["tgi"] if o.startswith("--")} - further <= set(TGI_VARIABLES.values())
    plugins = {"--code-revision", "--reasoning-parser-plugin", "--enable-log-outputs"}
    assert {o for o in RESERVED["vllm"] if o.startswith("--")} - further - plugins <= VLLM_OPTIONS


def test_every_reserved_option_of_the_cpu_engine_is_one_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_engine_settings(["--help"])
    documented = set(re.findall(r"--[a-z][-a-z]*", capsys.readouterr().out))
    assert {o for o in RESERVED["cpu"] if o.startswith("--")} <= documented


@each_engine
def test_further_options_come_last_and_are_not_expanded(engine: EngineType) -> None:
    option = {"tgi": "--max-batch-size=4", "vllm": "--enforce-eager", "cpu": "--max-batch=4"}[engine]
    command = container_of(deploy(engine, {"engine": {"args": [option, "$(HF_TOKEN)"]}}), "engine")["command"]
    assert command[-2:] == [option, "$$(HF_TOKEN)"]


# -- probes, end and replacement -----------------------------------------------------------------------------------------------


@each_engine
def test_a_pod_is_given_its_time_to_start_and_to_end(engine: EngineType, settings: OperatorSettings) -> None:
    times = settings.serving
    deployment = deploy(engine, settings=settings)
    container = container_of(deployment, "engine")
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= times.start_seconds
    assert deployment["spec"]["progressDeadlineSeconds"] > times.start_seconds
    grace = pod_of(deployment)["terminationGracePeriodSeconds"]
    assert grace > 90 and grace > times.leave_seconds + times.finish_seconds
    for name in ("engine", "agent"):
        hook = container_of(deployment, name)["lifecycle"]["preStop"]["exec"]["command"]
        assert hook == ["sleep", str(times.leave_seconds)]
    told = {
        "tgi": env_of(container).get("GRACEFUL_TERMINATION_TIMEOUT"),
        "vllm": next((a.partition("=")[2] for a in container["command"] if a.startswith("--shutdown-timeout")), None),
        "cpu": next((a.partition("=")[2] for a in container["command"] if a.startswith("--drain-seconds")), None),
    }
    assert told[engine] == str(times.finish_seconds)


@each_engine
def test_a_pod_is_ready_when_engine_and_agent_are(engine: EngineType) -> None:
    deployment = deploy(engine)
    ports = {}
    for name, path in (("engine", "/health"), ("agent", "/readyz")):
        container = container_of(deployment, name)
        probe = container["readinessProbe"]["httpGet"]
        (port,) = container["ports"]
        assert (probe["path"], probe["port"]) == (path, port["name"])
        ports[name] = port["containerPort"]
    assert ports == {"engine": names.ENGINE_PORT, "agent": names.AGENT_PORT}


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        ({}, {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}),
        ({"updateStrategy": "Recreate"}, {"type": "Recreate"}),
    ],
)
def test_no_pod_ends_before_another_is_ready_unless_asked_for(spec: Manifest, strategy: Manifest) -> None:
    assert deploy("tgi", spec)["spec"]["strategy"] == strategy


# -- number, place, size -------------------------------------------------------------------------------------------------------


def test_the_number_of_pods_is_the_decisions_or_the_autoscalers() -> None:
    scaled = {"autoscaling": {}}
    assert deploy("cpu", replicas=3)["spec"]["replicas"] == 3
    assert "replicas" not in deploy("cpu", scaled, replicas=3)["spec"]
    assert deploy("cpu", scaled, replicas=0)["spec"]["replicas"] == 0
    old = make_world("cpu", scaled, capabilities=ServingCapabilities())
    assert manifests.build_deployment(old, make_decision("cpu", replicas=3), parse())["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("engine", "metric"), [("tgi", "tgi_queue_size"), ("vllm", "vllm_num_requests_waiting"), ("cpu", "tgi_queue_size")]
)
def test_the_autoscaler_goes_by_waiting_requests(engine: EngineType, metric: str) -> None:
    world = make_world(engine, {"autoscaling": {"minReplicas": 2, "maxReplicas": 5, "queueDepth": 7}})
    autoscaler = manifests.build_autoscaler(world, make_decision(engine), parse())
    assert autoscaler is not None
    spec = autoscaler["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 5)
    assert (
        spec["scaleTargetRef"]["name"]
        == manifests.build_deployment(world, make_decision(engine), parse())["metadata"]["name"]
    )
    (told,) = spec["metrics"]
    assert told["pods"] == {"metric": {"name": metric}, "target": {"type": "AverageValue", "averageValue": "7"}}
    assert manifests.build_autoscaler(make_world(engine), make_decision(engine), parse()) is None


@pytest.mark.parametrize(
    ("engine", "resources", "gpus"),
    [("tgi", {}, "1"), ("vllm", {"gpus": 4}, "4"), ("tgi", {"gpus": 0}, None), ("cpu", {}, None)],
)
def test_an_engine_asks_for_its_gpus_alone(engine: EngineType, resources: Manifest, gpus: str | None) -> None:
    deployment = deploy(engine, {"resources": resources})
    asked = container_of(deployment, "engine")["resources"]
    assert asked["limits"].get("nvidia.com/gpu") == asked["requests"].get("nvidia.com/gpu") == gpus
    assert "nvidia.com/gpu" not in str(container_of(deployment, "agent")["resources"])


def test_a_gpu_class_brings_its_nodes_and_its_resource() -> None:
    settings = parse(SETTINGS["everything"])
    deployment = deploy("vllm", {"resources": {"gpuClass": "spot"}}, settings=settings)
    pod = pod_of(deployment)
    assert pod["nodeSelector"] == {"pool": "spot", "zone": "a"}
    assert pod["runtimeClassName"] == "nvidia"
    assert container_of(deployment, "engine")["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "1"


def test_an_unknown_gpu_class_is_told_before_anything_is_built() -> None:
    world = make_world("tgi", {"resources": {"gpuClass": "spot"}})
    (problem,) = manifests.find_server_problems(world, parse())
    assert problem.startswith("spec.resources.gpuClass: the GPU class `spot` is not in the operator's settings")
    with pytest.raises(UnknownGpuClass):
        manifests.build_deployment(world, make_decision("tgi"), parse())
    assert not manifests.find_server_problems(world, parse(SETTINGS["everything"]))
    assert not manifests.find_server_problems(make_world("cpu"), parse())


@each_engine
def test_a_model_servers_own_sizes_take_the_place_of_the_settings(engine: EngineType) -> None:
    asked = container_of(deploy(engine, {"resources": {"cpu": "1500m", "memory": "9Gi"}}), "engine")["resources"]
    assert (asked["requests"]["cpu"], asked["requests"]["memory"], asked["limits"]["memory"]) == ("1500m", "9Gi", "9Gi")
    assert "cpu" not in asked["limits"]


def test_gpu_engines_have_shared_memory_for_their_processes() -> None:
    for engine in ENGINES:
        volumes = {v["name"]: v for v in pod_of(deploy(engine))["volumes"]}
        assert ("shm" in volumes) is (engine != "cpu")
        if engine != "cpu":
            assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


def test_pods_of_one_template_are_spread_where_the_server_can() -> None:
    newer = ServingCapabilities(disruption_budgets=True, autoscaling=True, spread_by_template=True)
    world = make_world("cpu", capabilities=newer)
    deployment = manifests.build_deployment(world, make_decision("cpu"), parse())
    (spread,) = pod_of(deployment)["topologySpreadConstraints"]
    assert spread["matchLabelKeys"] == ["pod-template-hash"]
    kubernetes_validate.validate(deployment, "1.28", strict=True)


@each_engine
def test_replicas_are_spread_over_nodes(engine: EngineType) -> None:
    deployment = deploy(engine)
    (spread,) = pod_of(deployment)["topologySpreadConstraints"]
    assert "matchLabelKeys" not in spread, "servers before 1.27 refuse what they do not know"
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()


# -- whose it is ---------------------------------------------------------------------------------------------------------------


@each_engine
def test_all_of_it_belongs_to_the_server_and_is_found_by_its_labels(engine: EngineType) -> None:
    for manifest in build_all(engine, SPECS["everything"], parse()):
        metadata = manifest["metadata"]
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("ModelServer", "tiny", UID, True)
        assert metadata["labels"] == names.server_labels("tiny", UID)
        assert metadata["namespace"] == "team-a"


@each_engine
def test_service_budget_and_deployment_choose_the_same_pods(engine: EngineType) -> None:
    deployment, service, budget, *_ = build_all(engine, {}, parse())
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"] == selector == budget["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert selector[names.LABEL_SERVER_UID] == UID, "a server made again takes no pods of the old one"


def test_nothing_is_built_of_a_spec_that_is_wrong() -> None:
    world = make_world("cpu", server=None, problems=("spec.replicas: must be at least 0, not -1",))
    with pytest.raises(ValueError, match="team-a/tiny is wrong"):
        manifests.build_deployment(world, make_decision("cpu"), parse())
    assert manifests.find_server_problems(world, parse()) == ()


def test_the_images_are_the_settings(settings: OperatorSettings) -> None:
    for engine, image in (
        ("tgi", settings.images.tgi),
        ("vllm", settings.images.vllm),
        ("cpu", settings.images.engine),
    ):
        deployment = deploy(engine, settings=settings)
        assert container_of(deployment, "engine")["image"] == image
        assert (
            container_of(deployment, "fetch")["image"]
            == container_of(deployment, "agent")["image"]
            == settings.images.agent
        )
        policies = {c.get("imagePullPolicy") for c in pod_of(deployment)["containers"]}
        assert policies == {settings.image_pull_policy}
