"""Log lines: one JSON object each, whoever logs."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from shared import logs
from shared.settings import PlatformSettings


@pytest.fixture
def lines(capsys):
    """A function that gives the lines logged so far; logging is put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = handlers, level


def configure(**settings):
    return logs.configure("worker", PlatformSettings(instance="worker-1", log_format="json", **settings))


def test_a_line_says_who_when_and_what(lines):
    configure().info("request done", request_id="r", status="succeeded", batch=3)
    [line] = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request done",
        "level": "info",
        "service": "worker",
        "instance": "worker-1",
        "request_id": "r",
        "status": "succeeded",
        "batch": 3,
    }


def test_libraries_come_out_in_the_same_form(lines):
    configure()
    logging.getLogger("some.library").warning("disk %s is full", "sda")
    [line] = lines()
    assert (line["event"], line["level"], line["service"]) == ("disk sda is full", "warning", "worker")


def test_libraries_that_chatter_are_quiet(lines):
    configure(log_level="debug")
    logging.getLogger("aiokafka.conn").warning("connection lost")
    assert lines() == []


def test_a_library_that_repeats_itself_is_heard_once(lines):
    configure()
    for node in range(50):
        logging.getLogger("aiokafka.conn").error("unable to connect to node %s", node)
    logging.getLogger("aiokafka.conn").error("the group has gone")
    assert [line["event"] for line in lines()] == ["unable to connect to node 0", "the group has gone"]


def test_an_error_brings_its_traceback_on_the_same_line(lines):
    log = configure()
    try:
        int("geplatzt")
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception("failed too")
    ours, theirs = lines()
    for line in (ours, theirs):
        assert line["level"] == "error"
        assert "ValueError: invalid literal for int() with base 10: 'geplatzt'" in line["exception"]


def test_the_level_bounds_everyone(lines):
    configure(log_level="warning").info("not seen")
    logging.getLogger("library").info("not seen")
    assert lines() == []


def test_what_json_does_not_know_is_shown_all_the_same(lines):
    configure().info("odd", error=ValueError("x"), sizes={1: 2}, data=b"\xff", path=object)
    [line] = lines()
    assert line["error"] == "ValueError('x')"
    assert line["sizes"] == {"1": 2}
    assert line["data"] == "b'\\xff'"


def test_text_for_people_on_a_terminal(capsys):
    try:
        logs.configure("worker", PlatformSettings(log_format="pretty")).info("hello", a=1)
        assert "hello" in capsys.readouterr().err
    finally:
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"),
        ("00-short-b7ad6b7169203331-01", None),
        ("garbage", None),
        ("", None),
        (None, None),
    ],
)
def test_the_trace_id_of_a_traceparent(traceparent, trace_id):
    assert logs.trace_id(traceparent) == trace_id
