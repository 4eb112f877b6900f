"""`aiaas infer`: one request from the command line.

Inputs are `NAME=JSON` or `NAME=@FILE` with a `.npy` or `.json` file. The model's own metadata says which datatype a
list of numbers becomes; an array keeps its own. An input of BYTES is a text as it stands there, or the content of any
other file, `-` being standard input; given several times, it has several elements. They travel in the protocol's
binary form and come back as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from msgspec.structs import replace
from rich.markup import escape

from services.cli.client import Gateway, Url
from services.cli.errors import NotTried
from services.cli.printing import Json, as_json, console, table
from shared import tensors
from shared.errors import InvalidInput

_US_PER_S = 1_000_000
_SHOWN_ELEMENTS = 12


def infer(
    model: str,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input", "-i", help="NAME=JSON, NAME=@file.npy, NAME=@file.json, NAME=text or NAME=@picture.jpg."
        ),
    ],
    *,
    version: Annotated[int | None, typer.Option(help="This version; else the platform chooses.")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Give up after so many seconds.")] = 60.0,
    wait: Annotated[
        bool, typer.Option("--wait/--async", " /--no-wait", help="Wait for the answer, or print the request's id.")
    ] = True,
    key: Annotated[
        str | None, typer.Option(help="An Idempotency-Key: sent again with it, the request is answered, not run again.")
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Put the outputs into the platform's store, and say where they are.")
    ] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Ask a model."""
    with Gateway(url) as gateway:
        datatypes = {spec["name"]: spec["datatype"] for spec in gateway.metadata(model, version)["inputs"]}
        given = joined([read_input(text, datatypes) for text in inputs])
        body, header_length = encode(given, timeout_s, store_outputs=store)
        answer = gateway.infer(model, version, body, header_length, timeout_s=timeout_s, wait=wait, key=key)
    if json:
        as_json(answer)
    elif wait:
        show_outputs(answer)
    else:
        console().print(f"{answer['id']}  (aiaas requests follow {model} {answer['id']})", soft_wrap=True)


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
        if datatypes[name] == "BYTES" and (content := _content(value)) is not None:
            return tensors.from_numpy(name, np.array([content], dtype=object))
        elements = orjson.loads(Path(value[1:]).read_bytes() if value.startswith("@") else value)
        return tensors.from_json(
            name, datatypes[name], _shape(elements), elements if isinstance(elements, list) else [elements]
        )
    except (InvalidInput, OSError, ValueError) as err:
        raise NotTried(f"--input {name}: {err}.") from err


def joined(inputs: list[tensors.Tensor]) -> list[tensors.Tensor]:
    """The inputs, those of BYTES that were given several times as one with all their elements.

    Raises:
        NotTried: another was given twice, or the elements are not in one row each.
    """
    by_name: dict[str, tensors.Tensor] = {}
    for tensor in inputs:
        first = by_name.get(tensor.name)
        if first is not None:
            if tensor.datatype != "BYTES" or len(first.shape) != 1 or len(tensor.shape) != 1:
                raise NotTried(f"--input {tensor.name} was given twice.")
            both = bytes(first.data) + bytes(tensor.data)
            tensor = replace(first, shape=(first.shape[0] + tensor.shape[0],), data=both)  # noqa: PLW2901 - the sum
        by_name[tensor.name] = tensor
    return list(by_name.values())


def _content(value: str) -> bytes | None:
    """The one element of BYTES that a value is: a text, in quotes or not, or a file; None for a list of elements."""
    if value == "@-":
        return sys.stdin.buffer.read()
    if value.startswith("@"):
        return None if value.endswith(".json") else Path(value[1:]).read_bytes()
    try:
        parsed = orjson.loads(value)
    except ValueError:
        return value.encode()
    if isinstance(parsed, list):
        return None
    return (parsed if isinstance(parsed, str) else value).encode()


def encode(inputs: list[tensors.Tensor], timeout_s: float, *, store_outputs: bool = False) -> tuple[bytes, int]:
    """A request in the protocol's binary form, and the length of its JSON header in bytes."""
    stored = {"store_outputs": True} if store_outputs else {}
    header = orjson.dumps(
        {
            "parameters": {"timeout": int(timeout_s * _US_PER_S), "binary_data_output": False, **stored},
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


def show_outputs(answer: dict[str, Any]) -> None:
    """The outputs of an answer as a table, long ones from their beginning."""
    shown = table("output", "datatype", "shape", "data")
    for output in answer["outputs"]:
        data = output.get("data", ())
        more = f", … ({len(data)} in all; --json shows them)" if len(data) > _SHOWN_ELEMENTS else ""
        first = ", ".join(str(element) for element in data[:_SHOWN_ELEMENTS])
        at = "" if "uri" not in (parameters := output.get("parameters", {})) else f"\n{parameters['uri']}"
        shown.add_row(
            output["name"], output["datatype"], escape(str(output["shape"])), escape(first) + more + escape(at)
        )
    console().print(f"{answer['model_name']} version {answer['model_version']}")
    console().print(shown)
