"""Pods without a queue: fetch, probe, clean and logs have their message in the environment."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from llamero.lifecycle.failures import PhaseExit
from llamero.model.bases import base_digest
from llamero.spec.status import WorkKind

MakeJob = Callable[..., Any]
MODEL, REVISION = "team/tiny", "0123456789" * 4


class Hub:
    """The hub's HTTP surface for one model; `refusal` is answered to everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refusal: tuple[int, str] | None = None
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if self.refusal is not None:
            return self.refusal[0], b"{}", {"X-Error-Code": self.refusal[1]}
        names = sorted(p.name for p in self.folder.iterdir())
        if (
            path.startswith((f"/api/models/{MODEL}/revision/", f"/api/models/{MODEL}/tree/"))
            or path == f"/api/models/{MODEL}"
        ):
            sizes = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "0"} for n in names]
            info = {"id": MODEL, "sha": REVISION, "siblings": [{"rfilename": n} for n in names]}
            return 200, json.dumps(sizes if "/tree/" in path else info).encode(), {}
        name = path.removeprefix(f"/{MODEL}/resolve/{REVISION}/")
        if name not in names:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        content = (self.folder / name).read_bytes()
        return 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": REVISION}


@pytest.fixture
def hub(random_base: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub that has the random base, and things that a base does not need."""
    found = Hub(Path(shutil.copytree(random_base, tmp_path / "on-the-hub")))
    (found.folder / "modeling.py").write_text("raise SystemExit")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            found.asked.append(path)
            if MODEL in path:
                found.tokens.add(self.headers.get("Authorization"))
            status, body, headers = found.answer(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *unused: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def on_the_hub(make_job: MakeJob, hub: Hub, tmp_path: Path) -> Any:
    reference = {"name": MODEL, "revision": REVISION, "secretRef": {"name": "hub", "key": "MY_TOKEN"}}
    job = make_job(baseModel=reference)
    job.environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "",
        "HF_HOME": str(tmp_path / "hf-home"),
        "MY_TOKEN": "hf_secret",
    }
    return job


def test_a_base_of_the_hub_is_fetched_once_for_all_jobs(
    make_job: MakeJob, hub: Hub, tmp_path: Path, random_base: Path
) -> None:
    job = on_the_hub(make_job, hub, tmp_path)
    outcome = job.run(WorkKind.FETCH).outcome()
    folder = Path(outcome.base.uri)
    assert folder == Path(job.storage, "models", f"team--tiny@{REVISION}")
    assert outcome.base.digest == base_digest(random_base) == base_digest(folder)
    names = {p.name for p in folder.iterdir()}
    assert "modeling.py" not in names and {"config.json", "manifest.json"} <= names
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert hub.tokens == {"Bearer hf_secret"}
    assert job.progress(job.pods[0].id) is not None
    hub.asked.clear()
    assert job.run(WorkKind.FETCH, attempt=2).outcome().base == outcome.base
    assert hub.asked == []

    # A copy that is torn is fetched anew.
    (folder / "tokenizer.json").unlink()
    assert job.run(WorkKind.FETCH, attempt=3).outcome().base == outcome.base
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("refusal", [(401, "GatedRepo"), (403, "GatedRepo"), (403, "")])
def test_a_licence_that_is_not_accepted_is_final_and_its_page_is_named(
    make_job: MakeJob, hub: Hub, tmp_path: Path, refusal: tuple[int, str]
) -> None:
    hub.refusal = refusal
    message = on_the_hub(make_job, hub, tmp_path).run(WorkKind.FETCH).outcome(PhaseExit.BAD_CONFIG).message
    assert "licence" in message and f"{hub.url}/{MODEL}" in message and "hf_secret" not in message


def test_a_hub_that_has_trouble_is_tried_again(make_job: MakeJob, hub: Hub, tmp_path: Path) -> None:
    hub.refusal = (410, "")
    assert "410" in on_the_hub(make_job, hub, tmp_path).run(WorkKind.FETCH).outcome(PhaseExit.STORAGE).message


def test_offline_a_base_comes_from_the_local_cache(make_job: MakeJob, hub: Hub, tmp_path: Path) -> None:
    job = on_the_hub(make_job, hub, tmp_path)
    missing = job.run(WorkKind.FETCH, environment={"HF_HUB_OFFLINE": "1"}).outcome(PhaseExit.BAD_CONFIG)
    assert "HF_HUB_OFFLINE" in missing.message
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url).snapshot_download(MODEL, revision=REVISION, cache_dir=tmp_path / "hf-home" / "hub")
    hub.asked.clear()
    outcome = job.run(WorkKind.FETCH, attempt=2, environment={"HF_HUB_OFFLINE": "1"}).outcome()
    assert Path(outcome.base.uri, "config.json").is_file() and hub.asked == []


def test_a_probe_tells_the_digest_that_the_data_has_now(make_job: MakeJob) -> None:
    job = make_job()
    prepared = job.run(WorkKind.PREPARE).outcome()
    assert job.run(WorkKind.PROBE, base=prepared.base).outcome().data_digest == prepared.data.digest
    source = Path(job.storage, "data.json")
    rows = json.loads(source.read_text())
    source.write_text(json.dumps([*rows, {"instruction": "New?", "input": "", "output": "Yes."}]))
    changed = job.run(WorkKind.PROBE, attempt=2, base=prepared.base).outcome().data_digest
    assert changed != prepared.data.digest
    source.unlink()
    assert "data.json" in job.run(WorkKind.PROBE, attempt=3).outcome(PhaseExit.DATA_ERROR).message


def test_a_clean_up_leaves_published_adapters_alone_and_can_be_done_twice(prepared_job: MakeJob) -> None:
    job, fields = prepared_job()
    outcome = job.run(WorkKind.TRAIN, evaluate_too=True, **fields).outcome()
    other = Path(job.places.adapter(1, "0" * 64))
    other.mkdir(parents=True)
    kept = job.run(WorkKind.CLEAN, keep_adapters=[outcome.training.adapter_sha256]).outcome()
    assert kept.exit_code == 0
    assert not Path(job.places.prefix).exists()
    assert Path(outcome.adapter_uri, "manifest.json").is_file() and other.is_dir()
    job.run(WorkKind.CLEAN, attempt=2).outcome()
    assert Path(outcome.adapter_uri, "manifest.json").is_file()


def test_a_clean_up_removes_adapters_that_nobody_published(prepared_job: MakeJob) -> None:
    job, fields = prepared_job()
    outcome = job.run(WorkKind.TRAIN, evaluate_too=True, **fields).outcome()
    job.run(WorkKind.CLEAN).outcome()
    assert not Path(outcome.adapter_uri).exists() and not Path(job.places.prefix).exists()


def test_kept_logs_are_printed_newest_attempts_first_asked_or_all_of_a_run(make_job: MakeJob) -> None:
    job = make_job()
    kept = {
        1: ["train-a1-old.log"],
        2: ["prepare-a1-x.log", "prepare-a1-y.log", "train-a1-x.log", "train-a2-z.log", "evaluate-a1-x.log"],
    }
    for run, names in kept.items():
        Path(job.places.logs(run)).mkdir(parents=True)
        for name in names:
            Path(job.places.logs(run), name).write_text(f"this is {name} of run {run}\n")

    def read(number: int, **request: Any) -> list[str]:
        pod = job.run(WorkKind.LOGS, attempt=number, logs={"number": number, **request})
        pod.outcome()
        return [line.split()[2] for line in (pod.folder / "out").read_text().splitlines() if line.startswith("this is")]

    assert read(1) == ["prepare-a1-x.log", "prepare-a1-y.log", "train-a2-z.log", "evaluate-a1-x.log"]
    assert read(2, kind="train", attempt=1) == ["train-a1-x.log"]
    assert read(3, run=1) == ["train-a1-old.log"]
    pod = job.run(WorkKind.LOGS, attempt=4, logs={"number": 4, "run": 9})
    pod.outcome()
    assert "No log of r9" in (pod.folder / "out").read_text()


def test_a_plain_pod_refuses_a_message_of_another_version(make_job: MakeJob) -> None:
    job = make_job()
    id = job.identify(WorkKind.CLEAN)
    outcome = job.start(id, job.message(id) | {"version": 3}).outcome(PhaseExit.BAD_CONFIG)
    assert "version 3" in outcome.message and "version 1" in outcome.message
