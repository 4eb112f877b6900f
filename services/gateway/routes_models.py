"""`GET /v2…`: the server, its health, and what models take, give and whether they are ready (OIP v2)."""

from typing import Final

from fastapi import APIRouter, Response

from services.gateway import readiness
from services.gateway.answers import UNAVAILABLE, JsonResponse
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant, TheVersion
from services.gateway.views import model_metadata

NAME: Final = "aiaas"
VERSION: Final = "0.1.0"
EXTENSIONS: Final = (
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Of Triton's, those that are really there. Its name for the parameters `priority` and `timeout` is schedule_policy."""

router = APIRouter(tags=["Open Inference Protocol"])


@router.get("/v2/health/live", summary="Is the process alive?")
async def live() -> Response:
    """200 whenever this can be answered. Needs no key."""
    return JsonResponse({"live": True})


@router.get("/v2/health/ready", summary="Are requests accepted?")
async def ready(gateway: TheGateway) -> Response:
    """200, or 503 with what the gateway waits for. Needs no key."""
    missing = gateway.waiting_for()
    if missing:
        return JsonResponse({"ready": False, "waiting_for": missing}, status_code=UNAVAILABLE)
    return JsonResponse({"ready": True})


@router.get("/v2", summary="Name, version and extensions of the server")
async def server(_tenant: TheTenant) -> Response:
    """`extensions` lists Triton's extensions that work here."""
    return JsonResponse({"name": NAME, "version": VERSION, "extensions": EXTENSIONS})


@router.get("/v2/models/{model}", summary="What the version that answers takes and gives")
@router.get("/v2/models/{model}/versions/{version}", summary="What a version takes and gives")
async def metadata(model: str, backbone: TheBackbone, _tenant: TheTenant, version: TheVersion) -> Response:
    """Names, datatypes and shapes; -1 is a free size. `versions` are those that can answer now."""
    registry = backbone.log.registry
    version_shown = readiness.described(registry, model, version)
    return JsonResponse(model_metadata(registry.model(model), version_shown))


@router.get("/v2/models/{model}/ready", summary="Does a live worker hold the version that answers?")
@router.get("/v2/models/{model}/versions/{version}/ready", summary="Does a live worker hold this version?")
async def model_ready(model: str, backbone: TheBackbone, _tenant: TheTenant, version: TheVersion) -> Response:
    """200 when the registry routes requests to it and a live worker has it in memory; else 503 with why."""
    readiness.check(backbone.log.registry, backbone.heartbeats.alive(), model, version)
    return JsonResponse({"name": model, "ready": True})
