"""What a job's sources are: their names, their files, and the fingerprints that tell whether they changed. Reads no records."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from llamero.data.errors import DataError
from llamero.spec.digest import digest_json
from llamero.spec.job import DataSource
from llamero.storage import StorageError, fingerprint_uri, list_files, stamp_uri

NO_TOKENIZER = "words"
_HUB_TOKEN = "HF_TOKEN"
_SUFFIXES = frozenset(
    {
        ".gz",
        ".bz2",
        ".xz",
        ".zst",
        ".jsonl",
        ".json",
        ".ndjson",
        ".csv",
        ".tsv",
        ".parquet",
        ".xml",
        ".txt",
        ".zip",
        ".tar",
        ".tgz",
    }
)
MANY_FILES = 64
"""Of more files than this in a source, small ones are read together: RUN_FILES of them, or RUN_BYTES, in a task."""
SMALL_FILE_BYTES, RUN_BYTES, RUN_FILES = 256 << 10, 8 << 20, 2000
# What a folder may hold beside its data.
_NO_DATA = frozenset({"readme", "readme.md", "license", "license.txt", "license.md", "dataset_infos.json", "_success"})


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: `name` is how records call it, `fingerprint` changes with its content, `stamp` (of a local one) tells at once
    that it may have. Many small files are one, with those as its `members`.
    """

    source: int
    uri: str
    name: str
    fingerprint: str
    stamp: str | None = None
    members: "tuple[SourceFile, ...]" = ()

    @property
    def uris(self) -> list[str]:
        """Where its content lies."""
        return [member.uri for member in self.members] or [self.uri]


@dataclass(frozen=True)
class DataPlan:
    """What is to be prepared: the files of all sources as they stood, and the digest that names the outcome.

    `tokenizer_digest` changes with the tokenizer and its template (NO_TOKENIZER: lengths are counted in words). `named` are the files
    and folders that steps name, with their fingerprints.
    """

    digest: str
    files: tuple[SourceFile, ...]
    source_names: tuple[str, ...]
    tokenizer_digest: str
    named: tuple[tuple[str, str], ...] = ()


def name_sources(sources: Sequence[DataSource]) -> list[str]:
    """Each source's name: its own, or one made from its file's name; a number keeps made ones apart."""
    taken = {s.name for s in sources if s.name is not None}
    names: list[str] = []
    for source in sources:
        if source.name is not None:
            names.append(source.name)
            continue
        stem = _make_name(source.uri)
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem[:36]}-{number}", number + 1
        taken.add(name)
        names.append(name)
    return names


def _make_name(uri: str) -> str:
    path = PurePosixPath(uri.split("://", 1)[-1].split("?", 1)[0].rstrip("/"))
    stem = path.name
    while PurePosixPath(stem).suffix.lower() in _SUFFIXES:
        stem = PurePosixPath(stem).stem
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].strip("-") or "data"


def secret_variable(source: DataSource) -> str | None:
    """The environment variable that holds the source's token; the token itself never stands in a task."""
    if source.secret_ref is not None:
        return source.secret_ref.key
    return _HUB_TOKEN if source.uri.startswith("hf://") else None


def read_secret(variable: str | None) -> str | None:
    """The token, where one is set."""
    return os.environ.get(variable) or None if variable else None


def find_files(sources: Sequence[DataSource], allow_http: bool = False) -> list[SourceFile]:
    """All files of all sources in the manifest's order, by name within one. Raises DataError for a source that is missing."""
    files: list[SourceFile] = []
    for index, (source, name) in enumerate(zip(sources, name_sources(sources), strict=True)):
        token = read_secret(secret_variable(source))
        try:
            uris = list_files(source.uri, token)
            if len(uris) > 1:
                uris = [u for u in uris if u.rsplit("/", 1)[-1].lower() not in _NO_DATA] or uris
            if source.generate is not None:
                files.append(_gather_seeds(index, name, source, uris, token, allow_http))
                continue
            found = [
                SourceFile(
                    index,
                    uri,
                    file_name,
                    stamp=stamp_uri(uri),
                    fingerprint=fingerprint_uri(uri, token, allow_http=allow_http),
                )
                for uri, file_name in zip(uris, _name_files(uris), strict=True)
            ]
            files += _gather_small(found, source.uri) if len(found) > MANY_FILES else found
        except StorageError as error:
            raise DataError(
                f"data.sources[{index}] ({name}) can't be read: {error} Mend the uri, or put the file there."
            ) from error
    return files


def _gather_small(files: Sequence[SourceFile], folder: str) -> list[SourceFile]:
    """The files, runs of small local ones as one: a task of its own costs more than reading such a file."""
    gathered: list[SourceFile] = []
    run: list[SourceFile] = []
    taken = 0

    def close_run() -> None:
        if len(run) > 1:
            digest = digest_json([[file.name, file.fingerprint] for file in run])
            name = f"{run[0].name} … {run[-1].name}"
            gathered.append(SourceFile(run[0].source, folder, name, digest, members=tuple(run)))
        else:
            gathered.extend(run)

    for file in files:
        size = int(file.stamp.split("-")[0]) if file.stamp else SMALL_FILE_BYTES + 1
        if run and (size > SMALL_FILE_BYTES or taken + size > RUN_BYTES or len(run) == RUN_FILES):
            close_run()
            run, taken = [], 0
        if size > SMALL_FILE_BYTES:
            gathered.append(file)
            continue
        run.append(file)
        taken += size
    close_run()
    return gathered


def _gather_seeds(
    index: int, name: str, source: DataSource, uris: Sequence[str], token: str | None, allow_http: bool
) -> SourceFile:
    """The seeds of a source whose records a model makes, as one file: they are read together."""
    prints = [fingerprint_uri(uri, token, allow_http=allow_http) for uri in uris]
    return SourceFile(index, source.uri, f"{name} (generated)", digest_json(prints))


def fingerprint_named(place: str, uri: str, allow_http: bool = False) -> str:
    """What changes with the content of a file or folder that a step names. Raises DataError where it is missing."""
    try:
        return digest_json(
            [[file.removeprefix(uri), fingerprint_uri(file, allow_http=allow_http)] for file in list_files(uri)]
        )
    except StorageError as error:
        raise DataError(
            f"{place} names {uri}, which can't be read: {error} Mend the uri, or put the file there."
        ) from error


def _name_files(uris: Sequence[str]) -> list[str]:
    """The files' names, as short as they stay apart."""
    plain = [uri.split("?", 1)[0].rsplit("/", 1)[-1] or uri for uri in uris]
    if len(set(plain)) == len(plain):
        return plain
    shared = os.path.commonpath([uri.rsplit("/", 1)[0] for uri in uris]) if "://" not in uris[0] else ""
    return [uri.removeprefix(shared + "/") if shared else uri for uri in uris]
