"""Files near and far: reading URIs through fsspec, and committing folders by a manifest that is written last.

Object stores have no rename, so what has no manifest does not exist; on a local disk files are renamed into place besides.
What the files mean is left to those who call.
"""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import SCHEMA_VERSION, FileEntry

READ_BLOCK_BYTES = 1 << 20
REMOTE_CONNECT_TIMEOUT_SECONDS = 10
REMOTE_READ_TIMEOUT_SECONDS = 60


class StorageError(Exception):
    """A file or folder that can't be read or written; the message says which and what to do."""


class TornFolder(StorageError):
    """A folder that does not agree with its manifest, or has none: it counts as not there."""


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
        options: dict[str, Any] = {
            "config_kwargs": {
                "connect_timeout": REMOTE_CONNECT_TIMEOUT_SECONDS,
                "read_timeout": REMOTE_READ_TIMEOUT_SECONDS,
                "retries": {"max_attempts": 5, "mode": "standard"},
            }
        }
        return options | ({"client_kwargs": {"endpoint_url": endpoint}} if endpoint else {})
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


# -- files and committed folders at a URI, near or far -------------------------------------------------------------------------


def join_uri(root: str, *parts: str) -> str:
    """A URI, or a local path, below another."""
    return "/".join([root.rstrip("/"), *(p.strip("/") for p in parts)])


@contextmanager
def _explained(uri: str, verb: str) -> Iterator[None]:
    """Turn what a file system raises into a StorageError with a sentence."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{uri} can't be {verb}: {error.strerror or error}.") from error
    except Exception as error:  # each remote file system has a family of its own
        raise StorageError(f"{uri} can't be {verb}: {type(error).__name__}: {error}") from error


def _open_filesystem(uri: str) -> tuple[Any, str]:
    filesystem, path = url_to_fs(uri, **_filesystem_options(uri, None))
    filesystem.invalidate_cache()  # what another pod wrote a moment ago must be seen
    return filesystem, path


def read_file(uri: str) -> bytes | None:
    """A file's content; None where there is none. Raises StorageError."""
    try:
        with _explained(uri, "read"):
            if is_local(uri):
                return local_path(uri).read_bytes()
            filesystem, path = _open_filesystem(uri)
            return bytes(filesystem.cat_file(path))
    except StorageError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return None
        raise


def write_file(uri: str, content: bytes | str) -> None:
    """Write a whole file: a reader sees the old one or the new one. Raises StorageError."""
    with _explained(uri, "written"):
        if is_local(uri):
            write_atomically(local_path(uri), content)
            return
        filesystem, path = _open_filesystem(uri)
        filesystem.pipe_file(path, content.encode() if isinstance(content, str) else content)


def list_names(uri: str) -> list[str]:
    """The names right below a folder, sorted, hidden ones left out; none where it does not exist. Raises StorageError."""
    try:
        with _explained(uri, "listed"):
            if is_local(uri):
                names = [p.name for p in local_path(uri).iterdir()]
            else:
                filesystem, path = _open_filesystem(uri)
                names = [str(f).rstrip("/").rsplit("/", 1)[-1] for f in filesystem.ls(path, detail=False)]
    except StorageError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return []
        raise
    return sorted(n for n in names if not n.startswith("."))


def delete_tree(uri: str) -> None:
    """Remove a folder with all that is in it; one that is not there is no error. Raises StorageError."""
    with _explained(uri, "removed"):
        if is_local(uri):
            _delete_local(local_path(uri))
            return
        filesystem, path = _open_filesystem(uri)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def _delete_local(folder: Path, tries: int = 5) -> None:
    for left in reversed(range(tries)):
        try:
            shutil.rmtree(folder)
            return
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError:  # somebody may still be writing into it
            if not left:
                raise


def read_manifest(uri: str) -> list[FileEntry] | None:
    """The files that a folder's manifest names; None where it has none, or one that can't be understood. Raises StorageError."""
    content = read_file(join_uri(uri, MANIFEST_NAME))
    if content is None:
        return None
    try:
        entries = [FileEntry.model_validate(f) for f in json.loads(content)["files"]]
    except (ValueError, KeyError, TypeError):
        return None
    return None if any(_climbs(entry.name) for entry in entries) else entries


def _climbs(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def commit_folder(folder: Path, uri: str) -> list[FileEntry]:
    """Put a local folder at a URI, its manifest last, and return its files. Where the same one stands already nothing is done.

    The manifest is the folder's own, or one of all its files. On a disk the folder is written beside its place and renamed.
    Raises StorageError.
    """
    with _explained(uri, "written"):
        manifest, entries = _describe_folder(folder)
        if is_whole(uri, manifest, entries):
            return entries
        if is_local(uri):
            _commit_locally(folder, local_path(uri), manifest, entries)
            return entries
        filesystem, path = _open_filesystem(uri)
        marker = join_uri(path, MANIFEST_NAME)
        if filesystem.exists(marker):
            filesystem.rm(marker)
        if entries:
            filesystem.put([str(folder / e.name) for e in entries], [join_uri(path, e.name) for e in entries])
        filesystem.pipe_file(marker, manifest)
        return entries


def _describe_folder(folder: Path) -> tuple[bytes, list[FileEntry]]:
    path = folder / MANIFEST_NAME
    if path.is_file():
        content = path.read_bytes()
        return content, [FileEntry.model_validate(f) for f in json.loads(content)["files"]]
    entries = describe_files(folder)
    made = {"schemaVersion": SCHEMA_VERSION, "files": [e.to_json_dict() for e in entries]}
    return json.dumps(made, indent=2).encode() + b"\n", entries


def is_whole(uri: str, manifest: bytes, entries: Iterable[FileEntry]) -> bool:
    """Whether this very manifest stands at the URI with all its files in their sizes. Raises StorageError."""
    if read_file(join_uri(uri, MANIFEST_NAME)) != manifest:
        return False
    return find_missing(uri, entries) is None


def find_missing(uri: str, entries: Iterable[FileEntry]) -> str | None:
    """What is missing of a folder's files, or has another size, as a sentence; contents are not read. Raises StorageError."""
    if is_local(uri):
        return find_damage(local_path(uri), entries, read_content=False)
    with _explained(uri, "listed"):
        filesystem, path = _open_filesystem(uri)
        sizes = {str(f): int(d["size"]) for f, d in filesystem.find(path, detail=True).items()}
    for entry in entries:
        name = join_uri(path, entry.name)
        if sizes.get(name) != entry.size:
            return f"{join_uri(uri, entry.name)} is missing or cut off."
    return None


def _commit_locally(folder: Path, target: Path, manifest: bytes, entries: list[FileEntry]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:12]}")
    partial.mkdir()
    try:
        for entry in entries:
            copy = partial / entry.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / entry.name, copy)
            _sync(copy)
        write_atomically(partial / MANIFEST_NAME, manifest)
        _sync(partial)
        put_in_place(partial, target, manifest, entries)
        _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, target: Path, manifest: bytes, entries: list[FileEntry]) -> None:
    """Rename a finished folder to its place, where nobody put the same before; a torn one in the way is removed."""
    for _ in range(3):
        try:
            partial.rename(target)
            return
        except OSError as error:
            if not target.is_dir():
                raise
            if is_whole(str(target), manifest, entries):
                return
            _delete_local(target)
            last = error
    raise last


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fetch_folder(uri: str, target: Path, names: Iterable[str] | None = None) -> Path:
    """Copy a committed folder to a local one (all files of its manifest, or those named), every digest checked; returns it.

    Raises TornFolder where the folder has no manifest or does not agree with it, StorageError where it can't be read.
    """
    entries = read_manifest(uri)
    if entries is None:
        raise TornFolder(f"{uri} has no readable {MANIFEST_NAME}: it was not written to its end.")
    if names is not None:
        chosen = set(names)
        entries = [e for e in entries if e.name in chosen]
    missing = find_missing(uri, entries)
    if missing:
        raise TornFolder(missing)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.fetch-{uuid.uuid4().hex[:12]}")
    try:
        with _explained(uri, "fetched"):
            _copy_files(uri, partial, [*(e.name for e in entries), MANIFEST_NAME])
        damage = find_damage(partial, entries)
        if damage:
            raise TornFolder(f"{uri} is damaged: {damage}")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _copy_files(uri: str, target: Path, names: list[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    if is_local(uri):
        for name in names:
            shutil.copyfile(local_path(uri) / name, target / name)
        return
    filesystem, path = _open_filesystem(uri)
    filesystem.get([join_uri(path, n) for n in names], [str(target / n) for n in names])
