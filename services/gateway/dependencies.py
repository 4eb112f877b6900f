"""What FastAPI hands to the routes: the gateway, its connected clients, and the caller's tenant."""

from typing import Annotated

from fastapi import Depends, Request

from services.gateway.gateway import Backbone, Gateway
from services.gateway.paths import version_of
from shared.api_keys import tenant_of


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def _backbone(request: Request) -> Backbone:
    return _gateway(request).backbone


def _tenant(request: Request) -> str | None:
    return tenant_of(request.headers, _gateway(request).settings.api_keys)


def _version(request: Request) -> int | None:
    return version_of(request.path_params.get("version"), request.path_params["model"])


TheGateway = Annotated[Gateway, Depends(_gateway)]
TheBackbone = Annotated[Backbone, Depends(_backbone)]
"""503 while the gateway is not connected."""
TheTenant = Annotated[str | None, Depends(_tenant)]
"""401 without a known key where keys are configured."""
TheVersion = Annotated[int | None, Depends(_version)]
"""Of the path, None where it names none; 404 if it can't be one."""
