"""The HTTP application of a gateway: FastAPI for what is asked now and then, a plain route for inference.

Every failure has the same body, whoever raised it: our errors, FastAPI's validation, an unknown path, a bug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from services.gateway import (
    answers,
    routes_absent,
    routes_assets,
    routes_documents,
    routes_exports,
    routes_models,
    routes_optimization,
    routes_repository,
    routes_requests,
    routes_runtime,
    routes_triton,
)
from services.gateway.edge import Edge
from services.gateway.openapi import document
from services.gateway.openapi.operations import methods_of
from services.gateway.routes_infer import PATH, InferRoute
from shared.errors import AiaasError, InvalidInput

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from services.gateway.gateway import Gateway

_NOT_FOUND: Final = 404
_METHOD_NOT_ALLOWED: Final = 405


def application(gateway: Gateway) -> ASGIApp:
    """The ASGI application."""
    api = _Api(title=routes_models.NAME, version=routes_models.VERSION, description=document.DESCRIPTION)
    api.state.gateway = gateway
    # `/v2/models/stats` before `/v2/models/{model}`: as in Triton, a model of that name is not described.
    for routes in (routes_triton, routes_absent, routes_models, routes_requests, routes_repository):
        api.include_router(routes.router)
    api.include_router(routes_repository.catalogue)
    api.include_router(routes_optimization.router)
    api.include_router(routes_exports.router)
    api.include_router(routes_runtime.router)
    api.include_router(routes_assets.router)
    api.include_router(routes_documents.router)
    api.add_exception_handler(AiaasError, _ours)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(Exception, _bug)
    return Edge(_Crossing(InferRoute(gateway), api), gateway)


class _Crossing:
    """Inferences to the left, everything else to FastAPI: one look at the path instead of thirty."""

    def __init__(self, infer: ASGIApp, api: ASGIApp) -> None:
        self._infer = infer
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = PATH.fullmatch(scope["path"])
        if found is None:
            await self._api(scope, receive, send)
        else:
            scope["path_params"] = found.groupdict()
            await self._infer(scope, receive, send)


class _Api(FastAPI):
    """FastAPI, its OpenAPI document completed by the routes below it."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = document.completed(super().openapi())
        return self.openapi_schema


async def _ours(_request: Request, err: Exception) -> Response:
    return answers.of_error(err) if isinstance(err, AiaasError) else await _bug(_request, err)


async def _invalid(_request: Request, err: Exception) -> Response:
    """A query or path parameter that FastAPI refused."""
    errors = err.errors() if isinstance(err, RequestValidationError) else []
    told = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors)
    return answers.of_error(InvalidInput(told or "the request is not valid"))


async def _http(request: Request, err: Exception) -> Response:
    """An unknown path, or a method that it does not have."""
    status, detail = (err.status_code, err.detail) if isinstance(err, HTTPException) else (500, str(err))
    if status == _METHOD_NOT_ALLOWED:  # Starlette knows the methods of one of the path's routes
        return answers.method_not_allowed(detail, methods_of(request.url.path) or ["GET"])
    return answers.error("not_found" if status == _NOT_FOUND else AiaasError.code, detail)


async def _bug(_request: Request, _err: Exception) -> Response:
    """Starlette logs it; the caller learns nothing of our insides."""
    return answers.error(AiaasError.code, "the gateway failed; its log says why")
