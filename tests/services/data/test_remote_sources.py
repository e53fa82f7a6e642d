"""Sources over the network: a real web server, a real S3 protocol, and the hub as far as it goes without a network."""

import functools
import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamero.data.prepare import DataError, plan_data

ROWS = [{"instruction": f"Question {i}?", "output": f"Answer {i}"} for i in range(300)]
LINES = "\n".join(map(json.dumps, ROWS)).encode()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word; knows no ranges, as many plain servers."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/private") and self.headers.get("Authorization") != "Bearer s3cret":
            self.send_error(401)
            return
        if self.path.startswith("/broken"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(LINES)))
            self.end_headers()
            self.wfile.write(LINES[: len(LINES) // 2])
            self.close_connection = True
            return
        super().do_GET()

    def do_HEAD(self) -> None:
        if self.path.startswith("/broken"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(LINES)))
            self.end_headers()
            return
        if self.path.startswith("/private") and self.headers.get("Authorization") != "Bearer s3cret":
            self.send_error(401)
            return
        super().do_HEAD()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A web server's address and the folder that it serves."""
    folder = tmp_path_factory.mktemp("web")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of a bucket of an S3 server on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="data")
        client.put_object(Bucket="data", Key="sets/a.jsonl", Body=b"\n".join(LINES.split(b"\n")[:150]))
        client.put_object(
            Bucket="data", Key="sets/deep/b.jsonl.gz", Body=gzip.compress(b"\n".join(LINES.split(b"\n")[150:]))
        )
        client.put_object(Bucket="data", Key="other/c.jsonl", Body=b"{}")
        yield "s3://data"
    server.stop()


def test_a_file_on_a_web_server_is_read(prepare, web):
    address, folder = web
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.json.gz").write_bytes(gzip.compress(json.dumps(ROWS[:10]).encode()))
    sources = [{"uri": f"{address}/{name}", "format": "alpaca"} for name in ("a.jsonl", "b.json.gz")]
    prepared = prepare(sources, allowHttp=True)
    assert (prepared.result.read, prepared.result.kept) == (310, 300)
    assert prepared.result.sources[1].rejected == {"duplicate": 10}


def test_a_missing_file_on_a_web_server_is_named(make_spec, web):
    address, _ = web
    with pytest.raises(DataError, match=r"data.sources\[0\] \(none\) can't be read: .*none.jsonl"):
        plan_data(make_spec([{"uri": f"{address}/none.jsonl", "format": "alpaca"}], allowHttp=True), "t")


def test_a_connection_that_breaks_off_is_an_error_and_not_a_short_file(prepare, web, monkeypatch):
    monkeypatch.setattr("llamero.data.tasks._RETRY_SECONDS", 0)
    monkeypatch.setattr("llamero.data.prepare._is_little", lambda files: True)
    address, _ = web
    with pytest.raises(DataError, match="can't be read to its end"):
        prepare([{"uri": f"{address}/broken.jsonl", "format": "alpaca"}], allowHttp=True)


def test_a_private_file_is_read_with_the_token_of_its_secret(prepare, make_spec, web, monkeypatch, tmp_path):
    address, folder = web
    (folder / "private.jsonl").write_bytes(LINES)
    source = {"uri": f"{address}/private.jsonl", "format": "alpaca", "secretRef": {"name": "mine", "key": "MY_TOKEN"}}
    with pytest.raises(DataError, match="can't be read"):
        plan_data(make_spec([source], allowHttp=True), "t")
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    prepared = prepare([source], allowHttp=True)
    assert prepared.result.kept == 300
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"s3cret" not in written


def test_a_folder_of_a_bucket_is_read(prepare, bucket):
    prepared = prepare([{"uri": f"{bucket}/sets", "format": "alpaca"}], workers=2)
    assert prepared.result.kept == 300
    assert {r["file"] for r in prepared.records("train")} == {"a.jsonl", "b.jsonl.gz"}


def test_a_glob_of_a_bucket_is_read_and_a_change_is_noticed(make_spec, prepare, bucket):
    import boto3

    spec = make_spec([{"uri": f"{bucket}/sets/*.jsonl", "format": "alpaca"}])
    before = plan_data(spec, "t")
    assert [f.uri for f in before.files] == ["s3://data/sets/a.jsonl"]
    assert plan_data(spec, "t") == before
    boto3.client("s3").put_object(Bucket="data", Key="sets/a.jsonl", Body=LINES)
    assert plan_data(spec, "t").digest != before.digest


def test_an_empty_bucket_folder_is_named(make_spec, bucket):
    with pytest.raises(DataError, match="does not exist or holds no file"):
        plan_data(make_spec([{"uri": f"{bucket}/nothing", "format": "alpaca"}]), "t")


def test_a_hub_data_set_that_can_not_be_reached_is_named_with_its_source(make_spec, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = make_spec([{"uri": "hf://datasets/tatsu-lab/alpaca/data.jsonl", "format": "alpaca"}])
    with pytest.raises(
        DataError, match=r"data.sources\[0\] \(data\) can't be read: hf://datasets/tatsu-lab/alpaca/data.jsonl"
    ):
        plan_data(spec, "t")
