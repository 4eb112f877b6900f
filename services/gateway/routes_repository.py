"""`/v2/repository/models…`: the catalogue, uploads, versions and which of them answer."""

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from services.gateway import assets, bodies, repository, runtime, uploads, views
from services.gateway.answers import JsonResponse
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant
from services.gateway.gateway import Gateway
from services.gateway.optimization import options_of
from services.gateway.paths import version_of, version_url
from services.gateway.readiness import lacks_engine
from shared import routing_changes
from shared.errors import InvalidInput
from shared.events import MAX_VERSION
from shared.registry import Version

catalogue = APIRouter(prefix="/v2/repository/models", tags=["Models"])
router = APIRouter(prefix="/v2/repository/models/{model}", tags=["Models"])
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
_MAX_TRAFFIC_BYTES: Final = 64 * 1024


class Traffic(BaseModel):
    """Shares of the requests that name no version: `{"weights": {"1": 90, "2": 10}}`."""

    weights: Annotated[
        dict[Annotated[int, Field(ge=1, le=MAX_VERSION)], Annotated[int, Field(ge=0, le=1_000_000)]],
        Field(max_length=100),
    ]


@catalogue.get("", summary="All models")
async def show_models(backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """By name, each with its versions and which of them answer."""
    return JsonResponse([views.model_state(model) for _, model in sorted(backbone.log.registry.models.items())])


@router.post("/versions", status_code=202, summary="Upload a version")
async def upload(
    model: str,
    request: Request,
    gateway: TheGateway,
    tenant: TheTenant,
    format: Annotated[str, Query(description="auto (told by the bytes) or onnx")] = "auto",  # noqa: A002 - the parameter's public name
    version: Annotated[int | None, Query(ge=1, le=MAX_VERSION, description="a number of one's own")] = None,
    processing: Annotated[
        str | None, Query(pattern="^[0-9a-f]{64}$", description="SHA-256 of a stored declaration")
    ] = None,
    optimization: Annotated[
        str | None, Query(pattern="^[0-9a-f]{64}$", description="SHA-256 of stored options: data, policy, candidates")
    ] = None,
    config: Annotated[
        str | None, Query(pattern="^[0-9a-f]{64}$", description="SHA-256 of a stored runtime configuration")
    ] = None,
) -> Response:
    """The body is the model file. `Content-Digest: sha-256=:BASE64:` is checked if sent; `version` asks for a number.

    `processing` is the SHA-256 of an asset: the JSON declaration of the steps before and after the model, for good.
    `optimization` is that of another: what the optimizer may use and must reach; `config` says how workers run it.
    202 when the upload is in the log: `status_url` then tells what the optimizer makes of it.
    """

    async def storing() -> tuple[Response, dict[str, Any]]:
        declared = None if processing is None else await assets.processing_of(gateway.backbone.store, processing)
        options = None if optimization is None else await options_of(gateway.backbone.store, optimization)
        alive = gateway.backbone.heartbeats.alive()
        how = None if config is None else await runtime.config_of(gateway.backbone.store, config, format, alive)
        sha256 = bodies.content_sha256(request.headers)
        asked = repository.Upload(model, version, sha256, tenant, declared, options, how)
        uploaded = await _upload(gateway, request, asked, format)
        artifact = uploaded.artifact
        told = {"version": uploaded.number, "sha256": artifact.sha256, "byte_size": artifact.byte_size}
        return _accepted(uploaded), told

    return await uploads.answered("upload", storing(), model=model[:100], tenant=tenant)


async def _upload(gateway: Gateway, request: Request, asked: repository.Upload, file_format: str) -> Version:
    if not _NAME.fullmatch(asked.model):
        raise InvalidInput("a model's name is 1 to 100 letters, digits and hyphens, and begins with no hyphen")
    if file_format not in ("auto", "onnx"):
        raise InvalidInput(
            f"format {file_format[:40]!r} is not supported: files are told by their bytes, so leave it out"
        )
    async with uploads.arriving(gateway, request) as chunks:
        return await repository.upload(gateway.backbone, asked, chunks, gateway.settings.max_upload_bytes)


def _accepted(uploaded: Version) -> Response:
    url = version_url(uploaded.model, uploaded.number)
    body = {
        "name": uploaded.model,
        "version": uploaded.number,
        "sha256": uploaded.artifact.sha256,
        "state": uploaded.state,
        "status_url": url,
    }
    return JsonResponse(body, status_code=202, headers={"location": url})


@router.get("/versions", summary="All versions of a model")
async def show_model(model: str, backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """The newest first, and which of them answer."""
    return JsonResponse(views.model_state(backbone.log.registry.model(model)))


@router.get("/versions/{version}", summary="State of a version")
async def show_version(model: str, version: str, backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """Every variant with what was measured of it, which was chosen and why, and why others were rejected."""
    registry = backbone.log.registry
    found = registry.version(model, _number(version, model))
    told = backbone.progress.of(model, found.number), backbone.progress.points(model, found.number)
    alive = list(backbone.heartbeats.alive())
    tools = [beat.tools for beat in alive if beat.service == "optimizer"]
    waits = views.waits_for(found, tools) if found.state != "ready" else lacks_engine(found, alive)
    return JsonResponse(views.version_state(registry.model(model), found, *told, waits_for=waits))


@router.post("/versions/{version}/promote", summary="Let a version answer")
async def promote(model: str, version: str, backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """From now on it answers requests that name no version. 409 unless it is ready."""
    return JsonResponse(views.routing(await routing_changes.promote(backbone.log, model, _number(version, model))))


@router.post("/rollback", summary="Let the version before answer again")
async def roll_back(model: str, backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """Undo the last promotion, or end a traffic split. 409 if there is nothing to go back to."""
    return JsonResponse(views.routing(await routing_changes.roll_back(backbone.log, model)))


@router.post("/traffic", summary="Split traffic between versions")
async def split(
    model: str, request: Request, gateway: TheGateway, backbone: TheBackbone, _tenant: TheTenant
) -> Response:
    """By weight; an empty map ends the split. 409 unless all versions with weight are ready."""
    body = await bodies.read(
        request.receive,
        request.headers,
        limit_bytes=_MAX_TRAFFIC_BYTES,
        stall_timeout_s=gateway.settings.stall_timeout_s,
    )
    try:
        traffic = Traffic.model_validate_json(body)
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(
            f'{where or "the body"}: {first["msg"]}; expected {{"weights": {{"1": 90, "2": 10}}}}'
        ) from err
    return JsonResponse(views.routing(await repository.split(backbone.log, model, traffic.weights)))


@router.post("/versions/{version}/retire", summary="Retire a version")
async def retire_version(model: str, version: str, backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """It answers no more; if it was the active one, the one before does."""
    return JsonResponse(views.routing(await repository.retire(backbone.log, model, _number(version, model))))


@router.post("/retire", summary="Retire a model")
async def retire_model(model: str, backbone: TheBackbone, _tenant: TheTenant) -> Response:
    """None of its versions answers any more; a new upload brings it back."""
    return JsonResponse(views.routing(await repository.retire(backbone.log, model)))


def _number(text: str, model: str) -> int:
    number = version_of(text, model)
    assert number is not None  # noqa: S101 - for the type checker: the path named one
    return number
