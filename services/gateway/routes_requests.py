"""`/v2/models/{model}/requests/{id}`: the state or outcome of one request, its events, and its cancellation.

Any gateway can be asked for any request that Kafka or HTTP brought, as soon as its id is known in Redis: at once for
those answered with 202 or sent with an `Idempotency-Key`, for others when a worker has met the record or their caller
has stopped waiting. Another tenant's request is as unknown as one that never was.
"""

from typing import Final

from fastapi import APIRouter, Request, Response

from services.gateway.answers import JsonResponse, state_of
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant
from services.gateway.event_stream import EventStream, event_id
from services.gateway.gateway import Backbone, Gateway
from services.gateway.request_state import RequestState
from services.gateway.request_state import state_of as state_now
from shared.errors import Conflict, UnknownRequest
from shared.replies import Claim

router = APIRouter(tags=["Requests"])
_PATH: Final = "/v2/models/{model}/requests/{request_id}"


@router.get(_PATH, summary="State or outcome of a request")
async def show(model: str, request_id: str, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant) -> Response:
    """200 whatever became of it: `state` is queued, running, succeeded, failed, expired or cancelled.

    `queue_position` is how many are before it, as of the workers' last heartbeats; null while no live worker tells.
    """
    claim = await _owner(gateway, backbone, model, request_id, tenant)
    state = await _state(backbone, model, request_id, claim)
    return JsonResponse(state_of(model, request_id, state), headers={"x-request-id": request_id})


@router.get(f"{_PATH}/events", summary="States of a request as server-sent events")
async def events(
    model: str, request_id: str, request: Request, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant
) -> Response:
    """A stream that ends with the outcome. Whoever comes back to it gets the present state."""
    claim = await _owner(gateway, backbone, model, request_id, tenant)
    state = await _state(backbone, model, request_id, claim)
    if state.ended and request.headers.get("last-event-id") == event_id(state):
        return Response(status_code=204)
    return EventStream(
        backbone.watch.following(model, request_id, claim, state),
        lambda latest: state_of(model, request_id, latest),
        gateway.settings.event_stream_s,
        {"x-request-id": request_id},
    )


@router.delete(_PATH, summary="Cancel a request")
async def cancel(
    model: str, request_id: str, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant
) -> Response:
    """200 if it is cancelled now (also if it was already), 409 if it had another outcome before.

    What is queued never runs. What runs is given up as soon as the worker can; its caller hears of the cancel at once.
    """
    await _owner(gateway, backbone, model, request_id, tenant)
    winner = await backbone.replies.cancel(model, request_id)
    if winner.status != "cancelled":
        raise Conflict(f"request {request_id!r} can't be cancelled: it has {winner.status} already")
    state = RequestState(winner.status, result=winner)
    return JsonResponse(state_of(model, request_id, state), headers={"x-request-id": request_id})


async def _owner(gateway: Gateway, backbone: Backbone, model: str, request_id: str, tenant: str | None) -> Claim:
    """The record of a request. Without keys all belong to everyone.

    Raises:
        UnknownRequest: the id is not known, or another tenant's.
    """
    claim = await backbone.replies.claimed(model, request_id)
    if claim is None or (gateway.settings.api_keys and claim.tenant != tenant):
        raise UnknownRequest(
            f"model {model[:100]!r} has no request {request_id[:200]!r}: it was never accepted, no worker has met it "
            f"yet, or it is over for longer than {backbone.replies.kept_s} s and forgotten"
        )
    return claim


async def _state(backbone: Backbone, model: str, request_id: str, claim: Claim) -> RequestState:
    """Where the request is now. That it is asked for keeps a request that has no answer yet from being forgotten."""
    running = await backbone.replies.running(model)
    [result] = await backbone.replies.get([(model, request_id)])
    if result is None:
        await backbone.replies.remember(model, request_id)
    return state_now(claim, running, result, backbone.heartbeats.alive())
