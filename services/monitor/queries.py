"""What is asked of the history, in SQL. Answers are tallies and series; how they are shown is others' business."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from services.monitor.tables import SCHEMAS
from services.monitor.tally import Tally

if TYPE_CHECKING:
    from services.monitor.history import View
    from services.monitor.span import Span

Of = tuple[str, int | None]
"""Model and version."""
MOST_EVENTS: Final = 2000
_SAMPLES: Final = """
    SELECT window_s // {step} * {step} AS at_s, instance, any_value(service), model, gauge, gpu,
        sum(total) / sum(n), max(most)
    FROM rows WHERE ($instance IS NULL OR instance = $instance) AND ($gauge IS NULL OR starts_with(gauge, $gauge))
        AND ($model IS NULL OR model = $model)
    GROUP BY at_s, instance, model, gauge, gpu ORDER BY at_s"""
_COUNTS: Final = """
    SELECT {at} AS at_s, model, {version} AS number, what, bucket, sum(n)::BIGINT
    FROM rows WHERE ($model IS NULL OR model = $model) AND ($version IS NULL OR version = $version)
    GROUP BY at_s, model, number, what, bucket"""


class Sample(NamedTuple):
    """A gauge in one window."""

    at: int
    instance: str
    service: str
    model: str
    gauge: str
    gpu: int
    mean: float
    most: float


class Happening(NamedTuple):
    """Something for the timeline."""

    at_s: float
    kind: str
    text: str
    model: str | None = None
    version: int | None = None
    instance: str | None = None
    detail: str = ""


def by_version(view: View, span_s: tuple[int, int], model: str | None = None) -> dict[Of, Tally]:
    """A tally of every version that had an outcome in a span; the model `''` has what is of none."""
    found: dict[Of, Tally] = {}
    sql = _COUNTS.format(at="0", version="version")
    for _, name, version, what, bucket, n in view.rows("counts", sql, span_s, model=model, version=None):
        found.setdefault((name, version), Tally()).add(what, bucket, n)
    return dict(sorted(found.items(), key=lambda each: (each[0][0], each[0][1] or 0)))


def by_window(view: View, span: Span, model: str, version: int | None = None) -> dict[int, Tally]:
    """A tally of every window of a model, or of one of its versions."""
    found: dict[int, Tally] = {at: Tally() for at in span.windows}
    sql = _COUNTS.format(at=f"window_s // {span.step_s} * {span.step_s}", version="NULL")
    rows = view.rows("counts", sql, (span.start_s, span.end_s), model=model, version=version)
    for at, _, _, what, bucket, n in rows:
        found.setdefault(at, Tally()).add(what, bucket, n)
    return found


def samples(
    view: View, span: Span, *, instance: str | None = None, gauge: str | None = None, model: str | None = None
) -> list[Sample]:
    """Gauges over time; those whose names begin with `gauge`."""
    sql = _SAMPLES.format(step=span.step_s)
    asked = {"instance": instance, "gauge": gauge, "model": model}
    return [Sample(*row) for row in view.rows("samples", sql, (span.start_s, span.end_s), **asked)]


def happenings(view: View, span_s: tuple[int, int], kind: str | None = None) -> list[Happening]:
    """What the monitor noted, oldest first: the newest so many."""
    sql = (
        "SELECT at_s, kind, text, model, version, instance, detail FROM rows"
        " WHERE $kind IS NULL OR kind = $kind ORDER BY at_s DESC LIMIT $most"
    )
    return [Happening(*row) for row in reversed(view.rows("events", sql, span_s, kind=kind, most=MOST_EVENTS))]


def requests(view: View, request_id: str, span_s: tuple[int, int], most: int = 20) -> list[dict[str, Any]]:
    """The outcomes by a request's id, oldest first."""
    names = SCHEMAS["requests"].names
    columns = ", ".join(f'"{name}"' for name in names)
    sql = f"SELECT {columns} FROM rows WHERE request_id = $id ORDER BY completed_ms LIMIT $most"  # noqa: S608 - names are ours
    return [dict(zip(names, row, strict=True)) for row in view.rows("requests", sql, span_s, id=request_id, most=most)]
