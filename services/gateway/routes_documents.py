"""`/asyncapi`: what goes through the log, beside FastAPI's `/docs` and `/openapi.json`."""

from fastapi import APIRouter, Response

from services.gateway.answers import JsonResponse
from services.gateway.dependencies import TheGateway
from shared import asyncapi

router = APIRouter(tags=["Documents"])


@router.get("/asyncapi", summary="The AsyncAPI document of the log")
async def asyncapi_document(gateway: TheGateway) -> Response:
    """Topics, records and headers, under this platform's prefix. Needs no key."""
    return JsonResponse(asyncapi.document(gateway.settings.topics))
