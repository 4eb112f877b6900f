"""One ONNX model and the Open Inference Protocol's JSON around it, for servers that bring neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_BATCH = 32
MAX_WAIT_MS = 1
"""How long a server that waits for a batch to fill may wait: the least that all of them can be told."""
_DTYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
_DATATYPES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class OnnxModel:
    """A session, and the names of what goes in and comes out."""

    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self._session.get_inputs()]
        self.outputs = [each.name for each in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """All outputs, in the model's order."""
        outputs: list[Any] = self._session.run(self.outputs, feeds)
        return outputs

    def run_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        """Several requests of one row each as one batch; the outputs of each."""
        outputs = self.run({name: np.concatenate([row[name] for row in rows]) for name in self.inputs})
        return [[output[at : at + 1] for output in outputs] for at in range(len(rows))]

    def answer(self, outputs: Sequence[Any]) -> bytes:
        """The body of an answer."""
        shown = [
            {"name": name, "datatype": _DATATYPES[array.dtype], "shape": array.shape, "data": array.ravel()}
            for name, array in zip(self.outputs, outputs, strict=True)
        ]
        return orjson.dumps({"model_name": "model", "outputs": shown}, option=orjson.OPT_SERIALIZE_NUMPY)


def feeds(body: bytes) -> dict[str, Any]:
    """The inputs in the body of a request."""
    return arrays(orjson.loads(body))


def arrays(request: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs in a request whose JSON somebody else has read."""
    return {
        each["name"]: np.array(each["data"], _DTYPES[each["datatype"]]).reshape(each["shape"])
        for each in request["inputs"]
    }
