"""Files near and far: reading URIs through fsspec, and committing folders by a manifest that is written last.

Object stores have no rename, so what has no manifest does not exist; on a local disk files are renamed into place besides.
What the files mean is left to those who call.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from llamero.spec.results import FileEntry

READ_BLOCK_BYTES = 1 << 20
REMOTE_CONNECT_TIMEOUT_SECONDS = 10
REMOTE_READ_TIMEOUT_SECONDS = 60


class StorageError(Exception):
    """A file or folder that can't be read or written; the message says which and what to do."""


def is_local(uri: str) -> bool:
    """Whether the URI names this machine's disk."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a local URI."""
    if not is_local(uri):
        raise ValueError(f"{uri} is not local")
    return Path(uri.removeprefix("file://"))


def _filesystem_options(uri: str, token: str | None) -> dict[str, Any]:
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=REMOTE_CONNECT_TIMEOUT_SECONDS, sock_read=REMOTE_READ_TIMEOUT_SECONDS
        )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return {"client_kwargs": {"timeout": timeout, "headers": headers}}
    if scheme == "hf":
        return {"token": token} if token else {}
    if scheme == "s3":
        # Endpoint and keys come from the environment, as for every S3 tool (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return {"client_kwargs": {"endpoint_url": endpoint}} if endpoint else {}
    return {}


@contextmanager
def open_uri(uri: str, token: str | None = None) -> Iterator[IO[bytes]]:
    """A binary stream of the URI's content, decompressed by its suffix (.gz, .bz2, .xz, .zst).

    Raises StorageError where it can't be opened; errors while reading are the file system's own (OSError, EOFError).
    """
    try:
        handle = fsspec.open(uri, "rb", compression="infer", **_filesystem_options(uri, token))
        stream = handle.open()
    except FileNotFoundError as error:
        raise StorageError(f"{uri} does not exist.") from error
    except IsADirectoryError as error:
        raise StorageError(f"{uri} is a folder, where a file is needed.") from error
    except (ImportError, ValueError) as error:
        raise StorageError(f"{uri} can't be opened: {error}") from error
    except Exception as error:  # each remote file system has a family of its own
        raise StorageError(f"{uri} can't be opened: {type(error).__name__}: {error}") from error
    try:
        yield stream
    finally:
        stream.close()


def list_files(uri: str, token: str | None = None) -> list[str]:
    """The files that a URI names, sorted: itself, a folder's files (below it at any depth, hidden ones left out), or a glob's matches.

    Raises StorageError where there is none.
    """
    if is_local(uri):
        return _list_local(uri)
    if uri.startswith(("http://", "https://")):
        return [uri]
    try:
        filesystem, path = url_to_fs(uri, **_filesystem_options(uri, token))
        filesystem.invalidate_cache()  # fsspec keeps listings for the life of the process: a change would never be seen
        if any(c in path for c in "*?["):
            found = filesystem.glob(path)
        elif filesystem.isdir(path):
            found = filesystem.find(path)
        else:
            found = [path] if filesystem.exists(path) else []
    except Exception as error:
        raise StorageError(f"{uri} can't be listed: {type(error).__name__}: {error}") from error
    files = sorted(filesystem.unstrip_protocol(f) for f in found if not f.rsplit("/", 1)[-1].startswith("."))
    if not files:
        raise StorageError(f"{uri} does not exist or holds no file.")
    return files


def _list_local(uri: str) -> list[str]:
    path = local_path(uri)
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        found = [
            p
            for p in path.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
        ]
    elif any(c in str(path) for c in "*?["):
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        found = [p for p in anchor.glob(str(path.relative_to(anchor) if path.is_absolute() else path)) if p.is_file()]
    else:
        raise StorageError(f"{path} does not exist.")
    if not found:
        raise StorageError(f"{path} holds no file.")
    return sorted(str(p) for p in found)


def sha256_file(path: Path) -> str:
    """sha256 of a local file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint_uri(uri: str, token: str | None = None) -> str:
    """What changes when the file's content does: sha256 for a local file, the store's own tag (or size and date) elsewhere."""
    if is_local(uri):
        try:
            return sha256_file(local_path(uri))
        except OSError as error:
            raise StorageError(f"{uri} can't be read: {error.strerror}") from error
    try:
        filesystem, path = url_to_fs(uri, **_filesystem_options(uri, token))
        info = filesystem.info(path)
    except Exception as error:
        raise StorageError(f"{uri} can't be reached: {type(error).__name__}: {error}") from error
    known = {
        k: str(info[k])
        for k in ("ETag", "etag", "sha256", "blob_id", "LastModified", "mtime", "size")
        if info.get(k) is not None
    }
    return hashlib.sha256(json.dumps([uri, known], sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole local file: a reader sees the old one or the new one, also after a crash."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def describe_files(folder: Path, names: Iterable[str] | None = None) -> list[FileEntry]:
    """Name, size and sha256 of a local folder's files (all of them at any depth, sorted, hidden ones left out)."""
    if names is None:
        names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [FileEntry(name=n, size=(folder / n).stat().st_size, sha256=sha256_file(folder / n)) for n in sorted(names)]


def find_damage(folder: Path, files: Iterable[FileEntry], read_content: bool = True) -> str | None:
    """What is wrong with a folder against its manifest, as a sentence; None where all is well."""
    for entry in files:
        path = folder / entry.name
        if not path.is_file():
            return f"{path} is missing."
        if path.stat().st_size != entry.size:
            return f"{path} has {path.stat().st_size} bytes, where its manifest says {entry.size}."
        if read_content and sha256_file(path) != entry.sha256:
            return f"{path} differs from its manifest's digest."
    return None


def download_folder(uri: str, target: Path, patterns: tuple[str, ...], token: str | None = None) -> Path:
    """Copy the top-level files of a remote folder that match one of the patterns into `target` (made if need be)."""
    import fnmatch

    target.mkdir(parents=True, exist_ok=True)
    filesystem, _ = url_to_fs(uri, **_filesystem_options(uri, token))
    wanted = [f for f in list_files(uri, token) if any(fnmatch.fnmatch(f.rsplit("/", 1)[-1], p) for p in patterns)]
    if not wanted:
        raise StorageError(f"{uri} holds no file like {', '.join(patterns)}.")
    for file in wanted:
        name = file.rsplit("/", 1)[-1]
        partial = target / f".{name}.partial"
        try:
            filesystem.get_file(file, str(partial))
        except Exception as error:
            raise StorageError(f"{file} can't be fetched: {type(error).__name__}: {error}") from error
        partial.replace(target / name)
    return target
