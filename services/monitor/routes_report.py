"""`/v1/report`: the report of a span, in the form that was asked for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Final, Literal

from fastapi import APIRouter, Query, Response

from services.monitor import span, timeline
from services.monitor.report import boards, content, flat, html, markdown
from services.monitor.routes_v1 import From, Name, Step, To  # noqa: TC001 - FastAPI reads them

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.monitor.report.content import Report
    from services.monitor.settings import MonitorSettings
    from services.monitor.state import State

Form = Literal["html", "md", "csv", "parquet", "tensorboard"]
_FORMS: Final[dict[str, tuple[str, Callable[[Report], bytes]]]] = {
    "html": ("text/html; charset=utf-8", html.render),
    "md": ("text/markdown; charset=utf-8", markdown.render),
    "csv": ("text/csv; charset=utf-8", flat.as_csv),
    "parquet": ("application/vnd.apache.parquet", flat.as_parquet),
    "tensorboard": ("application/octet-stream", boards.render),
}
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}


def router(state: State, settings: MonitorSettings) -> APIRouter:
    """The route."""
    api = APIRouter(prefix="/v1")
    one = asyncio.Semaphore(1)

    @api.get("/report")
    async def report(
        begin: From = None,
        to: To = None,
        step_s: Step = None,
        model: Name = None,
        form: Annotated[Form, Query(alias="format")] = "html",
    ) -> Response:
        """The report; one at a time is made."""
        now_s = time.time()
        asked = span.read(begin, to, step_s, now_s)
        media_type, render = _FORMS[form]
        async with one:
            with state.view() as view:
                now = now_s, timeline.of_deploys(state.deploys, asked)
                found = await asyncio.to_thread(content.gather, view, asked, settings, model, now)
            body = await asyncio.to_thread(render, found)
        return Response(body, media_type=media_type, headers=_HEADERS)

    return api
