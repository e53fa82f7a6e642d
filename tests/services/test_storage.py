"""Files near and far: listing, compression, atomic writes, damage, a real HTTP server."""

import bz2
import functools
import gzip
import http.server
import json
import lzma
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamero.storage import (
    StorageError,
    TornFolder,
    commit_folder,
    delete_tree,
    describe_files,
    download_folder,
    fetch_folder,
    find_damage,
    fingerprint_uri,
    join_uri,
    list_files,
    list_names,
    open_uri,
    read_file,
    read_manifest,
    write_atomically,
    write_file,
)


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A real HTTP server over a folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_are_read_as_they_are(tmp_path: Path, suffix: str, compress) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b"line\n"))
    with open_uri(str(path)) as stream:
        assert stream.read() == b"line\n"
    with open_uri(path.as_uri()) as stream:
        assert stream.read() == b"line\n"


def test_a_file_is_read_over_http_and_its_fingerprint_follows_its_content(website: tuple[str, Path]) -> None:
    url, folder = website
    (folder / "a.txt").write_text("one")
    with open_uri(f"{url}/a.txt", allow_http=True) as stream:
        assert stream.read() == b"one"
    before = fingerprint_uri(f"{url}/a.txt", allow_http=True)
    assert fingerprint_uri(f"{url}/a.txt", allow_http=True) == before
    (folder / "a.txt").write_text("three")
    assert fingerprint_uri(f"{url}/a.txt", allow_http=True) != before


def test_what_is_not_there_is_told_by_name(tmp_path: Path, website: tuple[str, Path]) -> None:
    for action in (
        open_uri(str(tmp_path / "none")),
        open_uri(f"{website[0]}/none", allow_http=True),
        open_uri(str(tmp_path)),
    ):
        with pytest.raises(StorageError, match=r"none|folder"), action:
            pass
    with pytest.raises(StorageError, match="none does not exist"):
        list_files(str(tmp_path / "none"))
    with pytest.raises(StorageError, match="is not read"), open_uri("nowhere://x"):
        pass


def test_folders_and_globs_are_listed_sorted_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".hidden", "sub/c.jsonl", ".git/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list_files(str(tmp_path)) == [str(tmp_path / n) for n in ("a.jsonl", "b.jsonl", "sub/c.jsonl")]
    assert list_files(str(tmp_path / "*.jsonl")) == [str(tmp_path / n) for n in ("a.jsonl", "b.jsonl")]
    with pytest.raises(StorageError, match="holds no file"):
        list_files(str(tmp_path / "*.csv"))


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_atomically(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "none"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    (tmp_path / "a").write_text("content")
    entries = describe_files(tmp_path)
    match damage:
        case "missing":
            (tmp_path / "a").unlink()
        case "short":
            (tmp_path / "a").write_text("conten")
        case "changed":
            (tmp_path / "a").write_text("Content")
    found = find_damage(tmp_path, entries)
    assert (found is None) == (damage == "none")
    if damage == "changed":
        assert find_damage(tmp_path, entries, read_content=False) is None


def test_a_remote_folder_is_fetched_by_patterns(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("config.json", "model.safetensors", "model.bin"):
        memory.pipe(f"/models/a/{name}", b"x")
    folder = download_folder("memory://models/a", tmp_path / "a", ("*.json", "*.safetensors"))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(StorageError, match=r"no file like \*\.gguf"):
        download_folder("memory://models/a", tmp_path / "b", ("*.gguf",))


# -- committed folders, near and far


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A storage's root: a folder, and a bucket of a real S3 server."""
    if request.param == "folder":
        yield str(tmp_path / "storage")
        return
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="store")
    yield "s3://store/root"
    server.stop()


def make_folder(folder: Path, text: str = "weights") -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "b.bin").write_text(text)
    (folder / "a.txt").write_text("a")
    return folder


def test_a_committed_folder_comes_back_whole(place: str, tmp_path: Path) -> None:
    uri = join_uri(place, "x", "adapter")
    entries = commit_folder(make_folder(tmp_path / "made"), uri)
    assert {e.name for e in entries} == {"a.txt", "deep/b.bin"} and read_manifest(uri) == entries
    fetched = fetch_folder(uri, tmp_path / "fetched")
    assert (fetched / "deep" / "b.bin").read_text() == "weights" and find_damage(fetched, entries) is None
    part = fetch_folder(uri, tmp_path / "part", ["a.txt"])
    assert not (part / "deep").exists()
    assert list_names(join_uri(place, "x")) == ["adapter"]
    assert commit_folder(tmp_path / "made", uri) == entries


def test_a_folder_without_its_manifest_does_not_exist(place: str, tmp_path: Path) -> None:
    write_file(join_uri(place, "torn", "a.txt"), "a")
    assert read_manifest(join_uri(place, "torn")) is None
    with pytest.raises(TornFolder, match="no readable manifest"):
        fetch_folder(join_uri(place, "torn"), tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("damage", ["other-content", "cut-off", "missing"])
def test_a_damaged_folder_is_refused_and_can_be_committed_anew(place: str, tmp_path: Path, damage: str) -> None:
    uri = join_uri(place, "adapter")
    made = make_folder(tmp_path / "made")
    commit_folder(made, uri)
    if damage == "missing":
        delete_tree(join_uri(uri, "deep"))
    else:
        write_file(join_uri(uri, "deep", "b.bin"), "WEIGHTS" if damage == "other-content" else "w")
    with pytest.raises(TornFolder):
        fetch_folder(uri, tmp_path / "fetched")
    assert [p.name for p in tmp_path.iterdir() if "fetch" in p.name] == []
    if damage != "other-content":
        commit_folder(made, uri)
        assert fetch_folder(uri, tmp_path / "fetched").is_dir()


def test_another_folder_takes_an_older_ones_place(place: str, tmp_path: Path) -> None:
    uri = join_uri(place, "adapter")
    commit_folder(make_folder(tmp_path / "old", "old"), uri)
    commit_folder(make_folder(tmp_path / "new", "new"), uri)
    assert (fetch_folder(uri, tmp_path / "fetched") / "deep" / "b.bin").read_text() == "new"


def test_files_are_written_read_listed_and_removed(place: str) -> None:
    uri = join_uri(place, "job", "state.json")
    assert read_file(uri) is None and list_names(join_uri(place, "job")) == []
    write_file(uri, "1")
    write_file(uri, b"2")
    assert read_file(uri) == b"2" and list_names(join_uri(place, "job")) == ["state.json"]
    delete_tree(join_uri(place, "job"))
    delete_tree(join_uri(place, "job"))
    assert read_file(uri) is None


def test_a_manifest_that_names_files_outside_of_its_folder_is_not_believed(place: str, tmp_path: Path) -> None:
    entry = {"name": "../../outside", "size": 1, "sha256": "0" * 64}
    write_file(join_uri(place, "evil", "manifest.json"), json.dumps({"files": [entry]}))
    with pytest.raises(TornFolder):
        fetch_folder(join_uri(place, "evil"), tmp_path / "fetched")


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"can't be written"):
        commit_folder(make_folder(tmp_path / "made"), str(tmp_path / "file" / "adapter"))


def test_two_that_commit_the_same_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    made, uri = make_folder(tmp_path / "made"), str(tmp_path / "storage" / "adapter")
    threads = [threading.Thread(target=commit_folder, args=(made, uri)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetch_folder(uri, tmp_path / "fetched").is_dir()
    assert [p.name for p in (tmp_path / "storage").iterdir()] == ["adapter"]
