"""The way to ONNX Runtime's quantization tools (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

They print, configure the root logger and import much, so they are imported where they are used and run inside
`quiet`. `prepared` is what has to happen to a graph first: shapes inferred, constants folded, nodes named.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import onnx

from services.optimizer.recipes import graph as graphs
from services.optimizer.recipes.errors import NotBuilt, not_built

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnx import ModelProto

    from services.optimizer.recipes.configs import Nodes

PRODUCTS: Final = ("Conv", "MatMul", "Gemm")
"""Where nearly all time goes."""
_MIN_OPSET: Final = 13
_MAX_KINDS_CHARS: Final = 300
_FATAL_ONLY, _WARNINGS = 4, 2
"""Severities of ONNX Runtime's log; the second is its default."""


@contextmanager
def quiet() -> Iterator[None]:
    """Neither prints, nor logs, nor warnings: the tools address a person at a terminal."""
    import onnxruntime as ort  # noqa: PLC0415 - heavy, and only some recipes need it

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(_FATAL_ONLY)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)
        logging.disable(before)


def prepared(model: ModelProto) -> ModelProto:
    """The model as quantizers want it: an opset with per-channel scales, shapes known, constants folded, named nodes.

    The same model gives the same names, so that a config may exclude nodes by name.

    Raises:
        NotBuilt: it can't be prepared.
    """
    with not_built("preparing the graph"), quiet():
        from onnxruntime.quantization.quant_utils import add_infer_metadata  # noqa: PLC0415 - as above

        ready = _preprocessed(_recent(model))
        add_infer_metadata(ready)  # spares each quantizer another inference of shapes, which goes through a file
    graphs.flatten_biases(ready.graph)
    graphs.name_nodes(ready.graph)
    return ready


def _recent(model: ModelProto) -> ModelProto:
    """The model in an opset whose DequantizeLinear takes a scale for each channel."""
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), _MIN_OPSET)
    if opset >= _MIN_OPSET:
        return model
    from onnx import version_converter  # noqa: PLC0415 - old models alone need it

    return version_converter.convert_version(model, _MIN_OPSET)


def _preprocessed(model: ModelProto) -> ModelProto:
    """Constants folded and operators fused as ONNX Runtime does it on any hardware, then shapes inferred by onnx.

    Symbolic shape inference is left out: it fails on transformers out of torch's exporter and then leaves the weights
    in the working directory, takes seconds, and gave nothing to any model that was tried.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415 - as above

    with TemporaryDirectory(prefix="prepare-") as directory:
        source, path = Path(directory) / "model.onnx", Path(directory) / "prepared.onnx"
        # By path: of a ModelProto it moves the tensors into another file, and does not find that again.
        onnx.save_model(model, source)
        quant_pre_process(source, path, skip_symbolic_shape=True)
        return onnx.load_model(path)


def excluded(ready: ModelProto, exclude: Nodes) -> list[str]:
    """The names as a list.

    Raises:
        NotBuilt: the prepared graph has no node of such a name: it was named after another graph.
    """
    if unknown := set(exclude) - {node.name for node in ready.graph.node}:
        raise NotBuilt(f"there is no node {min(unknown)!r} to exclude")
    return list(exclude)


def quantizable(ready: ModelProto, operators: Sequence[str], exclude: Nodes = ()) -> list[str]:
    """The nodes of these operators, by name.

    Raises:
        NotBuilt: there are none. Those in subgraphs do not count: quantizers of QDQ stay out of them.
    """
    found = [node.name for node in ready.graph.node if node.op_type in operators and node.name not in exclude]
    if not found:
        kinds = ", ".join(sorted({node.op_type for node in ready.graph.node}))[:_MAX_KINDS_CHARS]
        raise NotBuilt(f"no operator in its main graph can be quantized this way ({kinds or 'there are none'})")
    return found


def finished(original: ModelProto, quantized: ModelProto, marks: frozenset[str]) -> ModelProto:
    """The quantized model cleaned, once it is sure that something was quantized.

    Raises:
        NotBuilt: there is no more of any operator in `marks` than before.
    """
    before, after = graphs.operator_counts(original.graph), graphs.operator_counts(quantized.graph)
    if not any(after[mark] > before[mark] for mark in marks):
        kinds = ", ".join(sorted(before))[:_MAX_KINDS_CHARS]
        raise NotBuilt(f"none of its operators can be quantized this way ({kinds or 'there are none'})")
    return cleaned(original, quantized)


def cleaned(original: ModelProto, built: ModelProto) -> ModelProto:
    """The model without the tools' notes, and without imports of operator sets that it does not use."""
    del built.metadata_props[:]
    built.metadata_props.extend(original.metadata_props)
    used = {node.domain for node in graphs.nodes(built.graph)} | {opset.domain for opset in original.opset_import}
    imports = [opset for opset in built.opset_import if opset.domain in used]
    del built.opset_import[:]
    built.opset_import.extend(imports)
    return built
