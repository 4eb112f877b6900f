"""How a worker runs a model: the runtime configuration, in the words of Triton's `ModelConfig`. Data, not code.

It comes with an upload or is set later (`RuntimeConfigured`), and belongs to the version. Only what really does
something is here; anything else is refused by its name, since an option that is ignored would be believed:

    {
      "max_batch_size": 8,                                          rows of one run; never above what the gate proved
      "instance_group": [{"kind": "KIND_CPU", "count": 2}],         the device, and parts of a batch run at once
      "parameters": {"intra_op_thread_count": {"string_value": "4"}, …},        see `Parameters`
      "optimization": {"graph": {"level": 1}}                       of ONNX Runtime: -1 basic, 1 extended, 2 none
    }

`parameters` may be written as Triton has them, or plainly (`"intra_op_thread_count": 4`).

https://github.com/triton-inference-server/onnxruntime_backend#other-optimization-options-with-onnx-runtime and
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto name the fields.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from shared.errors import InvalidInput

MAX_CONFIG_BYTES: Final = 16 * 1024
"""As JSON."""
ONNXRUNTIME: Final = "onnxruntime"
TORCH: Final = "torch"
ENGINES: Final = (ONNXRUNTIME, TORCH)
"""What can run a variant."""
_MOST_THREADS: Final = 256
_MOST_INSTANCES: Final = 16
_MOST_ROWS: Final = 1024

Threads = Annotated[int, Meta(ge=1, le=_MOST_THREADS)]
Kind = Literal["KIND_AUTO", "KIND_CPU", "KIND_GPU"]


class InstanceGroup(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """On what it runs, and in how many parts of a batch at once."""

    kind: Kind = "KIND_AUTO"
    """KIND_AUTO: the GPU where the worker has one."""
    count: Annotated[int, Meta(ge=1, le=_MOST_INSTANCES)] = 1


class Parameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Options of the session. None: as the worker is set."""

    intra_op_thread_count: Threads | None = None
    """Threads of one operator (of each instance)."""
    inter_op_thread_count: Threads | None = None
    """Operators at once; needs `execution_mode` 1."""
    execution_mode: Annotated[int, Meta(ge=0, le=1)] | None = None
    """1: branches of the graph run at once."""
    enable_mem_arena: bool | None = None
    """Whether memory of a run is kept for the next one."""
    enable_mem_pattern: bool | None = None
    """Whether memory is laid out ahead for shapes that were met."""
    gpu_mem_limit: Annotated[int, Meta(ge=1024 * 1024)] | None = None
    """Bytes that the arena of the CUDA provider may take."""
    torch_compile: bool | None = None
    """Of the torch engine: whether the graph is compiled when it is loaded."""

    def __post_init__(self) -> None:
        if self.inter_op_thread_count is not None and not self.execution_mode:
            raise ValueError("inter_op_thread_count has no effect without execution_mode 1")


class Graph(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far ONNX Runtime rewrites the graph."""

    level: Literal[-1, 0, 1, 2] = 0
    """0, as without it: all there is; -1: basic; 1: basic and extended; 2: nothing."""


class OptimizationOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What Triton calls `optimization`."""

    graph: Graph = Graph()


class RuntimeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of a version."""

    max_batch_size: Annotated[int, Meta(ge=0, le=_MOST_ROWS)] | None = None
    """Most rows of a run; 0, as 1: one request a run."""
    instance_group: Annotated[tuple[InstanceGroup, ...], Meta(max_length=1)] = ()
    parameters: Parameters = Parameters()
    optimization: OptimizationOptions = OptimizationOptions()

    def __post_init__(self) -> None:
        if self.parameters.gpu_mem_limit is not None and self.instances.kind == "KIND_CPU":
            raise ValueError("gpu_mem_limit has no effect with KIND_CPU")

    @property
    def instances(self) -> InstanceGroup:
        """The one group."""
        return self.instance_group[0] if self.instance_group else InstanceGroup()

    def row_cap(self, proved: int) -> int:
        """Rows of a run, of those that the gate proved independent."""
        return proved if self.max_batch_size is None else min(proved, max(1, self.max_batch_size))

    @property
    def session_sha256(self) -> str | None:
        """The digest of what a session is built with; None where all is as the worker is set."""
        built_with = (self.instances, self.parameters, self.optimization)
        if built_with == (InstanceGroup(), Parameters(), OptimizationOptions()):
            return None
        return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(built_with), order="sorted")).hexdigest()

    def foreign_to(self, engine: str) -> list[str]:
        """The options that mean nothing to an engine."""
        options = self.parameters
        onnxruntime = {
            "optimization.graph.level": self.optimization.graph.level != 0,
            "parameters.execution_mode": options.execution_mode is not None,
            "parameters.enable_mem_arena": options.enable_mem_arena is not None,
            "parameters.enable_mem_pattern": options.enable_mem_pattern is not None,
            "parameters.gpu_mem_limit": options.gpu_mem_limit is not None,
        }
        torch = {"parameters.torch_compile": options.torch_compile is not None}
        return [name for name, said in (torch if engine == ONNXRUNTIME else onnxruntime).items() if said]


def parse(text: bytes) -> RuntimeConfig:
    """A configuration as JSON.

    Raises:
        InvalidInput: it is too long, no JSON, or has an option that is not there; the sentence names it.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidInput(f"a runtime configuration has up to {MAX_CONFIG_BYTES} bytes")
    try:
        plain = msgspec.json.decode(text)
        if isinstance(plain, dict) and isinstance(plain.get("parameters"), dict):
            plain = {**plain, "parameters": {name: _plainly(value) for name, value in plain["parameters"].items()}}
        return msgspec.convert(plain, RuntimeConfig, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeError, RecursionError) as err:
        problem, _, where = str(err).partition(" - at ")
        raise InvalidInput(f"{where.strip('`$.') or 'the runtime configuration'}: {problem}") from err


def shown(config: RuntimeConfig) -> dict[str, Any]:
    """What is said in it, as Triton writes it."""
    said: dict[str, Any] = {}
    if config.max_batch_size is not None:
        said["max_batch_size"] = config.max_batch_size
    if config.instance_group:
        said["instance_group"] = msgspec.to_builtins(config.instance_group)
    if parameters := msgspec.to_builtins(config.parameters):
        said["parameters"] = {name: {"string_value": _text(value)} for name, value in parameters.items()}
    if config.optimization != OptimizationOptions():
        said["optimization"] = msgspec.to_builtins(config.optimization)
    return said


def _plainly(value: Any) -> Any:
    """`{"string_value": "4"}` as `"4"`."""
    return value["string_value"] if isinstance(value, dict) and value.keys() == {"string_value"} else value


def _text(value: int | bool) -> str:
    return str(int(value))
