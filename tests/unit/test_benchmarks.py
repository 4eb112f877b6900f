"""The parts of the serving benchmark that its figures stand on: the parser of answers, and the arithmetic."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.serving import warming
from benchmarks.serving.closed_loop import quantile
from benchmarks.serving.rows import Row, summaries
from benchmarks.serving.systems import HttpTarget
from benchmarks.serving.wire import STATUS, Connection

ANSWER = b'HTTP/1.1 200 OK\r\ndate: today\r\nContent-Length: 7\r\n\r\n{"a":1}'


class Owner:
    def __init__(self):
        self.answers, self.losses = [], []
        self.connection = Connection(self.answered, lambda _, why: self.losses.append(why))

    def answered(self, _connection, response, body_start):
        self.answers.append((response[STATUS], response[body_start:]))


def test_an_answer_may_come_in_any_pieces():
    for cut in range(1, len(ANSWER)):
        owner = Owner()
        owner.connection.data_received(ANSWER[:cut])
        assert not owner.answers
        owner.connection.data_received(ANSWER[cut:])
        owner.connection.data_received(ANSWER)
        assert owner.answers == [(b"200", b'{"a":1}')] * 2


def test_an_answer_without_a_length_is_a_fault():
    owner = Owner()
    owner.connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
    assert not owner.answers
    assert len(owner.losses) == 1


def test_a_request_says_how_long_it_is():
    (request,) = HttpTarget("127.0.0.1", 8080, "/infer", [b"abc"]).requests()
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /infer HTTP/1.1\r\n")
    assert b"content-length: 3" in head
    assert body == b"abc"


def test_quantiles():
    assert quantile([], 0.5) == 0
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile(list(map(float, range(100))), 0.99) == 99.0


def row(system, repeat, per_s, **fields):
    own = {
        "model": "m",
        "concurrency": 64,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "cpu_s_per_1000": {"server": 0.1},
        "generator_cpu_share": 0.1,
        "mean_batch": None,
        "errors": 0,
        "wrong": [],
    }
    return Row(system=system, repeat=repeat, per_s=per_s, **{**own, **fields})


def test_ratios_are_taken_within_a_repeat():
    """The machine was twice as fast in the second repeat, for both."""
    rows = [row("bare", 0, 100.0), row("http", 0, 50.0), row("bare", 1, 200.0), row("http", 1, 100.0)]
    bare, http = summaries(rows, reference="bare", ceiling="onnxruntime")
    assert (bare.ratio.least, bare.ratio.most) == (1.0, 1.0)
    assert (http.ratio.least, http.ratio.most) == (0.5, 0.5)
    assert (http.per_s.least, http.per_s.median, http.per_s.most) == (50.0, 75.0, 100.0)


def test_the_ceiling_is_its_own_best_batch_size():
    direct = [row("onnxruntime", 0, per_s, concurrency=batch) for batch, per_s in ((1, 80.0), (8, 100.0), (32, 90.0))]
    *_, http = summaries([*direct, row("http", 0, 90.0, cpu_s_per_1000={"a": 0.1, "b": 0.1})], "bare", "onnxruntime")
    assert http.of_ceiling.median == pytest.approx(0.9)
    assert http.of_ceiling_per_cpu.median == pytest.approx(0.5)
    assert http.ratio is None


class Compiling:
    """A process whose compilers take so many seconds of each ten-second turn of load."""

    def __init__(self, monkeypatch, each_turn_s):
        self.turns, self.compiled_s, self.now_s, self._each_turn_s = 0, 1.0, 0.0, each_turn_s
        monkeypatch.setattr(warming, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def compiling_s(self):
        return self.compiled_s

    def turn(self):
        self.compiled_s += self._each_turn_s[min(self.turns, len(self._each_turn_s) - 1)]
        self.turns, self.now_s = self.turns + 1, self.now_s + 10


def test_a_broker_is_loaded_until_its_compilers_are_quiet(monkeypatch):
    broker = Compiling(monkeypatch, [9.0, 3.0, 0.4, 0.0])
    assert warming.warm([broker], broker.turn) == "warm after 30 s, its broker's compilers at 4.0% of a core"
    assert broker.turns == 3


def test_one_that_never_gets_quiet_is_loaded_for_three_minutes(monkeypatch):
    broker = Compiling(monkeypatch, [5.0])
    warming.warm([broker], broker.turn)
    assert broker.turns == 18


def test_what_has_no_virtual_machine_is_warm_at_once(monkeypatch):
    server = Compiling(monkeypatch, [0.0])
    server.compiled_s = 0.0
    assert warming.warm([server], server.turn) is None
    assert not server.turns
