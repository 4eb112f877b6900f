"""`/v2/models/{model}/requests/{id}`: the state or outcome of one request, and its cancellation.

Any gateway can be asked for any request that Kafka or HTTP brought, as soon as its id is known in Redis: at once for
those answered with 202, otherwise when a worker has met the record. Another tenant's request is as unknown as one that
never was.
"""

from fastapi import APIRouter, Response

from services.gateway.answers import JsonResponse, state_of
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant
from services.gateway.gateway import Backbone, Gateway
from shared.errors import Conflict, UnknownRequest

router = APIRouter(tags=["Requests"])
_PATH = "/v2/models/{model}/requests/{request_id}"


@router.get(_PATH, summary="State or outcome of a request")
async def show(model: str, request_id: str, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant) -> Response:
    """200 whatever became of it: `state` is queued, succeeded, failed, expired or cancelled."""
    await _check_known(gateway, backbone, model, request_id, tenant)
    [result] = await backbone.replies.get([(model, request_id)])
    return JsonResponse(state_of(model, request_id, result), headers={"x-request-id": request_id})


@router.delete(_PATH, summary="Cancel a request")
async def cancel(
    model: str, request_id: str, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant
) -> Response:
    """200 if it is cancelled now (also if it was already), 409 if it had another outcome before."""
    await _check_known(gateway, backbone, model, request_id, tenant)
    winner = await backbone.replies.cancel(model, request_id)
    if winner.status != "cancelled":
        raise Conflict(f"request {request_id!r} can't be cancelled: it has {winner.status} already")
    return JsonResponse(state_of(model, request_id, winner), headers={"x-request-id": request_id})


async def _check_known(gateway: Gateway, backbone: Backbone, model: str, request_id: str, tenant: str | None) -> None:
    """Raise `UnknownRequest` unless the id is known and belongs to the tenant; without keys all belong to everyone."""
    claim = await backbone.replies.claimed(model, request_id)
    if claim is None or (gateway.settings.api_keys and claim.tenant != tenant):
        raise UnknownRequest(f"model {model!r} has no request {request_id[:200]!r}")
