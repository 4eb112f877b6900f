"""The gateway's HTTP, as the commands need it: paths and errors in one place, answers as they came.

Synchronous, since a command does one thing at a time. Every wait is bounded; nothing is retried, except by whoever
follows something over time (`follow.py`).
"""

from __future__ import annotations

import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import quote

import httpx
import orjson
import typer

from services.cli import events
from services.cli.errors import NotTried, Refused
from services.cli.trust import trust
from services.cli.where import gateway_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Url = Annotated[
    str | None, typer.Option("--url", envvar="AIAAS_GATEWAY_URL", help="The gateway; by default the stack's that runs.")
]
"""The option of every command that talks to the gateway."""

_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 30.0
_UNAUTHORIZED = 401


class Gateway:
    """One gateway. Methods raise `NotTried` when nothing answers, `Refused` when it answers with an error."""

    def __init__(self, url: str | None = None) -> None:
        self.url = gateway_url(url)
        key = os.environ.get("AIAAS_API_KEY")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            verify=trust(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """All models, each with its versions."""
        answer: list[dict[str, Any]] = self._json("GET", "/v2/repository/models")
        return answer

    def versions(self, model: str) -> dict[str, Any]:
        """A model with its versions."""
        return self._map("GET", f"{_model(model)}/versions")

    def version(self, model: str, number: int) -> dict[str, Any]:
        """A version: its state, its variants with what was measured, and why others were rejected."""
        return self._map("GET", f"{_model(model)}/versions/{number}")

    def store(self, content: Iterable[bytes], byte_size: int) -> dict[str, Any]:
        """Stream a file of `byte_size` bytes to the artifact store; returns its claim check."""
        return self._map(
            "POST",
            "/v2/repository/assets",
            content=content,
            headers={"content-type": "application/octet-stream", "content-length": str(byte_size)},
        )

    def upload(
        self,
        model: str,
        content: Iterable[bytes],
        byte_size: int,
        version: int | None = None,
        processing: str | None = None,
        optimization: str | None = None,
        config: str | None = None,
    ) -> dict[str, Any]:
        """Stream a model file of `byte_size` bytes to the gateway; returns when it is in the log.

        `processing` is the digest of a stored declaration, `optimization` that of stored options, `config` that of a
        stored runtime configuration.
        """
        asked = {"version": version, "processing": processing, "optimization": optimization, "config": config}
        return self._map(
            "POST",
            f"{_model(model)}/versions",
            params={name: value for name, value in asked.items() if value is not None},
            content=content,
            headers={"content-type": "application/octet-stream", "content-length": str(byte_size)},
        )

    def change(self, model: str, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Decide something about a model: `rollback`, `traffic`, `retire`, `versions/{v}/promote` or `…/retire`."""
        return self._map("POST", f"{_model(model)}/{what}", **({"json": body} if body is not None else {}))

    def export(self, model: str, number: int, file_format: str, variant: str | None) -> dict[str, Any]:
        """Ask for a version in another format; how far that is."""
        asked = {"format": file_format, "variant": variant}
        params = {name: value for name, value in asked.items() if value is not None}
        return self._map("POST", f"{_model(model)}/versions/{number}/export", params=params)

    def get(self, path: str) -> dict[str, Any]:
        """What lies at a path that the gateway told."""
        return self._map("GET", path)

    def download(self, path: str) -> Iterator[bytes]:
        """A file, piece by piece. `NotTried` also when it breaks off."""
        with _reached(self.url), self._http.stream("GET", path) as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            yield from response.iter_raw()

    def configure(self, model: str, path: str, config: bytes) -> dict[str, Any]:
        """Say how workers run a model (`config`) or a version (`versions/{v}/config`)."""
        return self._map(
            "POST", f"{_model(model)}/{path}", content=config, headers={"content-type": "application/json"}
        )

    def config(self, model: str, version: int | None = None) -> dict[str, Any]:
        """The configuration as Triton has it, and the workers that hold it."""
        return self._map("GET", f"{_served(model, version)}/config")

    def workers(self) -> list[dict[str, Any]]:
        """Live workers and optimizers, their machines and what they hold."""
        answer: list[dict[str, Any]] = self._json("GET", "/v2/workers")
        return answer

    def metadata(self, model: str, version: int | None = None) -> dict[str, Any]:
        """A model's inputs and outputs, as the Open Inference Protocol describes them."""
        return self._map("GET", _served(model, version))

    def infer(
        self,
        model: str,
        version: int | None,
        body: bytes,
        header_length: int,
        *,
        timeout_s: float,
        wait: bool = True,
        key: str | None = None,
    ) -> dict[str, Any]:
        """An inference in the protocol's binary form, answered in JSON; without `wait`, where to ask for the answer."""
        headers = {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(header_length),
            **({} if wait else {"prefer": "respond-async"}),
            **({} if key is None else {"idempotency-key": _quoted(key)}),
        }
        patience = httpx.Timeout(timeout_s + _ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        return self._map("POST", f"{_served(model, version)}/infer", content=body, headers=headers, timeout=patience)

    def request(self, model: str, request_id: str) -> dict[str, Any]:
        """The state of a request, and its result once it has one."""
        return self._map("GET", _request(model, request_id))

    def events(self, model: str, request_id: str, *, quiet_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """The states of a request as they change, named `state` or `outcome`, until the gateway ends the stream.

        `NotTried` also when nothing comes for `quiet_s`, or the stream breaks.
        """
        patience = httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S, read=quiet_s)
        with (
            _reached(self.url),
            self._http.stream("GET", f"{_request(model, request_id)}/events", timeout=patience) as response,
        ):
            if response.is_error:
                response.read()
                raise _refusal(response)
            for name, data in events.parse(response.iter_bytes()):
                yield name, orjson.loads(data)

    def give_feedback(self, model: str, request_id: str, feedback: Mapping[str, Any]) -> dict[str, Any]:
        """Tell what the right answer to a request would have been: `{"label": [3]}` or `{"outputs": {…}}`."""
        return self._map("POST", f"{_request(model, request_id)}/feedback", json=feedback)

    def cancel(self, model: str, request_id: str) -> dict[str, Any]:
        """Cancel a request; the state that it then has, which is another if the answer was faster."""
        return self._map("DELETE", _request(model, request_id))

    def _map(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._json(method, path, **options)
        return answer

    def _json(self, method: str, path: str, **options: Any) -> Any:
        with _reached(self.url):
            response = self._http.request(method, path, **options)
        if response.is_error:
            raise _refusal(response)
        return response.json()


def _model(name: str) -> str:
    return f"/v2/repository/models/{quote(name, safe='')}"


def _request(model: str, request_id: str) -> str:
    return f"{_served(model)}/requests/{quote(request_id, safe='')}"


def _served(name: str, version: int | None = None) -> str:
    return f"/v2/models/{quote(name, safe='')}" + (f"/versions/{version}" if version is not None else "")


def _quoted(key: str) -> str:
    """A key as the structured string that the header is.

    Raises:
        NotTried: it is not printable ASCII.
    """
    if not (key.isascii() and key.isprintable()):
        raise NotTried(f"--key {key[:60]!r} must be printable ASCII.")
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as err:
        if isinstance(_root(err), ssl.SSLCertVerificationError):
            raise NotTried(f"{url} is not trusted ({err}): AIAAS_CA_FILE names the file of who is.") from err
        raise NotTried(
            f"No gateway answers at {url} ({err or type(err).__name__}): `aiaas up` starts a platform here, "
            "--url or AIAAS_GATEWAY_URL names another."
        ) from err


def _root(err: BaseException) -> BaseException:
    """Where it began: httpx wraps what the socket raised."""
    while (cause := err.__cause__ or err.__context__) is not None:
        err = cause
    return err


def _refusal(response: httpx.Response) -> Refused | NotTried:
    """The gateway's sentence; whatever else answered, say so."""
    if response.status_code == _UNAUTHORIZED:
        return NotTried("The gateway wants an API key that it knows: set AIAAS_API_KEY.")
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = f"{response.url} answered {response.status_code} and no reason: is that a gateway?"
    return Refused(message, response.status_code)
