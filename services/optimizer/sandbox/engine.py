"""ONNX Runtime as the sandbox uses it: a session from bytes, and runs that end.

The session options are those of the worker, so that what is measured here is what serves there. A model is loaded from
bytes, never from a path. Everything ONNX Runtime raises becomes a `Rejection`; whether that condemns the model or only
one attempt to run it, the caller knows. BF16 goes in and out as bit patterns through OrtValues, as numpy has no such
type.
"""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import onnxruntime as ort

from services.optimizer.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shared.signature import Signature
    from shared.tensors import Array

PROVIDERS: Final = ("CPUExecutionProvider",)
_ONNX_BFLOAT16: Final = 16
_FATAL_ONLY: Final = 4

Feeds = dict[str, "Array"]
"""An array for each input by name: `shared.tensors.DTYPES`, but strings as `str` objects."""


class Runner(Protocol):
    """What runs a model: `Engine` here, or `torch_engine` what did not become ONNX."""

    outputs: list[str]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs, in the signature's order.

        Raises:
            Rejection: `execution_failed`, `out_of_memory`, or `run_timeout`.
        """

    def duration_s(self, feeds: Mapping[str, Array]) -> float:
        """How long one run takes, in seconds. Raises as `run`."""


class Engine:
    """One loaded variant."""

    def __init__(self, content: bytes, signature: Signature, *, threads: int, run_timeout_s: float) -> None:
        """Load.

        Raises:
            Rejection: ONNX Runtime does not load it.
        """
        self.outputs = [spec.name for spec in signature.outputs]
        self._bf16 = {spec.name for spec in (*signature.inputs, *signature.outputs) if spec.datatype == "BF16"}
        self._run_timeout_s = run_timeout_s
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        try:
            self._session = ort.InferenceSession(content, options, providers=list(PROVIDERS))
        except Exception as err:  # ONNX Runtime raises its own types, all plain Exceptions
            raise _load_failure(err) from err

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs, in the signature's order.

        Raises:
            Rejection: `execution_failed`, `out_of_memory`, or `run_timeout` after the time a run may take.
        """
        with _deadline(self._run_timeout_s) as options:
            if self._bf16:
                return self._run_values(feeds, options)
            return [np.asarray(output) for output in self._session.run(self.outputs, dict(feeds), options)]

    def duration_s(self, feeds: Mapping[str, Array]) -> float:
        """How long one run takes, in seconds. Raises as `run`."""
        with _deadline(self._run_timeout_s) as options:
            began_s = time.perf_counter()
            if self._bf16:
                self._run_values(feeds, options)
            else:
                self._session.run(self.outputs, dict(feeds), options)
            return time.perf_counter() - began_s

    def _run_values(self, feeds: Mapping[str, Array], options: ort.RunOptions) -> list[Array]:
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            if name in self._bf16
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        return [_array(value) for value in self._session.run_with_ort_values(self.outputs, values, options)]


@contextmanager
def _deadline(timeout_s: float) -> Iterator[ort.RunOptions]:
    """Options of a run that ONNX Runtime ends, between two nodes, once `timeout_s` have passed."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        options.terminate = True

    timer = threading.Timer(timeout_s, expire)
    timer.daemon = True
    timer.start()
    try:
        yield options
    except Exception as err:  # as above
        if expired.is_set():
            raise Rejection("run_timeout", f"One run took longer than {timeout_s:g} s") from err
        raise Rejection("out_of_memory" if _is_memory(err) else "execution_failed", _message(err)) from err
    finally:
        timer.cancel()


def _load_failure(err: Exception) -> Rejection:
    message = _message(err)
    if _is_memory(err):
        return Rejection("out_of_memory", message)
    if "NOT_IMPLEMENTED" in message:
        return Rejection("unsupported_operator", message)
    if "opset" in message.lower() or "IR_VERSION" in message:
        return Rejection("unsupported_opset", message)
    return Rejection("load_failed", message)


def _is_memory(err: Exception) -> bool:
    text = str(err)
    signs = ("bad_alloc", "Failed to allocate memory", "length_error", "Integer overflow", "bad array new length")
    return isinstance(err, MemoryError) or any(sign in text for sign in signs)


def _message(err: Exception) -> str:
    return f"ONNX Runtime: {err}"[:1000]


def _array(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    bits: Any = ctypes.cast(value.data_ptr(), ctypes.POINTER(ctypes.c_uint16))
    return np.ctypeslib.as_array(bits, tuple(value.shape())).copy()
