"""torch as an engine: exported programs (`.pt2`) and TorchScript that do not convert to ONNX.

**Loading them can run code**: pickled sample inputs, expressions, guards. Workers load only what an optimizer
vetted member by member in its sandbox and put into the store, under the digest that the log names, and only for tenants
who were let (docs/export.md says what remains of the risk). `TORCH_FORCE_WEIGHTS_ONLY_LOAD` refuses pickles of anything
but tensors; `__main__` sets it, for the whole process of a worker.

Where the runtime configuration asks for `torch_compile`, both are run by turns when it is loaded, and what was compiled
serves only if it is faster here.

torch can't be told to stop within a run: one that goes on past its deadline and the grace behind it is `EngineStuck`.
Inputs and outputs go by their order, which is that of the signature. BYTES does not exist here.
"""

from __future__ import annotations

import io
import json
import time
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from services.worker.engine import Engine
from shared.errors import ExecutionFailed, ModelNotReady
from shared.machine import isa
from shared.outcome_events import Runtime
from shared.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.worker.settings import WorkerSettings
    from shared.runtime_config import RuntimeConfig
    from shared.signature import Signature
    from shared.tensors import Array

_COMPILE_ROWS: Final = (1, 8)
"""A graph is compiled for one row and for more than one: shapes of 1 are their own."""
_COMPARED_RUNS: Final = 9
_GAIN: Final = 1.05
"""How many times faster a compiled graph must be to be worth it."""
_SCRIPT_MARK: Final = "/constants.pkl"
_CONFIG: Final = "config.json"


class TorchEngine(Engine):
    """A loaded program."""

    def __init__(
        self,
        program: Callable[..., Any],
        signature: Signature,
        threads: int,
        config: RuntimeConfig,
        device: str,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__(signature, config)
        self.program = program
        self.inputs = [(spec.name, spec.datatype) for spec in signature.inputs]
        self.outputs = [spec.datatype for spec in signature.outputs]
        self.threads = threads
        self.device = device
        self.deterministic = device == "cpu"
        unusual = {"instances": self.instances} if self.instances > 1 else {}
        self.runtime = Runtime(
            engine="torch",
            version=str(torch.__version__),
            provider=device,
            options={"compiled": compiled, **unusual},
            threads=threads,
            isa=isa(),
        )

    @classmethod
    def load(cls, content: bytes, signature: Signature, settings: WorkerSettings, config: RuntimeConfig) -> TorchEngine:
        """Build the program from the bytes of a `.pt2`, or of TorchScript.

        Raises:
            ModelNotReady: it does not load here, or takes and gives something else than its signature says.
        """
        kind = config.instances.kind
        on_gpu = kind != "KIND_CPU" and settings.device != "cpu" and torch.cuda.is_available()
        if not on_gpu and (settings.device == "cuda" or kind == "KIND_GPU"):
            raise ModelNotReady("torch sees no GPU on this host, and the model or AIAAS_DEVICE insists on one")
        if any(spec.datatype == "BYTES" for spec in (*signature.inputs, *signature.outputs)):
            raise ModelNotReady("torch has no tensors of text")
        device = "cuda" if on_gpu else "cpu"
        threads = config.parameters.intra_op_thread_count or settings.threads
        try:
            with warnings.catch_warnings(action="ignore"):  # of torch to its developers
                is_script = _is_script(content)
                program = _script(content, device) if is_script else _program(content, signature, device)
        except ModelNotReady:
            raise
        except Exception as err:  # whatever is wrong with the bytes
            raise ModelNotReady(f"torch does not load this variant: {err!r}"[:2000]) from err
        engine = cls(program, signature, threads, config, device)
        if not config.parameters.torch_compile:
            return engine
        if is_script:
            raise ModelNotReady("torch_compile means nothing to TorchScript")
        compiled = cls(torch.compile(program, dynamic=True), signature, threads, config, device, compiled=True)
        return compiled if _gain(engine, compiled, signature) >= _GAIN else engine

    def begin(self) -> _TorchRun:
        """A run to be."""
        return _TorchRun(self)


class _TorchRun:
    """One run, in as many parts as it is called with."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine

    def end(self) -> None:
        """It goes on to its end."""

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs.

        Raises:
            ExecutionFailed: the model raised.
        """
        engine = self._engine
        try:
            torch.set_num_threads(engine.threads)
            with torch.inference_mode(), warnings.catch_warnings(action="ignore"):
                given = [_tensor(inputs[name], datatype).to(engine.device) for name, datatype in engine.inputs]
                outputs = pytree.tree_leaves(engine.program(*given))
                return [_array(output, datatype) for output, datatype in zip(outputs, engine.outputs, strict=True)]
        except Exception as err:
            raise ExecutionFailed(str(err)[:2000]) from err


def _is_script(content: bytes) -> bool:
    """Whether an archive of torch's is TorchScript."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.endswith(_SCRIPT_MARK) for name in archive.namelist())


def _script(content: bytes, device: str) -> Callable[..., Any]:
    """The part of a script that its `config.json` names, or all of it."""
    extra: dict[str, Any] = {_CONFIG: ""}
    module: Any = torch.jit.load(io.BytesIO(content), map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call] # torch has it untyped
    part = str(json.loads(extra[_CONFIG] or "{}").get("module", ""))
    for name in filter(None, part.split(".")):
        module = dict(module.named_children())[name]
    scripted: Callable[..., Any] = module.eval()
    return scripted


def _program(content: bytes, signature: Signature, device: str) -> Callable[..., Any]:
    exported = torch.export.load(io.BytesIO(content))
    given = len(exported.graph_signature.user_inputs), len(exported.graph_signature.user_outputs)
    if given != (len(signature.inputs), len(signature.outputs)):
        raise ModelNotReady(f"the program takes and gives {given} tensors, not as its signature says")
    moved = move_to_device_pass(exported, device) if device != "cpu" else exported
    program: Callable[..., Any] = moved.module()
    return program


def _gain(eager: TorchEngine, compiled: TorchEngine, signature: Signature) -> float:
    """How many times faster the compiled graph is, over one row and several; its first runs compile it.

    Raises:
        ModelNotReady: it does not compile here: there is no C++ compiler, or the graph breaks it.
    """
    ratios = []
    for rows in _COMPILE_ROWS:
        feeds = _zeros(signature, rows)
        times: tuple[list[float], list[float]] = ([], [])
        try:
            for _ in range(1 + _COMPARED_RUNS):
                for engine, taken in zip((eager, compiled), times, strict=True):
                    began_s = time.perf_counter()
                    engine.begin()(feeds)
                    taken.append(time.perf_counter() - began_s)
        except ExecutionFailed as err:
            raise ModelNotReady(f"it does not compile here: {err.message}") from err
        eager_s, compiled_s = (float(np.median(taken[1:])) for taken in times)
        ratios.append(eager_s / compiled_s)
    return float(np.exp(np.mean(np.log(ratios))))


def _zeros(signature: Signature, rows: int) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = [dim if isinstance(dim, int) and dim > 0 else 1 for dim in spec.shape]
        if spec.batch_axis is not None:
            shape[spec.batch_axis] = rows
        feeds[spec.name] = np.zeros(shape, DTYPES[spec.datatype])
    return feeds


def _tensor(array: Array, datatype: str) -> Any:
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if datatype == "BF16" else tensor


def _array(tensor: Any, datatype: str) -> Array:
    found = torch.as_tensor(tensor).detach().cpu().contiguous()
    return np.asarray((found.view(torch.uint16) if datatype == "BF16" else found).numpy())
