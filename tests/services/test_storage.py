"""Files near and far: listing, compression, atomic writes, damage, a real HTTP server."""

import bz2
import functools
import gzip
import http.server
import lzma
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamero.storage import (
    StorageError,
    describe_files,
    download_folder,
    find_damage,
    fingerprint_uri,
    list_files,
    open_uri,
    write_atomically,
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
    with open_uri(f"{url}/a.txt") as stream:
        assert stream.read() == b"one"
    before = fingerprint_uri(f"{url}/a.txt")
    assert fingerprint_uri(f"{url}/a.txt") == before
    (folder / "a.txt").write_text("three")
    assert fingerprint_uri(f"{url}/a.txt") != before


def test_what_is_not_there_is_told_by_name(tmp_path: Path, website: tuple[str, Path]) -> None:
    for action in (open_uri(str(tmp_path / "none")), open_uri(f"{website[0]}/none"), open_uri(str(tmp_path))):
        with pytest.raises(StorageError, match=r"none|folder"), action:
            pass
    with pytest.raises(StorageError, match="none does not exist"):
        list_files(str(tmp_path / "none"))
    with pytest.raises(StorageError, match="can't be"), open_uri("nowhere://x"):
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
