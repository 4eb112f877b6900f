"""A version that is worse than the one that answers, as a training that went wrong makes one: the gate refuses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from services.cli.client import Gateway
from services.cli.demo import proof
from services.cli.errors import CommandError
from services.cli.follow import follow
from services.cli.printing import activity
from services.cli.updates import stored_options

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from services.cli.demo.place import Place

_TIMEOUT_S: Final = 300.0
_DIGITS: Final = 10
_FORGOTTEN: Final = 8


def refused(out: Console, place: Place, model: str, path: Path) -> None:
    """Upload a version that never answers with one of the digits, and ask for its promotion.

    Raises:
        CommandError: it was promoted.
    """
    content = forgetful(path.read_bytes(), _FORGOTTEN)
    with Gateway(place.gateway_url) as gateway:
        options = stored_options(gateway, {"candidates": []})
        number = gateway.upload(model, [content], len(content), optimization=options)["version"]
        with activity(out) as say:
            say(f"version {number}, which has forgotten what an {_FORGOTTEN} looks like")
            version = follow(gateway, model, number, lambda _words, _part: None, timeout_s=_TIMEOUT_S)
        if version["state"] != "ready":
            raise CommandError(f"{model} version {number} was {version['state']}: {version['reason']}")
        proof.refuse(out, place, model, number)
        if gateway.versions(model)["active"] == number:
            raise CommandError(f"Version {number} of {model} answers, which was refused.")


def forgetful(content: bytes, digit: int) -> bytes:
    """The model with a bias against one of its classes.

    Raises:
        CommandError: it has no layer with a bias for each class.
    """
    graph = onnx.load_from_string(content)
    for tensor in reversed(graph.graph.initializer):
        if list(tensor.dims) == [_DIGITS]:
            bias = onnx.numpy_helper.to_array(tensor).copy()
            bias[digit] = np.finfo(bias.dtype).min / 2
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
            return bytes(graph.SerializeToString())
    raise CommandError("The demo's model has no bias to change.")
