"""Manifest files: lines, doubled keys, URIs, and files that are none."""

from pathlib import Path

import pytest

from llamero.cli.manifest import MAX_MANIFEST_BYTES, load_manifest
from llamero.spec.rules import Severity

VALID = """\
apiVersion: llamero.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: tutor
spec:
  baseModel:
    uri: base
  data:
    sources:
      - uri: data/*.jsonl
        format: alpaca
      - uri: ${LLAMERO_DATA:-../data}/posts.xml
        format: stackexchange
      - uri: s3://bucket/a.jsonl
        format: messages
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def test_relative_uris_belong_to_the_manifests_folder_and_variables_to_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, VALID)
    job = load_manifest(file, {}).job
    assert job is not None
    assert job.spec.base_model.uri == str(tmp_path / "base")
    assert [s.uri for s in job.spec.data.sources] == [
        str(tmp_path / "data/*.jsonl"),
        str(tmp_path.parent / "data/posts.xml"),
        "s3://bucket/a.jsonl",
    ]
    job = load_manifest(file, {"LLAMERO_DATA": "/elsewhere"}).job
    assert job is not None
    assert job.spec.data.sources[1].uri == "/elsewhere/posts.xml"


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "says"),
    [
        ("  name: tutor", "  name: tutor\n  nam: x", None, "", None),
        ("    uri: base", "    ur: base", 7, "spec.baseModel.ur", "did you mean `uri`"),
        ("format: alpaca", "format: alpca", 11, "spec.data.sources[0].format", "did you mean `alpaca`"),
        ("format: messages", "format: messages\n        weight: 2", 16, "spec.data.sources[2].weight", "at most 1"),
        ("kind: FineTuneJob", "kind: FineTuneJob\nkind: FineTuneJob", 3, "kind", "twice"),
        ("${LLAMERO_DATA:-../data}", "${LLAMERO_NOWHERE}", 12, "spec.data.sources[1].uri", "LLAMERO_NOWHERE"),
        ("${LLAMERO_DATA:-../data}", "${AWS_SECRET}", 12, "spec.data.sources[1].uri", "begin with LLAMERO_"),
        ("spec:", "spec: [", 6, "", "not readable as YAML"),
        ("  data:", "---\n  data:", 1, "", "2 documents"),
    ],
)
def test_a_mistake_is_shown_at_its_line(
    tmp_path: Path, old: str, new: str, line: int | None, path: str, says: str | None
) -> None:
    loaded = load_manifest(write(tmp_path, VALID.replace(old, new, 1)), {"AWS_SECRET": "hidden"})
    if says is None:  # metadata may hold more than llamero reads
        assert loaded.job is not None
        return
    assert loaded.job is None
    problem = next(p for p in loaded.problems if says in p.message)
    if "YAML" not in says:
        assert problem.line == line
    assert problem.path == path
    assert str(problem).startswith(f"{tmp_path / 'job.yaml'}:{problem.line}:{problem.column}: error:")
    assert "hidden" not in str(loaded.problems)


def test_a_missing_field_is_shown_at_its_parent(tmp_path: Path) -> None:
    loaded = load_manifest(write(tmp_path, VALID.replace("        format: alpaca\n", "")), {})
    assert [(p.line, p.path) for p in loaded.problems] == [(10, "spec.data.sources[0].format")]


def test_json_and_a_bom_are_read(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_bytes(
        b"\xef\xbb\xbf"
        + b'{"apiVersion":"llamero.dev/v1alpha1","kind":"FineTuneJob","metadata":{"name":"a"},'
        + b'"spec":{"baseModel":{"uri":"/b"},"data":{"sources":[{"uri":"/d","format":"alpaca"}]}}}'
    )
    assert load_manifest(file).job is not None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"- a\n- b\n", "mapping"),
        (b"#" * (MAX_MANIFEST_BYTES + 1), "larger than"),
        (b"!!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_manifest_gets_one_sentence(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "job.yaml"
    if content is not None:
        file.write_bytes(content)
    loaded = load_manifest(file)
    assert loaded.job is None
    assert says in loaded.problems[0].message


def test_a_warning_does_not_stop_a_job(tmp_path: Path) -> None:
    loaded = load_manifest(write(tmp_path, VALID + "  training:\n    lora: {rank: 8, alpha: 256}\n"), {})
    assert loaded.job is not None
    assert [(p.severity, p.line) for p in loaded.problems] == [(Severity.WARNING, 17)]


SERVER = """\
apiVersion: llamero.dev/v1alpha1
kind: ModelServer
metadata:
  name: shared
spec:
  baseModel:
    uri: s3://models/tiny-base
  engine:
    type: cpu
  strategy:
    steps: [10, 100]
"""


def test_a_model_server_is_read_as_one(tmp_path: Path) -> None:
    loaded = load_manifest(write(tmp_path, SERVER), {})
    assert loaded.problems == [] and loaded.job is None
    assert loaded.server is not None and loaded.server.spec.strategy.steps == [10, 100]


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "says"),
    [
        ("type: cpu", "type: cup", 9, "spec.engine.type", "must be 'tgi', 'vllm' or 'cpu'"),
        ("steps: [10, 100]", "steps: [50, 20]", 10, "spec.strategy", "steps must rise and end with 100"),
        ("type: cpu", "type: cpu\n  resources: {gpus: 1}", 10, "spec.resources.gpus", "the cpu engine uses no GPU"),
        ("  strategy:", "  model: x\n  strategy:", 10, "spec.model", "did you mean `models`"),
    ],
)
def test_a_model_servers_mistakes_stand_where_they_are(
    tmp_path: Path, old: str, new: str, line: int, path: str, says: str
) -> None:
    assert old in SERVER
    loaded = load_manifest(write(tmp_path, SERVER.replace(old, new)), {})
    assert loaded.server is None
    found = [p for p in loaded.problems if p.path == path]
    assert [(p.line, says in p.message) for p in found] == [(line, True)], loaded.problems
