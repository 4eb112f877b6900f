"""`POST /v2/repository/assets`: a file into the artifact store."""

from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec import to_builtins

from services.gateway import bodies, uploads
from services.gateway.answers import JsonResponse
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant
from services.gateway.gateway import Backbone, Gateway
from shared.errors import InvalidInput

router = APIRouter(prefix="/v2/repository", tags=["Models"])


@router.post("/assets", status_code=201, summary="Store a file")
async def store(request: Request, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant) -> Response:
    """A tokenizer, a file of labels, a declaration of processing, or a tensor for a claim check.

    `Content-Digest: sha-256=:BASE64:` is checked if sent. 201 with `{uri, sha256, byte_size}`, which is what a
    declaration and a claim check contain. The same content is stored once, however often it is sent.
    """
    return await uploads.answered("asset", _store(request, gateway, backbone), tenant=tenant)


async def _store(request: Request, gateway: Gateway, backbone: Backbone) -> tuple[Response, dict[str, Any]]:
    expected = bodies.content_sha256(request.headers)
    async with uploads.arriving(gateway, request) as chunks:
        artifact = await backbone.store.put_stream(
            chunks, limit_bytes=gateway.settings.max_upload_bytes, expected_sha256=expected
        )
    if not artifact.byte_size:
        raise InvalidInput("the body is empty: it must be the file")
    told = {"sha256": artifact.sha256, "byte_size": artifact.byte_size}
    return JsonResponse(to_builtins(artifact), status_code=201), told
