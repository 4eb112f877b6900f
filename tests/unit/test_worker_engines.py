"""Engines: what they are built with, what they say of it, and that the parts of a batch are the batch."""

from __future__ import annotations

import io
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from services.worker import engine as engines
from services.worker.onnx_engine import OnnxEngine, providers
from services.worker.settings import WorkerSettings
from shared.errors import ModelNotReady
from shared.events import Measurements
from shared.registry import Variant
from shared.runtime_config import RuntimeConfig, parse
from shared.signature import Signature, TensorSpec
from support.facts import artifact
from support.onnx_models import counting_loop, identity, linear

SETTINGS = WorkerSettings(device="cpu", threads=2)
ROWS = np.random.default_rng(3).standard_normal((7, 4)).astype(np.float32)


def variant(model, config=b"{}", engine="onnxruntime"):
    return Variant(
        "fp32", artifact(), model.signature, model.batch_cap, Measurements(), engine=engine, runtime=parse(config)
    )


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as made:
        yield made


async def answers(engine, executor, **feeds):
    return await engine.run(feeds, executor, 20)


async def test_without_a_configuration_it_is_as_the_worker_is_set(executor):
    engine = engines.load(linear().content, variant(linear()), SETTINGS)
    assert engine.runtime.threads == 2
    assert engine.runtime.options == {
        "graph_optimization_level": "all",
        "inter_op_threads": 1,
        "allow_spinning": False,
    }
    assert engine.instances == 1
    [found] = await answers(engine, executor, x=ROWS)
    assert found.shape == (7, 4)


async def test_every_option_reaches_the_session(executor):
    config = b"""{"instance_group": [{"kind": "KIND_CPU", "count": 3}],
        "parameters": {"intra_op_thread_count": {"string_value": "1"}, "inter_op_thread_count": 2, "execution_mode": 1,
                       "enable_mem_arena": "0", "enable_mem_pattern": 0},
        "optimization": {"graph": {"level": -1}}}"""
    engine = engines.load(linear().content, variant(linear(), config), SETTINGS)
    options = engine.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert engine.runtime.threads == 1
    assert engine.runtime.options == {
        "graph_optimization_level": "basic",
        "inter_op_threads": 2,
        "allow_spinning": False,
        "execution_mode": "parallel",
        "enable_mem_arena": False,
        "enable_mem_pattern": False,
        "instances": 3,
    }
    usual = engines.load(linear().content, variant(linear()), SETTINGS)
    [parts], [whole] = await answers(engine, executor, x=ROWS), await answers(usual, executor, x=ROWS)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
async def test_the_parts_of_a_batch_come_back_in_order(executor, rows):
    engine = engines.load(identity("FP32", 4).content, variant(identity("FP32", 4), COUNT), SETTINGS)
    [found] = await answers(engine, executor, x=ROWS[:rows])
    assert np.array_equal(found, ROWS[:rows])
    assert len(engine._parts({"x": ROWS[:rows]})) == min(rows, 4)


COUNT = b'{"instance_group": [{"count": 4}]}'


def test_rows_that_were_not_proved_independent_are_not_taken_apart():
    engine = engines.load(counting_loop().content, variant(counting_loop(), COUNT), SETTINGS)
    assert engine.instances == 1


async def test_io_binding_gives_the_answers_of_a_plain_run(executor):
    """On the host, where it does nothing but take another way: what runs on a GPU is the same code."""
    session = ort.InferenceSession(linear().content, providers=["CPUExecutionProvider"])
    bound = OnnxEngine(session, linear().signature, 1, bound_to="cpu")
    plain = OnnxEngine(session, linear().signature, 1)
    assert bound.runtime.options["io_binding"] == "cpu"
    for rows in (1, 7):
        [through] = await answers(bound, executor, x=ROWS[:rows])
        [direct] = await answers(plain, executor, x=ROWS[:rows])
        assert np.array_equal(through, direct)


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="no CUDA: this build of ONNX Runtime has no CUDA provider (extra `gpu`, on a machine with a GPU)",
)
async def test_on_a_gpu_it_runs_on_cuda_through_io_binding(executor):
    settings = WorkerSettings(device="auto", threads=1)
    engine = engines.load(linear().content, variant(linear()), settings)
    if engine.runtime.provider != "CUDAExecutionProvider":
        pytest.skip("no CUDA: ONNX Runtime has the provider, but no session got it on this machine")
    assert engine.runtime.options["io_binding"] == "cuda"
    on_cpu = engines.load(linear().content, variant(linear(), b'{"instance_group": [{"kind": "KIND_CPU"}]}'), settings)
    assert on_cpu.runtime.provider == "CPUExecutionProvider"
    for rows in (1, 7):
        [there] = await answers(engine, executor, x=ROWS[:rows])
        [here] = await answers(on_cpu, executor, x=ROWS[:rows])
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)


def test_who_insists_on_a_gpu_is_told_that_there_is_none():
    if "CUDAExecutionProvider" in providers(WorkerSettings()):
        pytest.skip("there may be a GPU here")
    config = b'{"instance_group": [{"kind": "KIND_GPU"}]}'
    with pytest.raises(ModelNotReady, match="KIND_GPU"):
        engines.load(linear().content, variant(linear(), config), SETTINGS)


# --------------------------------------------------------------------------- torch


@pytest.fixture(scope="module")
def program():
    """A network with an operator that no exporter to ONNX knows, as a `.pt2`, and what it answers."""
    torch = pytest.importorskip("torch", reason="no torch: the extra `torch` is not installed")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def forward(self, x):
            return torch.special.bessel_j0(self.linear(x)), x.sum(1)

    torch.manual_seed(0)
    network = Network().eval()
    with warnings.catch_warnings(action="ignore"):
        dim = torch.export.Dim("batch")
        exported = torch.export.export(network, (torch.zeros(2, 4),), dynamic_shapes=({0: dim},))
        file = io.BytesIO()
        torch.export.save(exported, file)
    return TorchModel(file.getvalue()), lambda x: [each.detach().numpy() for each in network(torch.from_numpy(x))]


class TorchModel:
    batch_cap = 32
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 4), batch_axis=0),),
        outputs=(
            TensorSpec(name="y", datatype="FP32", shape=("batch", 3), batch_axis=0),
            TensorSpec(name="sum", datatype="FP32", shape=("batch",), batch_axis=0),
        ),
    )

    def __init__(self, content):
        self.content = content


async def test_a_program_gives_the_answers_of_its_module(executor, program):
    model, module = program
    engine = engines.load(model.content, variant(model, COUNT, "torch"), SETTINGS)
    assert (engine.runtime.engine, engine.runtime.provider, engine.runtime.threads) == ("torch", "cpu", 2)
    assert engine.runtime.options == {"compiled": False, "instances": 4}
    for rows in (1, 7):
        given = ROWS[:rows]
        given.flags.writeable = False  # as tensors of a request are
        for found, expected in zip(await answers(engine, executor, x=given), module(ROWS[:rows].copy()), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


COMPILED = b'{"parameters": {"torch_compile": 1}}'


@pytest.mark.parametrize(("eager_s", "compiled_s", "kept"), [(0.03, 0.0, True), (0.0, 0.03, False)])
async def test_what_was_compiled_serves_only_where_it_is_faster(
    executor, program, monkeypatch, eager_s, compiled_s, kept
):
    import torch  # noqa: PLC0415 - `program` skips where it is missing

    model, module = program
    load = torch.export.load

    def slowed(run, seconds):
        def running(*given):
            time.sleep(seconds)
            return run(*given)

        return running

    def loaded(file):
        exported = load(file)
        monkeypatch.setattr(exported, "module", lambda: slowed(original(), eager_s))
        return exported

    original = load(io.BytesIO(model.content)).module
    monkeypatch.setattr(torch.export, "load", loaded)
    monkeypatch.setattr(torch, "compile", lambda _, dynamic: slowed(original(), compiled_s if dynamic else 0))
    engine = engines.load(model.content, variant(model, COMPILED, "torch"), SETTINGS)
    assert engine.runtime.options == {"compiled": kept}
    for found, expected in zip(await answers(engine, executor, x=ROWS.copy()), module(ROWS.copy()), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here: torch.compile needs one")
async def test_a_program_that_is_compiled_gives_the_same_answers(executor, program, monkeypatch):
    model, module = program
    torch_engine = pytest.importorskip("services.worker.torch_engine")
    monkeypatch.setattr(torch_engine, "_GAIN", 0.0)  # whether it pays or not
    engine = engines.load(model.content, variant(model, COMPILED, "torch"), SETTINGS)
    assert engine.runtime.options == {"compiled": True}
    for rows in (1, 7):
        for found, expected in zip(
            await answers(engine, executor, x=ROWS[:rows].copy()), module(ROWS[:rows].copy()), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_is_no_program_or_another_one_does_not_load(program):
    model, _ = program
    with pytest.raises(ModelNotReady, match="torch does not load"):
        engines.load(b"PK\x03\x04 no program", variant(model, engine="torch"), SETTINGS)
    with pytest.raises(ModelNotReady, match="takes and gives"):
        engines.load(model.content, variant(linear(), engine="torch"), SETTINGS)


def test_an_option_of_the_other_engine_does_not_load(program):
    model, _ = program
    with pytest.raises(ModelNotReady, match="execution_mode"):
        engines.load(model.content, variant(model, b'{"parameters": {"execution_mode": 1}}', "torch"), SETTINGS)
    with pytest.raises(ModelNotReady, match="torch_compile"):
        engines.load(linear().content, variant(linear(), b'{"parameters": {"torch_compile": 1}}'), SETTINGS)


def test_a_worker_says_what_it_has_and_what_it_lacks(monkeypatch):
    machine = engines.environment(SETTINGS)
    assert machine.engines["onnxruntime"] == ort.__version__
    assert machine.cpus >= 1
    assert machine.memory_bytes > 2**20
    monkeypatch.setattr(engines, "installed", lambda: {"onnxruntime": "1"})
    with pytest.raises(ModelNotReady, match="no engine 'torch'"):
        engines.load(b"", variant(linear(), engine="torch"), SETTINGS)


def test_configurations_that_build_the_same_session_are_one():
    assert RuntimeConfig(max_batch_size=4).session_sha256 is None
    first, second = parse(COUNT), parse(b'{"max_batch_size": 2, "instance_group": [{"count": "4"}]}')
    assert first.session_sha256 == second.session_sha256 is not None
    assert (second.row_cap(32), second.row_cap(1), parse(b'{"max_batch_size": 0}').row_cap(32)) == (2, 1, 1)
