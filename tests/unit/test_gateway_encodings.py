"""Compressed bodies: what is read, what is refused and when, what is compressed for whom."""

from __future__ import annotations

import contextlib
import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response

from services.gateway import bodies, encodings
from services.gateway.encodings import asked_for, encode
from shared.errors import InvalidInput, TooLarge, UnsupportedEncoding


def bare(data):
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def pieces(data, size):
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    return iter(messages)


async def read(data, encoding, *, limit_bytes=10**7, size=65536, take=lambda _: None):
    waiting = pieces(data, size)

    async def receive():
        return next(waiting)

    headers = {"content-encoding": encoding}
    return await bodies.read(receive, headers, limit_bytes=limit_bytes, stall_timeout_s=1, take=take)


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress), ("deflate", bare)],
)
@pytest.mark.parametrize("size", [1, 3, 65536])
async def test_bodies_are_read_however_they_arrive(encoding, compress, size):
    for body in (b"", b"x", b'{"inputs": []}' * 500):
        assert await read(compress(body), encoding, size=size) == body


async def test_a_long_body_is_inflated_piece_by_piece_and_counted():
    body, taken = bytes(range(256)) * 20_000, []
    assert await read(gzip.compress(body), "gzip", take=taken.append) == body
    assert sum(taken) == len(body)
    assert max(taken) <= 1024 * 1024


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip,deflate", "é"])
async def test_other_encodings_are_refused(encoding):
    with pytest.raises(UnsupportedEncoding):
        await read(b"x", encoding)


@pytest.mark.parametrize(
    ("data", "encoding", "sentence"),
    [
        (b"{}", "gzip", "not gzip"),
        (b"", "gzip", "ends before"),
        (b"x", "deflate", "ends before"),
        (b"\xff\xff\xff", "deflate", "not deflate"),
        (gzip.compress(b"hello", mtime=0)[:-1], "gzip", "ends before"),
        (gzip.compress(b"hello", mtime=0) + b"x", "gzip", "bytes follow"),
        (gzip.compress(b"hello", mtime=0) * 2, "gzip", "bytes follow"),
        (gzip.compress(b"hello", mtime=0)[:-8] + b"\0" * 8, "gzip", "not gzip"),
        (zlib.compress(b"hello"), "gzip", "not gzip"),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
async def test_what_is_not_what_it_says_is_refused(data, encoding, sentence, size):
    with pytest.raises(InvalidInput, match=sentence):
        await read(data, encoding, size=size)


@given(data=st.binary(max_size=300), encoding=st.sampled_from(["gzip", "deflate"]))
async def test_garbage_is_a_typed_error(data, encoding):
    with contextlib.suppress(InvalidInput, TooLarge):
        await read(data, encoding, limit_bytes=1000)


async def test_a_bomb_is_refused_at_the_limit():
    bomb = gzip.compress(bytes(300_000_000), 9)
    tracemalloc.start()
    taken = []
    with pytest.raises(TooLarge, match="inflated"):
        await read(bomb, "gzip", limit_bytes=4_000_000, take=taken.append)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(taken) <= 4_000_000
    assert most_bytes < 16_000_000


async def test_the_budget_of_all_bodies_stops_it_too():
    class Full(Exception):
        pass

    def take(size_bytes):
        nonlocal left
        left -= size_bytes
        if left < 0:
            raise Full

    left = 100_000
    with pytest.raises(Full):
        await read(gzip.compress(bytes(10_000_000)), "gzip", take=take)


def test_files_are_taken_as_they_are():
    encodings.refuse({})
    encodings.refuse({"content-encoding": "identity"})
    with pytest.raises(UnsupportedEncoding):
        encodings.refuse({"content-encoding": "gzip"})


# ------------------------------------------------------------------ out


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("gzip", ("gzip", False)),
        ("deflate", ("deflate", False)),
        ("gzip, deflate, br", ("gzip", False)),
        ("deflate;q=1.0, gzip;q=0.5", ("deflate", False)),
        ("GZIP;Q=0.8", ("gzip", False)),
        ("br", (None, False)),
        ("identity", (None, False)),
        ("gzip;q=0", (None, False)),
        ("gzip;q=0.5, identity", (None, False)),
        ("gzip;q=0, *", ("deflate", False)),
        ("*", ("gzip", False)),
        ("*;q=0", (None, False)),
        ("gzip, identity;q=0", ("gzip", True)),
        ("gzip, *;q=0", ("gzip", True)),
        ("gzip;q=x", (None, False)),
        ("gzip;q=2", (None, False)),
        (";;,,=", (None, False)),
        ("x," * 100 + "gzip", (None, False)),
    ],
)
def test_accept_encoding_is_honoured(accept, wanted):
    assert asked_for(accept) == wanted


@given(accept=st.text(max_size=100))
def test_any_accept_encoding_is_read(accept):
    encoding, _ = asked_for(accept)
    assert encoding in {None, "gzip", "deflate"}


async def encoded(body, accept, status=200):
    return await encode(Response(body, status), accept)


@pytest.mark.parametrize(("encoding", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
@pytest.mark.parametrize("size", [5_000, 500_000])
async def test_long_answers_are_compressed(encoding, decompress, size):
    body = b"0.125," * (size // 6)
    response = await encoded(body, encoding)
    assert decompress(response.body) == body
    assert response.headers["content-encoding"] == encoding
    assert response.headers["vary"] == "accept-encoding"
    assert int(response.headers["content-length"]) == len(response.body) < len(body) / 2


async def test_what_stays_as_it_is():
    long, noise = b"x" * 10_000, random.Random(0).randbytes(10_000)
    for body, accept, status in [(long, None, 200), (long, "br", 200), (b"short", "gzip", 200), (long, "gzip", 500)]:
        response = await encoded(body, accept, status)
        assert response.body == body
        assert "content-encoding" not in response.headers
    response = await encoded(noise, "gzip")  # it would not get shorter
    assert (response.body, "content-encoding" in response.headers) == (noise, False)


async def test_who_takes_nothing_else_gets_even_a_short_answer_compressed():
    response = await encoded(b"short", "gzip, identity;q=0")
    assert gzip.decompress(response.body) == b"short"
