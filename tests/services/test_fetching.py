"""Files of web servers, fetched from real ones on loopback: TLS by a test's own authority, redirects, breaks, bombs, slow and endless ones."""

import functools
import gzip
import http.server
import io
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster.certificates import Authority

from llamero.storage import Away, Refused, StorageError, fetch_file, fingerprint_uri, list_files, open_uri
from llamero.storage.addresses import find_fault
from llamero.storage.fetching import FetchLimits, FetchPolicy, WebFile, inspect_url, show_url
from llamero.storage.unpacking import unpack

BODY = b"".join(b'{"row": %d}\n' % i for i in range(20_000))


@dataclass
class Web:
    """A server's scripted answers and what it was asked. `answers[path](handler)` writes the answer."""

    scheme: str
    port: int
    answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def url(self, path: str, host: str = "localhost") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def serve(self, path: str, body: bytes = BODY, status: int = 200, **headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            send(handler, status, body, named)

        self.answers[path] = answer
        return self.url(path)


def send(handler: Any, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body if cut is None else body[:cut])


def start(scheme: str, certificate: Any = None, host: str = "127.0.0.1") -> tuple[Web, http.server.ThreadingHTTPServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            web.asked.append((self.command, self.path, dict(self.headers)))
            if path not in web.answers:
                self.send_error(404)
                return
            with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                web.answers[path](self)
            self.close_connection = True

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    web = Web(scheme, server.server_port)
    threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
    return web, server


@pytest.fixture
def web() -> Iterator[Web]:
    web, server = start("http")
    yield web
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secure(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server whose name is proved by an authority that this machine trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    web, server = start("https", authority.issue("web"))
    yield web
    server.shutdown()
    server.server_close()


QUICK = FetchLimits(idle_seconds=2, connect_seconds=2, pause_seconds=0.01)
OWN = FetchPolicy(allow_http=True, limits=QUICK)


def read(url: str, policy: FetchPolicy = OWN, token: str | None = None) -> bytes:
    with io.BufferedReader(WebFile(url, token, policy)) as stream:
        return stream.read()


# -- addresses -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1", "203.0.113.9",
        "::1", "fc00::1", "fd12:3456::1", "64:ff9b:1::a00:1", "2001:db8::1",
        "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1", "2002:0a00:0001::1", "::10.0.0.1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_in_every_dress(address: str) -> None:
    assert find_fault(address, allow_private=False) is not None


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "169.254.0.1", "0.0.0.0", "224.0.0.1", "239.255.255.250", "255.255.255.255", "240.0.0.1", "100.100.100.200",
        "192.0.0.192", "::", "fe80::1", "fe80::1%eth0", "ff02::1", "fd00:ec2::254", "fec0::1", "2001:0:1::1",
        "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1", "::169.254.169.254",
    ],
)  # fmt: skip
def test_metadata_multicast_and_reserved_addresses_are_refused_even_for_servers_of_ones_own(address: str) -> None:
    assert find_fault(address, allow_private=False) is not None
    assert find_fault(address, allow_private=True) is not None


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)  # fmt: skip
def test_public_addresses_are_asked(address: str) -> None:
    assert find_fault(address, allow_private=False) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::1", "fd12::1", "::ffff:192.168.0.1"])
def test_private_addresses_are_asked_where_the_manifest_allows_it(address: str) -> None:
    assert find_fault(address, allow_private=True) is None


# -- whom one may ask ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_whole_by_https_and_the_name_is_proved(secure: Web) -> None:
    url = secure.serve("/a.jsonl")
    assert read(url) == BODY
    assert secure.asked[-1][2]["Host"] == f"localhost:{secure.port}"
    with pytest.raises(Refused, match="does not prove its name"):
        read(url.replace("localhost", "other.test"), FetchPolicy(True, QUICK, lambda host, port: ["127.0.0.1"]))


def test_a_certificate_of_an_unknown_authority_is_refused(secure: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(Refused, match=r"does not prove its name: .*SSL_CERT_FILE"):
        read(secure.serve("/a.jsonl"))


def test_http_is_refused_unless_the_manifest_allows_it(web: Web) -> None:
    url = web.serve("/a.jsonl")
    with pytest.raises(Refused, match=r"is not https: use https, or set data\.allowHttp"), open_uri(url):
        pass
    with open_uri(url, allow_http=True) as stream:
        assert stream.read() == BODY
    assert [method for method, _, _ in web.asked] == ["GET"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0"])
def test_this_machine_is_not_asked_however_it_is_written(secure: Web, host: str) -> None:
    with pytest.raises(Refused, match="Nothing is fetched from there"), open_uri(secure.url("/a", host)):
        pass
    assert not secure.asked


def test_one_private_address_among_public_ones_is_enough_to_refuse_a_host() -> None:
    policy = FetchPolicy(limits=QUICK, resolve=lambda host, port: ["8.8.8.8", "10.0.0.7"])
    with pytest.raises(Refused, match=r"data\.test leads to 10\.0\.0\.7, which is private"):
        read("https://data.test/a.jsonl", policy)


def test_the_connection_goes_to_the_address_that_was_judged(secure: Web) -> None:
    """A name that changes its address after the check: asked once, its first answer is what is connected to."""
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    url = secure.serve("/a.jsonl")
    policy = FetchPolicy(True, QUICK, resolve)
    assert read(url, policy) == BODY
    assert asked == ["localhost"]
    with pytest.raises(Refused, match="metadata"):
        read(url, policy)
    assert len(secure.asked) == 1


def test_a_host_that_is_not_known_is_named() -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    with pytest.raises(StorageError, match=r"https://nowhere\.test/a can't be reached: nowhere\.test is not known"):
        read("https://nowhere.test/a", FetchPolicy(resolve=resolve))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://me:hunter2@data.test/a", "holds a name or password"),
        ("https://hunter2@data.test/a", "holds a name or password"),
        ("https:///a", "no https:// address"),
        ("https://data.test:99999999/a", "can't be understood"),
        ("ftp://data.test/a", "begins with ftp://, which is not read"),
        ("simplecache::http://169.254.169.254/a", "is not read"),
        ("zip://a::https://169.254.169.254/a", "is not read"),
        ("HTTP://169.254.169.254/a", "is not https"),
    ],
)
def test_addresses_that_are_no_files_are_refused_and_no_password_is_told(uri: str, message: str) -> None:
    for call in (fingerprint_uri, lambda u: open_uri(u).__enter__(), lambda u: list_files(u) and fingerprint_uri(u)):
        with pytest.raises(StorageError, match=message) as caught:
            call(uri)
        assert "hunter2" not in str(caught.value)


def test_a_signature_in_a_query_is_not_told() -> None:
    assert show_url("https://me:x@data.test:8443/a/b.gz?X-Signature=abc#d") == "https://data.test:8443/a/b.gz?…"


# -- redirects -------------------------------------------------------------------------------------------------------------------


def redirect(web: Web, path: str, location: str, status: int = 302) -> str:
    return web.serve(path, b"", status, Location=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(secure: Web, status: int) -> None:
    secure.serve("/b.jsonl")
    assert read(redirect(secure, "/a", "b.jsonl", status)) == BODY


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("https://169.254.169.254/latest/meta-data/", "link-local, where clouds keep their metadata service"),
        ("http://169.254.169.254/latest/meta-data/", "without encryption"),
        ("https://[fd00:ec2::254]/latest/", "metadata service"),
        ("file:///etc/passwd", "is no https:// address"),
        ("gopher://localhost/", "is no https:// address"),
        ("https://a:b@localhost/", "holds a name or password"),
    ],
)
def test_each_redirect_is_judged_like_the_first_address(secure: Web, location: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        read(redirect(secure, "/a", location))
    assert len(secure.asked) == 1


def test_a_redirect_from_a_public_host_to_a_private_one_is_refused(
    secure: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loopback stands for the public host here; what follows is judged for real."""
    monkeypatch.setattr(
        "llamero.storage.fetching.find_fault",
        lambda address, allow: None if address == "127.0.0.1" else find_fault(address, allow),
    )
    policy = FetchPolicy(limits=QUICK)
    with pytest.raises(Refused, match=r"10\.0\.0\.5.* is private.*data\.allowHttp"):
        read(redirect(secure, "/a", "https://10.0.0.5/secret"), policy)


def test_https_never_goes_on_by_http_even_where_http_is_allowed(secure: Web, web: Web) -> None:
    web.serve("/b")
    with pytest.raises(Refused, match="would go on without encryption"):
        read(redirect(secure, "/a", web.url("/b")))
    assert not web.asked


def test_more_than_five_redirects_are_refused(secure: Web) -> None:
    for number in range(6):
        redirect(secure, f"/{number}", f"/{number + 1}")
    secure.serve("/6")
    assert read(secure.url("/1")) == BODY
    with pytest.raises(Refused, match="more than 5 redirects"):
        read(secure.url("/0"))


def test_a_token_goes_to_its_own_server_alone(secure: Web, authority: Authority) -> None:
    other, server = start("https", authority.issue("other"))
    try:
        other.serve("/b")
        redirect(secure, "/far", other.url("/b"))
        redirect(secure, "/near", "/b")
        secure.serve("/b")
        assert read(secure.url("/near"), token="s3cret") == BODY
        assert [h.get("Authorization") for _, _, h in secure.asked] == ["Bearer s3cret"] * 2
        assert read(secure.url("/far"), token="s3cret") == BODY
        assert other.asked[0][2].get("Authorization") is None
    finally:
        server.shutdown()
        server.server_close()


# -- how much is taken -----------------------------------------------------------------------------------------------------------


def limited(**limits: Any) -> FetchPolicy:
    return FetchPolicy(True, FetchLimits(**{"idle_seconds": 2, "pause_seconds": 0.01, **limits}))


def test_a_file_that_says_it_is_too_large_is_refused_before_it_is_read(web: Web) -> None:
    with pytest.raises(Refused, match="larger than 1,000 bytes"):
        read(web.serve("/a"), limited(max_bytes=1000))
    assert read(web.url("/a"), limited(max_bytes=len(BODY))) == BODY


def test_an_endless_body_is_read_to_the_cap_and_no_further(web: Web) -> None:
    sent = []

    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            sent.append(handler.wfile.write(bytes(10_000)))

    web.answers["/a"] = endless
    with pytest.raises(Refused, match="larger than 5,000,000 bytes"):
        read(web.url("/a"), limited(max_bytes=5_000_000))
    assert sum(sent) < 50_000_000


def drip(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.02)


def test_a_server_that_drips_is_given_up_by_speed_and_by_time(web: Web) -> None:
    web.answers["/a"] = drip
    with pytest.raises(StorageError, match="sends less than 1,000 bytes a second"):
        read(web.url("/a"), limited(speed_window_seconds=0.2))
    with pytest.raises(Refused, match="takes longer than"):
        read(web.url("/a"), limited(total_seconds=0.2))


def test_a_server_that_drips_its_headers_is_given_up_too(web: Web) -> None:
    def headers(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        drip(handler)

    web.answers["/a"] = headers
    with pytest.raises(Refused, match="takes longer than"):
        read(web.url("/a"), limited(total_seconds=0.2))


def test_a_silent_server_is_given_up(web: Web) -> None:
    waiting = threading.Event()
    web.answers["/a"] = lambda handler: waiting.wait(10) and None
    with pytest.raises(StorageError, match="silent for too long"):
        read(web.url("/a"), limited(idle_seconds=0.2))
    waiting.set()


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst"])
def test_a_bomb_is_refused_by_its_ratio_wherever_it_lies(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamero.storage.unpacking.RATIO_FREE_BYTES", 1_000_000)
    plain = bytes(20_000_000)
    path = tmp_path / f"bomb.jsonl.{packing}"
    path.write_bytes(pack(plain, packing))
    with pytest.raises(Refused, match="unpacks to more than 1,000 times"), open_uri(str(path)) as stream:
        while stream.read1(1 << 20):
            pass


def pack(plain: bytes, packing: str) -> bytes:
    import bz2
    import lzma

    import pyarrow

    if packing == "gz":  # at most about 1,030 times: a gzip bomb is blanks of blanks
        return gzip.compress(plain, 9)[:-8]
    pieces = {"bz2": bz2.compress, "xz": lzma.compress, "zst": lambda b: pyarrow.compress(b, "zstd", asbytes=True)}
    return pieces[packing](plain)


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst"])
def test_packed_text_is_read_whole_also_in_several_pieces(packing: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl.{packing}"
    piece = pack(BODY, packing) if packing != "gz" else gzip.compress(BODY)
    path.write_bytes(piece + piece)
    with open_uri(str(path)) as stream:
        assert stream.read() == BODY + BODY


def test_blanks_below_the_first_hundred_megabytes_are_no_bomb() -> None:
    stream = unpack(io.BytesIO(pack(b" " * 5_000_000, "bz2")), "bz2", "a.bz2")
    assert len(stream.read()) == 5_000_000


# -- breaks ----------------------------------------------------------------------------------------------------------------------


def breaking(web: Web, path: str, cuts: list[int], with_ranges: bool, **headers: str) -> str:
    """Serve BODY, each time cut after so many bytes, until the cuts are used up."""
    left = list(cuts)

    def answer(handler: Any) -> None:
        first, status, more = 0, 200, dict(headers)
        wanted = handler.headers.get("Range")
        if with_ranges and wanted and handler.headers.get("If-Range") in (headers.get("ETag"), None):
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status, more["Content-Range"] = 206, f"bytes {first}-{len(BODY) - 1}/{len(BODY)}"
        send(handler, status, BODY[first:], more, left.pop(0) if left and handler.command == "GET" else None)

    web.answers[path] = answer
    return web.url(path)


def test_a_broken_download_goes_on_where_it_broke(web: Web) -> None:
    url = breaking(web, "/a", [50_000, 0, 70_000, 1], True, ETag='"one"')
    assert read(url) == BODY
    assert [h.get("Range") for _, _, h in web.asked] == [
        None,
        "bytes=50000-",
        "bytes=50000-",
        "bytes=120000-",
        "bytes=120001-",
    ]
    assert {h.get("If-Range") for _, _, h in web.asked[1:]} == {'"one"'}


def test_a_server_without_ranges_is_read_again_from_the_start_and_nothing_is_doubled(web: Web) -> None:
    assert read(breaking(web, "/a", [50_000, 20_000], False, ETag='"one"')) == BODY


def test_a_file_that_changed_meanwhile_is_not_joined_to_what_was_read(web: Web) -> None:
    url = breaking(web, "/a", [50_000], True, ETag='"one"')
    first = web.answers["/a"]

    def answer(handler: Any) -> None:
        first(handler)
        web.serve("/a", BODY[::-1], ETag='"two"')

    web.answers["/a"] = answer
    with pytest.raises(Refused, match="changed while it was read"):
        read(url)


def test_a_download_that_never_gets_on_is_given_up_with_what_was_read(web: Web) -> None:
    url = breaking(web, "/a", [1000] + [0] * 10, True, ETag='"one"')
    with pytest.raises(StorageError, match=r"can't be read to its end: .*\(1,000 of 288,890 bytes were read\)"):
        read(url, limited(resumptions=2))
    assert len(web.asked) == 3


def test_a_file_without_a_version_is_not_guessed_at(web: Web) -> None:
    with pytest.raises(StorageError, match="can't be read to its end: the server tells no version"):
        read(breaking(web, "/a", [1000], True))


def test_a_body_in_chunks_is_read_and_one_that_breaks_off_is_an_error(web: Web) -> None:
    def chunks(handler: Any, end: bytes = b"0\r\n\r\n") -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"5\r\nhello\r\n3\r\n me\r\n" + end)

    web.answers["/a"] = chunks
    assert read(web.url("/a")) == b"hello me"
    web.answers["/a"] = lambda handler: chunks(handler, b"")
    with pytest.raises(StorageError, match="can't be read to its end"):
        read(web.url("/a"))


def test_what_a_server_packs_unasked_is_unpacked_and_a_packed_file_is_not_unpacked_twice(web: Web) -> None:
    packed = gzip.compress(BODY)
    for path in ("/a.jsonl", "/a.jsonl.gz"):
        with open_uri(web.serve(path, packed, Content_Encoding="gzip"), allow_http=True) as stream:
            assert stream.read() == BODY


# -- what is told of a file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "asks for a token: give one by secretRef"),
        (403, "may not be read"),
        (404, "does not exist"),
        (429, "asked for too often"),
        (503, "can't be had at the moment"),
    ],
)
def test_a_refusal_says_what_to_do(web: Web, status: int, message: str) -> None:
    url = web.serve("/a", b"", status)
    for call in (lambda: read(url), lambda: inspect_url(url, None, OWN)):
        with pytest.raises(StorageError, match=rf"{message}.*\(HTTP {status}\)"):
            call()


def test_a_fingerprint_follows_tag_date_size_or_at_last_the_content(web: Web) -> None:
    def fingerprint(**headers: str) -> str:
        return fingerprint_uri(web.serve("/a", **headers), allow_http=True)

    assert fingerprint(ETag='"1"') == fingerprint(ETag='"1"') != fingerprint(ETag='"2"')
    assert fingerprint(Last_Modified="Mon") != fingerprint(Last_Modified="Tue")

    def plain(body: bytes) -> str:
        def answer(handler: Any) -> None:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(body if handler.command == "GET" else b"")

        web.answers["/b"] = answer
        return fingerprint_uri(web.url("/b"), allow_http=True)

    assert plain(b"one") == plain(b"one") != plain(b"two")


def test_a_server_without_head_is_asked_by_get(web: Web) -> None:
    def answer(handler: Any) -> None:
        send(handler, 405 if handler.command == "HEAD" else 200, BODY, {"ETag": '"x"'})

    web.answers["/a"] = answer
    assert inspect_url(web.url("/a"), None, OWN).etag == '"x"'


def test_a_copy_is_whole_or_not_there(web: Web, tmp_path: Path) -> None:
    assert fetch_file(web.serve("/a"), tmp_path / "deep" / "a", allow_http=True).read_bytes() == BODY
    with pytest.raises(StorageError):
        fetch_file(breaking(web, "/b", [1000], False), tmp_path / "deep" / "b", allow_http=True)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a"]


def test_names_with_blanks_and_umlauts_are_asked_for(web: Web) -> None:
    web.serve("/a%20b/%C3%A4.jsonl")
    assert read(web.url("/a b/ä.jsonl")) == BODY
    assert read(web.url("/a%20b/%C3%A4.jsonl")) == BODY


# -- who uses it -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def public(secure: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """The server as if loopback were a public address; all else is judged for real."""
    monkeypatch.setattr(
        "llamero.storage.fetching.find_fault",
        lambda address, allow: None if address == "127.0.0.1" else find_fault(address, allow),
    )
    return secure


def test_a_base_model_on_a_web_server_is_fetched_once_and_without_what_climbs(public: Web, tmp_path: Path) -> None:
    from llamero.model.fetching import fetch_from_store

    index = {"weight_map": {"a": "model-1.safetensors", "b": "../../evil.safetensors", "c": "model-2.safetensors"}}
    for name in ("config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors", "code.py"):
        public.serve(f"/base/{name}", name.encode(), ETag=f'"{name}"')
    public.serve("/base/model.safetensors.index.json", json.dumps(index).encode())
    folder = fetch_from_store(public.url("/base"), tmp_path, None)
    names = [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert sorted(p.name for p in folder.iterdir() if p.name != ".complete") == names
    assert (folder / "model-1.safetensors").read_bytes() == b"model-1.safetensors"
    assert not list(tmp_path.parent.glob("evil*"))
    public.asked.clear()
    assert fetch_from_store(public.url("/base"), tmp_path, None) == folder
    assert not [path for method, path, _ in public.asked if method == "GET" and "index" not in path]


def test_a_folder_of_a_web_server_without_a_base_is_named(public: Web, tmp_path: Path) -> None:
    from llamero.model.errors import ModelError
    from llamero.model.fetching import fetch_from_store

    with pytest.raises(ModelError, match=r"/base/config\.json does not exist"):
        fetch_from_store(public.url("/base"), tmp_path, None)


def test_the_hubs_token_goes_to_the_hub_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamero.phases.base import read_token
    from llamero.spec.job import BaseModelRef

    monkeypatch.setenv("HF_TOKEN", "s3cret")
    monkeypatch.setenv("MINE", "own")
    assert read_token(BaseModelRef(name="org/model", revision="0" * 40)) == "s3cret"
    assert read_token(BaseModelRef(uri="https://data.test/base")) is None
    mine = BaseModelRef.model_validate({"uri": "https://data.test/base", "secretRef": {"name": "a", "key": "MINE"}})
    assert read_token(mine) == "own"


def test_prompt_sets_are_fetched_by_the_same_rules(web: Web) -> None:
    from llamero.evaluation.prompts import read_prompts
    from llamero.spec.job import PromptSet

    sets = [PromptSet(name="own", uri=web.serve("/p.jsonl", b'{"prompt": "Why?"}\n'))]
    with pytest.raises(Refused, match=r"data\.allowHttp"):
        read_prompts(sets, None)
    prompts, _ = read_prompts(sets, None, allow_http=True)
    assert [p.text for p in prompts] == ["Why?"]


@pytest.mark.parametrize(("status", "is_away"), [(503, True), (429, True), (404, False), (401, False)])
def test_what_another_time_may_mend_is_told_from_what_is_final(web: Web, status: int, is_away: bool) -> None:
    with pytest.raises(StorageError) as caught:
        read(web.serve("/a", b"", status))
    assert isinstance(caught.value, Away) is is_away
    assert not isinstance(caught.value, Refused)


def test_a_broken_download_and_a_silent_server_may_be_tried_again_and_a_refusal_may_not(web: Web) -> None:
    from llamero.data.worker import DATA, STORAGE, describe_failure

    with pytest.raises(Away) as broken:
        read(breaking(web, "/a", [1000] + [0] * 10, True, ETag='"one"'), limited(resumptions=1))
    assert describe_failure(broken.value)[0] == STORAGE
    with pytest.raises(Refused) as refused:
        read(web.serve("/b"), limited(max_bytes=10))
    assert describe_failure(refused.value)[0] == DATA
