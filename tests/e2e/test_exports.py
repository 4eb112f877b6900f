"""A served version out again as a file: built by an event, written by the command line, loaded by its own framework."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import onnxruntime as ort
import pytest

from support import uploads
from support.processing import template_matcher
from support.trained import untrained
from support.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]
ROWS = np.random.default_rng(5).random((9, 1, 8, 8)).astype(np.float32)
TOLERANCE = 1e-4
"""As docs/export.md says."""


@pytest.fixture(scope="module")
def aiaas(stack):
    """The command line, as a process; returns exit code, stdout and stderr."""

    async def run(*arguments):
        command = [sys.executable, "-m", "services.cli", *map(str, arguments)]
        environment = {**os.environ, "AIAAS_GATEWAY_URL": stack.gateway_url, "NO_COLOR": "1"}
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, timeout=300, check=False, env=environment
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A convolutional network that computes shapes itself, as its exporter wrote it, as a file."""
    file = tmp_path_factory.mktemp("exports") / "model.onnx"
    file.write_bytes(untrained("encoder").SerializeToString())
    return file


@pytest.fixture(scope="module")
def served(aiaas, backbone, digits):
    """The name of that network once it is served."""
    name = backbone.model()

    async def upload():
        code, _, error = await aiaas("models", "upload", digits, "--name", name, "--wait")
        assert code == 0, error

    asyncio.run(upload())
    return name


def expected(content, rows):
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": rows})[0]


async def exported(aiaas, what, file_format, out):
    code, told, error = await aiaas("models", "export", what, "--format", file_format, "--out", out, "--json")
    assert code == 0, error
    made = json.loads(told)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == made["sha256"]
    assert out.stat().st_size == made["byte_size"]
    return made


async def test_onnx_is_the_variants_bytes(aiaas, served, tmp_path):
    made = await exported(aiaas, served, "onnx", tmp_path / "out.onnx")
    code, told, _ = await aiaas("models", "show", served, "--version", "1", "--json")
    assert code == 0
    chosen = next(variant for variant in json.loads(told)["variants"] if variant["chosen"])
    assert made["sha256"] == chosen["sha256"]
    assert made["variant"] == chosen["name"]


async def test_pt2_loads_by_torch_alone_and_answers_alike(aiaas, served, digits, tmp_path):
    torch = pytest.importorskip("torch")
    out = tmp_path / "out.pt2"
    made = await exported(aiaas, f"{served}:1", "pt2", out)
    assert {each["batch_size"] for each in made["parity"]} == {1, 2, 8}
    assert made["tools"]["torch"]
    extra = {"aiaas.json": ""}
    with warnings.catch_warnings(action="ignore"):
        program = torch.export.load(out, extra_files=extra).module()
        for rows in (1, 4, 9):
            [found] = program(torch.from_numpy(ROWS[:rows]))
            wanted = expected(digits.read_bytes(), ROWS[:rows])
            np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=TOLERANCE, atol=TOLERANCE)
    assert json.loads(extra["aiaas.json"])["inputs"][0]["name"] == "image"


async def test_torchscript_loads_by_torch_alone_and_answers_alike(aiaas, served, digits, tmp_path):
    torch = pytest.importorskip("torch")
    out = tmp_path / "out.pt"
    await exported(aiaas, served, "torchscript", out)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        module = torch.jit.load(out)
        for rows in (1, 4, 9):
            [found] = module(torch.from_numpy(ROWS[:rows]))
            wanted = expected(digits.read_bytes(), ROWS[:rows])
            np.testing.assert_allclose(found.numpy(), wanted, rtol=TOLERANCE, atol=TOLERANCE)


async def test_what_was_built_is_not_built_again(aiaas, served, tmp_path):
    first = await exported(aiaas, served, "bundle", tmp_path / "1.zip")
    again = await exported(aiaas, served, "bundle", tmp_path / "2.zip")
    assert again["id"] == first["id"]


async def test_a_bundle_has_all_and_is_served_again(aiaas, backbone, tmp_path):
    templates = np.random.default_rng(1).random((3, 64)).astype(np.float32)
    (tmp_path / "model.onnx").write_bytes(template_matcher(templates).content)
    (tmp_path / "labels.txt").write_text("cat\ndog\nfox\n")
    declared = {
        "preprocessing": [
            {"kind": "decode_image", "output": "x", "width": 8, "height": 8, "color": "L", "layout": "N"}
        ],
        "postprocessing": [
            {"kind": "top_k", "output": "scores", "values": "confidence", "indices": "class", "k": 1},
            {"kind": "labels", "indices": "class", "into": "label", "labels": "labels.txt"},
        ],
    }
    (tmp_path / "processing.json").write_text(json.dumps(declared))

    async def upload(directory, name):
        steps = ("--processing", directory / "processing.json")
        code, _, error = await aiaas("models", "upload", directory / "model.onnx", "--name", name, *steps, "--wait")
        assert code == 0, error

    name = backbone.model()
    await upload(tmp_path, name)
    await exported(aiaas, name, "bundle", tmp_path / "bundle.zip")
    again = tmp_path / "again"
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        assert set(archive.namelist()) == {
            "model.onnx",
            "labels-1.txt",
            "processing.json",
            "config.json",
            "provenance.json",
            "README.md",
        }
        assert archive.testzip() is None
        archive.extractall(again)
    assert (again / "labels-1.txt").read_text().split() == ["cat", "dog", "fox"]
    made_of = json.loads((again / "provenance.json").read_text())
    assert made_of["sha256"] == hashlib.sha256((again / "model.onnx").read_bytes()).hexdigest()
    assert made_of["lineage"][0]["sha256"] == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
    await upload(again, f"{name}-again")


async def test_operators_that_are_not_covered_are_named(aiaas, backbone, tmp_path):
    (tmp_path / "model.onnx").write_bytes(uploads.elementwise("Acos").SerializeToString())
    name = backbone.model()
    code, _, error = await aiaas("models", "upload", tmp_path / "model.onnx", "--name", name, "--wait")
    assert code == 0, error
    out = tmp_path / "out.pt2"
    code, _, error = await aiaas("models", "export", name, "--format", "pt2", "--out", out)
    assert code == 1
    assert "not_exportable" in error
    assert "Acos" in error
    assert not out.exists()


async def test_a_format_that_nobody_here_can_build_is_refused(aiaas, served, tmp_path):
    code, _, error = await aiaas("models", "export", served, "--format", "savedmodel", "--out", tmp_path / "out.zip")
    assert code == 1
    assert "tensorflow, which no live optimizer has" in error


# --------------------------------------------------------------------------- how workers run it


async def test_options_are_taken_up_without_a_failed_request(aiaas, stack, served, tmp_path):
    import httpx  # noqa: PLC0415 - of this test alone

    config = {
        "max_batch_size": 4,
        "instance_group": [{"kind": "KIND_CPU", "count": 2}],
        "parameters": {"intra_op_thread_count": {"string_value": "1"}},
        "optimization": {"graph": {"level": 1}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensor = {"name": "image", "datatype": "FP32", "shape": [4, 1, 8, 8], "data": ROWS[:4].ravel().tolist()}
    statuses, stop = [], asyncio.Event()

    async with httpx.AsyncClient(base_url=stack.gateway_url, timeout=30) as http:

        async def ask():
            while not stop.is_set():
                answer = await http.post(f"/v2/models/{served}/infer", json={"inputs": [tensor]})
                statuses.append(answer.status_code)

        callers = [asyncio.create_task(ask()) for _ in range(2)]
        code, _, error = await aiaas("models", "configure", served, "--file", tmp_path / "config.json")
        assert code == 0, error

        async def workers():
            return (await http.get(f"/v2/models/{served}/config")).json()["workers"]

        async def taken_up():
            held = await workers()
            return held and all(worker["configured"] and worker["threads"] == 1 for worker in held)

        await eventually(taken_up, within_s=60, what="the options on all workers")
        asked = len(statuses)
        await eventually(lambda: len(statuses) > asked + 5, within_s=60, what="answers with them")
        stop.set()
        await asyncio.gather(*callers)
        shown = (await http.get(f"/v2/models/{served}/config")).json()
    assert set(statuses) == {200}
    assert shown["max_batch_size"] == 4
    assert shown["parameters"] == {"intra_op_thread_count": {"string_value": "1"}}
    assert shown["optimization"] == {"graph": {"level": 1}}
    assert {group["kind"] for group in shown["instance_group"]} == {"KIND_CPU"}
    code, told, _ = await aiaas("models", "configure", served)
    assert "CPUExecutionProvider" in told


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"sequence_batching": {}}, "sequence_batching"),
        ({"max_batch_size": 1000}, "max_batch_size"),
        ({"parameters": {"torch_compile": 1}}, "torch_compile"),
        ({"instance_group": [{"kind": "KIND_GPU"}]}, "KIND_GPU"),
    ],
)
async def test_an_option_that_would_do_nothing_is_refused_by_its_name(aiaas, served, tmp_path, config, named):
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, error = await aiaas("models", "configure", served, "--file", tmp_path / "config.json")
    assert code == 1
    assert named in error


async def test_live_workers_say_what_they_are(stack):
    import httpx  # noqa: PLC0415 - of this test alone

    async with httpx.AsyncClient(base_url=stack.gateway_url) as http:
        found = (await http.get("/v2/workers")).json()
    workers = [each for each in found if each["service"] == "worker"]
    assert workers
    for each in found:
        assert each["machine"]["engines"]["onnxruntime"] == ort.__version__
        assert each["machine"]["python"].startswith("3.")
