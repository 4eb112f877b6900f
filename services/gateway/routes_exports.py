"""`…/export`: a served version in another format."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from starlette.responses import StreamingResponse

from services.gateway import exports
from services.gateway.answers import JsonResponse
from services.gateway.dependencies import TheBackbone, TheTenant, TheVersion
from shared.errors import Conflict, Unfinished
from shared.exports import FORMATS

router = APIRouter(prefix="/v2/repository/models/{model}/versions/{version}/export", tags=["Models"])
_FORMATS: Final = ", ".join(FORMATS)


@router.post("", status_code=202, summary="Ask for a version in another format")
async def export(
    model: str,
    backbone: TheBackbone,
    tenant: TheTenant,
    version: TheVersion,
    format: Annotated[str, Query(description=_FORMATS)] = "onnx",  # noqa: A002 - the parameter's public name
    variant: Annotated[str | None, Query(description="of those that passed the gate")] = None,
) -> Response:
    """An optimizer builds it, runs it beside ONNX Runtime on the same inputs, and stores it: ask `status_url`.

    Without `variant` it is the one that serves; pt2, torchscript and savedmodel hold no quantized operators, so there
    it is the network as it came (`fp32`). The same bytes in the same format are built once.
    """
    asked = exports.Asked(model, version or 0, format, variant, tenant)
    made = await exports.export(backbone, asked)
    body = exports.view(backbone.log.registry.model(model), made)
    return JsonResponse(body, status_code=202, headers={"location": body["status_url"]})


@router.get("/{export_id}", summary="How far an export is")
async def show(model: str, export_id: str, backbone: TheBackbone, _tenant: TheTenant, version: TheVersion) -> Response:
    """`queued`, `building`, `ready` with how far its answers are from ONNX Runtime's, or `rejected` with the reason."""
    known = backbone.log.registry.model(model)
    return JsonResponse(exports.view(known, exports.found(known, version or 0, export_id)))


@router.get("/{export_id}/file", summary="The file of an export")
async def download(
    model: str, export_id: str, backbone: TheBackbone, _tenant: TheTenant, version: TheVersion
) -> Response:
    """Streamed from the store and held against its digest: a damaged file is never whole."""
    known = backbone.log.registry.model(model)
    made = exports.found(known, version or 0, export_id)
    if made.state == "rejected":
        raise Conflict(f"there is no file, it was rejected ({made.code}): {made.reason}")
    if made.artifact is None:
        raise Unfinished(f"the export is {made.state}: ask again")
    stream = aiter(backbone.store.stream(made.artifact))
    first = await anext(stream, memoryview(b""))  # what is missing is an error with a status
    return StreamingResponse(
        exports.pieces(first, stream),
        media_type=FORMATS[made.format].media_type,
        headers=exports.headers(known, made, made.artifact),
    )
