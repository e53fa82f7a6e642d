"""A real API server takes the CRDs, fills in the models' defaults, refuses what they refuse and prints the columns."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.api import ApiError, path_of
from cluster.control_plane import ControlPlane
from services.spec.test_crd import EXAMPLES, MINIMAL, WRONG, _set_at, merge
from services.spec.test_server_rules import MINIMAL as MINIMAL_SERVER

from llamero.kube.objects import drop_empty_texts
from llamero.spec.job import API_VERSION, FineTuneJob
from llamero.spec.server import ModelServer, ModelServerStatus
from llamero.spec.status import (
    AdapterStatus,
    Condition,
    ConditionType,
    JobPhase,
    JobStatus,
    ProgressStatus,
    TrainingStatus,
)

Object = dict[str, Any]

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def jobs_path(namespace: str = "default", name: str | None = None) -> str:
    return path_of(API_VERSION, "FineTuneJob", namespace, name)


def try_out(plane: ControlPlane, manifest: Object) -> Object:
    """What the server makes of a job, without keeping it. Raises ApiError."""
    taken: Object = plane.api.request("POST", jobs_path() + "?dryRun=All", manifest)
    return taken


def test_the_server_finds_the_schemas_structural(control_plane: ControlPlane) -> None:
    for name in ("finetunejobs.llamero.dev", "adapters.llamero.dev", "modelservers.llamero.dev"):
        crd = control_plane.api.get(path_of("apiextensions.k8s.io/v1", "CustomResourceDefinition", name=name))
        conditions = {c["type"]: c["status"] for c in crd["status"]["conditions"]}
        assert conditions["Established"] == "True"
        assert "NonStructuralSchema" not in conditions


ALL_EXAMPLES = {p.stem: yaml.safe_load(p.read_text()) for p in EXAMPLES}
JOBS = {"minimal": MINIMAL} | {name: raw for name, raw in ALL_EXAMPLES.items() if raw["kind"] == "FineTuneJob"}
SERVERS = {name: raw for name, raw in ALL_EXAMPLES.items() if raw["kind"] == "ModelServer"}


@pytest.mark.parametrize("raw", JOBS.values(), ids=JOBS)
def test_the_servers_defaults_are_the_models(control_plane: ControlPlane, raw: Object) -> None:
    taken = try_out(control_plane, raw)
    assert FineTuneJob.model_validate(taken).spec == FineTuneJob.model_validate(raw).spec
    training = FineTuneJob.model_validate(raw).spec.training
    assert taken["spec"]["training"]["saveIntervalSeconds"] == training.save_interval_seconds
    assert taken["spec"]["training"]["lora"]["rank"] == training.lora.rank


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_the_server_refuses_what_a_bound_refuses(
    control_plane: ControlPlane, place: tuple[str, ...], value: Any
) -> None:
    with pytest.raises(ApiError) as caught:
        try_out(control_plane, _set_at(place, value))
    assert caught.value.status == 422


@pytest.mark.parametrize(
    "spec",
    [
        {"baseModel": {"uri": "base", "name": None, "revision": None}},
        {"training": {"maxSteps": None, "lora": {"targetModules": None, "layers": None}}},
        {"retrain": None, "activeDeadlineSeconds": None},
    ],
    ids=["base", "training", "job"],
)
def test_the_server_takes_null_where_the_model_does(control_plane: ControlPlane, spec: Object) -> None:
    raw = merge(MINIMAL, {"spec": spec})
    assert FineTuneJob.model_validate(try_out(control_plane, raw)).spec == FineTuneJob.model_validate(raw).spec


def test_the_server_refuses_a_name_that_is_too_long_for_what_is_made_of_it(control_plane: ControlPlane) -> None:
    with pytest.raises(ApiError, match=r"metadata\.name"):
        try_out(control_plane, merge(MINIMAL, {"metadata": {"name": "a" * 41}}))


def test_what_the_server_is_not_told_of_it_does_not_keep(control_plane: ControlPlane) -> None:
    taken = try_out(control_plane, merge(MINIMAL, {"spec": {"rollout": {"server": "one"}, "image": "evil"}}))
    assert taken["spec"]["rollout"]["server"] == "one" and "image" not in taken["spec"]


@pytest.fixture
def job(control_plane: ControlPlane, namespace: str) -> Object:
    """A job in a namespace of the test's own."""
    created: Object = control_plane.api.request("POST", jobs_path(namespace), MINIMAL)
    return created


def as_written(status: JobStatus) -> Object:
    """The status as the operator sends it (llamero.kube.jobs)."""
    sent: Object = drop_empty_texts(status.to_json_dict())
    return sent


def write_status(plane: ControlPlane, job: Object, status: JobStatus) -> Object:
    metadata = job["metadata"]
    path = jobs_path(metadata["namespace"], metadata["name"]) + "/status"
    written: Object = plane.api.request("PUT", path, {**job, "status": as_written(status)})
    return written


def build_status() -> JobStatus:
    return JobStatus(
        observed_generation=1,
        phase=JobPhase.TRAINING,
        conditions=[
            Condition(type=kind, status="False", reason="Reconciling", message="m", last_transition_time=NOW)
            for kind in list(ConditionType)[:16]  # as many as a status may have
        ],
        run=2,
        attempt=3,
        progress=ProgressStatus(percent=42, activity="training", step=4, loss="1.25", estimated_remaining_seconds=61),
        training=TrainingStatus(
            uri="u", steps=1, tokens=2, first_loss="2", last_loss="1", tokens_per_second="3", adapter_sha256="0"
        ),
        adapter=AdapterStatus(name="job-r1", uri="u", sha256="0" * 64),
        started_at=NOW,
        finished_at=NOW + timedelta(minutes=1),
    )


def test_a_status_comes_back_as_it_was_written(control_plane: ControlPlane, job: Object) -> None:
    status = build_status()
    written = write_status(control_plane, job, status)
    assert written["status"] == as_written(status)
    assert JobStatus.model_validate(written["status"]) == status
    assert written["metadata"]["generation"] == job["metadata"]["generation"]


def test_no_field_of_the_status_is_unknown_to_the_server(control_plane: ControlPlane) -> None:
    crd = control_plane.api.get(
        path_of("apiextensions.k8s.io/v1", "CustomResourceDefinition", name="finetunejobs.llamero.dev")
    )
    known = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert set(known) == {field.alias or name for name, field in JobStatus.model_fields.items()}


def test_a_status_can_have_words_that_the_crd_does_not_know_yet(control_plane: ControlPlane, job: Object) -> None:
    path = jobs_path(job["metadata"]["namespace"], "job") + "/status"
    condition = {
        "type": "New",
        "status": "True",
        "reason": "Later",
        "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    written = control_plane.api.request("PUT", path, {**job, "status": {"phase": "Serving", "conditions": [condition]}})
    assert written["status"]["phase"] == "Serving"


def test_an_edit_of_the_job_does_not_touch_its_status(control_plane: ControlPlane, job: Object) -> None:
    written = write_status(control_plane, job, build_status())
    path = jobs_path(job["metadata"]["namespace"], "job")
    edited = control_plane.api.request(
        "PUT", path, {**written, "status": {}, "spec": {**written["spec"], "suspend": True}}
    )
    assert edited["status"] == written["status"]
    assert edited["metadata"]["generation"] == written["metadata"]["generation"] + 1


def test_kubectl_shows_phase_progress_loss_adapter_and_age(control_plane: ControlPlane, job: Object) -> None:
    namespace = job["metadata"]["namespace"]
    fresh = control_plane.kubectl("get", "ftj", namespace=namespace).stdout.splitlines()
    assert fresh[0].split() == ["NAME", "PHASE", "PROGRESS", "LOSS", "ADAPTER", "AGE"]
    write_status(control_plane, job, build_status())
    _, line = control_plane.kubectl("get", "ftj", namespace=namespace).stdout.splitlines()
    assert line.split()[:5] == ["job", "Training", "42", "1.25", "job-r1"]
    header, line = control_plane.kubectl("get", "ftj", "-o", "wide", namespace=namespace).stdout.splitlines()
    wide = dict(zip(header.split(), line.split(), strict=True))
    assert (wide["RUN"], wide["ATTEMPT"], wide["REMAINING"], wide["READY"]) == ("2", "3", "61", "Reconciling")


@pytest.mark.parametrize("word", ["ftj", "finetunejobs", "llamero", "all"])
def test_kubectl_finds_jobs_by_each_of_their_names(control_plane: ControlPlane, job: Object, word: str) -> None:
    listed = control_plane.kubectl("get", word, "-o", "name", namespace=job["metadata"]["namespace"]).stdout
    assert "finetunejob.llamero.dev/job" in listed.split()


def build_adapter(name: str) -> Object:
    spec = {
        "uri": "s3://bucket/adapters/a",
        "sha256": "0" * 64,
        "base": "organisation/model",
        "baseSha256": "1" * 64,
        "model": "tutor",
        "figures": {"baseTokenPerplexity": "12.5", "tunedTokenPerplexity": "3.25"},
    }
    return {"apiVersion": API_VERSION, "kind": "Adapter", "metadata": {"name": name}, "spec": spec}


def test_an_adapter_takes_the_name_of_the_longest_job_and_all_does_not_mean_it(
    control_plane: ControlPlane, namespace: str
) -> None:
    name = f"{'a' * 40}-r123"
    control_plane.api.request("POST", path_of(API_VERSION, "Adapter", namespace), build_adapter(name))
    header, line = control_plane.kubectl("get", "adapters", namespace=namespace).stdout.splitlines()
    assert header.split() == ["NAME", "MODEL", "BASE", "SERVING", "VERIFIED", "PERPLEXITY", "BASE-PERPLEXITY", "AGE"]
    # Columns whose field is absent print nothing here: a fresh Adapter has no status.
    assert line.split()[:5] == [name, "tutor", "organisation/model", "3.25", "12.5"]
    assert name not in control_plane.kubectl("get", "all", "-o", "name", namespace=namespace).stdout
    assert name in control_plane.kubectl("get", "llamero", "-o", "name", namespace=namespace).stdout


# -- ModelServers --------------------------------------------------------------------------------------------------------------


def try_server(plane: ControlPlane, spec: Object | None = None) -> Object:
    """What the server makes of a ModelServer, without keeping it. Raises ApiError."""
    raw = merge(MINIMAL_SERVER, {"spec": spec or {}})
    taken: Object = plane.api.request("POST", path_of(API_VERSION, "ModelServer", "default") + "?dryRun=All", raw)
    return taken


@pytest.mark.parametrize("raw", SERVERS.values(), ids=SERVERS)
def test_an_example_of_a_model_server_is_taken_as_it_is(control_plane: ControlPlane, raw: Object) -> None:
    taken = try_server(control_plane, raw["spec"])
    assert ModelServer.model_validate(taken).spec == ModelServer.model_validate(raw).spec


def test_a_model_servers_defaults_are_the_models(control_plane: ControlPlane) -> None:
    assert ModelServer.model_validate(try_server(control_plane)).spec == ModelServer.model_validate(MINIMAL_SERVER).spec
    assert try_server(control_plane)["spec"]["strategy"]["steps"] == [5, 25, 50, 100]


def test_a_model_server_may_say_null_for_what_is_left_out(control_plane: ControlPlane) -> None:
    spec = {"engine": {"dtype": None, "quantization": None}, "autoscaling": None, "window": None}
    taken = try_server(control_plane, spec)
    assert ModelServer.model_validate(taken).spec == ModelServer.model_validate(MINIMAL_SERVER).spec


@pytest.mark.parametrize(
    "spec",
    [
        {"models": [{"name": "tutor"}, {"name": "tutor", "paused": True}]},
        {"models": [{"name": "no blanks"}]},
        {"engine": {"type": "llamafile"}},
        {"strategy": {"steps": []}},
        {"resources": {"memory": "much"}},
    ],
    ids=["a name twice", "a name with a blank", "an unknown engine", "no steps", "no quantity"],
)
def test_the_server_refuses_a_wrong_model_server(control_plane: ControlPlane, spec: Object) -> None:
    with pytest.raises(ApiError) as caught:
        try_server(control_plane, spec)
    assert caught.value.status == 422


def build_server_status() -> ModelServerStatus:
    return ModelServerStatus.model_validate(
        {
            "observedGeneration": 1,
            "phase": "Ready",
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "Serving", "message": "m", "lastTransitionTime": NOW}
            ],
            "replicas": 3,
            "readyReplicas": 2,
            "models": [{"name": "tutor", "state": "Canary", "canary": "job-r2", "weight": 25, "stepStartedAt": NOW}],
            "adapters": [{"name": "job-r2", "id": "default-job-r2-0f0f0f0f", "state": "Ready", "pods": 2}],
            "pods": [{"name": "server-engine-x", "ready": True, "adapters": ["default-job-r2-0f0f0f0f"]}],
            "gathered": ["job-r2"],
            "gatheredAt": NOW,
            "wantedSerial": 4,
            "drains": {"default-job-r1-0f0f0f0f": NOW},
        }
    )


def test_a_model_servers_status_comes_back_and_its_columns_show_it(control_plane: ControlPlane, namespace: str) -> None:
    path = path_of(API_VERSION, "ModelServer", namespace)
    created = control_plane.api.request("POST", path, MINIMAL_SERVER)
    status = build_server_status()
    sent = drop_empty_texts(status.to_json_dict())
    written = control_plane.api.request("PUT", f"{path}/server/status", {**created, "status": sent})
    assert written["status"] == sent
    assert ModelServerStatus.model_validate(written["status"]) == status
    header, line = control_plane.kubectl("get", "ms", namespace=namespace).stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "ENGINE", "READY", "REPLICAS", "MODEL", "AGE"]
    assert line.split()[:6] == ["server", "Ready", "tgi", "2", "3", "tutor"]
    assert "server" in control_plane.kubectl("get", "llamero", "-o", "name", namespace=namespace).stdout
    assert "modelserver" not in control_plane.kubectl("get", "all", "-o", "name", namespace=namespace).stdout


def test_an_adapters_rollout_stands_in_its_columns(control_plane: ControlPlane, namespace: str) -> None:
    path = path_of(API_VERSION, "Adapter", namespace)
    created = control_plane.api.request("POST", path, build_adapter("a"))
    verified = {"type": "Verified", "status": "True", "reason": "Proven", "lastTransitionTime": NOW.isoformat()}
    status = {"weight": 25, "server": "server", "id": "default-a-00000000", "retry": 1, "conditions": [verified]}
    written = control_plane.api.request("PUT", f"{path}/a/status", {**created, "status": status})
    assert {k: written["status"][k] for k in status if k != "conditions"} == {
        k: v for k, v in status.items() if k != "conditions"
    }
    header, line = control_plane.kubectl("get", "adapters", namespace=namespace).stdout.splitlines()
    shown = dict(zip(header.split(), line.split(), strict=True))
    assert (shown["SERVING"], shown["VERIFIED"]) == ("25", "True")


def test_kubectl_explains_a_field_with_the_models_words(control_plane: ControlPlane) -> None:
    described = FineTuneJob.model_fields["spec"].annotation
    assert described is not None
    told = control_plane.kubectl("explain", "ftj.spec.training.lora.rank").stdout
    assert "Rank of the update matrices." in told


def test_the_checked_in_crds_are_the_models(control_plane: ControlPlane, repository: Path) -> None:
    from llamero.spec.crd import build_crds

    for plural, manifest in build_crds().items():
        written = yaml.safe_load((repository / "charts" / "llamero" / "crds" / f"{plural}.yaml").read_text())
        assert json.dumps(written) == json.dumps(manifest), "run `make generate`"
