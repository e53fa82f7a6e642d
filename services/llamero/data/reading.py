"""The rows of one `read` task: of a file, of the members of an archive, or of many small files, each row with the file that it is of.

What a row means is the readers' business; where rows go, that of the tasks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamero.data.archives import is_archive, read_members
from llamero.data.readers import READERS, Reader
from llamero.data.rows import BrokenRow, Row
from llamero.data.sources import SourceFile, read_secret, secret_variable
from llamero.spec.job import DataFormat, DataSource
from llamero.storage import Refused, fingerprint_uri, open_uri, stamp_uri


def build_read_task(file: SourceFile, source: DataSource, allow_http: bool) -> dict[str, Any]:
    """What `read_task_rows` is told of a source's file; the token itself never stands in a task."""
    return {
        "uri": file.uri,
        "name": file.name,
        "format": source.format.value,
        "secret": secret_variable(source),
        "allowHttp": allow_http,
        "fingerprint": file.fingerprint,
        "stamp": file.stamp,
        "members": [[m.uri, m.name, m.fingerprint, m.stamp] for m in file.members],
    }


def read_task_rows(task: Mapping[str, Any], scratch: Path) -> Iterator[Row]:
    """The rows of the task's file, or of its `members`, in their order; rows of several files say of which (`Row.file`).

    The task: `uri`, `name`, `format`; optional: `secret`, `allowHttp`, `members` ([uri, name, fingerprint, stamp] of each),
    `fingerprint` and `stamp` of the file as it was planned.
    Raises StorageError where a file can't be opened or read to its end, Refused where it changed since it was planned.
    """
    reader = READERS[DataFormat(task["format"])]
    if task.get("members"):
        for uri, name, fingerprint, stamp in task["members"]:
            rows = _read_file(task, reader, uri, name, scratch)
            yield from (replace(row, file=row.file or name) for row in rows)
            _refuse_changed(task, uri, fingerprint, stamp)
        return
    yield from _read_file(task, reader, task["uri"], task["name"], scratch)
    _refuse_changed(task, task["uri"], task.get("fingerprint"), task.get("stamp"))


def _read_file(task: Mapping[str, Any], reader: Reader, uri: str, name: str, scratch: Path) -> Iterator[Row]:
    with open_uri(uri, read_secret(task.get("secret")), allow_http=task.get("allowHttp", False)) as stream:
        if not is_archive(name):
            yield from reader.read_rows(stream, name, scratch)
            return
        for number, member in enumerate(read_members(stream, name)):
            file = f"{name}/{member.name}"
            if member.stream is None:
                yield BrokenRow(1, member.fault, member.name[:200], file)
                continue
            for row in reader.read_rows(member.stream, member.name, scratch / str(number)):
                yield replace(row, file=file)


def _refuse_changed(task: Mapping[str, Any], uri: str, fingerprint: str | None, stamp: str | None) -> None:
    """Raise Refused where the file is not what was planned: its rows would be kept under another content's name."""
    if fingerprint is None or (stamp is not None and stamp_uri(uri) == stamp):
        return
    found = fingerprint_uri(uri, read_secret(task.get("secret")), allow_http=task.get("allowHttp", False))
    if found != fingerprint:
        raise Refused(f"{uri} changed while it was read: start again, or work on a copy of it.")
