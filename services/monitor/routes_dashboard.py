"""The dashboard: its page, its files, and the two things that can be done from it, promote and roll back.

The files lie in `dashboard/` as they are sent: no build step, nothing from other hosts. They are read at the start, so
a path from the network never meets the file system. The page asks `/v1/…` like any other client (`routes_v1`); its
security policy lets it run, load and ask nothing but what comes from here, so that a name in the log that looks like
markup could do nothing even if it were shown as such.

What changes something is a POST that no other site can make a browser send: of JSON, with a header of our own, which
browsers let a foreign page add only if we agreed (we never do), from our origin if the browser names one. Who sends it
needs an API key if there are any. Without, the monitor must be bound to loopback, and the request must be for a
loopback name: a foreign name that resolves to 127.0.0.1 is no way in. Which changes are possible at all is the
business of `shared.routing_changes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from shared import logs, routing_changes
from shared.api_keys import tenant_of
from shared.errors import (
    AiaasError,
    Conflict,
    InvalidInput,
    LogUnavailable,
    Unauthorized,
    Unavailable,
    UnknownModel,
    UnknownVersion,
    Unsupported,
)
from shared.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from services.monitor.settings import MonitorSettings
    from shared.registry import Model
    from shared.registry_log import RegistryLog

FILES: Final = Path(__file__).parent / "dashboard"
HEADER: Final = "x-aiaas-dashboard"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
SECURITY_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def router(settings: MonitorSettings, log: Callable[[], RegistryLog | None]) -> APIRouter:
    """The routes. `log` is the registry's log as soon as it is followed."""
    dashboard = APIRouter()
    files = {path.name: path.read_bytes() for path in FILES.iterdir() if path.suffix in _TYPES}

    @dashboard.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page."""
        return _file(files, "index.html")

    @dashboard.get("/dashboard/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        """What belongs to it."""
        return _file(files, name)

    @dashboard.get("/v1/actions")
    async def actions() -> dict[str, Any]:
        """Whether models can be promoted and rolled back from here, and whether that takes an API key."""
        return {"offered": _offered(settings), "needs_key": bool(settings.api_keys)}

    @dashboard.post("/v1/models/{model}/versions/{version}/promote")
    async def promote(model: str, version: int, request: Request) -> Response:
        """Let a version answer requests that name none."""
        return await _change(request, "promote", lambda log: routing_changes.promote(log, model, version))

    @dashboard.post("/v1/models/{model}/rollback")
    async def roll_back(model: str, request: Request) -> Response:
        """Let the version before answer again."""
        return await _change(request, "rollback", lambda log: routing_changes.roll_back(log, model))

    async def _change(request: Request, what: str, change: Callable[[RegistryLog], Awaitable[Model]]) -> Response:
        line = {"action": what, "path": request.url.path[:300]}
        try:
            tenant = allowed(request.headers, settings)
            registry_log = log()
            if registry_log is None:
                raise LogUnavailable("the registry's log is not followed yet: try again in a moment")
            after = await change(registry_log)
        except AiaasError as err:
            logs.get().info("dashboard action refused", **line, code=err.code)
            return _refusal(err)
        logs.get().info("dashboard action", **line, tenant=tenant, active=after.active)
        weights = {str(number): weight for number, weight in sorted(after.weights.items())}
        return JSONResponse({"model": after.name, "active": after.active, "weights": weights})

    return dashboard


def _file(files: Mapping[str, bytes], name: str) -> Response:
    if name not in files:
        return JSONResponse({"error": "there is no such file", "code": "not_found"}, 404)
    return Response(files[name], headers={**SECURITY_HEADERS, "content-type": _TYPES[Path(name).suffix]})


def _offered(settings: MonitorSettings) -> bool:
    return bool(settings.api_keys) or is_loopback(settings.monitor_host)


def allowed(headers: Mapping[str, str], settings: MonitorSettings) -> str | None:
    """The tenant that may change something with a request of these headers.

    Raises:
        InvalidInput: it may be one that another site made a browser send.
        Unsupported: nobody may, here.
        Unauthorized: an API key is needed, and it has none.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidInput("an action is a POST of application/json")
    if headers.get(HEADER) != "1":
        raise InvalidInput(f"an action needs the header {HEADER}: 1")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise InvalidInput("an action comes from the dashboard's own page")
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise InvalidInput("an action comes from the dashboard's own origin")
    if not _offered(settings):
        raise Unsupported("set AIAAS_API_KEYS of the monitor: without keys, actions are for loopback only")
    if not settings.api_keys and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise InvalidInput("without API keys, actions are for requests to a loopback address")
    return tenant_of(headers, settings.api_keys)


_STATUS: Final = {
    InvalidInput.code: 403,
    Unsupported.code: 403,
    Unauthorized.code: 401,
    UnknownModel.code: 404,
    UnknownVersion.code: 404,
    Conflict.code: 409,
    LogUnavailable.code: 503,
}


def _refusal(error: AiaasError) -> Response:
    response = JSONResponse({"error": error.message, "code": error.code}, _STATUS.get(error.code, 500))
    if isinstance(error, Unauthorized):
        response.headers["www-authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        response.headers["retry-after"] = str(error.retry_after_s)
    return response
