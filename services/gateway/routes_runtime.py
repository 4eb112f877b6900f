"""`…/config` and `/v2/workers`: how workers are to run a model, and what they say of themselves."""

from typing import Final

from fastapi import APIRouter, Request, Response

from services.gateway import bodies, runtime
from services.gateway.answers import JsonResponse
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant, TheVersion
from shared.runtime_config import MAX_CONFIG_BYTES, RuntimeConfig, parse

router = APIRouter(tags=["Models"])
_MODEL: Final = "/v2/repository/models/{model}"


@router.post(f"{_MODEL}/config", summary="Say how workers run a model")
@router.post(f"{_MODEL}/versions/{{version}}/config", summary="Say how workers run a version")
async def configure(
    model: str, request: Request, gateway: TheGateway, backbone: TheBackbone, _tenant: TheTenant, version: TheVersion
) -> Response:
    """In Triton's words; `{}` leaves all of it to the workers. An option that would do nothing is refused by its name.

    Of a model: for all its versions, and for those to come that bring none. Workers build a session beside the one
    that runs, then switch: no request fails of it. `GET /v2/models/{model}/config` tells who has done so.
    """
    body = await bodies.read(
        request.receive,
        request.headers,
        limit_bytes=MAX_CONFIG_BYTES,
        stall_timeout_s=gateway.settings.stall_timeout_s,
    )
    config = parse(body or b"{}")
    asked = None if config == RuntimeConfig() else config
    changed = await runtime.configure(backbone.log, backbone.heartbeats, model, version, asked)
    return JsonResponse(runtime.configuration(changed, version))


@router.get("/v2/workers", summary="Live workers and optimizers")
async def workers(backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """The machines that they run on, the engines and devices that they have, and the variants that they hold."""
    return JsonResponse(runtime.living(backbone.heartbeats.alive()))
