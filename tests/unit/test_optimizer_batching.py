"""Finding batch axes and proving independence: on models that are, that are not, and that only seem to be."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from services.optimizer.rejections import Rejection
from services.optimizer.sandbox import batching, signature, vet
from services.optimizer.sandbox.engine import Engine
from shared.signature import Signature, TensorSpec
from support import onnx_models, uploads


def found_for(made, *, cap=32, run_timeout_s=5.0, max_run_s=2.0, seed=7):
    read = signature.read(made)
    engine = Engine(made.SerializeToString(), read, threads=1, run_timeout_s=run_timeout_s)
    found = batching.find(engine, read, cap=cap, max_run_s=max_run_s, seed=seed)
    return found, found.annotate(read)


def axes(signature):
    return (
        {spec.name: spec.batch_axis for spec in signature.inputs},
        {spec.name: spec.batch_axis for spec in signature.outputs},
    )


@pytest.mark.parametrize(
    ("make", "inputs", "outputs"),
    [
        (uploads.mlp, {"x": 0}, {"y": 0}),
        (uploads.conv, {"x": 0}, {"y": 0}),
        (uploads.recurrent, {"x": 0, "state": 1}, {"y": 0, "next": 1}),
        (uploads.embedding, {"ids": 0}, {"y": 0}),
        (uploads.text, {"x": 0}, {"y": 0}),
    ],
)
def test_axes_are_found_and_proved(make, inputs, outputs):
    found, annotated = found_for(make())
    assert axes(annotated) == (inputs, outputs)
    assert found.cap == 32


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", [uploads.centred, uploads.shared_out, uploads.dynamically_quantized])
def test_dependence_is_found_out(make, seed):
    found, annotated = found_for(make(), seed=seed)
    assert axes(annotated) == ({"x": None}, {"y": None})
    assert (found.cap, found.outputs) == (1, None)


def test_an_output_without_rows_is_no_batch():
    made = uploads.model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        {"x": (TensorProto.FLOAT, ("batch", 4))},
        {"y": (TensorProto.FLOAT, ())},
    )
    assert found_for(made)[0].outputs is None


def test_fixed_shapes_are_no_batch():
    assert found_for(uploads.elementwise(shape=(1, 4)))[0].cap == 1


def test_an_input_for_all_rows():
    """A scalar beside rows, like a sampling rate: it belongs to every row."""
    shape = (TensorProto.FLOAT, ("batch", 4))
    made = uploads.model(
        [helper.make_node("Mul", ["x", "rate"], ["y"])],
        {"x": shape, "rate": (TensorProto.FLOAT, ())},
        {"y": shape},
    )
    assert axes(found_for(made)[1]) == ({"x": 0, "rate": None}, {"y": 0})


def test_indices_stay_within_what_the_model_takes():
    found, _ = found_for(uploads.embedding(words=100))
    assert found.setting.highs == {}
    found, _ = found_for(uploads.embedding(words=300))
    assert found.setting.highs == {"ids": 255}


@pytest.mark.parametrize("datatype", sorted(onnx_models.ONNX_TYPES))
def test_every_datatype_runs(datatype):
    made = onnx_models.identity(datatype)
    engine = Engine(made.content, made.signature, threads=1, run_timeout_s=5)
    found = batching.find(engine, made.signature, cap=32, max_run_s=2, seed=1)
    assert found.annotate(made.signature) == made.signature


@pytest.mark.parametrize("cap", [1, 2, 3, 12])
def test_the_cap_is_what_is_configured(cap):
    assert found_for(uploads.mlp(), cap=cap)[0].cap == cap


def test_a_slow_model_gets_a_smaller_cap(monkeypatch):
    monkeypatch.setattr(Engine, "duration_s", lambda _, feeds: feeds["x"].shape[0] * 0.1)
    assert found_for(uploads.mlp(), cap=32, max_run_s=1.0)[0].cap == 8


def test_a_search_that_takes_too_long_ends_with_what_runs():
    made = uploads.centred()
    read = signature.read(made)
    engine = Engine(made.SerializeToString(), read, threads=1, run_timeout_s=5)
    found = batching.find(engine, read, cap=32, max_run_s=2, seed=1, until_s=0.0)
    assert (found.setting.sizes, found.outputs) == ({"batch": 1}, None)


def test_an_endless_loop_ends():
    with pytest.raises(Rejection) as caught:
        found_for(uploads.endless(), run_timeout_s=0.5)
    assert caught.value.code == "run_timeout"


def test_a_bomb_does_not_go_off():
    with pytest.raises(Rejection) as caught:
        found_for(uploads.bomb(1 << 60))
    assert caught.value.code in ("out_of_memory", "load_failed")


def test_a_model_that_runs_on_nothing():
    made = uploads.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (TensorProto.FLOAT, ("n",))},
        {"y": (TensorProto.FLOAT, (7919,))},
        {"shape": np.array([7919])},
    )
    with pytest.raises(Rejection) as caught:
        found_for(made)
    assert caught.value.code == "execution_failed"
    assert "7919" in caught.value.found


def test_hypotheses_are_consistent_and_end_with_none():
    def spec(name, *shape):
        return TensorSpec(name=name, datatype="FP32", shape=shape)

    found = batching.hypotheses(Signature(inputs=(spec("a", "B", "T"), spec("m", "T", "B")), outputs=()))
    assert found[0] in ({"a": 0, "m": 1}, {"a": 1, "m": 0})
    assert found[-1] == {"a": None, "m": None}
    assert {"a": 0, "m": 0} not in found  # B would be two sizes
    square = batching.hypotheses(Signature(inputs=(spec("a", "B", "B"),), outputs=()))
    assert square == [{"a": None}]
    many = batching.hypotheses(Signature(inputs=tuple(spec(f"i{n}", -1, -1, -1) for n in range(40)), outputs=()))
    assert len(many) <= 64
    assert many[0] == {f"i{n}": 0 for n in range(40)}


def test_magika_is_batched():
    content = uploads.magika()
    read = signature.read(vet.parse(content))
    engine = Engine(content, read, threads=1, run_timeout_s=20)
    found = batching.find(engine, read, cap=8, max_run_s=10, seed=3)
    assert (found.inputs, found.outputs, found.cap) == ({"bytes": 0}, (0,), 8)
