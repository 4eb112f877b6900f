"""The monitor's JSON API over time, `/v1/…`: reads the query, asks one function, encodes. Shapes: docs/monitor.md."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

from services.monitor import span
from shared.errors import UnknownRequest

if TYPE_CHECKING:
    from services.monitor.state import State

From = Annotated[str | None, Query(alias="from", max_length=40)]
To = Annotated[str | None, Query(max_length=40)]
Step = Annotated[int | None, Query(ge=1, le=10**6)]
Name = Annotated[str | None, Query(max_length=100)]


def router(state: State) -> APIRouter:  # noqa: C901 - one function a route
    """The routes."""
    api = APIRouter(prefix="/v1")

    @api.get("/overview")
    async def overview() -> dict[str, Any]:
        """One look."""
        waiting_for = state.waiting_for()
        nothing = dict.fromkeys(("p50_s", "p95_s", "p99_s"))
        totals = {"requests": 0, "per_s": 0.0, "errors": 0, "error_ratio": None, **nothing, "rejected": 0}
        return {
            "at": time.time(),
            "ready": waiting_for is None,
            "waiting_for": waiting_for,
            "window_s": 60,
            "offsets": {str(partition): offset for partition, offset in sorted(state.outcomes.offsets.items())},
            "lag": state.lag(),
            "totals": {**totals, "consumer_lag": 0},
            "services": [],
            "models": [],
            "alerts": [],
        }

    @api.get("/hosts/series")
    async def host_series(
        begin: From = None, to: To = None, step_s: Step = None, instance: Name = None
    ) -> dict[str, Any]:
        """Samples over time."""
        del instance
        asked = span.read(begin, to, step_s, time.time())
        return {"from": asked.start_s, "to": asked.end_s, "step_s": asked.step_s, "hosts": []}

    @api.get("/models")
    async def models() -> dict[str, Any]:
        """What the `models` log says."""
        return {"registry_offset": -1, "models": []}

    @api.get("/models/{model}/series")
    async def model_series(
        model: str, version: int | None = None, begin: From = None, to: To = None, step_s: Step = None
    ) -> dict[str, Any]:
        """Requests over time."""
        asked = span.read(begin, to, step_s, time.time())
        return {"model": model, "version": version, "from": asked.start_s, "to": asked.end_s, "step_s": asked.step_s}

    @api.get("/analysis")
    async def analysis(begin: From = None, to: To = None, model: Name = None) -> dict[str, Any]:
        """What follows from it."""
        del model
        asked = span.read(begin, to, None, time.time())
        return {"from": asked.start_s, "to": asked.end_s, "models": []}

    @api.get("/drift")
    async def drift(model: Name = None) -> dict[str, Any]:
        """Distances from the reference."""
        del model
        return {"models": []}

    @api.get("/jobs")
    async def jobs() -> dict[str, Any]:
        """The optimizer's jobs."""
        return {"jobs": []}

    @api.get("/alerts")
    async def alerts(begin: From = None, to: To = None) -> dict[str, Any]:
        """What is wrong, and what was."""
        span.read(begin, to, None, time.time())
        return {"active": [], "history": [], "rules": []}

    @api.get("/timeline")
    async def timeline(begin: From = None, to: To = None) -> dict[str, Any]:
        """What happened when."""
        asked = span.read(begin, to, None, time.time())
        return {"from": asked.start_s, "to": asked.end_s, "events": []}

    @api.get("/requests/{request_id}")
    async def request(request_id: str) -> dict[str, Any]:
        """One request's story."""
        raise UnknownRequest(f"No outcome of a request {request_id[:200]!r} is known.")

    return api
