"""ONNX Runtime as an engine: on CUDA where a session really got it, else on the CPU.

It checks `terminate` between nodes, so a run past its deadline ends soon after. On CUDA a run goes through IO binding:
inputs are copied to the device once, outputs stay there until all are computed, and come back in one synchronization.

ONNX strings are text: BYTES that aren't UTF-8 can't go in. BF16 goes in and out as bit patterns through OrtValues,
since numpy has no such type.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime as ort

from services.worker.engine import Engine
from shared.errors import ExecutionFailed, InvalidInput, ModelNotReady
from shared.machine import isa
from shared.outcome_events import Runtime
from shared.runtime_config import RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.worker.settings import WorkerSettings
    from shared.signature import Signature
    from shared.tensors import Array

_ONNX_BFLOAT16 = 16
"""`TensorProto.BFLOAT16` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto)."""
_FATAL_ONLY: Final = 4
_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"
_LEVELS: Final = {
    0: ("all", ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
    -1: ("basic", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    1: ("extended", ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    2: ("none", ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
}
"""By Triton's number: what receipts call it, and what it is."""


def providers(settings: WorkerSettings) -> list[str]:
    """Execution providers to ask for, best first."""
    if settings.device == "cpu" or _CUDA not in ort.get_available_providers():
        return [_CPU]
    return [_CUDA, _CPU]


class OnnxEngine(Engine):
    """A session."""

    def __init__(
        self,
        session: ort.InferenceSession,
        signature: Signature,
        threads: int,
        config: RuntimeConfig = RuntimeConfig(),  # noqa: B008 - frozen
        *,
        bound_to: str | None = None,
        deterministic: bool = False,
    ) -> None:
        """`bound_to`: the device of IO binding; None for plain runs."""
        super().__init__(signature, config)
        self.deterministic = deterministic or session.get_providers()[0] == _CPU
        self.session = session
        self.inputs = {spec.name: spec.datatype for spec in signature.inputs}
        self.outputs = {spec.name: spec.datatype for spec in signature.outputs}
        self.has_bf16 = "BF16" in {*self.inputs.values(), *self.outputs.values()}
        self.bound_to = bound_to
        self.runtime = Runtime(
            engine="onnxruntime",
            version=ort.__version__,
            provider=session.get_providers()[0],  # what it got, not what was asked for
            options=_told(config, self.instances, bound_to),
            threads=threads,
            isa=isa(),
        )

    @classmethod
    def load(
        cls,
        content: bytes,
        signature: Signature,
        settings: WorkerSettings,
        config: RuntimeConfig = RuntimeConfig(),  # noqa: B008 - frozen
        *,
        deterministic: bool = False,
    ) -> OnnxEngine:
        """Build a session from bytes: never from a path, which ONNX Runtime would follow to external data.

        Raises:
            ModelNotReady: the bytes do not load here, or not on the device that was insisted on.
        """
        kind = config.instances.kind
        threads = config.parameters.intra_op_thread_count or settings.threads
        wanted = [_CPU] if kind == "KIND_CPU" else providers(settings)
        if _CUDA in wanted:
            ort.preload_dlls()  # CUDA's libraries, where they came as Python packages
        limit = config.parameters.gpu_mem_limit
        cuda = ({"gpu_mem_limit": str(limit)} if limit else {}) | ({"use_tf32": "0"} if deterministic else {})
        asked = [(_CUDA, cuda) if name == _CUDA and cuda else name for name in wanted]
        options = _options(threads, config)
        options.use_deterministic_compute = deterministic
        try:
            session = ort.InferenceSession(content, options, providers=asked)
        except Exception as err:  # ONNX Runtime raises its own types, all plain Exceptions
            raise ModelNotReady(f"ONNX Runtime does not load this variant: {err}") from err
        on_cuda = session.get_providers()[0] == _CUDA
        if not on_cuda and (settings.device == "cuda" or kind == "KIND_GPU"):
            who = "AIAAS_DEVICE=cuda" if settings.device == "cuda" else "the model is configured for KIND_GPU"
            raise ModelNotReady(f"{who}, but ONNX Runtime did not get the CUDA provider on this host")
        bound_to = "cuda" if on_cuda else None
        return cls(session, signature, threads, config, bound_to=bound_to, deterministic=deterministic)

    def begin(self) -> _OnnxRun:
        """A run to be."""
        return _OnnxRun(self)


class _OnnxRun:
    """One run, in as many parts as it is called with."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self._options = ort.RunOptions()

    def end(self) -> None:
        """Between two nodes."""
        self._options.terminate = True

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs.

        Raises:
            InvalidInput: BYTES that are not UTF-8.
            ExecutionFailed: the model raised, or was told to end.
        """
        engine = self._engine
        feeds = {name: _feed(name, engine.inputs[name], array) for name, array in inputs.items()}
        try:
            if engine.has_bf16:
                return self._with_values(feeds)
            if engine.bound_to is not None:
                return self._bound(feeds, engine.bound_to)
            outputs: list[Any] = engine.session.run(list(engine.outputs), feeds, self._options)
        except Exception as err:
            raise ExecutionFailed(str(err)[:2000]) from err
        return [np.asarray(output) for output in outputs]

    def _bound(self, feeds: Mapping[str, Array], device: str) -> list[Array]:
        """Through IO binding. Text has no place but the host."""
        engine = self._engine
        binding = engine.session.io_binding()
        for name, array in feeds.items():
            there = "cpu" if engine.inputs[name] == "BYTES" else device
            if there == "cpu":
                binding.bind_cpu_input(name, array)
            else:
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, there, 0))
        for name, datatype in engine.outputs.items():
            binding.bind_output(name, "cpu" if datatype == "BYTES" else device)
        binding.synchronize_inputs()
        engine.session.run_with_iobinding(binding, self._options)
        binding.synchronize_outputs()
        return [np.asarray(output) for output in binding.copy_outputs_to_cpu()]

    def _with_values(self, feeds: Mapping[str, Array]) -> list[Array]:
        engine = self._engine
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            if engine.inputs[name] == "BF16"
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        outputs = engine.session.run_with_ort_values(list(engine.outputs), values, self._options)
        return [_array(value) for value in outputs]


def _options(threads: int, config: RuntimeConfig) -> ort.SessionOptions:
    asked = config.parameters
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = asked.inter_op_thread_count or 1
    if asked.execution_mode:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = _LEVELS[config.optimization.graph.level][1]
    options.enable_cpu_mem_arena = asked.enable_mem_arena is not False
    options.enable_mem_pattern = asked.enable_mem_pattern is not False
    # Spinning threads take the cores that decode and encode beside the run, and those of other services.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ONLY  # what fails is raised; the rest is noise on stderr
    return options


def _told(config: RuntimeConfig, instances: int, bound_to: str | None) -> dict[str, str | int | bool]:
    """The options of a receipt: the three that always were there, and what is not as usual."""
    asked = config.parameters
    unusual: dict[str, str | int | bool | None] = {
        "execution_mode": "parallel" if asked.execution_mode else None,
        "enable_mem_arena": asked.enable_mem_arena,
        "enable_mem_pattern": asked.enable_mem_pattern,
        "gpu_mem_limit": asked.gpu_mem_limit,
        "instances": instances if instances > 1 else None,
        "io_binding": bound_to,
    }
    told: dict[str, str | int | bool] = {
        "graph_optimization_level": _LEVELS[config.optimization.graph.level][0],
        "inter_op_threads": asked.inter_op_thread_count or 1,
        "allow_spinning": False,
    }
    return told | {name: value for name, value in unusual.items() if value is not None}


def _feed(name: str, datatype: str, array: Array) -> Array:
    if datatype != "BYTES":
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
