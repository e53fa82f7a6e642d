"""Rendered manifests: valid for every Kubernetes version served, restricted by the Pod Security Standards, and whole."""

import base64
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import kubernetes_validate
import pytest
from pod_security import broken_controls

from llamero.lifecycle.world import Capabilities, Publication, Work, World
from llamero.spec import names
from llamero.spec.adapter import Adapter, AdapterSource, AdapterSpec
from llamero.spec.job import FineTuneJob
from llamero.spec.status import WorkKind
from llamero_operator.desired import desired_children
from llamero_operator.resources.adapter import build_adapter
from llamero_operator.resources.environment import list_secret_refs
from llamero_operator.resources.jobs import SINCE
from llamero_operator.resources.quantities import parse_quantity
from llamero_operator.resources.redis_secret import build_redis_secret
from llamero_operator.settings import OperatorSettings, parse_settings

MakeJob = Callable[..., FineTuneJob]
MakeWorld = Callable[..., World]
Manifest = dict[str, Any]

VERSIONS = ["1.28", "1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
CELERY_KINDS = (WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE)

SETTINGS: dict[str, dict[str, Any]] = {
    "a claim and little else": {"storage": {"claim": "files"}},
    "an object store with keys": {"storage": {"uri": "s3://bucket/llamero", "secretName": "storage-keys"}},
    "a folder of the only node": {"storage": {"hostPath": "/srv/llamero", "mountPath": "/srv/llamero"}},
    "everything": {
        "storage": {"claim": "files", "mountPath": "/mnt/files"},
        "images": {"data": "registry/data@sha256:" + "0" * 64, "trainer": "registry/trainer:1"},
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": ["pull"],
        "gpuClasses": {
            "spot": {
                "resource": "nvidia.com/mig-1g.10gb",
                "memoryGiB": 10,
                "pricePerHour": 1.25,
                "nodeSelector": {"pool": "spot"},
                "tolerations": [
                    {"key": "spot", "operator": "Exists", "effect": "NoSchedule"},
                    {"key": "gone", "value": "x", "effect": "NoExecute", "tolerationSeconds": 30},
                ],
                "runtimeClass": "nvidia",
            }
        },
        "pods": {
            "training": {
                "cpuRequest": "1",
                "cpuLimit": "1500m",
                "nodeSelector": {"zone": "a"},
                "tolerations": [{"operator": "Exists"}],
            },
            "data": {"memoryLimit": None, "ephemeralLimit": "30Gi"},
        },
        "hub": {
            "endpoint": "https://hub.example.org",
            "offline": True,
            "caConfigMap": {"name": "authorities", "key": "bundle.pem"},
            "proxy": {"http": "http://proxy:3128", "https": "http://u:p$(x)@proxy:3128", "noProxy": "redis,.svc"},
        },
        "priorityClassName": "batch",
        "serviceAccountName": "llamero-worker",
        "security": {"uid": None, "gid": None, "fsGroup": None},
    },
}


def asked(name: str) -> dict[str, Any]:
    """A language model with a key of its own."""
    return {"url": "https://models/v1", "model": name, "secretRef": {"name": f"{name}-key", "key": name}}


JOBS: dict[str, dict[str, Any]] = {
    "small": {},
    "with secrets": {
        "baseModel": {"name": "org/model", "revision": "0" * 40, "secretRef": {"name": "hub", "key": "HF_TOKEN"}},
        "data": {
            "sources": [
                {"uri": "https://a/x.json", "format": "alpaca", "secretRef": {"name": "a"}},
                {"uri": "hf://b/y.json", "format": "alpaca", "secretRef": {"name": "hub", "key": "HF_TOKEN"}},
                {"uri": "https://c/z.json", "format": "alpaca", "secretRef": {"name": "c", "key": "other.token"}},
                {"uri": "https://d/seeds.json", "format": "alpaca", "generate": {"model": asked("writer")}},
            ],
            "steps": [
                {"judge": {"models": [asked("judge-a"), asked("judge-b")]}},
                {"use": "deita", "models": [asked("judge-c")]},
                {"kCenter": {"embedding": {"kind": "endpoint", "model": asked("embedder")}}},
            ],
        },
    },
    "queued": {"labels": {names.QUEUE_LABEL: "team-queue"}},
}


def all_works(settings: OperatorSettings) -> list[Work]:
    """One piece of work of every kind, training on a GPU and evaluating on a CPU, twice."""
    gpu_class = next(iter(settings.gpu_classes), None)
    works = [Work(kind, 0 if kind in (WorkKind.FETCH, WorkKind.CLEAN) else 3, 2) for kind in WorkKind]
    return [
        *works,
        Work(WorkKind.PREPARE, 4, 1, pods=5),
        Work(WorkKind.TRAIN, 4, 1, gpu_class=gpu_class, gpus=2, micro_batch_tokens=512, evaluate_too=True),
    ]


@dataclass(frozen=True)
class Rendered:
    """A child Job and what it was made from."""

    work: Work
    world: World
    settings: OperatorSettings
    manifest: Manifest

    @property
    def pod(self) -> Manifest:
        spec: Manifest = self.manifest["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Manifest:
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def env(self) -> dict[str, Manifest]:
        found = {variable["name"]: variable for variable in self.container["env"]}
        assert len(found) == len(self.container["env"]), "a variable stands twice"
        return found


def render(
    make_world: MakeWorld,
    job: FineTuneJob,
    settings: OperatorSettings,
    version: tuple[int, int] = (1, 34),
    suspend: bool = True,
) -> Iterator[Rendered]:
    world = make_world(job, capabilities=Capabilities(suspend, version))
    works = all_works(settings)
    for work, manifest in zip(works, desired_children(world, works, settings), strict=True):
        yield Rendered(work, world, settings, manifest)


@pytest.fixture(params=list(SETTINGS))
def settings(request: pytest.FixtureRequest) -> OperatorSettings:
    return parse_settings(SETTINGS[request.param], {"LLAMERO_REDIS_URL": "redis://:secret-word@redis:6379"})


@pytest.fixture(params=list(JOBS))
def job(request: pytest.FixtureRequest, make_job: MakeJob) -> FineTuneJob:
    return make_job(**JOBS[request.param])


@pytest.fixture
def rendered(make_world: MakeWorld, job: FineTuneJob, settings: OperatorSettings) -> list[Rendered]:
    return list(render(make_world, job, settings))


# -- valid ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_child_is_a_valid_job_for_the_server_it_is_rendered_for(
    make_world: MakeWorld, make_job: MakeJob, settings: OperatorSettings, version: str
) -> None:
    job = make_job(**JOBS["with secrets"] | JOBS["queued"])
    major, minor = version.split(".")
    for one in render(make_world, job, settings, (int(major), int(minor))):
        kubernetes_validate.validate(one.manifest, version, strict=True)


def test_the_validator_refuses_what_it_should() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "batch/v1", "kind": "Job", "spec": {"paralelism": 1}}, "1.30", strict=True
        )


# -- the Pod Security Standards ------------------------------------------------------------------------------------------------


def test_every_pod_is_restricted_but_for_a_folder_of_the_node(rendered: list[Rendered]) -> None:
    for one in rendered:
        excused = {"Volume Types"} if one.settings.storage.host_path else set()
        assert broken_controls(one.pod) == excused


@pytest.mark.parametrize(
    ("change", "control"),
    [
        (lambda pod: pod.update(hostNetwork=True), "Host Namespaces"),
        (lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "Volume Types"),
        (lambda pod: pod["securityContext"].pop("runAsNonRoot"), "Running as Non-root (pod)"),
        (lambda pod: pod["securityContext"].update(seccompProfile={"type": "Unconfined"}), "Seccomp (pod)"),
        (lambda pod: pod["containers"][0]["securityContext"].update(privileged=True), "Privileged Containers"),
        (lambda pod: pod["containers"][0]["securityContext"].update(capabilities={}), "Capabilities"),
        (lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"), "Privilege Escalation"),
        (lambda pod: pod["containers"][0]["securityContext"].update(runAsUser=0), "Running as Non-root user"),
    ],
)
def test_the_checker_sees_a_broken_control(
    make_world: MakeWorld, make_job: MakeJob, change: Callable[[Manifest], None], control: str
) -> None:
    parsed = parse_settings(SETTINGS["a claim and little else"], {"LLAMERO_REDIS_URL": "redis://redis"})
    pod = next(render(make_world, make_job(), parsed)).pod
    change(pod)
    assert broken_controls(pod) == {control}


def test_no_pod_has_a_token_or_a_writable_root_or_the_services_in_its_environment(rendered: list[Rendered]) -> None:
    for one in rendered:
        assert one.pod["automountServiceAccountToken"] is False
        assert one.pod["enableServiceLinks"] is False
        assert one.container["securityContext"]["readOnlyRootFilesystem"] is True
        assert one.pod["restartPolicy"] == "Never"


# -- secrets -------------------------------------------------------------------------------------------------------------------


def test_every_secret_ref_is_in_the_environment_of_the_pods_that_read_it(
    rendered: list[Rendered], job: FineTuneJob
) -> None:
    refs = list_secret_refs(job)
    needed = {WorkKind.FETCH: {"base"}, WorkKind.PREPARE: {"base", "data", "models"}, WorkKind.PROBE: {"base", "data"}}
    for one in rendered:
        for owner, _, ref in refs:
            if owner not in needed.get(one.work.kind, set()):
                continue
            assert one.env[ref.key]["valueFrom"] == {"secretKeyRef": {"name": ref.name, "key": ref.key}}


def test_the_keys_of_language_models_are_in_the_pods_that_prepare_data_and_in_no_other(
    rendered: list[Rendered], job: FineTuneJob
) -> None:
    keys = {ref.key for owner, _, ref in list_secret_refs(job) if owner == "models"}
    for one in rendered:
        assert keys & set(one.env) == (keys if one.work.kind is WorkKind.PREPARE else set())


def test_every_language_model_of_a_manifest_is_found_where_it_stands(make_job: MakeJob) -> None:
    refs = list_secret_refs(make_job(**JOBS["with secrets"]))
    assert {path: ref.name for owner, path, ref in refs if owner == "models"} == {
        "spec.data.sources[3].generate.model.secretRef": "writer-key",
        "spec.data.steps[0].judge.models[0].secretRef": "judge-a-key",
        "spec.data.steps[0].judge.models[1].secretRef": "judge-b-key",
        "spec.data.steps[1].models[0].secretRef": "judge-c-key",
        "spec.data.steps[2].kCenter.embedding.model.secretRef": "embedder-key",
    }


@pytest.mark.parametrize("kind", [WorkKind.CLEAN, WorkKind.LOGS])
def test_clean_up_and_logs_need_no_secret_of_the_job(
    rendered: list[Rendered], job: FineTuneJob, kind: WorkKind
) -> None:
    for one in rendered:
        if one.work.kind is kind:
            assert not {ref.key for _, _, ref in list_secret_refs(job)} & set(one.env)
            assert one.env["LLAMERO_REDIS_URL"]["valueFrom"]["secretKeyRef"]["optional"] is True


def test_redis_comes_from_its_secret_and_stands_in_no_manifest(rendered: list[Rendered]) -> None:
    for one in rendered:
        assert "secret-word" not in str(one.manifest)
        reference = one.env["LLAMERO_REDIS_URL"]["valueFrom"]["secretKeyRef"]
        assert (reference["name"], reference["key"]) == ("llamero-redis", "url")
        if one.work.kind in CELERY_KINDS:
            assert "optional" not in reference


def test_the_redis_secret_holds_the_address_for_one_namespace() -> None:
    secret = build_redis_secret("team-a", "redis://:pässword@redis:6379/1")
    kubernetes_validate.validate(secret, "1.28", strict=True)
    assert secret["metadata"]["namespace"] == "team-a"
    assert base64.b64decode(secret["data"]["url"]).decode() == "redis://:pässword@redis:6379/1"


def test_the_object_stores_keys_come_from_its_secret(rendered: list[Rendered]) -> None:
    for one in rendered:
        name = one.settings.storage.secret_name
        assert one.container.get("envFrom") == ([{"secretRef": {"name": name}}] if name else None)


# -- paths and sizes -----------------------------------------------------------------------------------------------------------


def test_paths_in_the_environment_are_mounted_and_writable(rendered: list[Rendered]) -> None:
    for one in rendered:
        mounts = {m["mountPath"]: m for m in one.container["volumeMounts"]}
        assert {m["name"] for m in mounts.values()} == {v["name"] for v in one.pod["volumes"]}
        for name in ("LLAMERO_SCRATCH", "HOME", "HF_HOME", "LLAMERO_STORAGE"):
            path = one.env[name]["value"]
            if "://" in path:
                continue
            found = [m for at, m in mounts.items() if path == at or path.startswith(at + "/")]
            assert found and not found[0].get("readOnly"), name
        assert "/tmp" in mounts
        assert one.env["LLAMERO_TERMINATION_LOG"]["value"] == one.container["terminationMessagePath"]


def test_every_empty_folder_is_capped_and_the_pods_disk_has_room_for_them(rendered: list[Rendered]) -> None:
    for one in rendered:
        folders = [v["emptyDir"] for v in one.pod["volumes"] if "emptyDir" in v]
        assert len(folders) >= 2 and all("sizeLimit" in f for f in folders)
        on_disk = [parse_quantity(f["sizeLimit"]) for f in folders if f.get("medium") != "Memory"]
        limit = parse_quantity(one.container["resources"]["limits"]["ephemeral-storage"])
        assert limit > sum(on_disk)


def test_training_has_shared_memory_in_memory(rendered: list[Rendered]) -> None:
    for one in rendered:
        memory = [v for v in one.pod["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"]
        assert bool(memory) == (one.work.kind in (WorkKind.TRAIN, WorkKind.EVALUATE))
        if memory:
            mount = next(m for m in one.container["volumeMounts"] if m["name"] == memory[0]["name"])
            assert mount["mountPath"] == "/dev/shm"


def test_requests_are_never_above_limits(rendered: list[Rendered]) -> None:
    for one in rendered:
        resources = one.container["resources"]
        for name, limit in resources["limits"].items():
            assert parse_quantity(resources["requests"][name]) <= parse_quantity(limit), name


def test_threads_keep_within_the_cpu_limit(rendered: list[Rendered]) -> None:
    for one in rendered:
        limit = one.container["resources"]["limits"].get("cpu")
        threads = one.env.get("OMP_NUM_THREADS")
        assert (threads is None) == (limit is None)
        if limit is not None and threads is not None:
            assert int(threads["value"]) == math.ceil(parse_quantity(limit))


# -- GPUs ----------------------------------------------------------------------------------------------------------------------


def test_gpus_are_asked_for_by_the_class_and_by_training_alone(rendered: list[Rendered]) -> None:
    for one in rendered:
        gpus = {n: v for n, v in one.container["resources"]["limits"].items() if "/" in n}
        if not one.work.gpus:
            assert gpus == {} and "runtimeClassName" not in one.pod
            continue
        spot = one.settings.gpu_classes.get("spot")
        assert gpus == {spot.resource if spot else "nvidia.com/gpu": "2"}
        if spot:
            assert one.pod["runtimeClassName"] == "nvidia"
            assert one.pod["nodeSelector"] == {"zone": "a", "pool": "spot"}
            assert one.pod["tolerations"] == [
                {"operator": "Exists"},
                {"key": "spot", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "gone", "operator": "Equal", "value": "x", "effect": "NoExecute", "tolerationSeconds": 30},
            ]
        else:
            assert one.pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


# -- the Job -------------------------------------------------------------------------------------------------------------------


def test_a_childs_name_labels_and_owner_say_whose_it_is(rendered: list[Rendered]) -> None:
    assert len({one.manifest["metadata"]["name"] for one in rendered}) == len(rendered)
    for one in rendered:
        metadata, work = one.manifest["metadata"], one.work
        assert metadata["name"] == names.child_job_name(
            one.world.name, one.world.uid, work.run, work.kind, work.attempt
        )
        assert len(metadata["name"]) <= 63
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("FineTuneJob", one.world.uid, True)
        labels = names.child_labels(one.world.name, one.world.uid, work.run, work.kind, work.attempt)
        assert labels.items() <= metadata["labels"].items()
        assert one.manifest["spec"]["template"]["metadata"]["labels"] == labels


@pytest.mark.parametrize("version", ["1.28", "1.34"])
def test_a_job_with_a_name_that_is_refused_can_still_be_cleaned_up(make_world: MakeWorld, version: str) -> None:
    parsed = parse_settings(SETTINGS["a claim and little else"], {"LLAMERO_REDIS_URL": "redis://redis"})
    world = make_world(has_job=False, name="team.finance." + "x" * 39 + "." + "y" * 100)
    (child,) = desired_children(world, [Work(WorkKind.CLEAN, 0, 1)], parsed)
    kubernetes_validate.validate(child, version, strict=True)
    metadata = child["metadata"]
    for text in (metadata["name"], *metadata["labels"].values()):
        assert len(text) <= 63
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", text)
    assert ".-" not in metadata["name"] and "-." not in metadata["name"]


def test_pods_are_never_replaced_and_only_data_workers_are_several(rendered: list[Rendered]) -> None:
    for one in rendered:
        spec = one.manifest["spec"]
        assert spec["backoffLimit"] == 0
        assert spec["parallelism"] == one.work.pods
        if one.work.kind is WorkKind.PREPARE:
            assert "completions" not in spec
        else:
            assert spec["completions"] == spec["parallelism"] == 1


@pytest.mark.parametrize("version", [(1, 20), (1, 28), (1, 30), (1, 31), (1, 33), (1, 34), (1, 37)])
def test_fields_that_a_server_may_not_know_are_left_out(
    make_world: MakeWorld, make_job: MakeJob, version: tuple[int, int]
) -> None:
    parsed = parse_settings(SETTINGS["everything"], {"LLAMERO_REDIS_URL": "redis://redis"})
    for one in render(make_world, make_job(), parsed, version):
        for field, since in SINCE.items():
            assert (field in one.manifest["spec"]) == (version >= since)


@pytest.mark.parametrize("can_suspend", [True, False])
def test_work_of_a_run_waits_in_kueues_queue_and_helpers_do_not(
    make_world: MakeWorld, make_job: MakeJob, can_suspend: bool
) -> None:
    parsed = parse_settings(SETTINGS["a claim and little else"], {"LLAMERO_REDIS_URL": "redis://redis"})
    for one in render(make_world, make_job(**JOBS["queued"]), parsed, suspend=can_suspend):
        is_queued = one.work.kind in (WorkKind.FETCH, *CELERY_KINDS)
        assert (one.manifest["metadata"]["labels"].get(names.QUEUE_LABEL) == "team-queue") == is_queued
        assert one.manifest["spec"].get("suspend", False) == (is_queued and can_suspend)


def test_without_a_queue_no_job_is_suspended(make_world: MakeWorld, make_job: MakeJob) -> None:
    parsed = parse_settings(SETTINGS["a claim and little else"], {"LLAMERO_REDIS_URL": "redis://redis"})
    for one in render(make_world, make_job(), parsed):
        assert "suspend" not in one.manifest["spec"]
        assert names.QUEUE_LABEL not in one.manifest["metadata"]["labels"]


def test_helpers_have_a_deadline_and_work_of_a_run_has_its_own(rendered: list[Rendered]) -> None:
    for one in rendered:
        has_deadline = one.work.kind in (WorkKind.PROBE, WorkKind.CLEAN, WorkKind.LOGS)
        assert ("activeDeadlineSeconds" in one.manifest["spec"]) == has_deadline


def test_commands_are_a_worker_on_the_attempts_queue_or_a_helper(rendered: list[Rendered]) -> None:
    for one in rendered:
        command, queue = one.container["command"], one.env["LLAMERO_QUEUE"]["value"]
        if one.work.kind in CELERY_KINDS:
            assert command[:4] == ["python", "-m", "celery", "-A"]
            assert command[command.index("-Q") + 1] == queue
            assert command[command.index("--pool") + 1] == "solo"
            assert "LLAMERO_MESSAGE" not in one.env
        else:
            assert command == ["python", "-m", "llamero.pods"]
            assert "$" not in one.env["LLAMERO_MESSAGE"]["value"]


def test_images_follow_the_kind_of_work(rendered: list[Rendered]) -> None:
    for one in rendered:
        images = one.settings.images
        is_model = one.work.kind in (WorkKind.TRAIN, WorkKind.EVALUATE)
        assert one.container["image"] == (images.trainer if is_model else images.data)


def test_the_hub_is_reached_as_the_settings_say(make_world: MakeWorld, make_job: MakeJob) -> None:
    parsed = parse_settings(SETTINGS["everything"], {"LLAMERO_REDIS_URL": "redis://redis"})
    for one in render(make_world, make_job(), parsed):
        values = {name: variable.get("value") for name, variable in one.env.items()}
        assert values["HF_ENDPOINT"] == "https://hub.example.org" and values["HF_HUB_OFFLINE"] == "1"
        assert values["HTTP_PROXY"] == values["http_proxy"] == "http://proxy:3128"
        assert values["HTTPS_PROXY"] == "http://u:p$$(x)@proxy:3128", (
            "a dollar is doubled against Kubernetes' expansion"
        )
        assert values["SSL_CERT_FILE"] == values["AWS_CA_BUNDLE"] == "/llamero/ca/ca.crt"
        ca = next(v for v in one.pod["volumes"] if v["name"] == "ca")
        assert ca["configMap"]["items"] == [{"key": "bundle.pem", "path": "ca.crt"}]


# -- Adapters ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [AdapterSource(job="tutor", uid="u-1", run=3), None])
def test_an_adapter_belongs_to_no_job_and_says_which_one_made_it(source: AdapterSource | None) -> None:
    spec = AdapterSpec(
        uri="s3://bucket/adapters/x",
        sha256="a" * 64,
        base="org/model",
        base_sha256="b" * 64,
        model="tutor",
        source=source,
    )
    manifest = build_adapter(Publication("tutor-r3", spec), "team-a")
    assert "ownerReferences" not in manifest["metadata"]
    assert manifest["metadata"]["labels"].get(names.LABEL_JOB) == (source.job if source else None)
    read = Adapter.model_validate(manifest)
    assert read.spec == spec
    assert (read.metadata.name, read.metadata.namespace) == ("tutor-r3", "team-a")
