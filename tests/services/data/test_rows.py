"""Rows out of streams: nothing lost, nothing raised, whatever the bytes."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from llamero.data import rows as rows_module
from llamero.data.rows import BrokenRow, RawRow, read_lines, read_rows
from llamero.storage import open_uri

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=8
)
objects = st.lists(st.dictionaries(st.text(max_size=8), values, max_size=4), max_size=12)


class Dripping(io.RawIOBase):
    """A stream that hands out a few bytes at a time, as a network does."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = data, size

    def read(self, size: int = -1) -> bytes:
        piece, self._data = self._data[: self._size], self._data[self._size :]
        return piece


def parse(data: bytes, name: str = "x.json", drip: int = 0) -> list[object]:
    stream = Dripping(data, drip) if drip else io.BytesIO(data)
    found = []
    for row in read_rows(stream, name):
        assert isinstance(row, RawRow), row
        found.append(orjson.loads(row.json))
    return found


@given(objects, st.sampled_from([None, 0, 1, 4]), st.integers(1, 40), st.booleans())
def test_every_element_of_a_json_array_comes_out_as_it_went_in(rows, indent, drip, escaped):
    data = json.dumps(rows, indent=indent, ensure_ascii=escaped).encode()
    assert parse(data, drip=drip) == rows
    assert parse(b"\xef\xbb\xbf" + data) == rows


@given(objects, st.booleans(), st.integers(1, 40))
def test_every_line_of_jsonl_comes_out_as_it_went_in(rows, carriage_returns, drip):
    end = b"\r\n" if carriage_returns else b"\n"
    data = b"\xef\xbb\xbf" + end.join(json.dumps(r).encode() for r in rows)
    assert parse(data, "x.jsonl", drip) == rows


@given(objects.filter(bool).filter(all))
def test_objects_one_after_the_other_on_many_lines_are_rows(rows):
    data = "\n".join(json.dumps(r, indent=2) for r in rows).encode()
    assert parse(data) == rows


@settings(max_examples=300)
@given(st.binary(max_size=400), st.sampled_from(["x.json", "x.csv", "x.tsv", "x.parquet"]))
def test_no_bytes_make_a_reader_raise(data, name):
    for row in read_rows(io.BytesIO(data), name):
        assert isinstance(row, (RawRow, BrokenRow))
    for row in read_lines(io.BytesIO(data), name):
        assert isinstance(row, (RawRow, BrokenRow))


@given(objects.filter(lambda rows: len(rows) > 2), st.data())
def test_a_cut_off_array_keeps_what_was_whole_and_says_where_it_ends(rows, data):
    text = json.dumps(rows).encode()
    cut = data.draw(st.integers(1, len(text) - 1))
    found = list(read_rows(io.BytesIO(text[:cut]), "x.json"))
    assert isinstance(found[-1], BrokenRow)
    assert "cut off" in found[-1].detail
    whole = [orjson.loads(r.json) for r in found[:-1]]
    assert whole == rows[: len(whole)]


def test_a_broken_element_costs_itself_alone():
    found = list(read_rows(io.BytesIO(b'[{"a": 1}, {"b": 2]}, nonsense, {"c": 3}]'), "x.json"))
    assert [r.line for r in found] == [1, 2, 3, 4]
    assert orjson.loads(found[3].json) == {"c": 3}


def test_text_after_an_array_is_not_lost_silently():
    found = list(read_rows(io.BytesIO(b'[{"a": 1}] {"b": 2}'), "x.json"))
    assert isinstance(found[1], BrokenRow)
    assert found[1].text == '{"b": 2}'


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_compressed_file_is_read_as_it_is(tmp_path, suffix):
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
    path = tmp_path / f"rows.jsonl.{suffix}"
    path.write_bytes(pack(b'{"a": 1}\n{"a": 2}\n'))
    with open_uri(str(path)) as stream:
        assert [orjson.loads(r.json)["a"] for r in read_rows(stream, path.name)] == [1, 2]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_truncated_compressed_file_gives_its_beginning_and_one_broken_row(tmp_path, suffix):
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
    import random

    noise = random.Random(0)
    lines = [b'{"a": %d, "b": "%x"}\n' % (i, noise.getrandbits(4000)) for i in range(3000)]
    path = tmp_path / f"rows.jsonl.{suffix}"
    packed = pack(b"".join(lines))
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with open_uri(str(path)) as stream:
        found = list(read_rows(stream, path.name))
    good = [r for r in found if isinstance(r, RawRow)]
    assert len(good) > 1000
    assert "cut off or damaged" in found[-1].detail
    # At most the line in which it breaks off and the sentence about the rest.
    assert len([r for r in found if isinstance(r, BrokenRow)]) == 1
    assert [orjson.loads(r.json)["a"] for r in good[:-1]] == list(range(len(good) - 1))


def test_csv_rows_keep_quotes_newlines_and_typed_headers():
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    table = [["q", "a"], ['say "hi"', "line one\nline two"], ["ä,b", ""]]
    writer.writerows(table)
    data = b"\xef\xbb\xbf" + buffer.getvalue().encode()
    assert parse(data, "x.csv") == [dict(zip(table[0], row, strict=True)) for row in table[1:]]


def test_a_csv_row_with_the_wrong_number_of_fields_is_broken_and_the_next_one_is_not():
    found = list(read_rows(io.BytesIO(b"q,a\n1,2\n3\n4,5\n\xff,6\n7,8\n"), "x.csv"))
    assert [type(r) for r in found] == [RawRow, BrokenRow, RawRow, BrokenRow, RawRow]
    assert "1 fields, the header 2" in found[1].detail
    assert "not UTF-8" in found[3].detail


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_tabs_and_semicolons_part_columns_where_the_header_has_them(delimiter):
    text = f"q{delimiter}a\n1, one{delimiter}2\n".encode()
    assert parse(text, "x.csv") == [{"q": "1, one", "a": "2"}]


def test_parquet_rows_come_out_in_order(tmp_path: Path):
    path = tmp_path / "x.parquet"
    table = pa.table({"q": [f"q{i}" for i in range(3000)], "tags": [["a", "b"]] * 3000})
    parquet.write_table(table, path)
    with open_uri(str(path)) as stream:
        found = [orjson.loads(r.json) for r in read_rows(stream, path.name)]
    assert found[2999] == {"q": "q2999", "tags": ["a", "b"]}
    assert len(found) == 3000


def test_a_damaged_parquet_file_is_one_broken_row(tmp_path: Path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"q": ["a"] * 10}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with open_uri(str(path)) as stream:
        found = list(read_rows(stream, path.name))
    assert len(found) == 1
    assert "Parquet file can't be read" in found[0].detail


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_wide_characters_are_read_with_and_without_their_mark(encoding: str):
    text = "".join(f'{{"a": "größer {i} 語"}}\n' for i in range(5000))
    found = list(read_rows(Dripping(text.encode(encoding), 1001), "x.jsonl"))
    assert [orjson.loads(r.json)["a"] for r in found] == [f"größer {i} 語" for i in range(5000)]


def test_a_line_too_long_is_broken_and_memory_stays_bounded(monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 1000)
    data = b'{"a": 1}\n{"a": "' + b"x" * 5000 + b'"}\n{"a": 3}\n'
    found = list(read_rows(Dripping(data, 64), "x.jsonl"))
    assert [type(r) for r in found] == [RawRow, BrokenRow, RawRow]
    assert [r.line for r in found] == [1, 2, 3]


def test_a_missing_bracket_ends_an_array_with_a_sentence_rather_than_filling_memory(monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 1000)
    data = b'[{"a": 1}, {"b": {"c": 2}, ' + b'{"d": 1},' * 1000
    found = list(read_rows(Dripping(data, 64), "x.json"))
    assert orjson.loads(found[0].json) == {"a": 1}
    assert "quote or bracket is missing" in found[1].detail


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"])), max_size=8))
def test_plain_lines_are_rows_and_blank_ones_are_none(lines):
    data = "\n".join(lines).encode()
    found = [orjson.loads(r.json) for r in read_lines(io.BytesIO(data), "x.txt")]
    expected = [line for line in lines if line.strip(" \t")]
    expected = [line.removeprefix("\ufeff") if lines and line is lines[0] else line for line in expected]
    assert found == [line for line in expected if line.strip(" \t")]
