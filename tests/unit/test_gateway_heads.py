"""Usual heads: what is one, what is not and why, and that whatever is one means the same to uvicorn."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from services.gateway import heads
from services.gateway.client import Client
from services.gateway.heads import SMALL_BYTES, usual
from services.gateway.paths import version_of
from services.gateway.routes_infer import PATH
from support.http_port import hello


def head_of(*lines, path=b"/v2/models/m/infer", first=None, length=b"content-length: 2"):
    """A head with these lines, usual if they are."""
    first = b"POST " + path + b" HTTP/1.1" if first is None else first
    return b"\r\n".join([first, b"host: x", *([length] if length else []), *lines, b"", b""])


def test_a_usual_head_says_what_is_asked():
    head = usual(head_of(b"X-API-Key: k", b"Accept: a", b"accept:b", path=b"/v2/models/My-net-2/versions/12/infer"))
    assert (head.path, head.model, head.version) == (b"/v2/models/My-net-2/versions/12/infer", "My-net-2", 12)
    assert head.body_bytes == 2
    assert head.headers == {"host": "x", "content-length": "2", "x-api-key": "k", "accept": "a, b"}
    assert usual(head_of()).version is None


@pytest.mark.parametrize("line", [b"connection: keep-alive", b"Content-Type: x", b"te: trailers", b"x: \xe9", b"x:"])
def test_other_headers_are_usual(line):
    assert usual(head_of(line)) is not None


def test_a_small_body_is_usual_up_to_its_bound():
    assert usual(head_of(length=b"content-length: %d" % SMALL_BYTES)).body_bytes == SMALL_BYTES
    assert usual(head_of(length=b"content-length: %d" % (SMALL_BYTES + 1))) is None


@pytest.mark.parametrize(
    "head",
    [
        head_of(length=None),
        head_of(length=b"content-length: 0"),
        head_of(length=b"content-length:"),
        head_of(length=b"content-length: 99999999999999999999"),
        head_of(length=None).replace(b"POST", b"GET"),
        head_of().replace(b"POST", b"PUT"),
        head_of().replace(b"1.1", b"1.0"),
        head_of(b"connection: keep-alive").replace(b"1.1", b"1.0"),
        head_of(b"connection: close"),
        head_of(b"Connection: keep-alive, Close"),
        head_of(b"transfer-encoding: chunked", length=None),
        head_of(b"Expect: 100-continue"),
        head_of(b"expect: x"),
        head_of(b"upgrade: h2c"),
        head_of(b"upgrade: websocket", b"connection: upgrade"),
        head_of(b"CONTENT-ENCODING: gzip"),
        head_of(b"content-encoding: identity"),
        head_of(b"Prefer: wait=1"),
        head_of(b"Idempotency-Key: k"),
    ],
)
def test_what_asks_for_more_than_an_answer_is_not_usual(head):
    assert usual(head) is None


@pytest.mark.parametrize(
    "path",
    [
        b"/v2/models/m/infer?x=1",
        b"/v2/models/m/infer?",
        b"/v2/models/m/infer#x",
        b"/v2/models/m/infer/",
        b"//v2/models/m/infer",
        b"/v2/models/%6d/infer",
        b"/v2/models/m/%69nfer",
        b"/v2/models/m.n/infer",
        b"/v2/models/../models/m/infer",
        b"/v2/models//infer",
        b"/v2/models/" + b"m" * 101 + b"/infer",
        b"/v2/models/m/versions/x/infer",
        b"/v2/models/m/versions/-1/infer",
        b"/v2/models/m/versions/12345678901/infer",
        b"/v2/models/m/generate",
        b"http://x/v2/models/m/infer",
        b"http://other/v2/models/m/infer",
        b"/v2/models/m/infer\t",
        b"*",
    ],
)
def test_other_paths_are_not_usual(path):
    assert usual(head_of(path=path)) is None


SMUGGLED = [
    head_of(b"content-length: 2"),
    head_of(b"Content-Length: 3"),
    head_of(length=b"content-length: 2, 2"),
    head_of(length=b"content-length: +2"),
    head_of(length=b"content-length: -2"),
    head_of(length=b"content-length: 2 2"),
    head_of(length=b"content-length: 0x2"),
    head_of(length=b"content-length: 2_0"),
    head_of(length=b"content-length: \xb2"),
    head_of(length=b"content-length: 2\x00"),
    head_of(length=b"content-length: 2\x0b"),
    head_of(length=b"content-length: 2\r\n 0"),
    head_of(length=b"content-length: 2\r\n\t0"),
    head_of(length=b"content-length : 2"),
    head_of(length=b"content-length\t: 2"),
    head_of(length=b" content-length: 2"),
    head_of(length=b"content-length\x00: 2"),
    head_of(b"transfer-encoding: chunked"),
    head_of(b"Transfer-Encoding: chunked"),
    head_of(b"TRANSFER-ENCODING: identity"),
    head_of(b"transfer-encoding:\tchunked"),
    head_of(b"transfer-encoding : chunked"),
    head_of(b" transfer-encoding: chunked"),
    head_of(b"x: y\r\n transfer-encoding: chunked"),
    head_of(b"x: y\ntransfer-encoding: chunked"),
    head_of(b"x: y\rtransfer-encoding: chunked"),
    head_of(b"x: y\x00"),
    head_of(b"x\x00: y"),
    head_of(b"x y: z"),
    head_of(b": y"),
    head_of(b"x"),
    head_of(first=b"POST /v2/models/m/infer HTTP/1.1\n"),
    head_of(first=b"POST /v2/models/m/infer"),
    head_of(first=b"POST  /v2/models/m/infer HTTP/1.1 x"),
    head_of(first=b"POST /v2/models/m/infer HTTP/1.1 "),
    head_of(first=b"POST /v2/models/m/infer http/1.1"),
    head_of(first=b"POST /v2/models/m/infer HTTP/2.0"),
    head_of(first=b"POST /v2/models/m/infer\x00 HTTP/1.1"),
    head_of(first=b"post /v2/models/m/infer HTTP/1.1"),
    head_of(first=b" POST /v2/models/m/infer HTTP/1.1"),
    head_of().replace(b"\r\n", b"\n"),
    head_of().replace(b"\r\n", b"\n").replace(b"\n\n", b"\r\n\r\n"),
    b"GET /v2/models/m HTTP/1.1\n\n/infer\r\ncontent-length: 2\r\n\r\n",
    b"POST /v2/models/m HTTP/1.1\r\ncontent-length: 1\n\nxPOST /infer HTTP/1.1\r\ncontent-length: 2\r\n\r\n",
    b"\r\n\r\n",
    b"",
]


@pytest.mark.parametrize("head", SMUGGLED)
def test_what_two_readers_might_read_differently_is_not_usual(head):
    if (said := usual(head)) is not None:  # or both readers agree to the letter
        assert by_uvicorn(head, b"{}") == [as_uvicorn_has_it(said)]


def test_lengths_and_encodings_are_never_guessed():
    """Of the attempts above, those that RFC 9112 wants refused outright."""
    for head in SMUGGLED[:20]:
        assert usual(head) is None, head


# ------------------------------------------------------------------ against uvicorn


class Recorded(HttpToolsProtocol):
    """uvicorn's own reading: each whole message, and what it would have answered."""

    def __init__(self):
        config = uvicorn.Config(hello, ws="none", lifespan="off", log_config=None, access_log=False)
        super().__init__(config, ServerState(), {}, _Loop())
        self.connection_made(_Transport())
        self.messages = []

    def send_400_response(self, _msg):
        self.messages.append("400")

    def on_message_complete(self):
        super().on_message_complete()
        cycle, scope = self.cycle, self.scope
        headers = Client(scope, None).headers
        self.messages.append((scope["method"], scope["path"], scope["query_string"], headers, bytes(cycle.body)))
        self.messages[-1] += (cycle.keep_alive, cycle.waiting_for_100_continue, self.parser.should_upgrade())


class _Loop:
    """Starts nothing."""

    def create_task(self, work, **_):
        work.close()
        done = asyncio.Future(loop=self)
        done.cancel()
        return done

    def call_soon(self, *_, **__):
        pass

    def get_debug(self):
        return False


class _Transport:
    def get_extra_info(self, _name, default=None):
        return default

    def is_closing(self):
        return False

    def pause_reading(self):
        pass


def by_uvicorn(head, body):
    """Every message that uvicorn reads in these bytes."""
    protocol = Recorded()
    protocol.data_received(head + body)
    return protocol.messages


def as_uvicorn_has_it(said):
    """One that says the same."""
    return "POST", said.path.decode(), b"", said.headers, b"{" + b"x" * (said.body_bytes - 2) + b"}", True, False, False


NAMES = st.sampled_from(
    b"host,Accept,x,content-length,Content-Length,transfer-encoding,connection,Expect,upgrade,prefer,"
    b"content-encoding,x-api-key,TE,trailer,cookie,,a b".split(b",")
)
VALUES = st.one_of(
    st.sampled_from([b"2", b"3", b"02", b"+2", b"2,2", b"close", b"keep-alive", b"chunked", b"identity", b"upgrade"]),
    st.binary(max_size=6),
    st.text("azAZ09 \t\r\n:,;é\x00", max_size=8).map(lambda text: text.encode("latin-1")),
)
SEPARATORS = st.sampled_from([b": ", b":", b" :", b":\t", b": \t ", b"\x00:"])
BREAKS = st.sampled_from([b"\r\n"] * 16 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\n\r\n"])
WILD = st.tuples(NAMES, SEPARATORS, VALUES, BREAKS).map(b"".join)
TAME = st.tuples(
    st.sampled_from([b"X-Api-Key", b"accept", b"Accept", b"traceparent", b"TE", b"x"]),
    st.sampled_from([b": ", b":", b":\t", b":  "]),
    st.text("azAZ09 \t:,;=é\x7f", max_size=8).map(lambda text: text.encode("latin-1")),
    st.just(b"\r\n"),
).map(b"".join)
LINES = st.lists(st.one_of(TAME, TAME, TAME, WILD), max_size=3).map(b"".join)
METHODS = st.sampled_from([b"POST"] * 12 + [b"post", b"GET", b"POS", b"\r\nPOST", b"\r\n\r\nPOST"])
PATHS = st.one_of(
    st.sampled_from([b"/v2/models/m/infer", b"/v2/models/My-2/versions/07/infer"]),
    st.sampled_from([b"/v2/models/m/infer", b"/v2/models/m/versions/1/infer"]),
    st.sampled_from([b"http://x/v2/models/m/infer", b"/v2/models/%6d/infer", b"/v2/models/m/infer?a=b"]),
    st.from_regex(rb"/v2/models/[A-Za-z0-9.%-]{1,8}(/versions/[0-9x]{1,3})?/infer[?#]?", fullmatch=True),
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 16 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b""])


@given(
    method=METHODS,
    gap=st.sampled_from([b" "] * 16 + [b"  ", b"\t"]),
    path=PATHS,
    version=VERSIONS,
    end=BREAKS,
    before=LINES,
    length=st.sampled_from([b"content-length: 2\r\n"] * 6 + [b"", b"content-length: 7\r\n", b"content-length: 02\r\n"]),
    after=LINES,
)
@settings(max_examples=500)
@example(b"POST", b" ", b"/v2/models/m/infer", b"HTTP/1.1", b"\r\n", b"", b"content-length: 2\r\n", b"")
def test_whatever_is_usual_is_read_the_same_by_uvicorn(method, gap, path, version, end, before, length, after):
    data = method + gap + path + gap + version + end + before + length + after + b"\r\n"
    head = data[: data.find(heads.END) + len(heads.END)]  # as `express_connection` cuts it
    said = usual(head)
    if said is None:
        return
    body = b"{" + b"x" * (said.body_bytes - 2) + b"}"
    assert by_uvicorn(head, body) == [as_uvicorn_has_it(said)]
    found = PATH.fullmatch(said.path.decode())  # and as the application routes it
    assert (found["model"], version_of(found["version"], said.model)) == (said.model, said.version)


def test_known_heads_are_bounded():
    usual.cache_clear()
    for number in range(3 * heads._KNOWN_HEADS):
        usual(head_of(b"traceparent: %d" % number))
    assert usual.cache_info().currsize == heads._KNOWN_HEADS
    assert usual(head_of(b"traceparent: 0")) == usual(head_of(b"traceparent: 0"))
