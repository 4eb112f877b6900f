"""Models of one network in every format that is taken, and the answers that all of them must give."""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from support import network as the_network
from support import uploads
from support.network import CONFIG, SIZES, archive, bundle, members, weights

answers, rows = the_network.answers, the_network.rows

TAKES = {"inputs": [{"name": "x", "datatype": "FP32", "shape": ["batch", 8]}], "outputs": ["y"]}
"""What the TorchScript file can't say of itself."""


def changed(content, **new):
    """A torch archive with other contents in some members, found by the ends of their names."""
    held = members(content)
    for ending, value in new.items():
        name = next(name for name in held if name.endswith(ending.replace("__", ".")))
        held[name] = value
    return archive(held)


def safetensors(arrays):
    names = {"float32": "F32", "int64": "I64", "float16": "F16"}
    header, body = {}, b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@cache
def network():
    """The network as a torch module."""
    module = nn.Sequential(nn.Linear(*SIZES[:2]), nn.ReLU(), nn.Linear(*SIZES[1:]))
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights().items()})
    return module.eval()


def as_safetensors():
    return bundle(config__json=CONFIG, model__safetensors=safetensors(weights()))


class Named(torch.nn.Module):
    """The network, whose input has a name."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x)


class Bessel(Named):
    """With an operator behind it that torch's exporters to ONNX do not know."""

    def forward(self, x):
        return torch.special.bessel_j0(self.net(x))


class Drawn(Named):
    """With random numbers behind it."""

    def forward(self, x):
        return torch.special.bessel_j0(self.net(x)) + torch.rand_like(self.net(x))


def bessel(x):
    """What `Bessel` answers."""
    return torch.special.bessel_j0(torch.from_numpy(answers(x))).numpy()


def exported(module):
    """A module that takes rows of the network, as a `.pt2`."""
    with quiet():
        program = torch.export.export(
            module, (torch.zeros(2, SIZES[0]),), dynamic_shapes=({0: torch.export.Dim("rows")},)
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return buffer.getvalue()


@cache
def as_pt2():
    return exported(Named())


def scripted(module, takes=TAKES):
    """A module as TorchScript that says what it takes."""
    buffer = io.BytesIO()
    with quiet():
        extra = {} if takes is None else {"config.json": json.dumps(takes)}
        torch.jit.save(torch.jit.script(module), buffer, _extra_files=extra)
    return buffer.getvalue()


@cache
def as_torchscript():
    return scripted(network())


def as_onnx():
    """By hand, as one file."""
    made = uploads.mlp(SIZES)
    _fill(made)
    return made.SerializeToString()


def as_onnx_bundle():
    """The same with its data in another file, below a directory."""
    made = uploads.mlp(SIZES)
    _fill(made)
    data = b""
    for tensor in made.graph.initializer:
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        for key, value in (("location", "weights/data.bin"), ("offset", str(len(data))), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
        data += raw
    return archive(
        {"m/model.onnx": made.SerializeToString(), "m/weights/data.bin": data, "m/README.md": "x"}, zipfile.ZIP_DEFLATED
    )


def _fill(made):
    held = weights()
    names = {"w0": "0.weight", "b0": "0.bias", "w1": "2.weight", "b1": "2.bias"}
    for tensor in made.graph.initializer:
        tensor.raw_data = held[names[tensor.name]].tobytes()
        tensor.dims[:] = held[names[tensor.name]].shape


FORMATS = {
    "onnx": as_onnx,
    "onnx-bundle": as_onnx_bundle,
    "safetensors": as_safetensors,
    "pt2": as_pt2,
    "torchscript": as_torchscript,
}

NOT_ONNX = {
    "pt2": cache(lambda: exported(Bessel())),
    "torchscript": cache(lambda: scripted(Bessel())),
}
"""Of a network with an operator that ONNX does not have, by format."""


def package(name):
    """Where a package of models lies; skips where it is not installed."""
    found = find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed (make models)")
    return Path(found.origin).parent


def quiet():
    """torch warns of what it itself deprecates."""
    logging.getLogger("torch").setLevel(logging.ERROR)
    caught = warnings.catch_warnings()

    class Quiet:
        def __enter__(self):
            caught.__enter__()
            warnings.simplefilter("ignore")

        def __exit__(self, *about):
            caught.__exit__(*about)

    return Quiet()
