"""Which range each activation takes: the calibration of static quantization.

ONNX Runtime's calibrators keep the statistics; the runs are ours, with one thread's order of sums and a deadline each,
as calibrators make sessions of their own that have neither. Rows go in one run at a time, so what is kept of a run is
two numbers a tensor, or a histogram: memory does not grow with the rows, and runs may differ in shape.

`minmax` takes the outermost values, `percentile` cuts outliers off, `entropy` cuts where the distribution loses least
(Kullback-Leibler divergence; S. Migacz, "8-bit inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import onnx

from services.optimizer.recipes.errors import NotBuilt, not_built
from services.optimizer.recipes.ort_tools import quiet
from services.optimizer.sandbox.engine import Engine
from shared.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import ModelProto

    from services.optimizer.recipes.configs import StaticQdq
    from services.optimizer.recipes.running import Means, Rows
    from shared.tensors import Array

_PERCENTILE: Final = 99.999
_BINS: Final = {"percentile": 2048, "entropy": 128}


def ranges(ready: ModelProto, config: StaticQdq, operators: Sequence[str], rows: Rows, means: Means) -> Any:
    """ONNX Runtime's `TensorsData` over all inputs and outputs of nodes of these operators.

    Raises:
        NotBuilt: there are no rows, or the model does not run on them.
    """
    if not rows:
        raise NotBuilt("static quantization needs calibration rows, and there are none")
    with TemporaryDirectory(prefix="calibrate-") as directory, not_built("calibrating"), quiet():
        plain, augmented = Path(directory) / "plain.onnx", Path(directory) / "augmented.onnx"
        onnx.save_model(ready, plain)
        calibrator = _calibrator(config, plain, augmented, operators)
        if not calibrator.select_tensors_to_calibrate(calibrator.model)[0]:
            raise NotBuilt("no floating-point tensor goes into or out of an operator that can be quantized")
        calibrator.augment_graph()
        calibrator.infer_session = _Session(calibrator.model, means)
        for feeds in rows:
            calibrator.collect_data(_Once(feeds))
        return calibrator.compute_data()


def _calibrator(config: StaticQdq, plain: Path, augmented: Path, operators: Sequence[str]) -> Any:
    from onnxruntime.quantization import calibrate  # noqa: PLC0415 - heavy, and only this recipe needs it

    paths = (plain, list(operators), str(augmented))
    match config.method:
        case "minmax":
            return calibrate.MinMaxCalibrater(*paths)
        case "percentile":
            percentile = config.percentile or _PERCENTILE
            return calibrate.PercentileCalibrater(*paths, num_bins=_BINS["percentile"], percentile=percentile)
        case "entropy":
            return calibrate.EntropyCalibrater(*paths, num_bins=_BINS["entropy"])


class _Session:
    """What calibrators want of an `InferenceSession`, with our options and deadlines."""

    def __init__(self, model: ModelProto, means: Means) -> None:
        names = [value.name for value in model.graph.output]
        outputs = tuple(TensorSpec(name=name, datatype="FP32", shape=()) for name in names)
        self._engine = Engine(
            model.SerializeToString(),
            Signature(inputs=(), outputs=outputs),
            threads=means.threads,
            run_timeout_s=means.run_timeout_s,
        )
        self._inputs = [SimpleNamespace(name=value.name) for value in model.graph.input]
        self._outputs = [SimpleNamespace(name=name) for name in names]

    def get_inputs(self) -> list[SimpleNamespace]:
        return self._inputs

    def get_outputs(self) -> list[SimpleNamespace]:
        return self._outputs

    def run(self, _all_outputs: None, feeds: Mapping[str, Array]) -> list[Array]:
        return self._engine.run(feeds)


class _Once:
    """A `CalibrationDataReader` of one run."""

    def __init__(self, feeds: Mapping[str, Array]) -> None:
        self._left = [feeds]

    def get_next(self) -> Mapping[str, Array] | None:
        return self._left.pop() if self._left else None
