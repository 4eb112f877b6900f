"""Triton's extensions that are not here, answered as truthfully as can be: no client has to guess.

- Shared memory: a request lies in a log, and may run on another host, so that memory of this one means nothing to it.
  Nothing is ever registered: the status is an empty list, and after `unregister` it is so, too. To register is refused.
- Tracing by the server's own format is off and can't be turned on; requests carry W3C trace contexts instead.
- Log settings are those the process started with.

Refusals are 400 `unsupported`: the caller must do something else. 501 would be the word for it, but asks for the
attention of whoever watches for failures of ours.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from services.gateway.answers import JsonResponse, error
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant
from services.gateway.gateway import Backbone
from shared.errors import Unsupported

router = APIRouter(tags=["Triton's extensions that are not here"])
Endpoint = Callable[..., Awaitable[Any]]
_LEVELS: Final = ("debug", "info", "warning", "error")


def _shared_memory(method: str, path: str, summary: str) -> Callable[[Endpoint], Endpoint]:
    """One route for memory of the system, and one for that of CUDA devices."""

    def add(endpoint: Endpoint) -> Endpoint:
        for kind in ("system", "cuda"):
            router.add_api_route(f"/v2/{kind}sharedmemory{path}", endpoint, methods=[method], summary=summary)
        return endpoint

    return add


@_shared_memory("GET", "/status", "Registered regions of shared memory: none")
async def shared_memory(_tenant: TheTenant) -> Response:
    """An empty list."""
    return JsonResponse([])


@_shared_memory("GET", "/region/{region}/status", "A registered region of shared memory: there is none")
async def shared_memory_region(region: str, _tenant: TheTenant) -> Response:
    """404."""
    return error("not_found", f"no region {region[:100]!r} is registered: shared memory is not supported")


@_shared_memory("POST", "/region/{region}/register", "Refused: shared memory is not supported")
async def register_shared_memory(region: str, _tenant: TheTenant) -> Response:
    """400."""
    raise Unsupported(f"{region[:100]!r} is not registered: shared memory is not supported, send tensors in the body")


@_shared_memory("POST", "/unregister", "Forget all regions of shared memory: there are none")
async def unregister_shared_memory(_tenant: TheTenant) -> Response:
    """200: none is registered."""
    return JsonResponse({"registered": []})


@_shared_memory("POST", "/region/{region}/unregister", "Forget a region of shared memory: there is none")
async def unregister_shared_memory_region(region: str, _tenant: TheTenant) -> Response:
    """200: it is not registered."""
    return JsonResponse({"name": region, "registered": False})


@router.get("/v2/trace/setting", summary="Tracing as Triton has it: off")
@router.get("/v2/models/{model}/trace/setting", summary="Tracing of a model as Triton has it: off")
async def trace_settings(request: Request, backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """Off."""
    _check_model(request, backbone)
    return JsonResponse({"trace_level": ["OFF"]})


@router.post("/v2/trace/setting", summary="Refused: send a traceparent")
@router.post("/v2/models/{model}/trace/setting", summary="Refused: send a traceparent")
async def update_trace_settings(request: Request, backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """400."""
    _check_model(request, backbone)
    raise Unsupported("trace settings are not supported: send a traceparent, and the request's log lines carry it")


@router.get("/v2/logging", summary="Log settings of this gateway")
async def log_settings(gateway: TheGateway, _tenant: TheTenant) -> Response:
    """Those it started with, in Triton's words."""
    level = _LEVELS.index(gateway.settings.log_level)
    shown = {f"log_{name}": level <= _LEVELS.index(name) for name in ("info", "warning", "error")}
    return JsonResponse({"log_file": "", **shown, "log_verbose_level": int(level == 0), "log_format": "ISO8601"})


@router.post("/v2/logging", summary="Refused: log settings are read at the start")
async def update_log_settings(_tenant: TheTenant) -> Response:
    """400."""
    raise Unsupported("log settings can't be changed while the gateway runs: set AIAAS_LOG_LEVEL and start it again")


def _check_model(request: Request, backbone: Backbone) -> None:
    """Return unless the path names a model that is not there."""
    if (model := request.path_params.get("model")) is not None:
        backbone.log.registry.model(model)
