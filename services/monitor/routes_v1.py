"""The monitor's JSON API over time, `/v1/…`: reads the query, asks one function, encodes. Shapes: docs/monitor.md.

What is asked of the history is computed in a thread, on a view of one moment.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar

from fastapi import APIRouter, Query

from services.monitor import catalogue, examination, overview, queries, series, span, story, timeline
from shared.errors import UnknownModel, UnknownRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.monitor.history import View
    from services.monitor.settings import MonitorSettings
    from services.monitor.state import State

P = ParamSpec("P")
R = TypeVar("R")
From = Annotated[str | None, Query(alias="from", max_length=40)]
To = Annotated[str | None, Query(max_length=40)]
Step = Annotated[int | None, Query(ge=1, le=10**6)]
Name = Annotated[str | None, Query(max_length=100)]
Number = Annotated[int | None, Query(ge=1, le=10**6)]


def router(state: State, settings: MonitorSettings) -> APIRouter:  # noqa: C901 - one function a route
    """The routes."""
    api = APIRouter(prefix="/v1")

    async def ask(question: Callable[Concatenate[View, P], R], *args: P.args, **named: P.kwargs) -> R:
        with state.view() as view:
            return await asyncio.to_thread(question, view, *args, **named)

    @api.get("/overview")
    async def one_look() -> dict[str, Any]:
        """One look."""
        now_s = time.time()
        if state.history is None:
            return overview.overview(state, {}, {}, now_s)
        until_s = int(now_s // span.WINDOW_S + 1) * span.WINDOW_S
        with state.view() as view:
            tallies = await asyncio.to_thread(queries.by_version, view, (until_s - overview.WINDOW_S, until_s))
        return overview.overview(state, tallies, view.offsets, now_s)

    @api.get("/hosts/series")
    async def host_series(
        begin: From = None, to: To = None, step_s: Step = None, instance: Name = None
    ) -> dict[str, Any]:
        """Samples over time."""
        return await ask(series.of_hosts, span.read(begin, to, step_s, time.time()), instance)

    @api.get("/models")
    async def models() -> dict[str, Any]:
        """What the `models` log says."""
        return catalogue.models(state.registry())

    @api.get("/models/{model}/series")
    async def model_series(
        model: str, version: Number = None, begin: From = None, to: To = None, step_s: Step = None
    ) -> dict[str, Any]:
        """Requests over time."""
        if model not in state.registry().models and not state.outcomes.knows(model):
            raise UnknownModel(f"No request to a model {model[:100]!r} has an outcome.")
        return await ask(series.of_model, span.read(begin, to, step_s, time.time()), model, version)

    @api.get("/analysis")
    async def analysis(begin: From = None, to: To = None, model: Name = None) -> dict[str, Any]:
        """What follows from it."""
        asked = span.read(begin, to, None, time.time())
        found = await ask(examination.examine, asked, settings, model)
        return {"from": asked.start_s, "to": asked.end_s, "models": found}

    @api.get("/drift")
    async def drift(model: Name = None) -> dict[str, Any]:
        """Distances from the reference."""
        return overview.drift(state, model, settings.sensitivity)

    @api.get("/jobs")
    async def jobs() -> dict[str, Any]:
        """The optimizer's jobs."""
        return overview.jobs(state)

    @api.get("/alerts")
    async def alerts(begin: From = None, to: To = None) -> dict[str, Any]:
        """What is wrong, and what was."""
        asked = span.read(begin, to, None, time.time())
        return overview.alerts(state, await ask(queries.happenings, (asked.start_s, asked.end_s), "alert"))

    @api.get("/timeline")
    async def events(begin: From = None, to: To = None) -> dict[str, Any]:
        """What happened when."""
        asked = span.read(begin, to, None, time.time())
        found = await ask(timeline.timeline, asked, timeline.of_deploys(state.deploys, asked))
        return {"from": asked.start_s, "to": asked.end_s, "events": [timeline.shown(each) for each in found]}

    @api.get("/requests/{request_id}")
    async def request(request_id: str) -> dict[str, Any]:
        """One request's story."""
        until_s = int(time.time()) + 2 * span.WINDOW_S
        since_s = until_s - settings.retention.requests_s - 3600
        rows = await ask(queries.requests, request_id, (since_s, until_s))
        if not rows:
            raise UnknownRequest(f"No outcome of a request {request_id[:200]!r} is known.")
        return {"request_id": request_id, "outcomes": [story.tell(row) for row in rows]}

    return api
