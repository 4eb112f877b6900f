"""`aiaas requests`: what became of requests, by their ids. There is no list: nothing in the platform keeps one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.client import Gateway, Url
from services.cli.errors import CommandError, NotTried, Refused
from services.cli.inference import show_outputs
from services.cli.printing import Json, activity, as_json, console

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(no_args_is_help=True, help="Requests by id: their state, their result, and cancelling them.")

_AGAIN_S = 1.0
_QUIET_S = 45.0
"""A stream from which nothing comes for so long, not even a comment, is dead."""
_UNAVAILABLE = 503


@app.command("get")
def get(model: str, request_id: str, *, url: Url = None, json: Json = False) -> None:
    """The state of a request and, once it has one, its result. Exit code 1 if it ended without one."""
    with Gateway(url) as gateway:
        _show(gateway.request(model, request_id), json=json)


@app.command("follow")
def follow(
    model: str,
    request_id: str,
    *,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Give up after so many seconds.")] = 600.0,
    url: Url = None,
    json: Json = False,
) -> None:
    """Tell where a request is until it has ended, then its result. Exit code 1 if it ended without one."""
    with Gateway(url) as gateway, activity(console(stderr=True)) as say:
        state = followed(gateway, model, request_id, say, timeout_s=timeout_s)
    _show(state, json=json)


@app.command("cancel")
def cancel(model: str, request_id: str, *, url: Url = None, json: Json = False) -> None:
    """Cancel a request, queued or running. Exit code 1 if its answer was there first."""
    with Gateway(url) as gateway:
        state = gateway.cancel(model, request_id)
    if json:
        as_json(state)
    else:
        console().print(f"{request_id} is {state['state']}")
    if state["state"] != "cancelled":
        raise typer.Exit(1)


def followed(
    gateway: Gateway, model: str, request_id: str, say: Callable[[str], None], *, timeout_s: float
) -> dict[str, Any]:
    """Wait for the end of a request; returns it as the gateway shows it. A stream that breaks is taken up again.

    Raises:
        NotTried, Refused: the gateway did not begin to tell.
        CommandError: it has not ended after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    last = None
    while (left_s := deadline_s - time.monotonic()) > 0:
        try:
            for name, state in gateway.events(model, request_id, quiet_s=min(_QUIET_S, left_s)):
                if name == "outcome":
                    return state
                if name == "state":
                    last = _words(state)
                    say(f"{request_id}: {last}")
                if time.monotonic() > deadline_s:
                    break
        except (NotTried, Refused) as err:
            if last is None or (isinstance(err, Refused) and err.status != _UNAVAILABLE):
                raise
        time.sleep(min(_AGAIN_S, max(0.0, deadline_s - time.monotonic())))
    raise CommandError(
        f"{request_id} is still {last or 'waited for'} after {timeout_s:g} s: "
        f"`aiaas requests get {model} {request_id}` tells later."
    )


def _words(state: dict[str, Any]) -> str:
    position = state["queue_position"]
    where = "" if position is None else ", next" if position == 0 else f", {position} before it"
    return f"{state['state']}{where}"


def _show(state: dict[str, Any], *, json: bool) -> None:
    """Print a request's state; one that ended without an answer is an error."""
    if json:
        as_json(state)
    elif state["result"]:
        show_outputs(state["result"])
    elif not state["error"]:
        console().print(f"{state['id']} is {_words(state)}")
    if state["error"]:
        raise CommandError(f"{state['id']} {state['state']}: {state['error']['message']} ({state['error']['code']}).")
