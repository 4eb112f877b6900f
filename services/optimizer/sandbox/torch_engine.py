"""torch as the sandbox uses it: a program that did not become ONNX, run as the worker's torch engine runs it.

torch can't be told to stop within a run: one that takes too long is refused when it has ended, and the sandbox's own
time ends one that does not end.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from services.optimizer.conversion.exporting import flat
from services.optimizer.conversion.source import first_line
from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.optimizer.conversion.source import Loaded
    from shared.signature import Signature
    from shared.tensors import Array


class TorchEngine:
    """One loaded program; see `engine.Runner`."""

    def __init__(self, loaded: Loaded, signature: Signature, *, threads: int, run_timeout_s: float) -> None:
        self.outputs = [spec.name for spec in signature.outputs]
        self._module = loaded.module
        self._inputs = [(spec.name, spec.datatype) for spec in signature.inputs]
        self._datatypes = [spec.datatype for spec in signature.outputs]
        self._run_timeout_s = run_timeout_s
        torch.set_num_threads(threads)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """See `Runner`."""
        answer, _ = self._timed(feeds)
        if len(answer) != len(self._datatypes):
            raise Rejection("execution_failed", f"It gave {len(answer)} tensors, and {len(self._datatypes)} before")
        return [_array(tensor, datatype) for tensor, datatype in zip(answer, self._datatypes, strict=True)]

    def duration_s(self, feeds: Mapping[str, Array]) -> float:
        """See `Runner`."""
        return self._timed(feeds)[1]

    def _timed(self, feeds: Mapping[str, Array]) -> tuple[list[torch.Tensor], float]:
        began_s = time.perf_counter()
        try:
            with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
                answer = flat(self._module(*(_tensor(feeds[name], datatype) for name, datatype in self._inputs)))
        except Exception as err:
            code = "out_of_memory" if _is_memory(err) else "execution_failed"
            raise Rejection(code, f"torch: {first_line(err)}") from err
        took_s = time.perf_counter() - began_s
        if took_s > self._run_timeout_s:
            raise Rejection("run_timeout", f"One run took {took_s:.1f} s, longer than {self._run_timeout_s:g} s")
        return answer, took_s


def _is_memory(err: Exception) -> bool:
    return isinstance(err, MemoryError) or "can't allocate memory" in str(err)


def _tensor(array: Array, datatype: str) -> Any:
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def _array(tensor: torch.Tensor, datatype: str) -> Array:
    found = tensor.contiguous()
    return np.asarray((found.view(torch.uint16) if datatype == "BF16" else found).numpy())
