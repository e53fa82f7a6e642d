"""Files near and far: reading URIs, and committing folders by a manifest that is written last.

Web servers are asked through `fetching`, which judges whom, object stores and hubs through fsspec. Object stores have no rename, so
what has no manifest does not exist; on a local disk files are renamed into place besides. What the files mean is left to those who call.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs

from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import SCHEMA_VERSION, FileEntry
from llamero.storage.errors import Away as Away
from llamero.storage.errors import NotThere as NotThere
from llamero.storage.errors import Refused as Refused
from llamero.storage.errors import StorageError as StorageError
from llamero.storage.errors import TornFolder as TornFolder
from llamero.storage.fetching import DEFAULT_POLICY, FetchPolicy, WebFile, inspect_url, show_url
from llamero.storage.fetching import is_web as is_web
from llamero.storage.unpacking import find_packing, unpack

READ_BLOCK_BYTES = 1 << 20
REMOTE_CONNECT_TIMEOUT_SECONDS = 10
REMOTE_READ_TIMEOUT_SECONDS = 60


SCHEMES = frozenset({"file", "http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""What a URI may begin with. fsspec knows more, and chains of them, by which a manifest could reach where it has no business."""


def is_local(uri: str) -> bool:
    """Whether the URI names this machine's disk."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The path of a local URI."""
    if not is_local(uri):
        raise ValueError(f"{uri} is not local")
    return Path(uri.removeprefix("file://"))


def choose_policy(allow_http: bool) -> FetchPolicy:
    """Whom web files may be asked of: `allow_http` is the manifest's data.allowHttp."""
    return FetchPolicy(allow_http=True) if allow_http else DEFAULT_POLICY


def _filesystem_options(uri: str, token: str | None) -> dict[str, Any]:
    scheme = uri.split("://", 1)[0].lower() if "://" in uri else "file"
    if scheme not in SCHEMES or "::" in uri:
        raise Refused(f"{uri} begins with {scheme}://, which is not read: use https, s3, gs, az, hf or a path.")
    if scheme in ("http", "https"):
        raise StorageError(f"{show_url(uri)} is a file of a web server, where a folder or a store is needed.")
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
def open_uri(uri: str, token: str | None = None, *, allow_http: bool = False) -> Iterator[IO[bytes]]:
    """A binary stream of the URI's content, decompressed by its suffix (.gz, .bz2, .xz, .zst).

    Raises StorageError where it can't be opened, Refused where it may not be read; errors while reading are the file system's own
    (OSError, EOFError) or, from a web server, StorageError.
    """
    stream = open_packed(uri, token, allow_http=allow_http)
    packing = find_packing(_path_of(uri)) or _sent_packing(stream)
    try:
        if packing is not None:
            stream = unpack(stream, packing, _show(uri))
    except BaseException as error:
        stream.close()
        if isinstance(error, ImportError):
            raise StorageError(f"{_show(uri)} can't be opened: {error}") from error
        raise
    try:
        yield stream
    finally:
        stream.close()


def open_packed(uri: str, token: str | None = None, *, allow_http: bool = False) -> IO[bytes]:
    """A binary stream of the URI's bytes as they lie there. Raises StorageError."""
    try:
        if is_web(uri):
            return io.BufferedReader(WebFile(uri, token, choose_policy(allow_http)), READ_BLOCK_BYTES)
        if is_local(uri):
            return local_path(uri).open("rb")
        stream: IO[bytes] = fsspec.open(uri, "rb", **_filesystem_options(uri, token)).open()
        return stream
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{uri} does not exist.") from error
    except IsADirectoryError as error:
        raise StorageError(f"{uri} is a folder, where a file is needed.") from error
    except PermissionError as error:
        raise StorageError(
            f"{uri} may not be read: give this user the right to ({error.strerror or error})."
        ) from error
    except (ImportError, ValueError) as error:
        raise StorageError(f"{uri} can't be opened: {error}") from error
    except Exception as error:  # each remote file system has a family of its own
        raise StorageError(f"{uri} can't be opened: {type(error).__name__}: {error}") from error


def _sent_packing(stream: IO[bytes]) -> str | None:
    """Where a web server packed what is not packed itself, though it was asked not to."""
    raw = getattr(stream, "raw", None)
    return "gz" if isinstance(raw, WebFile) and raw.encoding in ("gzip", "x-gzip") else None


def _path_of(uri: str) -> str:
    return urlsplit(uri).path if is_web(uri) else uri


def _show(uri: str) -> str:
    return show_url(uri) if is_web(uri) else uri


def list_files(uri: str, token: str | None = None) -> list[str]:
    """The files that a URI names, sorted: itself, a folder's files (below it at any depth, hidden ones left out), or a glob's matches.

    Links to folders are followed, each folder once. Raises StorageError where there is none, or one can't be looked into.
    """
    if is_web(uri):
        return [uri]
    if is_local(uri):
        return _list_local(uri)
    try:
        filesystem, path = url_to_fs(uri, **_filesystem_options(uri, token))
        filesystem.invalidate_cache()  # fsspec keeps listings for the life of the process: a change would never be seen
        if any(c in path for c in "*?["):
            found = filesystem.glob(path)
        elif filesystem.isdir(path):
            found = filesystem.find(path)
        else:
            found = [path] if filesystem.exists(path) else []
    except StorageError:
        raise
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
        return _list_folder(path)
    if any(c in str(path) for c in "*?["):
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        found = [p for p in anchor.glob(str(path.relative_to(anchor) if path.is_absolute() else path)) if p.is_file()]
    else:
        raise StorageError(f"{path} does not exist.")
    if not found:
        raise StorageError(f"{path} holds no file.")
    return sorted(str(p) for p in found)


def _list_folder(folder: Path) -> list[str]:
    """The files below a folder. Folders that are links come last, so that a file is named by where it lies."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    left = [str(folder)]
    links: list[str] = []
    while left or links:
        path = left.pop() if left else links.pop(0)
        try:
            status = Path(path).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as listed:
                entries = sorted((e for e in listed if not e.name.startswith(".")), key=lambda e: e.name)
            for entry in entries:
                if entry.is_dir():
                    (links if entry.is_symlink() else left).append(entry.path)
                elif entry.is_file():
                    found.append(entry.path)
                elif entry.is_symlink():
                    raise StorageError(f"{entry.path} is a link to nothing: mend it or take it out of the folder.")
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise StorageError(
                    f"{error.filename or path} is a link to itself: take it out of the folder."
                ) from error
            raise StorageError(f"{error.filename or path} can't be looked into: {error.strerror or error}.") from error
    if not found:
        raise StorageError(f"{folder} holds no file.")
    return sorted(found)


def sha256_file(path: Path) -> str:
    """sha256 of a local file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint_uri(uri: str, token: str | None = None, *, allow_http: bool = False) -> str:
    """What changes when the file's content does: sha256 for a local file, the store's own tag (or size and date) elsewhere.

    A web server that tells neither is read to the end. Raises StorageError.
    """
    if is_web(uri):
        return _fingerprint_web(uri, token, choose_policy(allow_http))
    if is_local(uri):
        try:
            return sha256_file(local_path(uri))
        except OSError as error:
            raise StorageError(f"{uri} can't be read: {error.strerror}") from error
    try:
        filesystem, path = url_to_fs(uri, **_filesystem_options(uri, token))
        info = filesystem.info(path)
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"{uri} can't be reached: {type(error).__name__}: {error}") from error
    known = {
        k: str(info[k])
        for k in ("ETag", "etag", "sha256", "blob_id", "LastModified", "mtime", "size")
        if info.get(k) is not None
    }
    return hashlib.sha256(json.dumps([uri, known], sort_keys=True).encode()).hexdigest()


def _fingerprint_web(uri: str, token: str | None, policy: FetchPolicy) -> str:
    tags = inspect_url(uri, token, policy)
    if tags.etag or tags.last_modified or tags.size is not None:
        known = [uri, tags.etag, tags.last_modified, tags.size]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()
    with io.BufferedReader(WebFile(uri, token, policy), READ_BLOCK_BYTES) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stamp_uri(uri: str) -> str | None:
    """What tells at once, without reading, whether a local file may have changed; None for others, and where there is none."""
    try:
        status = local_path(uri).stat() if is_local(uri) else None
    except OSError:
        return None
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}" if status is not None else None


def exists_on_web(uri: str, token: str | None = None, *, allow_http: bool = False) -> bool:
    """Whether a web server has the file. Raises StorageError where it can't be asked, or says anything but yes and no."""
    try:
        inspect_url(uri, token, choose_policy(allow_http))
    except NotThere:
        return False
    return True


def fetch_file(uri: str, target: Path, token: str | None = None, *, allow_http: bool = False) -> Path:
    """A copy of one file at `target` (whole or not at all), its bytes as they lie there. Raises StorageError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    try:
        with open_packed(uri, token, allow_http=allow_http) as stream, partial.open("wb") as out:
            shutil.copyfileobj(stream, out, READ_BLOCK_BYTES)
        partial.replace(target)
    except OSError as error:
        raise StorageError(f"{_show(uri)} can't be fetched: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


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
