"""One small network: its weights, what it answers, and archives to put it into. No framework."""

from __future__ import annotations

import io
import json
import zipfile
from itertools import pairwise

import numpy as np

SIZES = (8, 16, 4)
CONFIG = {"architecture": "mlp", "sizes": SIZES, "input": "x", "output": "y"}


def bundle(compression=zipfile.ZIP_STORED, /, **members):
    """A zip; a `__` in a name stands for a dot, and what is neither bytes nor text becomes JSON."""
    return archive({name.replace("__", "."): content for name, content in members.items()}, compression)


def archive(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content if isinstance(content, bytes | str) else json.dumps(content))
    return buffer.getvalue()


def members(content):
    """The files of a zip, by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as made:
        return {name: made.read(name) for name in made.namelist()}


def weights():
    """Of the network, under the names of `torch.nn.Sequential`."""
    random = np.random.default_rng(3)
    found = {}
    for index, (given, made) in enumerate(pairwise(SIZES)):
        found[f"{2 * index}.weight"] = random.standard_normal((made, given)).astype(np.float32)
        found[f"{2 * index}.bias"] = random.standard_normal(made).astype(np.float32)
    return found


def rows(count=5):
    return np.random.default_rng(4).standard_normal((count, SIZES[0])).astype(np.float32)


def answers(x):
    """What the network answers, by numpy."""
    held = weights()
    return np.maximum(x @ held["0.weight"].T + held["0.bias"], 0) @ held["2.weight"].T + held["2.bias"]
