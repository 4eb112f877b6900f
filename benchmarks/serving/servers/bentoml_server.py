"""BentoML (https://docs.bentoml.com): a service with adaptive batching.

Its batches are made of arrays, so a request is `{"rows": [[…]]}`: one row, its inputs stacked, and the answer the bare
array. That is less to decode and encode than what the others get.
"""

from __future__ import annotations

import os

import bentoml  # type: ignore[import-not-found]  # the peer's own environment has it
import numpy as np
import numpy.typing as npt

from benchmarks.serving.servers.onnx_model import MAX_BATCH, OnnxModel


@bentoml.service(workers=1, traffic={"timeout": 60}, http={"port": int(os.environ["BENCH_PORT"])})
class Infer:
    """One model."""

    def __init__(self) -> None:
        self._model = OnnxModel(os.environ["BENCH_MODEL"], int(os.environ["BENCH_THREADS"]))
        self._dtype = np.dtype(os.environ["BENCH_DTYPE"])

    @bentoml.api(route="/infer", batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)  # type: ignore[untyped-decorator]  # as above
    def infer(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Rows of stacked inputs to the first output's rows."""
        typed = rows.astype(self._dtype)
        stacked = {name: typed[:, at] for at, name in enumerate(self._model.inputs)}
        output: npt.NDArray[np.float32] = self._model.run(stacked)[0]
        return output
