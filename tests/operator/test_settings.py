"""Settings: defaults, what is taken from where, and a clear sentence for each mistake."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from llamero.lifecycle.serving.world import ServingLimits
from llamero.lifecycle.world import Limits
from llamero_operator.resources.quantities import add_quantities, parse_quantity, round_up_cores
from llamero_operator.settings import (
    OperatorSettings,
    PodSettings,
    SettingsError,
    StoragePolicy,
    load_settings,
    parse_settings,
)

REDIS = {"LLAMERO_REDIS_URL": "redis://:secret-word@redis:6379/0"}


def test_defaults_stand_where_nothing_is_said() -> None:
    settings = parse_settings(None, REDIS)
    assert settings.intervals.idle_seconds == 120
    assert settings.lease.duration_seconds == 15
    assert settings.storage.mount_path == "/llamero/storage"
    assert settings.gpu_classes == {} and settings.namespaces == []


def test_a_part_of_a_kind_of_pod_leaves_the_rest_of_its_own_defaults() -> None:
    settings = parse_settings({"pods": {"training": {"cpuRequest": "8"}, "data": {"scratch": "1Gi"}}}, REDIS)
    assert settings.pods.training.cpu_request == "8"
    assert settings.pods.training.memory_limit == "64Gi"
    assert settings.pods.training.shared_memory == "8Gi"
    assert settings.pods.data.memory_request == "2Gi"


def test_the_environment_stands_above_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"redisUrl": "redis://from-the-file:6379", "concurrency": 3}))
    variables = {"LLAMERO_SETTINGS": str(file)}
    assert load_settings(variables).redis_url == "redis://from-the-file:6379"
    settings = load_settings(variables | REDIS)
    assert settings.redis_url == REDIS["LLAMERO_REDIS_URL"] and settings.concurrency == 3


def test_the_password_is_not_shown_with_the_settings() -> None:
    assert "secret-word" not in repr(parse_settings(None, REDIS))


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ([1], "the settings are a mapping of fields, not a list: write `field: value` lines"),
        ({"concurency": 2}, "concurency: unknown field `concurency`: did you mean `concurrency`?"),
        ({"concurrency": 0}, "concurrency: must be at least 1, not 0"),
        ({"logs": {"format": "xml"}}, "logs.format: must be 'json' or 'text', not 'xml'"),
        (
            {"gpuClasses": {"spot": {"resouce": "amd.com/gpu"}}},
            "gpuClasses.spot.resouce: unknown field `resouce`: did you mean `resource`?",
        ),
        (
            {"pods": {"data": {"cpuRequest": "lots"}}},
            "pods.data.cpuRequest: 'lots' does not fit a quantity, such as 500m, 2 or 16Gi",
        ),
        (
            {"gpuClasses": {"spot": {"tolerations": [{"key": "spot", "oprator": "Exists"}]}}},
            "gpuClasses.spot.tolerations[0].oprator: unknown field `oprator`: did you mean `operator`?",
        ),
        (
            {"storage": {"claim": "files", "hostPath": "/data"}},
            "storage: give exactly one of uri, claim and hostPath, not claim and hostPath",
        ),
        (
            {"storage": {"claim": "files", "secretName": "keys"}},
            "storage.secretName: it goes with storage.uri alone: remove it, or name a uri",
        ),
        (
            {"storage": {"hostPath": "relative/path"}},
            "storage.hostPath: 'relative/path' does not fit an absolute path without `,`, `:`, `$` and without a slash at its end",
        ),
        (
            {"lease": {"renewSeconds": 20}},
            "lease: retrySeconds and a fifth more must be below renewSeconds, and that below durationSeconds, so that a leader stops "
            "before another starts",
        ),
        ({"client": {"qps": 400}}, "client.burst: must be at least client.qps (400), not 200"),
        (
            {"metricsPort": 8080},
            "metricsPort: it must differ from healthPort, and both are 8080: choose another",
        ),
        (
            {"pods": {"training": {"memoryRequest": "65Gi"}}},
            "pods.training.memoryRequest: must be at most pods.training.memoryLimit (64Gi), not 65Gi",
        ),
        (
            {"pods": {"training": {"sharedMemory": "64Gi"}}},
            "pods.training.sharedMemory: it counts as the pod's memory and must be below pods.training.memoryLimit (64Gi), not 64Gi",
        ),
        (
            {"pods": {"vllm": {"cpuRequest": "9", "cpuLimit": "8"}}},
            "pods.vllm.cpuRequest: must be at most pods.vllm.cpuLimit (8), not 9",
        ),
        (
            {"serving": {"chats": ["chat"]}},
            "serving.chats[0]: 'chat' does not fit an address, such as `llamero-chat-inner.llamero.svc:8081`",
        ),
        (
            {"serving": {"chats": ["chat:70000"]}},
            "serving.chats: `chat:70000` has no port between 1 and 65535 behind its colon",
        ),
        (
            {"serving": {"busyPollSeconds": 20}},
            "serving.busyPollSeconds: must be at most serving.pollSeconds (10), not 20",
        ),
        ({"serving": {"crashRestarts": 0}}, "serving.crashRestarts: must be at least 1, not 0"),
        (
            {"pods": {"helper": {"ephemeralLimit": "2Gi"}}},
            "pods.helper.scratch: must be at most pods.helper.ephemeralLimit (2Gi), not 10Gi",
        ),
    ],
)
def test_a_mistake_is_told_in_one_sentence(raw: Any, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(raw, REDIS)
    assert caught.value.problems == [sentence]


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"concurrency": 0, "healthPort": 70_000, "storage": {"claim": "Files"}}, REDIS)
    assert [p.split(":")[0] for p in caught.value.problems] == ["storage.claim", "concurrency", "healthPort"]


@pytest.mark.parametrize("address", ["http://:secret-word@redis", "secret-word", ""])
def test_a_wrong_redis_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"redisUrl": address})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("redisUrl: ")
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no such file: mend LLAMERO_SETTINGS"),
        (b"a: [1", "not readable as YAML (line 1, column 6): "),
        (b"\xff\xfe\x00", "not UTF-8 text (byte 0): save it as UTF-8"),
        (b"#" * ((1 << 20) + 1), "the file is larger than 1 MiB, which no settings are"),
    ],
)
def test_an_unreadable_file_is_named_with_what_is_wrong(tmp_path: Path, content: bytes | None, expected: str) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings({"LLAMERO_SETTINGS": str(file)} | REDIS)
    assert caught.value.problems[0].startswith(f"{file}: {expected}")


def test_wrong_settings_end_the_process_with_2_and_a_line_for_each_mistake(tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("concurrency: 0\nhealthPort: x\n")
    code = "from llamero_operator.settings import load_settings_or_exit; load_settings_or_exit()"
    path = f"{repository / 'operator'}{os.pathsep}{repository / 'services'}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "LLAMERO_SETTINGS": str(file), **REDIS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0] == f"error: {file}: concurrency: must be at least 1, not 0"
    assert lines[1].startswith(f"error: {file}: healthPort: ")


def test_limits_are_what_the_settings_say() -> None:
    settings = parse_settings(
        {
            "storage": {"uri": "s3://bucket/llamero"},
            "gpuClasses": {"spot": {"pricePerHour": 1.5}, "owned": {"memoryGiB": 80}},
            "allowedBases": ["meta-llama/*"],
            "intervals": {
                "resendSeconds": 1,
                "unschedulableSeconds": 2,
                "hungMarginSeconds": 3,
                "graceSeconds": 4,
                "statusIntervalSeconds": 5,
                "pollSeconds": 6,
            },
        },
        REDIS,
    )
    assert settings.to_limits() == Limits(
        resend_seconds=1,
        unschedulable_seconds=2,
        hung_margin_seconds=3,
        grace_seconds=4,
        status_interval_seconds=5,
        poll_seconds=6,
        gpu_prices={"spot": 1.5},
        known_gpu_classes=frozenset({"spot", "owned"}),
        allowed_bases=("meta-llama/*",),
        storage_problem=None,
    )


def test_serving_limits_are_what_the_settings_say() -> None:
    settings = parse_settings(
        {
            "gpuClasses": {"spot": {}},
            "allowedBases": ["meta-llama/*"],
            "serving": {
                "pollSeconds": 2,
                "busyPollSeconds": 1,
                "reportSeconds": 3,
                "drainSeconds": 4,
                "settleSeconds": 5,
                "gatherSeconds": 6,
                "crashRestarts": 7,
                "startSeconds": 80,
            },
        },
        REDIS,
    )
    assert settings.to_serving_limits() == ServingLimits(
        poll_seconds=2,
        busy_poll_seconds=1,
        report_seconds=3,
        drain_seconds=4,
        settle_seconds=5,
        gather_seconds=6,
        crash_restarts=7,
        start_seconds=80,
        known_gpu_classes=frozenset({"spot"}),
        allowed_bases=("meta-llama/*",),
    )


def test_what_is_not_said_of_serving_is_what_decisions_take_by_themselves() -> None:
    assert parse_settings({}, REDIS).to_serving_limits() == ServingLimits()


@pytest.mark.parametrize("address", ["chat:8081", "llamero-chat-inner.llamero.svc:8081", "127.0.3.1:9", "[::1]:8081"])
def test_a_chat_service_is_named_by_host_and_port(address: str) -> None:
    assert parse_settings({"serving": {"chats": [address]}}, REDIS).serving.chats == [address]


def test_settings_without_storage_say_so_to_every_job() -> None:
    settings = parse_settings({}, REDIS)
    problem = settings.to_limits().storage_problem
    assert problem is not None and "storage.claim" in problem
    assert not settings.cleans_storage


@pytest.mark.parametrize(
    ("storage", "root"),
    [
        ({"uri": "s3://bucket/llamero"}, "s3://bucket/llamero"),
        ({"claim": "files"}, "/llamero/storage"),
        ({"hostPath": "/srv/llamero", "mountPath": "/srv/llamero"}, "/srv/llamero"),
    ],
)
def test_the_storages_root_is_what_pods_see(storage: dict[str, str], root: str) -> None:
    settings = parse_settings({"storage": storage}, REDIS)
    assert settings.storage_root == root
    assert settings.cleans_storage
    assert not settings.model_copy(update={"storage_policy": StoragePolicy.RETAIN}).cleans_storage


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    found = [model]
    for name, field in model.model_fields.items():
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found += _models(part)
        assert field.description, f"{model.__name__}.{name} has no description"
    return found


def test_every_field_is_described_and_every_number_bounded() -> None:
    models = _models(OperatorSettings)
    assert len(models) > 10
    schema = OperatorSettings.model_json_schema(by_alias=True)
    for definition in [schema, *schema["$defs"].values()]:
        for name, field in definition.get("properties", {}).items():
            for branch in field.get("anyOf", [field]):
                if branch.get("type") in ("integer", "number"):
                    assert "maximum" in branch or "exclusiveMaximum" in branch, name
                    assert "minimum" in branch or "exclusiveMinimum" in branch, name
                if branch.get("type") == "string" and "enum" not in branch and "const" not in branch:
                    assert "maxLength" in branch, name
                if branch.get("type") == "array":
                    assert "maxItems" in branch, name
                if branch.get("type") == "object" and "additionalProperties" in branch:
                    assert "maxProperties" in branch or branch["additionalProperties"] is False, name


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("2", 2), ("1.5", 1.5), ("1Ki", 1024), ("16Gi", 16 * 2**30), ("3M", 3_000_000)]
)
def test_quantities_are_read_as_kubernetes_does(text: str, value: float) -> None:
    assert float(parse_quantity(text)) == value


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "-1", "1e3", "1KiB"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


def test_quantities_are_added_and_cores_rounded_up() -> None:
    assert add_quantities("10Gi", "2Gi", "1Gi") == "13Gi"
    assert add_quantities("1Gi", "100Mi") == "1124Mi"
    assert add_quantities("1M", "1") == "1Mi"
    assert [round_up_cores(text) for text in ("1500m", "2", "100m")] == [2, 2, 1]


def test_kinds_of_pods_keep_the_descriptions_of_their_fields() -> None:
    for kind in OperatorSettings().pods.model_dump():
        model = type(getattr(OperatorSettings().pods, kind))
        assert set(model.model_fields) == set(PodSettings.model_fields)
        assert all(model.model_fields[n].description == f.description for n, f in PodSettings.model_fields.items())
