"""The monitor by HTTP: what it knows, in the forms of `exposition` and `views`, and its own health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from services.monitor import routes_report, routes_v1, views
from services.monitor.exposition import Exposition
from shared.errors import AiaasError, InvalidInput, UnknownModel, UnknownRequest

if TYPE_CHECKING:
    from services.monitor.settings import MonitorSettings
    from services.monitor.state import State


def application(state: State, settings: MonitorSettings, asyncapi: dict[str, Any]) -> FastAPI:
    """The ASGI application. `asyncapi` is the document of the log (`shared.asyncapi`)."""
    app = FastAPI(title="aiaas monitor", docs_url=None, redoc_url=None)
    app.include_router(routes_v1.router(state, settings))
    app.include_router(routes_report.router(state, settings))
    app.add_exception_handler(AiaasError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    metrics_of = CollectorRegistry()
    metrics_of.register(Exposition(state))

    @app.get("/live")
    async def live() -> dict[str, bool]:
        """The event loop turns."""
        return {"live": True}

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, Any]:
        """All outcomes that were in the log at the start are counted."""
        missing = state.waiting_for()
        if missing:
            response.status_code = 503
            return {"ready": False, "waiting_for": missing}
        return {"ready": True}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Everything, for Prometheus."""
        return Response(generate_latest(metrics_of), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/stats")
    async def stats() -> dict[str, Any]:
        """Requests by model and version, and the offsets at which these numbers are exact."""
        return views.stats(state)

    @app.get("/v1/hosts")
    async def hosts() -> list[dict[str, Any]]:
        """The last host sample of every instance."""
        return views.hosts(state)

    @app.get("/v1/instances")
    async def instances() -> list[dict[str, Any]]:
        """Who is up, what it has loaded, what waits for it."""
        return views.instances(state)

    @app.get("/asyncapi")
    async def document() -> dict[str, Any]:
        """The AsyncAPI document."""
        return asyncapi

    return app


async def _known(_: Request, error: Exception) -> Response:
    """An error of ours as HTTP."""
    if not isinstance(error, AiaasError):
        raise error
    status = {InvalidInput.code: 400, UnknownModel.code: 404, UnknownRequest.code: 404}.get(error.code, 503)
    return JSONResponse({"error": error.message, "code": error.code}, status)


async def _invalid(_: Request, error: Exception) -> Response:
    """A query that FastAPI refused, in our form."""
    if not isinstance(error, RequestValidationError):
        raise error
    told = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return JSONResponse({"error": told, "code": InvalidInput.code}, 400)
