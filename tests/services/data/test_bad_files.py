"""Files as they come: empty, cut off, packed, of another encoding, full of NULs, endless lines, loops, archives. Each ends in a sentence, and
no row vanishes."""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llamero.data.errors import DataError
from llamero.data.prepare import plan_data, prepare_data
from llamero.data.reading import read_task_rows
from llamero.data.rows import BrokenRow, RawRow, Row, read_rows
from llamero.data.shards import read_raw_rows, write_raw_row
from llamero.data.sources import find_files
from llamero.spec.job import DataSource
from llamero.storage import Refused, StorageError, list_files


def line(number: int) -> bytes:
    return json.dumps({"instruction": f"What is {number} plus one?", "output": f"It is {number + 1}."}).encode() + b"\n"


LINES = b"".join(line(i) for i in range(200))


def rows_of(path: Path, **task: Any) -> list[Row]:
    planned = {"uri": str(path), "name": path.name, "format": "alpaca", **task}
    return list(read_task_rows(planned, path.parent / "scratch"))


def numbers(rows: Iterable[Row]) -> list[int]:
    return [int(json.loads(r.json)["instruction"].split()[2]) for r in rows if isinstance(r, RawRow)]


def faults(rows: Iterable[Row]) -> list[str]:
    return [r.detail for r in rows if isinstance(r, BrokenRow)]


# -- one file ----------------------------------------------------------------------------------------------------------------------


def test_an_empty_file_has_no_rows_and_a_job_of_nothing_else_says_so(make_spec: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"")
    assert rows_of(path) == []
    spec = make_spec([{"uri": str(path), "format": "alpaca"}], steps=[])
    with pytest.raises(DataError, match="hold no record"):
        prepare_data(spec, plan_data(spec), None, tmp_path / "out", tmp_path / "cache", lambda event: None)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_packed_file_that_is_cut_off_gives_what_lies_before_the_cut_and_a_sentence(
    suffix: str, tmp_path: Path
) -> None:
    import pyarrow

    lines = b"".join(line(i * 7919 % 100_003) for i in range(60_000))
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(
        suffix, lambda data: pyarrow.compress(data, "zstd", asbytes=True)
    )
    packed = pack(lines)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    rows = rows_of(path)
    found = numbers(rows[:-2])  # the last row is cut, and then comes the sentence
    assert len(found) > 10_000
    assert found == [i * 7919 % 100_003 for i in range(len(found))]
    assert "cut off or damaged after row" in faults(rows)[-1]
    path.write_bytes(packed)
    assert len(numbers(rows_of(path))) == 60_000


@pytest.mark.parametrize(
    ("data", "name", "ending"),
    [
        (gzip.compress(LINES), "a.jsonl", ".gz"),
        (bz2.compress(LINES), "a.jsonl", ".bz2"),
        (lzma.compress(LINES), "a.json", ".xz"),
    ],
)
def test_a_packed_file_under_a_plain_name_is_told(data: bytes, name: str, ending: str) -> None:
    [row] = read_rows(io.BytesIO(data), name)
    assert isinstance(row, BrokenRow)
    assert row.detail.endswith(f"rename it to end in {ending}.")


def test_rows_of_another_encoding_are_told_one_by_one_and_the_others_kept(make_spec: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    latin = '{"instruction": "Wie heißt er?", "output": "Müller"}\n'.encode("latin-1")
    path.write_bytes(LINES + latin + line(200))
    spec = make_spec([{"uri": str(path), "format": "alpaca"}], steps=[])
    result = prepare_data(spec, plan_data(spec), None, tmp_path / "out", tmp_path / "cache", lambda event: None)
    assert (result.read, result.kept, result.rejected) == (202, 201, {"malformed": 1})
    rejected = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())
    assert rejected["line"] == 201
    assert "not UTF-8" in rejected["detail"] and "iconv" in rejected["detail"]


def test_a_line_of_two_hundred_megabytes_is_one_broken_row_in_bounded_memory() -> None:
    class Long(io.RawIOBase):
        """A good line, one of 200 MB, a good line: made as it is read."""

        def __init__(self) -> None:
            self.left = [line(1), b'{"instruction": "', *[b"x" * (1 << 20)] * 200, b'"}\n', line(2)]

        def read(self, size: int = -1) -> bytes:
            return self.left.pop(0) if self.left else b""

    tracemalloc.start()
    rows = list(read_rows(Long(), "a.jsonl"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers(rows) == [1, 2]
    assert [(type(r), r.line) for r in rows] == [(RawRow, 1), (BrokenRow, 2), (RawRow, 3)]
    assert "longer than 33,554,432 bytes" in faults(rows)[0]
    assert peak < 100 << 20


def test_nul_bytes_cost_the_rows_that_hold_them_and_a_binary_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(1) + line(2).replace(b"plus", b"pl\0us") + line(3))
    assert [r.line for r in rows_of(path)] == [1, 2, 3]
    path.write_bytes(bytes(range(256)) * 4 + bytes(9000))
    assert faults(rows_of(path)) == ["The file is no text: it is full of NUL bytes."]


def test_several_formats_in_one_file_cost_the_rows_that_are_not_of_the_first(make_spec: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + b"instruction,output\nWhy?,Because.\n" + b"<row Id='1'/>\n" + b"[1, 2]\n" + line(200))
    spec = make_spec([{"uri": str(path), "format": "alpaca"}], steps=[])
    result = prepare_data(spec, plan_data(spec), None, tmp_path / "out", tmp_path / "cache", lambda event: None)
    assert (result.read, result.kept, result.rejected) == (205, 201, {"malformed": 4})
    found = [json.loads(text)["line"] for text in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert found == [201, 202, 203, 204]


def test_a_file_that_changes_while_it_is_read_is_not_kept_under_the_old_ones_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    [file] = find_files([DataSource(uri=str(path), format="alpaca")])
    planned = {"fingerprint": file.fingerprint, "stamp": file.stamp}
    assert len(rows_of(path, **planned)) == 200
    path.write_bytes(LINES.replace(b"plus", b"less"))
    with pytest.raises(Refused, match="changed while it was read: start again"):
        rows_of(path, **planned)
    path.write_bytes(LINES)  # another date, the same content
    assert len(rows_of(path, **planned)) == 200


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    """As another user, where this one may read all."""
    secret = tmp_path / "data" / "a.jsonl"
    secret.parent.mkdir()
    secret.write_bytes(LINES)
    secret.chmod(0)
    program = (
        "import os, sys\n"
        "from llamero.storage import StorageError, fingerprint_uri, list_files, open_uri\n"
        "if os.getuid() == 0:\n    os.setgid(65534); os.setuid(65534)\n"
        "def told(call):\n"
        "    try:\n        call()\n"
        "    except StorageError as error:\n        print(error)\n"
        "told(lambda: open_uri(sys.argv[1]).__enter__())\n"
        "told(lambda: fingerprint_uri(sys.argv[1]))\n"
        "told(lambda: list_files(sys.argv[2]))\n"
    )
    closed = tmp_path / "closed"
    (closed / "in").mkdir(parents=True)
    (closed / "b.jsonl").write_bytes(LINES)
    (closed / "in").chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    run = subprocess.run(
        [sys.executable, "-c", program, str(secret), str(closed)], capture_output=True, text=True, check=True
    )
    told = run.stdout.splitlines()
    assert told[0].startswith(f"{secret} may not be read: give this user the right to")
    assert "can't be read: Permission denied" in told[1]
    assert told[2] == f"{closed / 'in'} can't be looked into: Permission denied."


# -- folders -----------------------------------------------------------------------------------------------------------------------


def test_loops_of_links_end_and_each_folder_is_read_once(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (data / "deep" / "a.jsonl").write_bytes(LINES)
    (elsewhere / "b.jsonl").write_bytes(LINES)
    (data / "deep" / "up").symlink_to(data)
    (data / "again").symlink_to(data / "deep")
    (data / "linked").symlink_to(elsewhere)
    assert list_files(str(data)) == [str(data / "deep" / "a.jsonl"), str(data / "linked" / "b.jsonl")]


@pytest.mark.parametrize("target", ["gone.jsonl", "self.jsonl"])
def test_a_link_to_nothing_and_one_to_itself_are_told(tmp_path: Path, target: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "self.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(StorageError, match=r"self\.jsonl is a link to"):
        list_files(str(tmp_path))


def test_ten_thousand_small_files_are_planned_in_seconds_and_read_in_few_tasks(make_spec: Any, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(10_000):
        (folder / f"{number:05d}.jsonl").write_bytes(line(number))
    spec = make_spec([{"uri": str(folder), "format": "alpaca"}], steps=[])
    started = time.process_time()
    plan = plan_data(spec)
    assert time.process_time() - started < 5
    assert len(plan.files) == 5
    assert sum(len(f.members) for f in plan.files) == 10_000
    result = prepare_data(spec, plan, None, tmp_path / "out", tmp_path / "cache", lambda event: None)
    assert (result.read, result.kept) == (10_000, 10_000)
    assert result.shards <= 10
    kept = [json.loads(text) for part in (tmp_path / "out" / "train").iterdir() for text in part.open()]
    assert all(r["file"] == f"{int(r['messages'][0]['content'].split()[2]):05d}.jsonl" and r["line"] == 1 for r in kept)


def test_a_broken_small_file_among_many_is_told_with_its_name(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:03d}.jsonl").write_bytes(line(number))
    (tmp_path / "050.jsonl").write_bytes(line(50)[:-20])
    [file] = find_files([DataSource(uri=str(tmp_path), format="alpaca")])
    members = [[m.uri, m.name, m.fingerprint, m.stamp] for m in file.members]
    rows = rows_of(tmp_path, members=members)
    assert len(rows) == 100
    assert [(r.file, r.line) for r in rows[49:52]] == [("049.jsonl", 1), ("050.jsonl", 1), ("051.jsonl", 1)]


def test_a_rows_file_outlives_the_shard(tmp_path: Path) -> None:
    rows: list[Row] = [
        RawRow(1, b'{"a": "\\t!"}'),
        RawRow(2, b"{}", 'a"b\t\n….jsonl'),
        BrokenRow(3, "why", "text\n", "c/d.jsonl"),
        BrokenRow(4, "why"),
    ]
    with (tmp_path / "rows").open("wb") as stream:
        for row in rows:
            write_raw_row(stream, row)
    with (tmp_path / "rows").open("rb") as stream:
        assert list(read_raw_rows(stream)) == rows


# -- archives ----------------------------------------------------------------------------------------------------------------------


def make_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


GOOD = {
    "set/b.jsonl": line(1) + line(2),
    "set/a.csv": b"instruction,output\nWhat is 3 plus one?,4\n",
    "set/deep/c.jsonl.gz": gzip.compress(line(4)),
    "README.md": b"# Not data",
    "set/.hidden": b"nor this",
    "__MACOSX/set/._b.jsonl": b"nor this",
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar.bz2", "w:bz2"), ("x.tar.xz", "w:xz")],
)
def test_a_tars_members_are_read_in_its_order_each_row_with_its_file(name: str, mode: str, tmp_path: Path) -> None:
    rows = rows_of(make_tar(tmp_path / name, GOOD, mode))
    assert [(r.file, r.line) for r in rows] == [
        (f"{name}/set/b.jsonl", 1),
        (f"{name}/set/b.jsonl", 2),
        (f"{name}/set/a.csv", 1),
        (f"{name}/set/deep/c.jsonl.gz", 1),
    ]
    assert numbers(rows) == [1, 2, 3, 4]


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_zips_members_are_read_by_name(tmp_path: Path) -> None:
    rows = rows_of(make_zip(tmp_path / "x.zip", GOOD))
    assert [r.file for r in rows] == [f"x.zip/set/{n}" for n in ("a.csv", "b.jsonl", "b.jsonl", "deep/c.jsonl.gz")]
    assert numbers(rows) == [3, 1, 2, 4]


CLIMBING = ["../evil.jsonl", "/etc/evil.jsonl", "a/../../evil.jsonl", "..\\evil.jsonl", "C:\\evil.jsonl"]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_climb_are_passed_over_with_a_sentence_and_nothing_is_written(
    kind: str, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "in"
    folder.mkdir(parents=True)
    members = {"good.jsonl": line(1), name: line(2), "z.jsonl": line(3)}
    path = make_tar(folder / "x.tar", members) if kind == "tar" else make_zip(folder / "x.zip", members)
    before = set(tmp_path.rglob("*"))
    rows = rows_of(path)
    assert sorted(numbers(rows)) == [1, 3]
    assert faults(rows) == ["The member's name leads out of the archive: it is passed over."]
    assert set(tmp_path.rglob("*")) == before


def test_links_and_devices_in_a_tar_are_passed_over_each_with_a_sentence(tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "x.tar",
        {
            "a.jsonl": line(1),
            "link.jsonl": special("link.jsonl", tarfile.SYMTYPE, "/etc/passwd"),
            "hard.jsonl": special("hard.jsonl", tarfile.LNKTYPE, "a.jsonl"),
            "pipe.jsonl": special("pipe.jsonl", tarfile.FIFOTYPE),
            "disk.jsonl": special("disk.jsonl", tarfile.BLKTYPE),
            "z.jsonl": line(2),
        },
    )
    rows = rows_of(path)
    assert numbers(rows) == [1, 2]
    assert [(r.file.rsplit("/")[-1], "link" in r.detail) for r in rows if isinstance(r, BrokenRow)] == [
        ("link.jsonl", True),
        ("hard.jsonl", True),
        ("pipe.jsonl", False),
        ("disk.jsonl", False),
    ]


def test_a_link_in_a_zip_is_passed_over(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.jsonl": line(1)})
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("link.jsonl")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    rows = rows_of(path)
    assert numbers(rows) == [1]
    assert "link or a device" in faults(rows)[0]


def test_archives_within_archives_and_locked_members_are_told(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"a.jsonl": line(9)}).read_bytes()
    path = make_zip(tmp_path / "x.zip", {"a.jsonl": line(1), "b.zip": inner, "c.jsonl": line(2)})
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # set the password's flag of c.jsonl
        data[data.rfind(mark) + flags] |= 1
    path.write_bytes(bytes(data))
    rows = rows_of(path)
    assert numbers(rows) == [1]
    assert [d.split(":")[0] for d in faults(rows)] == [
        "The member is an archive within an archive",
        "The member is locked by a password",
    ]


@pytest.mark.parametrize("name", ["x.7z", "x.rar"])
def test_archives_that_can_not_be_read_say_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100))
    with pytest.raises(Refused, match="unpack it first"):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz", "x.zip"])
def test_an_archive_that_is_cut_off_gives_what_lies_before_the_cut_and_a_sentence(kind: str, tmp_path: Path) -> None:
    members = {f"{i}.jsonl": b"".join(line(j * 7919 % 100_003) for j in range(2000)) for i in range(5)}
    path = (
        make_zip(tmp_path / kind, members)
        if kind == "x.zip"
        else make_tar(tmp_path / kind, members, "w:gz" if "gz" in kind else "w")
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    rows = rows_of(path)
    assert "cut off or damaged" in faults(rows)[-1]
    if kind != "x.zip":  # a zip without its end has no directory
        assert len(numbers(rows[:-2])) >= 4000
    if kind == "x.tar":  # between two members: nothing but the end is missing
        with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
            path.write_bytes(whole[: archive.getmembers()[2].offset])
        rows = rows_of(path)
        assert (len(numbers(rows)), len(faults(rows))) == (4000, 1)


def test_bombs_in_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("llamero.data.archives", "llamero.storage.unpacking"):
        monkeypatch.setattr(f"{module}.RATIO_FREE_BYTES", 1_000_000)
        monkeypatch.setattr(f"{module}.MAX_RATIO", 100)
    blanks = b" " * 4_000_000
    with pytest.raises(Refused, match="unpacks to more than 100 times"):
        rows_of(make_zip(tmp_path / "x.zip", {f"{i}.jsonl": blanks for i in range(3)}))
    with pytest.raises(Refused, match=r"unpacks to more than 1?00 times|unpacks to more than 1,000 times"):
        rows_of(make_tar(tmp_path / "x.tar.xz", {f"{i}.jsonl": blanks for i in range(3)}, "w:xz"))


def test_an_archive_of_too_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamero.data.archives.MAX_MEMBERS", 3)
    members = {f"{i}.jsonl": line(i) for i in range(4)}
    for path in (make_zip(tmp_path / "x.zip", members), make_tar(tmp_path / "x.tar", members)):
        with pytest.raises(Refused, match="holds more than 3 members"):
            rows_of(path)


def test_a_header_too_large_to_be_a_name_is_damage_and_not_memory(tmp_path: Path) -> None:
    entry = special("a.jsonl", tarfile.XHDTYPE)
    entry.size = 2 << 20
    with (tmp_path / "x.tar").open("wb") as out:
        out.write(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(3 << 20))
    rows = rows_of(tmp_path / "x.tar")
    assert "header is larger than any name" in faults(rows)[0]


def test_a_job_reads_an_archive_as_its_files_and_tells_of_each_record_where_it_stood(
    make_spec: Any, tmp_path: Path
) -> None:
    path = make_tar(
        tmp_path / "x.tgz", {"a.jsonl": LINES, "b.jsonl": line(0) + line(500), "../c.jsonl": line(1)}, "w:gz"
    )
    spec = make_spec([{"uri": str(path), "format": "alpaca"}], steps=[])
    result = prepare_data(spec, plan_data(spec), None, tmp_path / "out", tmp_path / "cache", lambda event: None)
    assert (result.read, result.kept, result.rejected) == (203, 201, {"duplicate": 1, "malformed": 1})
    kept = [
        json.loads(t) for side in ("train", "evaluation") for p in (tmp_path / "out" / side).iterdir() for t in p.open()
    ]
    assert {r["file"] for r in kept} == {"x.tgz/a.jsonl", "x.tgz/b.jsonl"}
    rejected = [json.loads(t) for t in (tmp_path / "out" / "rejected.jsonl").open()]
    assert [(r["file"], r["line"], r["reason"]) for r in rejected] == [
        ("x.tgz/b.jsonl", 1, "duplicate"),
        ("x.tgz/../c.jsonl", 1, "malformed"),
    ]


def test_seeds_in_many_small_files_and_in_an_archive_are_read_like_any_source(tmp_path: Path) -> None:
    from llamero.data.generating.seeds import read_seeds

    for number in range(100):
        (tmp_path / f"{number:03d}.jsonl").write_bytes(line(number))
    assert len(read_seeds(DataSource(uri=str(tmp_path), format="alpaca"))) == 100
    (tmp_path / "in").mkdir()
    archive = make_zip(tmp_path / "in" / "seeds.zip", {"a.jsonl": LINES})
    assert len(read_seeds(DataSource(uri=str(archive), format="alpaca"))) == 200
