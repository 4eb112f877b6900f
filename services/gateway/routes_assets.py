"""`POST /v2/repository/assets`: a file into the artifact store."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec import to_builtins

from services.gateway import bodies, uploads
from services.gateway.answers import CLIENT_GONE, JsonResponse, of_error
from services.gateway.bodies import ClientGone
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant
from shared import logs
from shared.artifacts import Artifact
from shared.errors import AiaasError, InvalidInput

router = APIRouter(prefix="/v2/repository", tags=["Models"])


@router.post("/assets", status_code=201, summary="Store a file")
async def store(request: Request, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant) -> Response:
    """A tokenizer, a file of labels, a declaration of processing, or a tensor for a claim check.

    `Content-Digest: sha-256=:BASE64:` is checked if sent. 201 with `{uri, sha256, byte_size}`, which is what a
    declaration and a claim check contain. The same content is stored once, however often it is sent.
    """
    started_s = time.perf_counter()
    line: dict[str, Any] = {"tenant": tenant}
    try:
        expected = bodies.content_sha256(request.headers)
        async with uploads.arriving(gateway, request) as chunks:
            artifact = await backbone.store.put_stream(
                chunks, limit_bytes=gateway.settings.max_upload_bytes, expected_sha256=expected
            )
        response = _stored(artifact)
        line |= {"sha256": artifact.sha256, "byte_size": artifact.byte_size}
    except AiaasError as err:
        line["code"] = err.code
        response = of_error(err)
    except ClientGone:
        line["code"] = "client_gone"
        response = Response(status_code=CLIENT_GONE)
    duration_ms = round((time.perf_counter() - started_s) * 1000, 3)
    logs.get().info("asset", status=response.status_code, duration_ms=duration_ms, **line)
    return response


def _stored(artifact: Artifact) -> Response:
    if not artifact.byte_size:
        raise InvalidInput("the body is empty: it must be the file")
    return JsonResponse(to_builtins(artifact), status_code=201)
