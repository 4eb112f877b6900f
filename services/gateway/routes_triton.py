"""Triton's extensions of the protocol that are about models: configuration, statistics, repository index, load, unload.

https://github.com/triton-inference-server/server/tree/main/docs/protocol. Its clients read `error` of a body whose
status is not 200. What it has and we can't do is in `routes_absent`.
"""

from typing import Any, Final

import orjson
from fastapi import APIRouter, Request, Response

from services.gateway import bodies, loading, readiness, statistics, views
from services.gateway.answers import JsonResponse
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant, TheVersion
from services.gateway.gateway import Gateway
from services.gateway.model_config import model_config
from services.gateway.repository_index import index
from shared.errors import InvalidInput

router = APIRouter(tags=["Triton's extensions"])
_MAX_BODY_BYTES: Final = 64 * 1024


@router.get("/v2/models/stats", summary="Statistics of all models")
async def all_statistics(backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """Counted from outcomes, to the unit; `exact_at` names the offsets of the outcome log at which each holds."""
    return JsonResponse(statistics.all_models(backbone.log.registry, backbone.statistics))


@router.get("/v2/models/{model}/stats", summary="Statistics of a model")
@router.get("/v2/models/{model}/versions/{version}/stats", summary="Statistics of a version")
async def model_statistics(model: str, backbone: TheBackbone, _tenant: TheTenant, version: TheVersion) -> Response:
    """As for all models."""
    return JsonResponse(statistics.one_model(backbone.log.registry, backbone.statistics, model, version))


@router.get("/v2/models/{model}/config", summary="Configuration of the version that answers, as Triton has it")
@router.get("/v2/models/{model}/versions/{version}/config", summary="Configuration of a version, as Triton has it")
async def config(model: str, backbone: TheBackbone, _tenant: TheTenant, version: TheVersion) -> Response:
    """`max_batch_size` is above 0 where rows were proved independent and lie along the first axis of every tensor."""
    registry = backbone.log.registry
    shown = readiness.described(registry, model, version)
    alive = backbone.heartbeats.alive()
    return JsonResponse(model_config(registry.model(model), shown, views.shown_signature(shown), alive))


@router.post("/v2/repository/index", summary="All versions and their states")
async def repository_index(
    request: Request, gateway: TheGateway, backbone: TheBackbone, _tenant: TheTenant
) -> Response:
    """READY, LOADING, UNLOADING or UNAVAILABLE, with the reason; `{"ready": true}` leaves only what is READY."""
    only_ready = (await _body(request, gateway)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidInput("ready must be true or false")
    return JsonResponse(index(backbone.log.registry, backbone.heartbeats.alive(), only_ready=only_ready))


@router.post("/v2/repository/models/{model}/load", summary="Let a model answer")
async def load(
    model: str, request: Request, gateway: TheGateway, backbone: TheBackbone, _tenant: TheTenant
) -> Response:
    """200 when live workers hold it; 503 if they did not in time. Loading what is loaded only waits for that."""
    if refused := sorted(await _parameters(request, gateway)):
        raise InvalidInput(f"load takes no {refused[0][:40]!r}: what a model is comes with an upload of a new version")
    return JsonResponse(views.routing(await loading.load(backbone, model, gateway.settings.load_timeout_s)))


@router.post("/v2/repository/models/{model}/unload", summary="Let go of a model")
async def unload(
    model: str, request: Request, gateway: TheGateway, backbone: TheBackbone, _tenant: TheTenant
) -> Response:
    """200 when no live worker holds it any more; 503 if some did not say so in time. No model depends on another."""
    if refused := sorted((await _parameters(request, gateway)).keys() - {"unload_dependents"}):
        raise InvalidInput(f"unload takes no {refused[0][:40]!r}")
    return JsonResponse(views.routing(await loading.unload(backbone, model, gateway.settings.load_timeout_s)))


async def _parameters(request: Request, gateway: Gateway) -> dict[str, Any]:
    parameters = (await _body(request, gateway)).get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput("parameters must be a map")
    return parameters


async def _body(request: Request, gateway: Gateway) -> dict[str, Any]:
    """A JSON map, or nothing at all, which Triton's clients send too."""
    body = await bodies.read(
        request.receive,
        request.headers,
        limit_bytes=_MAX_BODY_BYTES,
        stall_timeout_s=gateway.settings.stall_timeout_s,
    )
    try:
        document = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as err:
        raise InvalidInput(f"not a JSON document: {err}") from err
    if not isinstance(document, dict):
        raise InvalidInput("the body must be a map")
    return document
