"""Engines run a variant's bytes. One today: ONNX Runtime, on CUDA where a session really got it, else on the CPU.

A run happens in the lane's thread, off the event loop, and has a deadline: ONNX Runtime checks `terminate` between
nodes, so a run past its deadline ends soon after. One that doesn't end even then holds the device for good; that is
`EngineStuck`, and the process must go (its poison marker stays and tells the next owner).

ONNX strings are text: BYTES that aren't UTF-8 can't go in. BF16 goes in and out as bit patterns through OrtValues,
since numpy has no such type.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from shared.errors import ExecutionFailed, InvalidInput, ModelNotReady, RequestCancelled, RunTimeout
from shared.events import Runtime
from shared.machine import isa

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Executor

    from services.worker.settings import WorkerSettings
    from shared.errors import AiaasError
    from shared.signature import Signature
    from shared.tensors import Array

_ONNX_BFLOAT16 = 16
"""`TensorProto.BFLOAT16` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto)."""
_TERMINATE_GRACE_S = 10.0
_LOOK_S = 0.1
"""How often a long run is asked for: does anyone still want its answer?"""


async def _never() -> bool:
    return False


class EngineStuck(RuntimeError):
    """A run that went on after it was told to end. Not an answer to a request: the end of this process."""


def providers(settings: WorkerSettings) -> list[str]:
    """Execution providers to ask for, best first."""
    if settings.device == "cpu" or "CUDAExecutionProvider" not in ort.get_available_providers():
        return ["CPUExecutionProvider"]
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


class OnnxEngine:
    """One loaded variant. Building it is slow: do it off the event loop, with `load`."""

    def __init__(self, session: ort.InferenceSession, signature: Signature, threads: int) -> None:
        self._session = session
        self._inputs = {spec.name: spec.datatype for spec in signature.inputs}
        self._outputs = [spec.name for spec in signature.outputs]
        self._has_bf16 = any(spec.datatype == "BF16" for spec in (*signature.inputs, *signature.outputs))
        self.runtime = Runtime(
            engine="onnxruntime",
            version=ort.__version__,
            provider=session.get_providers()[0],  # what it got, not what was asked for
            options={"graph_optimization_level": "all", "inter_op_threads": 1, "allow_spinning": False},
            threads=threads,
            isa=isa(),
        )

    @classmethod
    def load(cls, content: bytes, signature: Signature, settings: WorkerSettings) -> OnnxEngine:
        """Build a session from bytes: never from a path, which ONNX Runtime would follow to external data.

        Raises:
            ModelNotReady: the bytes do not load here, or not on the device that was insisted on.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        # Spinning threads take the cores that decode and encode beside the run, and those of other services.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what fails is raised; the rest is noise on stderr
        wanted = providers(settings)
        if "CUDAExecutionProvider" in wanted:
            ort.preload_dlls()  # CUDA's libraries, where they came as Python packages
        try:
            session = ort.InferenceSession(content, options, providers=wanted)
        except Exception as err:  # ONNX Runtime raises its own types, all plain Exceptions
            raise ModelNotReady(f"ONNX Runtime does not load this variant: {err}") from err
        if settings.device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
            raise ModelNotReady("AIAAS_DEVICE=cuda, but ONNX Runtime did not get the CUDA provider on this host")
        return cls(session, signature, settings.threads)

    async def run(
        self,
        inputs: Mapping[str, Array],
        executor: Executor,
        timeout_s: float,
        abandoned: Callable[[], Awaitable[bool]] = _never,
    ) -> list[Array]:
        """All outputs, in signature order.

        A run that takes long is ended when `abandoned`, asked now and then, says that nobody wants its answer.

        Raises:
            InvalidInput: BYTES that are not UTF-8.
            ExecutionFailed: the model raised.
            RunTimeout: the run took longer than `timeout_s` and was ended.
            RequestCancelled: it was abandoned.
            EngineStuck: it could not be ended.
        """
        options = ort.RunOptions()
        running = asyncio.get_running_loop().run_in_executor(executor, self._run, inputs, options)
        late_s = time.monotonic() + timeout_s
        given_up: AiaasError | None = None
        while given_up is None:
            done, _ = await asyncio.wait({running}, timeout=min(_LOOK_S, late_s - time.monotonic()))
            if done:
                return running.result()
            if time.monotonic() >= late_s:
                given_up = RunTimeout(f"the run took longer than {timeout_s:g} s")
            elif await abandoned():
                given_up = RequestCancelled("nobody waits for the answer any more")
        options.terminate = True
        done, _ = await asyncio.wait({running}, timeout=_TERMINATE_GRACE_S)
        if not done:
            raise EngineStuck(f"a run did not end {_TERMINATE_GRACE_S} s after it was given up")
        if (err := running.exception()) is not None and not isinstance(err, ExecutionFailed):
            raise err
        raise given_up

    def timed_s(self, inputs: Mapping[str, Array]) -> float:
        """The seconds of a run in this thread, without a deadline: for a process that may be killed for it.

        Raises:
            InvalidInput, ExecutionFailed: as `run`.
        """
        began_s = time.perf_counter()
        self._run(inputs, ort.RunOptions())
        return time.perf_counter() - began_s

    def _run(self, inputs: Mapping[str, Array], options: ort.RunOptions) -> list[Array]:
        feeds = {name: self._feed(name, array) for name, array in inputs.items()}
        try:
            if self._has_bf16:
                return self._run_values(feeds, options)
            outputs: list[Any] = self._session.run(self._outputs, feeds, options)
        except Exception as err:
            raise ExecutionFailed(str(err)[:2000]) from err
        return [np.asarray(output) for output in outputs]

    def _run_values(self, feeds: Mapping[str, Array], options: ort.RunOptions) -> list[Array]:
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            if self._inputs[name] == "BF16"
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        return [_array(value) for value in self._session.run_with_ort_values(self._outputs, values, options)]

    def _feed(self, name: str, array: Array) -> Array:
        if self._inputs[name] != "BYTES":
            return array
        try:
            texts = [element.decode() for element in array.ravel()]
        except UnicodeDecodeError as err:
            raise InvalidInput(f"tensor {name!r} is text to ONNX, and one of its elements is not UTF-8") from err
        return np.array(texts, dtype=object).reshape(array.shape)


def _array(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    bits = ctypes.cast(value.data_ptr(), ctypes.POINTER(ctypes.c_uint16))
    return np.ctypeslib.as_array(bits, tuple(value.shape())).copy()
