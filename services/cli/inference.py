"""`aiaas infer` and `aiaas requests`: one request from the command line, and what became of others.

Inputs are `NAME=JSON` or `NAME=@FILE` with a `.npy` or `.json` file. The model's own metadata says which datatype a
list of numbers becomes; an array keeps its own. They travel in the protocol's binary form and come back as JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from rich.markup import escape

from services.cli.client import Gateway, Url
from services.cli.errors import CommandError, NotTried
from services.cli.printing import Json, as_json, console, table
from shared import tensors
from shared.errors import InvalidInput

requests = typer.Typer(no_args_is_help=True, help="Requests by id: their state, their result, and cancelling them.")

_US_PER_S = 1_000_000
_SHOWN_ELEMENTS = 12


def infer(
    model: str,
    inputs: Annotated[list[str], typer.Option("--input", "-i", help="NAME=JSON, NAME=@file.npy or NAME=@file.json.")],
    *,
    version: Annotated[int | None, typer.Option(help="This version; else the platform chooses.")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Give up after so many seconds.")] = 60.0,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the answer, or print the request's id.")
    ] = True,
    url: Url = None,
    json: Json = False,
) -> None:
    """Ask a model."""
    with Gateway(url) as gateway:
        datatypes = {spec["name"]: spec["datatype"] for spec in gateway.metadata(model, version)["inputs"]}
        body, header_length = encode([read_input(text, datatypes) for text in inputs], timeout_s)
        answer = gateway.infer(model, version, body, header_length, timeout_s=timeout_s, wait=wait)
    if json:
        as_json(answer)
    elif wait:
        _show_outputs(answer)
    else:
        console().print(f"{answer['id']}  (aiaas requests get {model} {answer['id']})", soft_wrap=True)


@requests.command("get")
def get(model: str, request_id: str, *, url: Url = None, json: Json = False) -> None:
    """The state of a request and, once it has one, its result. Exit code 1 if it did not succeed."""
    with Gateway(url) as gateway:
        _show_state(gateway.request(model, request_id), json=json)


@requests.command("cancel")
def cancel(model: str, request_id: str, *, url: Url = None, json: Json = False) -> None:
    """Cancel a request. Exit code 1 if its answer was there first."""
    with Gateway(url) as gateway:
        state = gateway.cancel(model, request_id)
    if json:
        as_json(state)
    else:
        console().print(f"{request_id} is {state['state']}")
    if state["state"] != "cancelled":
        raise typer.Exit(1)


def read_input(text: str, datatypes: dict[str, str]) -> tensors.Tensor:
    """One `NAME=VALUE` as a tensor of the datatype that the model wants.

    Raises:
        NotTried: no such input, no such file, or a value that is no such tensor.
    """
    name, equals, value = text.partition("=")
    if not equals or name not in datatypes:
        raise NotTried(f"--input {text[:60]!r} must be NAME=VALUE with a name out of {', '.join(sorted(datatypes))}.")
    try:
        if value.startswith("@") and value.endswith(".npy"):
            datatype = "BF16" if datatypes[name] == "BF16" else None
            return tensors.from_numpy(name, np.load(value[1:], allow_pickle=False), datatype)
        elements = orjson.loads(Path(value[1:]).read_bytes() if value.startswith("@") else value)
        return tensors.from_json(
            name, datatypes[name], _shape(elements), elements if isinstance(elements, list) else [elements]
        )
    except (InvalidInput, OSError, ValueError) as err:
        raise NotTried(f"--input {name}: {err}.") from err


def encode(inputs: list[tensors.Tensor], timeout_s: float) -> tuple[bytes, int]:
    """A request in the protocol's binary form, and the length of its JSON header in bytes."""
    header = orjson.dumps(
        {
            "parameters": {"timeout": int(timeout_s * _US_PER_S), "binary_data_output": False},
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(tensor.data)},
                }
                for tensor in inputs
            ],
        }
    )
    return b"".join([header, *(tensor.data for tensor in inputs)]), len(header)


def _shape(elements: Any) -> tuple[int, ...]:
    """The shape of nested lists, by their first elements; `from_json` holds the others against it."""
    shape: tuple[int, ...] = ()
    while isinstance(elements, list):
        shape += (len(elements),)
        elements = elements[0] if elements else None
    return shape


def _show_outputs(answer: dict[str, Any]) -> None:
    shown = table("output", "datatype", "shape", "data")
    for output in answer["outputs"]:
        data = output["data"]
        more = f", … ({len(data)} in all; --json shows them)" if len(data) > _SHOWN_ELEMENTS else ""
        first = ", ".join(str(element) for element in data[:_SHOWN_ELEMENTS])
        shown.add_row(output["name"], output["datatype"], escape(str(output["shape"])), escape(first) + more)
    console().print(f"{answer['model_name']} version {answer['model_version']}")
    console().print(shown)


def _show_state(state: dict[str, Any], *, json: bool) -> None:
    """Print a request's state; one that ended without an answer is an error."""
    if json:
        as_json(state)
    elif state["result"]:
        _show_outputs(state["result"])
    elif not state["error"]:
        console().print(f"{state['id']} is {state['state']}")
    if state["error"]:
        raise CommandError(f"{state['id']} {state['state']}: {state['error']['message']} ({state['error']['code']}).")
