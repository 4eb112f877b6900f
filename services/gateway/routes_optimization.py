"""`…/update`, `…/cancel`, `…/policy`, and feedback: what is asked of the optimizer, and what it learns from."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response
from msgspec import to_builtins

from services.gateway import bodies, optimization, views
from services.gateway.answers import JsonResponse
from services.gateway.dependencies import TheBackbone, TheGateway, TheTenant
from services.gateway.gateway import Gateway
from services.gateway.optimization import Feedback
from services.gateway.paths import version_of, version_url
from shared.events import FeedbackGiven
from shared.optimization import MAX_OPTIONS_BYTES, Policy, Update, parse

router = APIRouter(tags=["Models"])
_MODEL: Final = "/v2/repository/models/{model}"


@router.post(f"{_MODEL}/update", status_code=202, summary="Train a new version from one that is ready")
async def update(
    model: str, request: Request, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant
) -> Response:
    """The body says which version, on which data, and how; what it leaves out is chosen.

    Data are files stored with `POST /v2/repository/assets`, or a range of the log.

    202 when it is in the log: the new version goes through the same gate, and is compared with its parent on the same
    data. It never answers by itself: promote it.
    """
    asked = await _body(gateway, request, Update)
    updated = await optimization.update(backbone, model, asked, tenant)
    url = version_url(model, updated.number)
    body = {
        "name": model,
        "version": updated.number,
        "sha256": updated.artifact.sha256,
        "state": updated.state,
        "status_url": url,
    }
    return JsonResponse(body, status_code=202, headers={"location": url})


@router.post(f"{_MODEL}/versions/{{version}}/cancel", summary="End the work on a version")
async def cancel(model: str, version: str, backbone: TheBackbone, tenant: TheTenant) -> Response:
    """It is rejected with the code `cancelled`; 409 if it is ready or rejected already.

    What was finished is kept: the same upload goes on there.
    """
    number = version_of(version, model) or 0
    cancelled = await optimization.cancel(backbone.log, model, number, tenant)
    return JsonResponse(views.version_state(backbone.log.registry.model(model), cancelled))


@router.post(f"{_MODEL}/policy", summary="Say what versions are judged by")
async def set_policy(
    model: str, request: Request, gateway: TheGateway, backbone: TheBackbone, _tenant: TheTenant
) -> Response:
    """For versions that say nothing themselves, from now on. `{}` leaves all of it to the optimizer."""
    policy = await _body(gateway, request, Policy)
    changed = await optimization.set_policy(backbone.log, model, None if policy == Policy() else policy)
    return JsonResponse({"name": model, "policy": to_builtins(changed.policy)})


@router.post("/v2/models/{model}/requests/{request_id}/feedback", status_code=202, summary="Tell the right answer")
async def give_feedback(
    model: str, request_id: str, request: Request, gateway: TheGateway, backbone: TheBackbone, tenant: TheTenant
) -> Response:
    """202 when it is in the log, for data drawn from there. The last one for a request counts.

    Whether there is such a request is seen when it is used: its result may long be forgotten here.
    """
    given = await _body(gateway, request, Feedback)
    event = FeedbackGiven(
        model=model[:100],
        request_id=request_id[:200],
        label=given.label,
        outputs=dict(given.outputs),
        source=(tenant or "")[:200],
    )
    await optimization.give_feedback(backbone, gateway.settings, event)
    return JsonResponse({"model_name": model, "request_id": request_id}, status_code=202)


async def _body(gateway: Gateway, request: Request, kind: type[Any]) -> Any:
    content = await bodies.read(
        request.receive,
        request.headers,
        limit_bytes=MAX_OPTIONS_BYTES,
        stall_timeout_s=gateway.settings.stall_timeout_s,
    )
    return parse(kind, content or b"{}")
