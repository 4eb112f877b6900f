"""Logging: structlog, one canonical line per request or event, pretty on a terminal and JSON otherwise.

Libraries that log through the standard library come out in the same form, and say the same thing only so often. A line
carries the service and instance; `request_id` and `trace_id` are bound where there is one. Nothing is configured at
import: `main()` calls `configure`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger, Processor

    from shared.settings import PlatformSettings

_QUIET = {
    "aiokafka": logging.ERROR,
    "faststream": logging.ERROR,
    "httpx": logging.WARNING,
    "uvicorn.access": logging.WARNING,
}
"""Libraries whose chatter our own lines make superfluous: waits and answers are logged where they matter to us."""
_REPEAT_S = 10.0
_MAX_KNOWN = 1000


def configure(service: str, settings: PlatformSettings) -> FilteringBoundLogger:
    """Set up structlog and the standard library for a service; returns its logger."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    pretty = settings.log_format == "pretty" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: Processor = structlog.processors.JSONRenderer(_dumps)
    if pretty:
        # structlog's own way with exceptions prints the values of all locals, passwords among them.
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        shared.remove(structlog.processors.format_exc_info)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_Repeats())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name, floor in _QUIET.items():
        logging.getLogger(name).setLevel(floor)
    structlog.contextvars.bind_contextvars(service=service, instance=settings.instance)
    return get()


@contextmanager
def of_a_command() -> Iterator[None]:
    """Let code that is shared with services warn on standard error: standard output is the command's own."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def get() -> FilteringBoundLogger:
    """A logger; its configuration is looked up at the first line."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def canonical(event: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """The canonical lines of several requests, at level info.

    What a line costs is mostly the way through the processors and the write: in JSON, whose lines need neither colours
    nor order, those of one turn of the event loop are put together and written at once. They look like any other.
    """
    if not lines:
        return
    _unwritten.append((event, lines))
    if len(_unwritten) == 1:
        try:
            asyncio.get_running_loop().call_soon(_write_all)
        except RuntimeError:
            _write_all()


_unwritten: list[tuple[str, Sequence[Mapping[str, Any]]]] = []


def _write_all() -> None:
    unwritten = _unwritten.copy()
    _unwritten.clear()
    config = structlog.get_config()
    if not isinstance(config["processors"][-1], structlog.processors.JSONRenderer):
        for event, lines in unwritten:
            for line in lines:
                get().info(event, **line)
    elif logging.getLogger().isEnabledFor(logging.INFO):  # `configure` gives both one level
        stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        about = {**structlog.contextvars.get_contextvars(), "level": "info", "timestamp": stamp}
        for event, lines in unwritten:
            end = b"," + _dump({"event": event, **about})[1:]
            sys.stderr.write(b"".join([part for line in lines for part in (_dump(line)[:-2], end)]).decode())


def trace_id(traceparent: str | None) -> str | None:
    """The trace id of a W3C `traceparent` (https://www.w3.org/TR/trace-context/), if it has one."""
    if traceparent is None:
        return None
    parts = traceparent.split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else None  # noqa: PLR2004 - the standard's lengths


class _Repeats(logging.Filter):
    """Lets a library say the same thing once in `_REPEAT_S`: without Kafka, aiokafka does 100 times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said_s: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.name, str(record.msg)
        if record.created - self._said_s.get(said, 0.0) < _REPEAT_S:
            return False
        if len(self._said_s) >= _MAX_KNOWN:  # messages that are no templates, each another
            self._said_s.clear()
        self._said_s[said] = record.created
        return True


def _dump(line: Mapping[str, Any]) -> bytes:
    return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)


def _dumps(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
