"""The cache of answers: what is written, what is read after a crash, and that memory holds keys alone."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from services.data.model_server import ModelServer

from llamero.data.asking import cache as cache_module
from llamero.data.asking.asker import Asker
from llamero.data.asking.cache import AnswerCache, open_cache
from llamero.data.asking.questions import KEY_BYTES, Question, hash_question, name_endpoint
from llamero.spec.records import Message
from llamero.spec.steps import LanguageModel

from .asking import read_texts, say
from .conftest import MakeAsker

LEDGER = "0123456789abcdef"


def make_key(number: int) -> bytes:
    return hash_question("e", Question((Message("user", str(number)),)), 0.0, 10, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "answers"


@pytest.fixture
def writer(folder: Path) -> Iterator[AnswerCache]:
    cache = AnswerCache(str(folder))
    yield cache
    cache.close()


def read_anew(folder: Path) -> AnswerCache:
    cache = AnswerCache(str(folder))
    cache.refresh()
    return cache


def keep(cache: AnswerCache, numbers: range) -> None:
    for n in numbers:
        cache.keep_text(LEDGER, make_key(n), f"text {n}\nwith “lines”", "stop", (n, 1))


def test_what_is_kept_is_found_by_this_process_and_by_others_at_once(writer: AnswerCache, folder: Path) -> None:
    keep(writer, range(100))
    for cache in (writer, read_anew(folder)):
        for n in range(100):
            kept = cache.find(make_key(n))
            assert kept is not None
            assert (kept.text, kept.finish, kept.input_tokens) == (f"text {n}\nwith “lines”", "stop", n)
        assert cache.find(make_key(100)) is None
        assert cache.get_spent(LEDGER) == (sum(range(100)), 100)
        assert cache.get_spent("another") == (0, 0)


def test_others_read_on_from_where_they_were(writer: AnswerCache, folder: Path) -> None:
    keep(writer, range(5))
    reader = read_anew(folder)
    keep(writer, range(5, 9))
    assert reader.find(make_key(7)) is None
    reader.refresh()
    assert reader.find(make_key(7)) is not None and len(reader) == 9
    writer.seal()
    keep(writer, range(9, 12))
    reader.refresh()
    reader.refresh()
    assert len(reader) == 12 and reader.get_spent(LEDGER) == (sum(range(12)), 12)


@pytest.mark.parametrize(
    "torn", [b'{"key":"00', b"\x00" * 50, b'{"key": 7, "in": 1}\n', b'{"text": "no key"}\n', b"\n\n"]
)
def test_torn_lines_are_ignored(writer: AnswerCache, folder: Path, torn: bytes) -> None:
    keep(writer, range(3))
    (segment,) = folder.glob("*.jsonl")
    with segment.open("ab") as stream:
        stream.write(torn)
    reader = read_anew(folder)
    assert len(reader) == 3 and reader.get_spent(LEDGER) == (3, 3)
    assert all(reader.find(make_key(n)) is not None for n in range(3))


def test_a_line_that_was_half_written_is_read_when_it_is_whole(writer: AnswerCache, folder: Path) -> None:
    keep(writer, range(2))
    (segment,) = folder.glob("*.jsonl")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-9])
    reader = read_anew(folder)
    assert len(reader) == 1
    segment.write_bytes(whole)
    reader.refresh()
    assert reader.find(make_key(1)) is not None and reader.get_spent(LEDGER) == (1, 2)


def test_full_segments_are_sealed_and_their_index_says_the_same(
    writer: AnswerCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SEGMENT_BYTES", 2000)
    keep(writer, range(100))
    writer.close()
    segments, seals = sorted(folder.glob("*.jsonl")), sorted(folder.glob("*.index"))
    assert len(segments) == len(seals) > 3
    assert all(s.stat().st_size <= 2000 for s in segments)
    sealed = read_anew(folder)
    for number, seal in enumerate(seals):  # no index file, half of one, nonsense: the segment itself is read
        seal.unlink() if number % 3 == 0 else seal.write_bytes(
            seal.read_bytes()[: -number - 1] if number % 3 == 1 else b"?"
        )
    scanned = read_anew(folder)
    for cache in (sealed, scanned):
        assert len(cache) == 100 and cache.get_spent(LEDGER) == (sum(range(100)), 100)
        assert all(cache.find(make_key(n)) is not None for n in range(100))


def test_memory_holds_twenty_bytes_an_answer(
    writer: AnswerCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_RECENT_KEYS", 64)
    for n in range(200):
        writer.keep_text(LEDGER, make_key(n), "x" * 2000, "stop", (1, 1))
    writer.close()
    reader = read_anew(folder)
    assert reader._index.nbytes + 20 * len(reader._recent) == 200 * 20
    assert writer._index.nbytes == 192 * 20 and len(writer._recent) == 8
    assert all(cache.find(make_key(n)) is not None for n in range(200) for cache in (reader, writer))


def test_keys_that_share_a_half_are_told_apart(writer: AnswerCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_RECENT_KEYS", 2)
    keys = [b"samehalf" + bytes([n]) * 8 for n in range(6)]
    for n, key in enumerate(keys):
        writer.keep_text(LEDGER, key, str(n), "stop", (1, 1))
    assert [kept.text for key in keys if (kept := writer.find(key)) is not None] == list("012345")
    assert writer.find(b"samehalf" + b"z" * 8) is None


def test_vectors_come_back_bit_by_bit(writer: AnswerCache, folder: Path) -> None:
    vectors = np.array([[0.1, -1e30, 3.0], [1.0, 2.0, 1e-40]], np.float32)
    writer.keep_vectors(LEDGER, [make_key(0), make_key(1)], vectors, 7)
    reader = read_anew(folder)
    for n in range(2):
        kept = reader.find(make_key(n))
        assert kept is not None and kept.vector is not None
        assert kept.vector.tobytes() == vectors[n].tobytes()
    assert reader.get_spent(LEDGER) == (7, 0)


def test_a_folder_that_was_cleaned_is_begun_anew(server: ModelServer, make_asker: MakeAsker, answers: str) -> None:
    for _ in range(2):
        with make_asker() as asker:
            read_texts(asker.ask(say("a")))
            assert asker.account.answered == 1
        shutil.rmtree(answers)
    assert len(server.requests) == 2


def test_no_prompt_stands_in_the_cache(server: ModelServer, make_asker: MakeAsker, answers: str) -> None:
    server.answer = lambda body: "an answer"
    with make_asker() as asker:
        asker.ask(say("canary-prompt"))
    files = [p for p in Path(answers).rglob("*") if p.is_file()]
    assert files and not any(b"canary" in p.read_bytes() for p in files)
    assert json.loads(files[0].read_text())["text"] == "an answer"


VARIANTS = {
    "the same": ("e", "q", 0, 0.0, 10, 0),
    "another model or endpoint": ("f", "q", 0, 0.0, 10, 0),
    "another question": ("e", "r", 0, 0.0, 10, 0),
    "another sample": ("e", "q", 1, 0.0, 10, 0),
    "another temperature": ("e", "q", 0, 0.5, 10, 0),
    "another length": ("e", "q", 0, 0.0, 11, 0),
    "another try": ("e", "q", 0, 0.0, 10, 1),
}


def test_a_key_is_sixteen_bytes_over_all_that_can_change_an_answer() -> None:
    keys = [
        hash_question(endpoint, Question((Message("user", text),), sample), temperature, length, attempt)
        for endpoint, text, sample, temperature, length, attempt in VARIANTS.values()
    ]
    assert len(set(keys)) == len(VARIANTS) and {len(key) for key in keys} == {KEY_BYTES}
    system = Question((Message("system", "q"),))
    assert hash_question("e", system, 0.0, 10, 0) not in keys
    assert hash_question("e", Question((Message("user", "half \ud800"),)), 0.0, 10, 0)


def test_the_same_name_behind_another_endpoint_is_another_model() -> None:
    assert name_endpoint("https://a/v1", "tgi") == name_endpoint("https://a/v1/", "tgi")
    assert name_endpoint("https://a/v1", "tgi") != name_endpoint("https://b/v1", "tgi")
    assert name_endpoint("https://a/v1", "tgi") != name_endpoint("https://a/v1", "tgi2")


# -- an object store -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 server."""
    from moto.server import ThreadedMotoServer

    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem(client_kwargs={"endpoint_url": f"http://{host}:{port}"})
    name = f"bucket-{uuid.uuid4().hex[:8]}"  # what the server holds outlives it in this process
    filesystem.mkdir(name)
    yield f"s3://{name}/job/answers"
    s3fs.S3FileSystem.clear_instance_cache()
    store.stop()


def test_answers_in_an_object_store_are_shared_saved_and_sealed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SEGMENT_BYTES", 2000)
    writer, reader = AnswerCache(bucket), AnswerCache(bucket)
    keep(writer, range(10))
    assert writer.find(make_key(9)) is not None
    reader.refresh()
    assert reader.find(make_key(9)) is None
    writer.save()
    keep(writer, range(10, 40))
    writer.sync()
    for _ in range(2):
        reader.refresh()
    for cache in (writer, reader):
        assert len(cache) == 40 and cache.get_spent(LEDGER) == (sum(range(40)), 40)
        assert all(cache.find(make_key(n)) is not None for n in range(40))
    writer.close()
    late = AnswerCache(bucket)
    late.refresh()
    assert len(late) == 40 and late.get_spent(LEDGER) == (sum(range(40)), 40)
    assert all(late.find(make_key(n)) is not None for n in range(40))


def test_an_asker_keeps_its_answers_in_an_object_store(bucket: str, server: ModelServer, make_asker: MakeAsker) -> None:
    model = LanguageModel(url=server.url, model="m")
    with Asker(model, "judge", bucket, 1) as asker:
        read_texts(asker.ask(say(*range(20))))
        folder = asker._folder
    assert open_cache(folder).folder == folder
    cache_module.close_caches()
    with Asker(model, "judge", bucket, 1) as asker:
        read_texts(asker.ask(say(*range(20))))
        assert asker.account.cached == 20
    assert len(server.requests) == 20
